"""The figure of count error and F1 against local density, against the metrics of the scores that it is drawn from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from raz.report.figures.density_quartiles import quartile_figures
from raz.report.statistics import summarize
from tests.test_score_file import fill_store, table_of

TABLE = """
table: passes
metrics: [test.mae]
seeds: [0, 1]
profiles:
  toy: {base: {preset: tiny}, datasets: [toy]}
rows:
  density: {set: {depth: 1, fusion.rule: density}}
  one: {set: {depth: 1}}
  two: {set: {depth: 2}}
  few: {set: {depth: 2, zooming.k_z: 1}}
"""


def test_a_line_a_pass_of_each_quartile(tmp_path: Path) -> None:
    filled = fill_store(tmp_path, table_of(TABLE), "toy")
    (drawn,) = quartile_figures(filled, "toy")
    assert list(dict.fromkeys(row["line"] for row in drawn.rows)) == ["1 pass", "2 passes", "few"]
    assert list(dict.fromkeys(row["of"] for row in drawn.rows)) == [
        "count error, % of the heads", "F1 at 8 px", "F1 at 4 px",
    ]  # fmt: skip
    assert len(drawn.rows) == 3 * 3 * 4
    for row in drawn.rows:
        name = {"1 pass": "density", "2 passes": "two"}.get(str(row["line"]), str(row["line"]))
        cell, q = filled.cells[name, "toy"], row["quartile"]
        if row["of"] == "F1 at 4 px":
            values = list(cell.values(f"test.f1_q{q}@4").values())
        elif row["of"] == "F1 at 8 px":
            values = list(cell.values(f"test.f1_q{q}@8").values())
        else:
            counts = [cell.scores[seed].per_image("test").one_to_one for seed in (0, 1)]
            values = [
                100 * float(c.points[:, int(q) - 1].sum() / c.heads[:, int(q) - 1].sum() - 1) for c in counts if c
            ]  # fmt: skip
        assert row["n"] == 2
        assert row["value"] == pytest.approx(np.mean(values))
        sd = summarize(values).sd
        assert sd is not None
        assert row["high"] - row["value"] == pytest.approx(12.7062 * sd / np.sqrt(2), rel=1e-4, abs=1e-9)
    assert sum(bool(trace.get("showlegend")) for trace in drawn.traces) == 3  # each line once
    json.dumps(drawn.spec, allow_nan=False)


def test_one_seed_has_intervals_over_images(tmp_path: Path) -> None:
    filled = fill_store(tmp_path, table_of(TABLE.replace("[0, 1]", "[3]")), "toy")
    (drawn,) = quartile_figures(filled, "toy")
    assert all(row["low"] < row["high"] for row in drawn.rows if row["of"] != "F1 at 4 px")
    assert sum(row["low"] <= row["value"] <= row["high"] for row in drawn.rows) > 0.9 * len(drawn.rows)


def test_a_table_of_one_depth_has_none(tmp_path: Path) -> None:
    text = TABLE.replace("depth: 2", "depth: 1")
    text = text.replace("  two: {set: {depth: 1}}\n", "")
    assert list(quartile_figures(fill_store(tmp_path, table_of(text), "toy"), "toy")) == []
