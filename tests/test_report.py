"""Reports against small cases worked out by hand, and every format against what would break it."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from raz.cli.report import fill_command, report_command
from raz.config import TrialConfig
from raz.errors import RazError
from raz.pipeline.events import StageUse
from raz.report.fill import FilledTable, fill_table
from raz.report.layout import Report, TextTable, metric_title
from raz.report.render import csv_text, json_text, latex, markdown, terminal
from raz.report.score_index import TrialScores
from raz.report.statistics import Summary, difference, prediction_interval, summarize, verdict
from raz.report.study import study_report
from raz.report.tables import table_report
from raz.spec.ablation_yaml import load_table, parse_table
from raz.store.manifest import Manifest
from raz.study.records import TrialRecord
from raz.utils.yamlfile import parse
from tests.fields import with_field

TABLE = """\
table: two_rows
title: Depth & more
paper: Table 9
metrics: [test.mae, test.rmse]
seeds: [0, 1, 2]
profiles:
  toy: {base: {preset: tiny}, datasets: [toy]}
  small: {base: {preset: small}, datasets: [shanghaitech_a]}
  paper: {base: {preset: paper}, datasets: [shanghaitech_a, ucf_qnrf]}
rows:
  loc_1: {set: {depth: 1}, paper: [[70.0, 133.0], [135, 246]]}
  loc_2: {set: {depth: 2}, paper: [[71.6, 120.1], [118, 198]]}
misprints:
  - {row: loc_2, dataset: shanghaitech_a, metric: test.rmse, note: a slip of the pen}
