"""Seconds of prediction an image, from the manifests of the stages that predicted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from raz.pipeline.graph import Node
from raz.report.stage_costs import prediction_seconds, seconds_notes
from raz.report.used_stages import UsedStage
from raz.store.cache import Artifact
from raz.store.manifest import Manifest
from tests.test_score_file import fill_store, table_of

TABLE = """
table: passes
metrics: [test.mae, test.gflops_per_image]
seeds: [0, 1]
profiles:
  toy: {base: {preset: tiny}, datasets: [toy]}
rows:
  one: {set: {depth: 1}}
  two: {set: {depth: 2}}
"""


def test_the_inferred_stages_of_the_reported_split_count(tmp_path: Path) -> None:
    """30 images a split; trainings, validation images and scores do not count; a lost stage leaves its trial out."""
    filled = fill_store(tmp_path, table_of(TABLE), "toy")

    def used(row: str, seed: int, node: str, seconds: float, device: str = "cpu") -> UsedStage:
        made = Artifact(tmp_path, Manifest(node, seconds, device))
        return UsedStage("toy", row, seed, Node.parse(node), "", made)

    stages = [
        used("one", 0, "counting", 100.0), used("one", 0, "density@val", 50.0), used("one", 0, "score@test", 9.0),
        used("one", 0, "density@test", 6.0), used("one", 0, "points@test", 3.0),
        used("one", 1, "density@test", 12.0), used("one", 1, "points@test", 9.0),
        used("two", 0, "density@test", 6.0, "H100"), used("two", 0, "points@test", 3.0, "H100"),
        used("two", 0, "zoom2@test", 6.0, "H100"),
    ]  # fmt: skip
    lost = replace(used("two", 1, "zoom2@test", 1.0), artifact=None)
    took = prediction_seconds(filled, [*stages, used("two", 1, "density@test", 1.0), lost])
    assert took == {("toy", "one"): (pytest.approx((9 + 21) / 2 / 30), "cpu"), ("toy", "two"): (0.5, "H100")}
    of_gpu, of_cpu = seconds_notes(filled, stages)
    assert "on H100: two 0.5." in of_gpu
    assert "on cpu: one 0.5." in of_cpu
    assert seconds_notes(filled, []) == []
