"""Tables and studies whose results are of different kinds of device say so, and which are of which."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raz.config import TrialConfig
from raz.pipeline.graph import Node
from raz.pipeline.keys import stage_keys
from raz.report.devices import device_notes, study_device_notes
from raz.report.fill import FilledTable, fill_table
from raz.report.render import FORMATS, csv_text
from raz.report.score_index import ScoreProvenance, TrialScores
from raz.report.tables import table_report
from raz.spec.ablation_yaml import parse_table
from raz.store.cache import StageCache, write_json
from raz.store.manifest import Manifest
from raz.study.records import Outcome
from raz.study.seed_average import run_over_seeds
from raz.study.trial_status import TrialStatus
from raz.utils.formatting import joined
from raz.utils.yamlfile import parse
from tests.test_report import record

TABLE = """\
table: rows
metrics: [test.mae]
seeds: [0, 1]
profiles:
  toy: {base: {preset: tiny}, datasets: [toy]}
rows:
  base: {set: {depth: 1}}
  deep: {set: {depth: 2}}
  deeper: {set: {depth: 3}}
"""
A, H = "NVIDIA A100", "NVIDIA H100"
Devices = Sequence[str]  # of a trial; `stage: device` where the stages are known


def filled(placed: Mapping[str, Mapping[int, Devices]]) -> FilledTable:
    """The table with these trials, row -> seed -> devices."""
    rows = {1: "base", 2: "deep", 3: "deeper"}

    def lookup(config: TrialConfig, seeds: Sequence[int], **_: Any) -> dict[int, TrialScores]:
        return {seed: trial(of, seed) for seed, of in placed.get(rows[config.depth], {}).items() if seed in seeds}

    table = parse_table(parse(TABLE, "t.yaml"))
    return fill_table(table, table.profile("toy"), Path("nowhere"), lookup=lookup)


def trial(devices: Devices, seed: int) -> TrialScores:
    names = {text.rpartition(": ")[2] for text in devices}
    made = {"device": tuple(sorted(names)), "stage device": tuple(text for text in devices if ": " in text)}
    provenance = ScoreProvenance("cpu", {}, {}, {}, made)
    return TrialScores({"test.mae": 5.0 + seed}, {"test": "k"}, {"test": provenance}, {})


ON_A, ON_CPU, UNKNOWN = {0: [A], 1: [A]}, {0: ["cpu"], 1: ["cpu"]}, {0: [], 1: []}
SPLIT = ["counting: " + H, "localization: " + H, "density@val: cpu", "density@test: cpu", "points@test: cpu"]
MADE, PART = "the trials were made on different kinds of device:", "which is a part of their difference"


@pytest.mark.parametrize(
    ("placed", "notes"),
    [
        ({"base": ON_CPU, "deep": ON_CPU, "deeper": ON_CPU}, []),
        ({"base": ON_A, "deep": ON_A}, []),
        ({"base": ON_A, "deep": UNKNOWN}, []),  # of artifacts that are gone nothing is claimed
        ({}, []),
        (
            {"base": ON_CPU, "deep": ON_A, "deeper": ON_A},
            [f"{MADE} row base on cpu; rows deep and deeper on {A}",
             f"all other rows and row base were made on different devices, {PART}"],
        ),
        (
            {"base": ON_CPU, "deep": ON_CPU, "deeper": {0: ["cpu"], 1: [A]}},
            [f"{MADE} rows base, deep and deeper (seed 0) on cpu; row deeper (seed 1) on {A}",
             f"row deeper (seed 1) and row base were made on different devices, {PART}"],
        ),
        (  # each row is compared with the base row on one device
            {row: {0: [A], 1: ["cpu"]} for row in ("base", "deep", "deeper")},
            [f"{MADE} seed 0 on {A}; seed 1 on cpu"],
        ),
        (
            {"base": ON_A, "deep": {0: [H]}},
            [f"{MADE} row base on {A}; row deep on {H}",
             f"all other rows and row base were made on different devices, {PART}"],
        ),
        (
            {"base": {0: [H, "cpu"]}, "deep": {0: ["cpu", H]}},
            [f"every trial was made on different kinds of device, partly on {H}, partly on cpu"],
        ),
        (
            {"base": {0: SPLIT}, "deep": {0: [*SPLIT, "zoom2@test: cpu"]}},
            [f"every trial was made on different kinds of device, with counting and localization on {H}, the rest on"
             " cpu"],
        ),
        (
            {"base": {0: SPLIT}, "deep": {0: ["counting: cpu", "points@test: cpu"]}},
            [f"{MADE} row base with counting and localization on {H}, the rest on cpu; row deep on cpu",
             f"all other rows and row base were made on different devices, {PART}"],
        ),
    ],
    ids=["cpu", "gpu", "unknown", "empty", "rows", "seed", "seeds", "gpus", "file", "stages", "some"],
)  # fmt: skip
def test_a_table_names_the_trials_of_each_device(placed: Mapping[str, Mapping[int, Devices]], notes: list[str]) -> None:
    assert [*device_notes(filled(placed), "toy")] == [f"Toy crowd: {note}." for note in notes]


def test_every_format_says_it() -> None:
    report = table_report(filled({"base": ON_CPU, "deep": {0: ["cpu"], 1: [A]}}))
    (note,) = [note for note in report.notes if MADE in note]
    for name, write in FORMATS.items():
        text = write(report)
        if name == "csv":
            rows = {row["row"]: row for row in csv.DictReader(io.StringIO(csv_text(report)))}
            assert [rows[row]["device"] for row in ("base", "deep", "deeper")] == ["cpu", f"{A}, cpu", ""]
            assert [made["device"] for made in json.loads(rows["deep"]["trials"])] == ["cpu", A]
        else:
            assert note in text, name


def test_what_counts_are_the_networks_and_not_where_they_were_scored(tmp_path: Path) -> None:
    """A cluster's scores are computed by its head, without a GPU."""
    table = parse_table(parse(TABLE, "t.yaml"))
    for row, device in (("base", A), ("deep", H)):
        config = table.config(table.profile("toy"), table.row(row), "toy", 0)
        for node, key in stage_keys(config, splits=("test",)).items():  # most are the base row's, and made once
            on = "cpu" if node.stage == "score" else device
            about = Manifest(stage=str(node), seconds=1.0, device=on, versions={"commit": "c0", "torch": "2"})
            StageCache(tmp_path).publish(key, lambda f: write_json(f / "metrics.json", {"mae": 1.0}), about)
    cells = fill_table(table, table.profile("toy"), tmp_path)
    wanted = [
        f"Toy crowd: {MADE} row base on {A}; row deep with attention, raz and zoom on {H}, the rest on {A}.",
        f"Toy crowd: all other rows and row base were made on different devices, {PART}.",
    ]
    assert [*device_notes(cells, "toy")] == wanted