"""


@pytest.fixture(autouse=True)
def readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """UCF_QNRF has no reader here, whichever readers raz.data has."""
    monkeypatch.setattr("raz.report.fill.readable_datasets", lambda data_root: ("toy", "shanghaitech_a"))


class FakeLookup:
    """Scores of depth 1 for every seed and of depth 2 for none; records the configurations it is called with."""

    def __init__(self, heads: float = 78_862.0) -> None:
        self.requested: list[TrialConfig] = []
        self.heads = heads

    def __call__(
        self, config: TrialConfig, seeds: Sequence[int], *, data_root: Path | None, splits: tuple[str, ...]
    ) -> dict[int, TrialScores]:
        assert splits == ("test",)
        self.requested += [replace(config, seed=seed) for seed in seeds]
        if config.depth > 1:
            return {}
        return {
            seed: scores_of_metrics(
                {
                    "test.mae": [68.0, 70.0, 72.0][seed], "test.rmse": [110.0, 110.0, math.nan][seed],
                    "test.images": 182.0, "test.heads": self.heads,
                }
            )
            for seed in seeds
        }  # fmt: skip


def scores_of_metrics(metrics: dict[str, float]) -> TrialScores:
    return TrialScores(metrics, {}, {}, {})


def filled(profile: str = "small", lookup: object = None) -> FilledTable:
    table = parse_table(parse(TABLE, "t.yaml"))
    return fill_table(table, table.profile(profile), Path("nowhere"), lookup=lookup or FakeLookup())  # type: ignore[arg-type]


def zoomed(
    config: TrialConfig, seeds: Sequence[int], *, data_root: Path | None, splits: tuple[str, ...]
) -> dict[int, TrialScores]:
    return {
        seed: scores_of_metrics(
            {
                "test.mae": 1.0 + seed, "test.rmse": 2.0, "test.regions_per_image": 4.0 * (config.depth - 1),
                "test.images_zoomed": 0.5,
            }
        )
        for seed in seeds
    }  # fmt: skip


def test_a_table_is_filled_and_counted_with_the_seeds_of_its_profile() -> None:
    table = parse_table(parse(TABLE.replace("[shanghaitech_a]}", "[shanghaitech_a], seeds: [2]}"), "t.yaml"))
    lookup = FakeLookup()
    cells = fill_table(table, table.profile("small"), Path("nowhere"), lookup=lookup)
    assert [config.seed for config in lookup.requested] == [2, 2]
    assert (cells.wanted, cells.missing) == (2, 1)
    report = table_report(cells)
    assert [line[-3] for line in report.sheets[0].lines] == ["1/1", "0/1"]
    assert report.facts["seeds"] == [2]
    assert "requested seeds: 2." in report.notes[0]
    assert fill_table(table, table.profile("toy"), Path("nowhere"), lookup=FakeLookup()).wanted == 6


# ------------------------------------------------------------------------------------ statistics


def test_mean_and_deviation_by_hand() -> None:
    assert summarize([68.0, 70.0, 72.0]) == Summary(3, 70.0, 2.0)  # ((-2)² + 0 + 2²) / (3 - 1) = 4
    assert summarize([5.0]) == Summary(1, 5.0, None)
    assert summarize([]) == Summary(0, None, None)
    with pytest.raises(ValueError, match="expected finite"):
        summarize([1.0, math.inf])


def test_the_difference_needs_both_numbers() -> None:
    assert difference(Summary(2, 70.0, 1.0), 67.5) == 2.5
    assert difference(Summary(0, None, None), 67.5) is None
    assert difference(Summary(2, 70.0, 1.0), None) is None


def test_a_further_run_is_expected_in_the_prediction_interval() -> None:
    """t(0.975, 2) = 4.302653 from tables; half = 4.302653 * 2 * sqrt(4/3) = 9.936550."""
    interval = prediction_interval(summarize([68.0, 70.0, 72.0]))
    assert interval == pytest.approx((70 - 9.936550, 70 + 9.936550), abs=1e-4)
    assert verdict(summarize([68.0, 70.0, 72.0]), 79.9) == "agrees"
    assert verdict(summarize([68.0, 70.0, 72.0]), 80.0) == "differs"
    assert verdict(summarize([68.0]), 68.0) == "too few runs"  # one run says nothing of the next
    assert verdict(summarize([68.0, 70.0]), None) == ""


# ------------------------------------------------------------------------------------ filling


def test_every_trial_of_the_table_is_looked_up_as_a_run_would_make_it() -> None:
    fake = FakeLookup()
    result = filled(lookup=fake)
    assert sorted((c.depth, c.seed, c.dataset) for c in fake.requested) == [
        (depth, seed, "shanghaitech_a") for depth in (1, 2) for seed in (0, 1, 2)
    ]
    assert result.cells["loc_1", "shanghaitech_a"].values("test.mae") == {0: 68.0, 1: 70.0, 2: 72.0}
    assert result.cells["loc_1", "shanghaitech_a"].values("test.rmse") == {0: 110.0, 1: 110.0}  # not a number: out
    assert (result.wanted, result.missing) == (6, 3)


def test_a_data_set_that_cannot_be_opened_leaves_the_others_alone() -> None:
    def stored(
        config: TrialConfig, seeds: Sequence[int], *, data_root: Path | None, splits: tuple[str, ...]
    ) -> dict[int, TrialScores]:
        raise RazError(config.dataset, "no folder given", "--data-root DIR")

    result = filled("paper", stored)
    assert result.problems["shanghaitech_a"] == "shanghaitech_a: no folder given\n  try: --data-root DIR"
    assert "has no reader" in result.problems["ucf_qnrf"]
    assert (result.wanted, result.missing) == (6, 6)  # what no reader can give is not asked of a run
    text = terminal(table_report(result, "raz-sweep run x"))
    assert "no folder given" in text
    assert text.endswith("raz-sweep run x\n")


def test_an_empty_store_opens_no_data_set(tmp_path: Path) -> None:
    table = parse_table(parse(TABLE, "t.yaml"))
    result = fill_table(table, table.profile("small"), tmp_path)
    assert (dict(result.problems), result.missing) == ({}, 6)


def test_scores_are_found_where_the_pipeline_puts_them(tmp_path: Path) -> None:
    from raz.pipeline.graph import Node
    from raz.pipeline.keys import stage_keys
    from raz.store.cache import StageCache, write_json

    table = parse_table(parse(TABLE.replace("[0, 1, 2]", "[0]"), "t.yaml"))
    profile = table.profile("toy")
    config = table.config(profile, table.row("loc_2"), "toy", 0)
    key = stage_keys(config, splits=("test",))[Node("score", "test")]
    StageCache(tmp_path).publish(key, lambda f: write_json(f / "metrics.json", {"mae": 3.5}), Manifest(seconds=0.0))
    result = fill_table(table, profile, tmp_path)
    assert result.cells["loc_2", "toy"].values("test.mae") == {0: 3.5}
    assert dict(result.cells["loc_1", "toy"].scores) == {}


# ------------------------------------------------------------------------------------ the report of a table


def test_markdown_of_a_hand_made_table() -> None:
    text = markdown(table_report(filled(), "raz-sweep run t.yaml --profile small"))
    lines = text.splitlines()
    assert lines[0] == "## two_rows: Depth &amp; more"
    assert lines[2] == "### ShanghaiTech_A"
    assert lines[4:8] == [
        "| row | MAE | paper | diff | RMSE | paper | diff | n | regions per image | images zoomed |",
        "|:--|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        "| loc_1 | 70.0 ± 2.0 | 70.0 | 0.0 | 110.0 ± 0.0 (n 2) | 133.0 | −23.0 | 3/3 |  |  |",
        r"| loc_2 | - | 71.6 | - | - | 120.1 \[1\] | - | 0/3 | - | - |",
    ]
    assert r"- \[1\] a slip of the pen; shown as printed." in lines
    assert "- 3 of 6 trials (row x data set x seed) are not in the store." in lines
    assert lines[-2] == "raz-sweep run t.yaml --profile small"


def test_rmse_is_explained_once_and_verdicts_are_for_the_paper_profile_alone() -> None:
    small, paper = markdown(table_report(filled())), markdown(table_report(filled("paper")))
    assert small.count('"MSE"') == paper.count('"MSE"') == 1
    assert "agrees" not in small
    assert "| loc_1 | 70.0 ± 2.0 | 70.0 | 0.0 | agrees |" in paper
    assert "| loc_1 | - | 135 | - |  | - | 246 | - |  | 0/3 |  |  |" in paper  # 135 is printed without a decimal


def test_a_verdict_needs_imagenet_weights_and_the_same_annotations() -> None:
    assert "| agrees |" in markdown(
        table_report(filled("paper", FakeLookup(78_700.0)))
    )  # the other circulating version
    assert "| agrees |" not in markdown(table_report(filled("paper", FakeLookup(70_000.0))))
    table = parse_table(parse(TABLE, "t.yaml", strict=False), {"backbone.weights": "none"}, "paper")
    other = fill_table(table, table.profile("paper"), Path("nowhere"), lookup=FakeLookup())
    assert "| agrees |" not in markdown(table_report(other))


def test_a_marked_misprint_is_not_compared_with() -> None:
    report = table_report(filled("small", zoomed))
    assert "| 2.0 ± 0.0 | 120.1 \\[1\\] | - | 3/3 | 4.0 ± 0.0 | 50 % |" in markdown(report)
    (record,) = [r for r in report.records if r["row"] == "loc_2" and r["metric"] == "test.rmse"]
    assert (record["printed"], record["difference"], record["misprint"]) == (120.1, None, "a slip of the pen")


def test_on_another_data_set_the_papers_numbers_stand_without_a_difference() -> None:
    report = table_report(filled("toy", zoomed))
    assert report.sheets[0].header[:3] == ("row", "MAE", "paper (ShanghaiTech_A)")
    assert "diff" not in report.sheets[0].header
    assert any("another data set" in note for note in report.notes)
    assert {r["printed"] for r in report.records} == {None}


def test_a_full_table_asks_for_nothing() -> None:
    report = table_report(filled("small", zoomed), "raz-sweep run t.yaml")
    assert report.command == ""
    assert "raz-sweep run" not in terminal(report)


def test_many_metrics_stand_one_to_a_line(tmp_path: Path) -> None:
    from raz.utils.shipped import shipped

    table = load_table(shipped("ablations")["localization"])
    report = table_report(fill_table(table, table.profile("small"), tmp_path), "fill")
    sheet = report.sheets[0]
    assert sheet.header == ("metric", "row", "mean", "paper", "diff", "n")
    assert ("AR.50 (sigma 5)", "main+raz", "-", "0.409 [1]", "-", "0/3") in sheet.lines
    assert ("AP.75 (sigma 5)", "main", "-", "0.120", "-", "0/3") in sheet.lines  # with the printed zero
    assert all(len(line) == len(sheet.header) for line in sheet.lines)


@pytest.mark.parametrize(
    ("metric", "title"),
    [
        ("test.mae", "MAE"),
        ("val.rmse", "RMSE (validation)"),
        ("test.ap50@40", "AP.50 (sigma 40)"),
        ("val.mar@5", "mAR (sigma 5, validation)"),
        ("test.mae_density", "MAE density"),
        ("test.f1@8", "F1 (8 px)"),
        ("val.f1_q4@2.5", "F1 Q4 (2.5 px, validation)"),
        ("test.recall_q1@4", "recall Q1 (4 px)"),
        ("test.mae_points_q2", "MAE points Q2"),
        ("test.images_zoomed", "images zoomed"),
    ],
)
def test_metrics_have_the_papers_names(metric: str, title: str) -> None:
    assert metric_title(metric) == title


# ------------------------------------------------------------------------------------ differences and claims

CLAIMS = (
    TABLE
    + """\
base_row: loc_1
claims:
  - {say: deeper is better, rows: {loc_2: 1, loc_1: -1}, expect: less, metrics: [test.mae]}
"""
)


def both(*seeds: int, gain: float = -2.0) -> object:
    """Depth 2 is better by 2 ± 0.1, whatever the seed is worth."""

    def stored(
        config: TrialConfig, wanted: Sequence[int], *, data_root: Path | None, splits: tuple[str, ...]
    ) -> dict[int, TrialScores]:
        worth = {0: 60.0, 1: 75.0, 2: 90.0}
        step = {0: 0.1, 1: 0.0, 2: -0.1}
        return {
            seed: scores_of_metrics(
                {"test.mae": worth[seed] + (config.depth - 1) * (gain + step[seed]), "test.rmse": 9.0}
            )
            for seed in seeds
        }

    return stored


def claims(*seeds: int, gain: float = -2.0) -> Report:
    table = parse_table(parse(CLAIMS, "t.yaml"))
    look = both(*seeds, gain=gain)
    return table_report(fill_table(table, table.profile("small"), Path("nowhere"), lookup=look))  # type: ignore[arg-type]


def test_differences_are_paired_by_seed() -> None:
    """Seeds differ by 30 and rows by 2: only the paired difference shows it. sd 0.1, t(0.975, 2) = 4.3027."""
    report = claims(0, 1, 2)
    (line,) = [
        line for sheet in report.sheets if "differences" in sheet.title for line in sheet.lines if line[0] == "MAE"
    ]
    assert line == ("MAE", "loc_2", "−2.0 [−2.2, −1.8]", "3 seeds", "", "differs")
    assert "Student t" in " ".join(report.notes)
    (record,) = [r for r in report.records if r.get("row") == "loc_2" and r["metric"] == "test.mae"]
    assert record["to_base"]["low"] == pytest.approx(-2 - 4.302653 * 0.1 / math.sqrt(3), abs=1e-5)
    assert record["to_base"]["p"] is None  # three seeds: an interval, no p


def test_rows_of_the_same_numbers_are_called_the_same() -> None:
    """RMSE is 9 in every run of both rows; one run says nothing of others."""
    for seeds, expected in (((0, 1, 2), "the same"), ((0,), "one run")):
        sheets = [sheet for sheet in claims(*seeds).sheets if "differences" in sheet.title]
        assert [line[-1] for sheet in sheets for line in sheet.lines if line[0] == "RMSE"] == [expected]


@pytest.mark.parametrize(
    ("seeds", "gain", "ours"),
    [
        ((0, 1, 2), -2.0, "holds"),
        ((0, 1, 2), 2.0, "does not"),
        ((0, 1, 2), 0.02, "cannot tell"),
        ((1,), -2.0, "cannot tell"),
    ],
)
def test_a_claim_holds_or_not_or_cannot_be_told(seeds: tuple[int, ...], gain: float, ours: str) -> None:
    (sheet,) = [sheet for sheet in claims(*seeds, gain=gain).sheets if "claims" in sheet.title]
    ((_, metric, paper, _, _, verdict_text),) = sheet.lines
    assert (metric, paper, verdict_text) == ("MAE", "+1.6 does not", ours)  # printed 71.6 against 70.0


def test_figures_are_data_first() -> None:
    """Each shows what the cells hold, and nothing is drawn of empty ones."""
    from raz.report.figures.table_figures import table_figures

    table = parse_table(
        parse(
            CLAIMS.replace("loc_1: {set: {depth: 1}", "loc_3: {set: {depth: 3}}\n  loc_1: {set: {depth: 1}"), "t.yaml"
        )
    )
    look = both(0, 1, 2)
    filled = fill_table(table, table.profile("small"), Path("nowhere"), lookup=look)  # type: ignore[arg-type]
    figures = {f.title: f for f in table_figures(filled)}
    by_depth = figures["MAE by depth, ShanghaiTech_A"]
    assert [(row["depth"], row["mean"]) for row in by_depth.rows] == [
        (3, pytest.approx(71.0)), (1, 75.0), (2, pytest.approx(73.0)),
    ]  # fmt: skip
    (line,) = by_depth.spec["data"]
    assert (line["x"], line["y"]) == ([1, 2, 3], [75.0, pytest.approx(73.0), pytest.approx(71.0)])
    half = 4.302653 * 15 / math.sqrt(3)
    assert line["error_y"]["array"][0] == pytest.approx(half, abs=1e-3)
    assert "MAE: differences to loc_1, ShanghaiTech_A" in figures
    assert table_figures(fill_table(table, table.profile("small"), Path("nowhere"))) == ()
    json.dumps([figure.spec for figure in figures.values()], allow_nan=False)


def test_pictures_need_kaleido_or_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raz.report.figures.export import write_figures
    from raz.report.figures.style import figure

    monkeypatch.setitem(sys.modules, "kaleido", None)
    one = figure("A b/c", [{"x": 1}], [{"type": "scatter", "x": [1], "y": [1]}], "x", "y")
    with pytest.raises(RazError, match=r"--png: kaleido is not installed\n  try: pip install 'raz-sweep\[images\]'"):
        write_figures([one], tmp_path / "f", "png")
    with pytest.raises(RazError, match="nothing to draw"):
        write_figures([], tmp_path / "f", "svg")
    assert not (tmp_path / "f").exists()


def test_the_best_row_is_marked_only_when_it_is_told_from_all_others() -> None:
    assert "| loc_2 | 73.0 ± 14.9 \\* |" in markdown(claims(0, 1, 2))
    assert "\\*" not in markdown(claims(0, 1, 2, gain=0.02)).partition("### ")[2].partition("\n- ")[0]
    assert "\\*" not in markdown(claims(0)).partition("### ")[2].partition("\n- ")[0]


def test_one_seed_is_paired_by_image(tmp_path: Path) -> None:
    """Without a second seed, images tell whether these two models differ; the report says so."""
    import numpy as np

    rng = np.random.default_rng(0)
    truth = rng.uniform(50, 500, 80)
    noise = rng.normal(0, 30, 80)
    folders = {}
    for depth in (1, 2):
        folder = folders[depth] = tmp_path / str(depth)
        folder.mkdir()
        fused = truth + noise * (1.0 if depth == 1 else 0.7)
        np.savez(
            folder / "per_image.npz", ids=np.array([f"i{k}" for k in range(80)]), truth=truth, fused=fused,
            regions=np.zeros((80, 0)),
        )  # fmt: skip

    def stored(
        config: TrialConfig, seeds: Sequence[int], *, data_root: Path | None, splits: tuple[str, ...]
    ) -> dict[int, TrialScores]:
        error = np.abs(noise) * (1.0 if config.depth == 1 else 0.7)
        metrics = {"test.mae": float(error.mean()), "test.rmse": float(np.sqrt((error**2).mean()))}
        return {0: TrialScores(metrics, {}, {}, {"test": folders[config.depth]})}

    table = parse_table(parse(CLAIMS, "t.yaml"))
    report = table_report(fill_table(table, table.profile("small"), tmp_path, lookup=stored))
    (sheet,) = [sheet for sheet in report.sheets if "differences" in sheet.title]
    assert [(line[0], line[3], line[5]) for line in sheet.lines] == [
        ("MAE", "80 images", "differs"), ("RMSE", "80 images", "differs"),
    ]  # fmt: skip
    assert any("these trained models" in note for note in report.notes)
    record = next(r for r in report.records if r.get("row") == "loc_2")
    d = 0.3 * np.abs(noise)
    assert -record["to_base"]["high"] < d.mean() < -record["to_base"]["low"]
    whole = (folders[2] / "per_image.npz").read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-100]):  # as an interrupted copy leaves it
        (folders[2] / "per_image.npz").write_bytes(damaged)
        with pytest.raises(RazError, match="cannot be read"):
            TrialScores({}, {}, {}, {"test": folders[2]}).per_image("test")
    (folders[2] / "per_image.npz").write_bytes(b"damaged")
    report = table_report(fill_table(table, table.profile("small"), tmp_path, lookup=stored))
    (sheet,) = [sheet for sheet in report.sheets if "differences" in sheet.title]
    assert {line[5] for line in sheet.lines} == {"one run"}


# ------------------------------------------------------------------------------------ provenance


def score_of(tmp_path: Path, seed: int, value: float) -> Path:
    from raz.pipeline.graph import Node
    from raz.pipeline.keys import stage_keys
    from raz.store.cache import StageCache, write_json

    table = parse_table(parse(TABLE, "t.yaml"))
    config = table.config(table.profile("toy"), table.row("loc_2"), "toy", seed)
    key = stage_keys(config, splits=("test",))[Node("score", "test")]
    about = Manifest(seconds=1.0, device="cpu", versions={"commit": f"c{seed}", "torch": "2"})
    write = lambda folder: write_json(folder / "metrics.json", {"mae": value})  # noqa: E731
    return StageCache(tmp_path).publish(key, write, about).folder


def toy_cell(store: Path) -> FilledTable:
    table = parse_table(parse(TABLE, "t.yaml"))
    return fill_table(table, table.profile("toy"), store)


def test_the_index_follows_the_store_and_can_be_lost(tmp_path: Path) -> None:
    folders = [score_of(tmp_path, seed, 3.5 + seed) for seed in (0, 1)]
    index = tmp_path / "reports" / "scores.parquet"
    cell = toy_cell(tmp_path).cells["loc_2", "toy"]
    assert cell.values("test.mae") == {0: 3.5, 1: 4.5}
    assert cell.scores[1].provenance["test"].versions["commit"] == "c1"
    first = index.stat().st_mtime_ns
    toy_cell(tmp_path)
    assert index.stat().st_mtime_ns == first  # nothing new: not written again
    score_of(tmp_path, 2, 9.0)
    index.write_bytes(index.read_bytes()[:100])  # damaged: made again
    assert toy_cell(tmp_path).cells["loc_2", "toy"].values("test.mae") == {0: 3.5, 1: 4.5, 2: 9.0}
    (folders[0] / "manifest.json").unlink()
    again = toy_cell(tmp_path)
    assert set(again.cells["loc_2", "toy"].scores) == {1, 2}
    assert again.damaged == (folders[0],)
    text = terminal(table_report(again, "raz-sweep run t.yaml"))
    assert f"{folders[0]} is damaged, so its cell stays empty" in text
    assert "the rows were made by different code (c1: 1 rows; c2: 1 rows)" in text


def test_keys_of_many_seeds_are_those_of_each() -> None:
    from raz.config import PRESETS
    from raz.pipeline.graph import Node
    from raz.pipeline.keys import score_keys, stage_keys

    config = replace(PRESETS["tiny"], depth=3)
    got = score_keys(config, [0, 7, 123], splits=("val", "test"))
    for seed, keys in got.items():
        slow = stage_keys(replace(config, seed=seed), splits=("val", "test"))
        assert keys == {split: slow[Node("score", split)].key for split in ("val", "test")}


# ------------------------------------------------------------------------------------ formats

HOSTILE = "a_b & 50% #1 $x$ {y} ~z^ \\cmd <b>|*[c]*| \x1b[31m\nnext"
NASTY = Report(
    "t", (TextTable(HOSTILE, ("row", "[x]"), ((HOSTILE, "[1]"),)),), (HOSTILE,), ({"a": HOSTILE, "b": math.nan},)
)


def test_latex_leaves_no_special_letter_alone() -> None:
    text = latex(NASTY)
    escaped = (
        r"a\_b \& 50\% \#1 \$x\$ \{y\} \textasciitilde{}z\textasciicircum{} \textbackslash{}cmd "
        r"\textless{}b\textgreater{}|*[c]*|  [31m next"
    )
    assert text.count(escaped) == 3  # caption, cell, note
    assert rf"{escaped} & {{[1]}} \\" in text
    assert "± " not in latex(table_report(filled()))
    assert r"70.0 $\pm$ 2.0" in latex(table_report(filled()))


def test_markdown_and_terminal_escape_too() -> None:
    text = markdown(NASTY)
    assert r"| a_b &amp; 50% #1 $x$ {y} \~z^ \\cmd &lt;b&gt;\|\*\[c\]\*\|  \[31m next | \[1\] |" in text
    assert "\x1b" not in text
    shown = terminal(NASTY)
    assert "\x1b" not in shown
    assert "<b>|*[c]*|" in shown  # brackets are no markup


def test_csv_and_json_are_the_same_records() -> None:
    report = table_report(filled(), "fill me")
    rows = list(csv.DictReader(io.StringIO(csv_text(report))))
    document = json.loads(json_text(report))
    assert document["fill"] == "fill me"
    assert (document["missing"], document["seeds"]) == (3, [0, 1, 2])
    assert len(rows) == len(document["records"]) == 2 * 2 + 2  # two rows of two metrics, two columns of regions
    for row, record in zip(rows, document["records"], strict=True):
        assert (row["row"], row["metric"], int(row["n"])) == (record["row"], record["metric"], record["n"])
        assert row["mean"] == ("" if record["mean"] is None else str(record["mean"]))
    assert document["records"][0]["values"] == {"0": 68.0, "1": 70.0, "2": 72.0}
    assert document["records"][0]["sd"] == 2.0


def test_json_holds_no_nan() -> None:
    assert json.loads(json_text(NASTY))["records"] == [{"a": HOSTILE, "b": None}]


def test_a_terminal_folds_cells_and_a_file_does_not() -> None:
    report = table_report(filled())
    table = [line for line in terminal(report, 60).splitlines() if line.startswith((" row", " loc"))]
    assert table
    assert max(map(len, table)) <= 60
    unfolded = [line.split() for line in terminal(report).splitlines() if line.startswith(" loc")]
    assert unfolded[1] == ["loc_2", "-", "71.6", "-", "-", "120.1", "[1]", "-", "0/3", "-", "-"]


# ------------------------------------------------------------------------------------ a study


def record(number: int, state: str, value: float | None = None, **more: object) -> TrialRecord:
    fields: dict[str, object] = {
        "study": "s", "number": number, "state": state, "values": {"depth": number}, "config": {}, "value": value,
        "metrics": {} if value is None else {"val.mae": value}, "stages": (), "steps": {}, "reason": "", "message": "",
        "seconds": 2.0, "versions": {}, "retry_of": None, "started": None, "finished": None,
    }  # fmt: skip
    return TrialRecord(**{**fields, **more})  # type: ignore[arg-type]


MAE = {"val.mae": "minimize"}
RECORDS = [
    record(0, "complete", 9.0),
    record(1, "complete", 7.5),
    record(2, "failed", reason="nan", message="val.mae is nan\nsecond line"),
    record(3, "failed", reason="nan", message="other"),
    record(4, "pruned"),
    record(5, "lost", reason="lost"),
    record(6, "complete", 7.5),
]


@pytest.mark.parametrize(("direction", "order"), [("minimize", "160"), ("maximize", "016")])
def test_the_best_trials_come_first_and_equals_by_number(direction: str, order: str) -> None:
    best, states, failures = study_report("s", RECORDS, {"val.mae": direction}).sheets[:3]
    assert "".join(line[0] for line in best.lines) == order
    assert dict(states.lines) == {"complete": "3", "pruned": "1", "failed": "2", "lost": "1"}
    assert failures.lines == (("lost", "1", "5", ""), ("nan", "2", "2", "val.mae is nan"))


def test_a_studys_csv_holds_every_trial() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(study_report("s", RECORDS, MAE)))))
    assert [row["state"] for row in rows] == [r.state for r in RECORDS]
    assert rows[1]["set.depth"] == "1"
    assert rows[1]["val.mae"] == "7.5"
    assert rows[4]["value"] == ""


def test_a_study_says_what_was_pruned_what_it_cost_and_what_sharing_saved() -> None:
    stage = StageUse("counting", "k", hit=False, seconds=10.0)
    shared = [record(n, "complete", 9.0 - n, stages=(stage,), steps={1: 5.0, 2: 4.0 + n}) for n in range(3)]
    stopped = [record(n, "pruned", steps={1: 8.0, 2: 20.0 + n}) for n in (3, 4)]
    sheets = {sheet.title: sheet for sheet in study_report("s", [*shared, *stopped], MAE).sheets}
    assert sheets["Pruned trials, by step"].lines == (("2", "2", "23.5", "5 of 3", "3, 4"),)
    assert sheets["Time spent, and saved by sharing stages"].lines == (
        ("counting", "1", "3", "10.0", "20.0"), ("all", "", "", "10.0", "20.0"),
    )  # fmt: skip


def test_what_matters_is_found_and_drawn_with_optunas_own_figures() -> None:
    """The objective is x; y is noise. Figures hold plain numbers, at most some hundred trials of ten thousand."""
    import random

    from raz.report.figures.study_figures import MAX_TRIALS, importances, study_figures, to_optuna_study

    dice = random.Random(1)
    trials = []
    for n in range(1200):
        values = {"x": dice.random(), "y": dice.random(), "rule": dice.choice(["grid", "average"])}
        trials.append(record(n, "complete", values["x"], values=values, steps={1: values["x"] + 1, 2: values["x"]}))  # type: ignore[operator]
    study = to_optuna_study(trials, ["minimize"])
    assert 0 < len(study.trials) <= MAX_TRIALS
    shares = importances(study)
    assert max(shares, key=lambda name: shares[name]) == "x"
    assert shares["x"] > 0.8
    titles = [figure.title for figure in study_figures(trials[:200], MAE)]
    assert titles == [
        "History of val.mae", "Learning curves, as the pruner saw them", "Parallel coordinates", "Slices",
        "Contours of the two most important parameters", "Parameter importance",
    ]  # fmt: skip
    assert study_figures([], MAE) == ()


def test_a_timeline_puts_what_overlaps_on_workers_of_its_own() -> None:
    from datetime import datetime, timedelta

    from raz.report.figures.study_figures import timeline

    zero = datetime(2026, 1, 1)
    spans = [(0, 10), (2, 5), (5, 8), (11, 12)]
    trials = [
        record(n, "complete", 1.0, started=zero + timedelta(seconds=a), finished=zero + timedelta(seconds=b))
        for n, (a, b) in enumerate(spans)
    ]
    (drawing,) = timeline(trials)
    assert [(row["trial"], row["worker"], row["seconds"]) for row in drawing.rows] == [
        (0, 0, 10.0), (1, 1, 3.0), (2, 1, 3.0), (3, 0, 1.0),
    ]  # fmt: skip


def test_two_studies_stand_side_by_side() -> None:
    from raz.report.study import comparison_table

    others = [record(n, "complete", 3.0 + n, config={"seed": n}) for n in range(3)]
    sheet = comparison_table("s", RECORDS, "t", others, MAE)
    assert sheet.lines == (("s", "3", "1", "7.5", "7.5", "14"), ("t", "3", "3", "3", "4", "6"))


def test_several_objectives_have_a_front_and_no_best_trial() -> None:
    """Against the definition, pair by pair: a trial is on the front if no other dominates it."""
    import random

    from raz.report.figures.study_figures import study_figures
    from raz.report.study import comparison_table
    from raz.study.index import pareto_front

    dice = random.Random(3)
    both = {"val.mae": "minimize", "val.map@5": "maximize"}
    trials = []
    for n in range(60):
        found = {"val.mae": float(dice.randint(0, 9)), "val.map@5": dice.randint(0, 9) / 10}
        trials.append(record(n, "complete", found["val.mae"], objectives=found, metrics=found, values={"x": n}))
    trials += [record(60, "failed"), record(61, "complete", 1.0)]  # the last was told with one objective alone

    def dominated(r: TrialRecord, by: TrialRecord) -> bool:
        a, b = ((-t.objectives["val.mae"], t.objectives["val.map@5"]) for t in (r, by))
        return b[0] >= a[0] and b[1] >= a[1] and a != b

    front = {r.number for r in trials[:60] if not any(dominated(r, other) for other in trials[:60])}
    found_front = pareto_front(trials, both)
    assert {r.number for r in found_front} == front
    assert [r.objectives["val.mae"] for r in found_front] == sorted(r.objectives["val.mae"] for r in found_front)
    report = study_report("s", trials, both, all_trials=True)
    assert report.sheets[0].title.startswith("Pareto front")
    assert report.sheets[0].header == ("trial", "val.mae", "val.map@5", "seconds", "values")
    assert {int(line[0]) for line in report.sheets[0].lines} == front
    assert f"{len(front)} of 61 complete trials are on the front" in report.notes[0]
    assert set(report.facts["pareto_front"]) == front
    assert report.sheets[-1].header[:5] == ("trial", "state", "val.mae", "val.map@5", "seconds")
    assert study_figures(trials, both)[0].title == "Pareto front"
    lowest, highest = min(t.metrics["val.mae"] for t in trials[:60]), max(t.metrics["val.map@5"] for t in trials[:60])
    line = comparison_table("s", trials, "t", trials, both).lines[0]
    assert (line[3], line[5]) == (f"{lowest:.4g}", f"{highest:.4g}")


def test_a_trial_that_was_run_again_counts_once_as_what_became_of_it() -> None:
    trials = [record(0, "failed", reason="lost"), record(1, "complete", 2.0, retry_of=0)]
    assert study_report("s", trials, MAE).sheets[1].lines == (("complete", "1"),)


def test_a_trials_record_names_the_command_that_makes_it_again() -> None:
    first, second = study_report("s", RECORDS, MAE, store_option=" --store 'my store'").records[:3:2]
    assert first["command"] == "raz-sweep rerun s#0 --store 'my store'"
    assert second["command"] == ""  # it failed: there is nothing to make again


def test_a_study_without_complete_trials_says_so() -> None:
    assert study_report("s", [record(0, "pruned")], MAE).notes == ("No trial is complete.",)


# ------------------------------------------------------------------------------------ the command

app = typer.Typer()
app.command("report")(report_command)


def report_output(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    if isinstance(result.exception, RazError):
        return str(result.exception)
    assert result.exit_code == 0, result.output
    return result.output


def test_an_empty_table_ends_with_the_command_that_fills_it(tmp_path: Path) -> None:
    text = report_output("--table", "recurrence", "--profile", "small", "--store", str(tmp_path / "a b"))
    command = f"raz-sweep run ablations/recurrence.yaml --profile small --store '{tmp_path}/a b' --data-root DIR"
    assert text.splitlines()[-1].strip() == command
    row = next(line.split() for line in text.splitlines() if line.startswith(" loc_2"))
    assert row == ["loc_2", "-", "71.6", "-", "-", "120.1", "-", "0/3", "-", "-"]


def test_the_command_carries_what_was_given() -> None:
    command = fill_command("t.yaml", "toy", ("toy",), Path("s"), Path("d"), ["threads=2"])
    assert command == "raz-sweep run t.yaml --profile toy --store s --data-root d --set threads=2"
    assert "--data-root" not in fill_command("t.yaml", "toy", ("toy",), Path("s"), None, [])


def test_the_format_follows_the_files_name(tmp_path: Path) -> None:
    out = tmp_path / "new" / "table.tex"
    report_output("--table", "recurrence", "--store", str(tmp_path), "--out", str(out))
    assert out.read_text(encoding="utf-8").startswith("% needs \\usepackage{booktabs}")
    assert [path.name for path in out.parent.iterdir()] == ["table.tex"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--table", "recurence"], "recurence: no such file\n  try: did you mean "),
        (["--table", "recurrence", "--profile", "toi"], "--profile: table recurrence has no profile 'toi'"),
        (["--table", "recurrence", "--format", "htm"], "--format: 'htm', expected one of terminal, md, csv, json"),
        (["--table", "recurrence", "--over", "rows"], "--over: 'rows', expected seeds or images"),
        (["fusion", "--table", "recurrence"], "report: both a study (fusion) and a table (recurrence)"),
        (["fusion", "--list"], "report: --list beside a study or a table"),
        (["fusion", "--profile", "toy"], "--profile: belongs to a table; the study of a search's profile has"),
        (["fusion"], "study fusion: {store} has no such study"),
    ],
)
def test_wrong_options_are_errors(words: list[str], message: str, tmp_path: Path) -> None:
    assert report_output(*words, "--store", str(tmp_path)).startswith(message.format(store=tmp_path))


def test_the_list_names_tables_and_studies(tmp_path: Path) -> None:
    from raz.spec.space_yaml import parse_space
    from raz.study.ledger import open_ledger

    space = parse_space(parse("study: mine\ndesign: {trials: 1}\nparameters: {depth: {choice: [1, 2]}}\n", "s.yaml"))
    with open_ledger(tmp_path, space):
        pass
    text = report_output("--list", "--store", str(tmp_path))
    assert "recurrence" in text
    assert "Table 4 of Liu, Weng, Mu, CVPR 2019" in text
    assert next(line.split() for line in text.splitlines() if line.startswith(" mine")) == ["mine", "0", "0"]
    assert "No trial is complete." in report_output("mine", "--store", str(tmp_path))


def test_help_imports_nothing_slow() -> None:
    code = (
        "import sys, raz.cli.report; "
        "print(sorted({'torch', 'pandas', 'scipy', 'optuna', 'ray', 'rich.table'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------ stale results


def test_results_of_older_code_or_other_data_get_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same trials are in the store, but a stage's meaning, a setting or the data changed since."""
    from raz.config import ZoomingConfig, added, parameters
    from raz.pipeline import graph
    from raz.pipeline import keys as pipeline_keys
    from raz.report.stale import stale_notes
    from raz.store.cache import StageCache, write_json

    table = parse_table(parse(TABLE, "t.yaml"))
    config = table.config(table.profile("toy"), table.row("loc_2"), "toy", 0)
    for node, key in pipeline_keys.stage_keys(config, splits=("test",)).items():
        about = Manifest(str(node), 1.0, "cpu", config=parameters(config))
        StageCache(tmp_path).publish(key, lambda f: write_json(f / "metrics.json", {"mae": 1.0}), about)

    def notes() -> list[str]:
        return list(stale_notes(toy_cell(tmp_path), None))

    assert notes() == []  # the other trials are missing, and nothing is known of them
    with monkeypatch.context() as now:
        now.setitem(graph.STAGES, "counting", replace(graph.STAGES["counting"], version=99))
        (note,) = notes()
        assert "results of 1 of the missing trials that no longer count: they were made by version" in note
        assert note.endswith("of stage counting, which is 99 now.")
    with monkeypatch.context() as now:
        real = pipeline_keys._fingerprint
        now.setattr(pipeline_keys, "_fingerprint", lambda name, root, split: real(name, root, split)[::-1])
        (note,) = notes()
        assert note.endswith("they are of other data (train, val images).")
    with monkeypatch.context() as now:
        now.setitem(graph.STAGES, "counting", replace(graph.STAGES["counting"], reads=("backbone",)))
        graph._read_by.cache_clear()
        (note,) = notes()
        assert "stage counting had other settings then (counting." in note
    graph._read_by.cache_clear()
    with with_field(ZoomingConfig, "later", float, added(default=0.5, before=0.0)):  # a new field, and a new default
        (note,) = notes()
        assert note.endswith("stage raz had other settings then (raz.regions.later).")
    with with_field(ZoomingConfig, "later", float, added(default=0.0, before=0.0)):
        assert notes() == []