def test_pulled_scores_name_the_devices_of_the_networks_that_stayed_there(tmp_path: Path) -> None:
    table = parse_table(parse(TABLE, "t.yaml"))
    for row, device in (("base", "cpu"), ("deep", H)):
        config = table.config(table.profile("toy"), table.row(row), "toy", 0)
        key = stage_keys(config, splits=("test",))[Node("score", "test")]
        behind = {"counting": device, "density@test": "cpu", "points@test": "cpu", "zoom2@test": ""}
        about = Manifest(stage="score@test", seconds=1.0, device="cpu", devices=behind)
        StageCache(tmp_path).publish(key, lambda f: write_json(f / "metrics.json", {"mae": 1.0}), about)
    assert next(device_notes(fill_table(table, table.profile("toy"), tmp_path), "toy")) == (
        f"Toy crowd: {MADE} row base on cpu; row deep with counting on {H}, the rest on cpu."
    )


def test_a_study_names_the_trials_of_each_device() -> None:
    records = [replace(record(n, "complete", 1.0), device="cpu" if n % 2 else A) for n in range(20)]
    (note,) = study_device_notes({"s": records})
    assert note == (
        f"The trials were made on different kinds of device: trials 0, 2, 4, 6, 8, 10, 12, 14 and 2 more on {A}; trials"
        " 1, 3, 5, 7, 9, 11, 13, 15 and 2 more on cpu."
    )
    alike = [replace(each, device="cpu") for each in records]
    assert [*study_device_notes({"s": alike})] == []
    assert [*study_device_notes({"s": [*alike[:2], record(2, "failed")]})] == []
    mixed = [replace(each, device=f"{A}, cpu") for each in records[:1]]
    assert [*study_device_notes({"s": mixed})] == [
        f"Every trial was made on different kinds of device, partly on {A}, partly on cpu."
    ]
    assert [*study_device_notes({"s": alike[:2], "t": mixed})] == [
        f"The trials were made on different kinds of device: trial 0 of t on {A} and cpu; trials 0 and 1 of s on cpu."
    ]


def test_a_trial_over_several_seeds_has_the_devices_of_all() -> None:
    devices = iter([f"{A}, cpu", "cpu", H])

    def run(config: Mapping[str, Any], progress: object) -> Outcome:
        return Outcome(TrialStatus.COMPLETE, metrics={"val.mae": 1.0}, device=next(devices))

    config = {f"{name}.epochs": 1 for name in ("counting.train", "localization.train", "attention.train", "raz.train")}
    outcome = run_over_seeds(run, {**config, "raz.attention_train.epochs": 1, "depth": 1}, (0, 1, 2))
    assert outcome.device == f"{A}, {H}, cpu"


def test_words_are_joined() -> None:
    assert [joined(words) for words in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]