def test_a_table_says_on_what_its_networks_were_trained(tmp_path: Path) -> None:
    """Scores are computed on a CPU; what counts is that one of the networks behind them came from a GPU."""
    from raz.pipeline.keys import stage_keys
    from raz.store.cache import StageCache, write_json

    table = parse_table(parse(TABLE, "t.yaml"))
    for seed, device in ((0, "NVIDIA A100"), (1, "cpu")):
        config = table.config(table.profile("toy"), table.row("loc_2"), "toy", seed)
        for node, key in stage_keys(config, splits=("test",)).items():
            made_on = device if node.stage == "counting" else "cpu"
            about = Manifest(str(node), seconds=1.0, device=made_on, versions={"commit": "c0", "torch": "2"})
            if node.stage == "counting":
                about = replace(about, weights={"name": "half.pt", "dtype": "float16" if seed else "float32"})
            StageCache(tmp_path).publish(key, lambda f: write_json(f / "metrics.json", {"mae": 1.0}), about)
    text = terminal(table_report(toy_cell(tmp_path)))
    assert (
        "Toy crowd: the trials were made on different kinds of device: seed 0 with counting on NVIDIA A100, the rest on"
        " cpu; seed 1 on cpu."
    ) in text
    assert "different code" not in text
    assert "different pretrained weights (half.pt: 1 rows; half.pt, stored in half precision (float16): 1 rows)" in text
    assert "Trained from half.pt, stored in half precision (float16): a rounded copy" in text
