"""Studies as they are read: the index, the notebook's table, and the commands that list, show and compare."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest
from typer.testing import CliRunner

import raz
from raz.cli.main import app
from raz.engine.events import NullEvents
from raz.engine.inline import run_inline
from raz.engine.trial_source import StudySource
from raz.errors import RazError
from raz.spec.search_space import SearchSpace
from raz.spec.space_yaml import parse_space
from raz.study import index
from raz.study.index import read_study
from raz.study.journal import journal_path
from raz.study.ledger import open_ledger
from raz.study.records import Outcome, read_records, with_later_fields
from raz.utils import formatting
from raz.utils.yamlfile import parse
from tests.fakes_engine import STEPS

FAKE = "tests.fakes_engine:run_trial"
# seed 13 ends as nan, 14 with a traceback: see fakes_engine
MIXED = """\
study: mixed
base: {preset: tiny, dataset: toy}
design: {sampler: grid}
objective: {metric: val.mae, direction: minimize}
parameters:
  seed: {choice: [0, 1, 13, 14]}
  depth: {choice: [2, 3]}
  zooming.k_z: {choice: [4, 7], when: {depth: 3}}
"""


def call(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def space(source: str = MIXED) -> SearchSpace:
    return parse_space(parse(source, "mixed.yaml"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the study `mixed`, all its trials done. Not to be written."""
    store = tmp_path_factory.mktemp("store")
    run_again(store)
    return store


def run_again(store: Path, source: str = MIXED, trials: int | None = None) -> None:
    """The trials alone: what a driver adds at the end opens the data set, which takes seconds."""
    asked = space(source)
    with open_ledger(store, asked) as ledger:
        ledger.recover(trials or asked.target)
        run_inline(StudySource(ledger), store, run_trial=FAKE, events=NullEvents())


# ------------------------------------------------------------------ the index


def test_the_index_gives_what_the_journal_says(whole: Path) -> None:
    replayed = read_records(whole, "mixed")
    read_study(whole, "mixed")
    path = whole / "studies" / "mixed.parquet"
    stamp = path.stat().st_mtime_ns
    study = read_study(whole, "mixed")
    assert path.stat().st_mtime_ns == stamp, "the index was made again without need"
    assert study.trials == replayed
    assert len(replayed) == 12
    assert {trial.state for trial in replayed} == {"complete", "failed"}
    assert "ZeroDivisionError" in next(e["trace"] for e in study.extras if "trace" in e)
    assert study.meaning == with_later_fields(space().meaning())


def test_an_index_of_another_journal_is_made_again(tmp_path: Path) -> None:
    source = MIXED.replace("grid", "random, trials: 3").replace("[0, 1, 13, 14]", "[0, 1]")
    run_again(tmp_path, source)
    assert len(read_study(tmp_path, "mixed").trials) == 3
    run_again(tmp_path, source, trials=5)
    assert len(read_study(tmp_path, "mixed").trials) == 5
    assert read_study(tmp_path, "mixed").trials == read_records(tmp_path, "mixed")


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "folder"])
def test_a_damaged_index_is_made_again(tmp_path: Path, damage: str) -> None:
    run_again(tmp_path, MIXED.replace("[0, 1, 13, 14]", "[0]"))
    expected = read_study(tmp_path, "mixed")
    path = tmp_path / "studies" / "mixed.parquet"
    whole = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "garbage": b"PAR1" + bytes(99), "empty": b""}[damage])
    assert read_study(tmp_path, "mixed") == expected
    if damage != "folder":  # in whose place nothing can be renamed
        assert path.read_bytes() == whole
    visible = sorted(p.name for p in path.parent.iterdir() if not p.name.startswith(".entrance"))
    assert visible == ["mixed.journal", "mixed.lock", "mixed.parquet"]


def test_what_a_killed_driver_left_is_lost_and_what_a_living_one_holds_runs(tmp_path: Path) -> None:
    with open_ledger(tmp_path, space()) as ledger:
        ledger.recover(8)
        ledger.ask()
        assert read_study(tmp_path, "mixed").trials[0].state == "running"
        assert read_study(tmp_path, "mixed").running
    study = read_study(tmp_path, "mixed")
    assert not study.running
    assert (study.trials[0].state, study.trials[0].reason) == ("lost", "lost")
    assert study.trials == read_records(tmp_path, "mixed")


def test_thousands_of_trials_come_back_as_they_went_in(tmp_path: Path, whole: Path) -> None:
    study = read_study(whole, "mixed")
    trials = []
    for i in range(2_000):
        trial = study.trials[i % len(study.trials)]
        metrics = {} if i % 7 == 0 else {**trial.metrics, f"val.only_{i % 3}": i / 7}
        trials.append(replace(trial, number=i, metrics=metrics, seconds=i / 3, steps={3 * i: 1 / (i + 1)}))
    many = replace(study, trials=tuple(trials), extras=tuple({"i": i} for i in range(2_000)))
    stamp = {"layout": index.SCHEMA_VERSION, "size": 1, "time": 2}
    index._write(tmp_path / "mixed.parquet", stamp, many)
    found = index._read(tmp_path / "mixed.parquet", stamp)
    assert found is not None
    assert (found.trials, found.extras) == (many.trials, many.extras)
    assert index._read(tmp_path / "mixed.parquet", stamp | {"size": 3}) is None


# ------------------------------------------------------------------ notebooks


def test_load_study_is_a_row_a_trial(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = raz.load_study("mixed", store=whole)
    assert len(table) == 12
    assert list(table["number"]) == list(range(12))
    done = table[table["state"] == "complete"]
    truth = 10 * (done["depth"] - 3).abs() + done["seed"]  # gamma is 100: see fakes_engine
    assert done["objective"].tolist() == truth.astype(float).tolist() == done["val.mae"].tolist()
    assert table["zooming.k_z"].isna().tolist() == (table["depth"] == 2).tolist()
    assert str(table["zooming.k_z"].dtype) == "Int64"
    assert sorted(table["reason"].dropna().unique()) == ["error", "nan"]
    assert table.attrs["metric"] == "val.mae"
    monkeypatch.setenv("RAZ_STORE", str(whole))
    pandas.testing.assert_frame_equal(raz.load_study("mixed"), table)
    with pytest.raises(RazError, match="did you mean mixed"):
        raz.load_study("mixd")


# ------------------------------------------------------------------ commands


def test_studies_lists_them_and_names_a_damaged_one(tmp_path: Path) -> None:
    assert call("studies", "--store", str(tmp_path)) == (
        0,
        f"{tmp_path} has no studies yet: raz-sweep run fusion\n",
        "",
    )
    run_again(tmp_path)
    (tmp_path / "studies" / "broken.journal").write_text("nonsense\n{}\n")
    code, out, _ = call("studies", "--store", str(tmp_path), "--json")
    broken, mixed = json.loads(out)
    assert (code, broken["study"], "damaged" in broken["trouble"]) == (0, "broken", True)
    assert mixed["trials"] == {"complete": 6, "failed": 6}
    assert mixed["best"]["value"] == 0
    assert mixed["running"] is False
    with open_ledger(tmp_path, space()):
        _, out, _ = call("studies", "--store", str(tmp_path))
        assert out.splitlines()[1].split()[:5] == ["mixed", "6", "complete,", "6", "failed"]
        assert out.splitlines()[1].endswith("running")


def test_show_a_study_puts_the_best_first(whole: Path) -> None:
    code, out, _ = call("show", "mixed", "--store", str(whole))
    assert code == 0
    best = read_study(whole, "mixed").best
    assert best is not None
    assert f"best: trial {best.number}, val.mae 0" in out
    assert "  zooming.k_z: one of 4, 7, when depth is 3" in out
    assert "failures: error 3, nan 3" in out
    numbers = [line.split()[0] for line in out.splitlines() if line.strip().startswith("#")]
    assert numbers[0] == f"#{best.number}"
    assert sorted(numbers) == sorted(f"#{i}" for i in range(12))
    document = json.loads(call("show", "mixed", "--store", str(whole), "--json")[1])
    assert document["best"]["changed"]["depth"] == {"base": 2, "trial": 3}


TWO = """\
study: two
base: {preset: tiny, dataset: toy}
design: {sampler: grid}
objective: [{metric: val.mae}, {metric: val.rmse, direction: maximize}]
parameters:
  depth: {choice: [1, 2, 3, 4]}
"""


def test_of_several_objectives_the_front_is_shown(tmp_path: Path) -> None:
    asked = space(TWO)
    with open_ledger(tmp_path, asked) as ledger:
        ledger.recover(4)
        errors = {1: (20.0, 30.0), 2: (10.0, 15.0), 3: (0.0, 0.0), 4: (12.0, 15.0)}
        while (trial := ledger.ask()) is not None:
            mae, rmse = errors[trial[1]["depth"]]
            ledger.tell(trial[0], Outcome("complete", metrics={"val.mae": mae, "val.rmse": rmse}))
        front = [record.number for record in ledger.front()]
    assert front == [0, 1, 2]  # depth 4 is beaten by depth 2
    study = read_study(tmp_path, "two")
    assert [trial.number for trial in study.front] == front
    out = call("show", "two", "--store", str(tmp_path))[1]
    assert "asks: minimize val.mae, maximize val.rmse" in out
    assert "front: 3 trials that no other beats in every objective" in out
    assert ["#1", "10", "15", "depth=2"] in [line.split() for line in out.splitlines()]
    document = json.loads(call("show", "two", "--store", str(tmp_path), "--json")[1])
    assert document["best"] is None
    assert [trial["objectives"] for trial in document["front"]] == [
        {"val.mae": errors[depth][0], "val.rmse": errors[depth][1]} for depth in (1, 2, 3)
    ]
    assert "front of 3" in call("studies", "--store", str(tmp_path))[1]


def test_show_a_trial(whole: Path) -> None:
    trials = read_records(whole, "mixed")
    traced = next(t for t in trials if t.reason == "error")
    _, out, _ = call("show", f"mixed#{traced.number}", "--store", str(whole))
    assert "an unexpected error" in out
    assert 'raise ZeroDivisionError("an unexpected error")' in out
    done = next(t for t in trials if t.state == "complete" and t.values["depth"] == 2)
    document = json.loads(call("show", f"mixed#{done.number}", "--store", str(whole), "--json")[1])
    assert document["config"] == done.config
    assert [document["steps"][str(s)] for s in range(STEPS)] == [done.value * (1 + 4 / (s + 1)) for s in range(STEPS)]  # type: ignore[operator]
    provenance = document["provenance"]
    assert provenance["seed"] == done.config["seed"]
    assert provenance["versions"]["torch"]
    assert provenance["device"] == provenance["data"] == "unknown"  # the stand-in makes no stages
    assert document["stages"][0]["in_store"] is False


def test_a_stage_name_of_a_foreign_journal_opens_no_other_file(tmp_path: Path) -> None:
    run_again(tmp_path, MIXED.replace("[0, 1, 13, 14]", "[0]"))
    outside = tmp_path / "secret"
    outside.mkdir()
    (outside / "manifest.json").write_text('{"device": "read from outside"}')
    journal = journal_path(tmp_path, "mixed")
    journal.write_text(journal.read_text().replace('"key":"ab12"', '"key":"../../secret"'))
    code, out, _ = call("show", "mixed#0", "--store", str(tmp_path), "--json")
    assert code == 0
    assert json.loads(out)["stages"][0]["key"] == "../../secret"
    assert "read from outside" not in out


def test_diff_of_trials_and_of_studies(tmp_path: Path) -> None:
    run_again(tmp_path)
    run_again(tmp_path, MIXED.replace("study: mixed", "study: other").replace("[0, 1, 13, 14]", "[1, 2]"))
    code, out, _ = call("diff", "mixed#0", "mixed#1", "--store", str(tmp_path), "--json")
    one, two = read_records(tmp_path, "mixed")[:2]
    found = json.loads(out)
    different = {n for n in one.config if one.config[n] != two.config[n]}
    assert (code, set(found["config"])) == (0, different)
    assert found["metrics"]["val.mae"] == [one.value, two.value, two.value - one.value]  # type: ignore[operator]
    _, out, _ = call("diff", "mixed", "other", "--store", str(tmp_path))
    assert "parameters.seed" in out
    assert "best trials: mixed#" in out
    assert call("diff", "mixed#0", "mixed#0", "--store", str(tmp_path))[1].splitlines()[1:3] == [
        "the configuration is the same", "the metrics are the same",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("show", "../x"), "../x: expected a study or a trial of one\n  try: fusion or fusion#3"),
        (("show", "mixed#"), "mixed#: expected a study or a trial of one\n  try: fusion or fusion#3"),
        (("show", "mixed#12"), "mixed#12: study mixed has no trial 12, expected 0 to 11"),
        (("show", "mixt"), "study mixt: STORE has no such study\n  try: did you mean mixed?"),
        (("diff", "mixed", "mixed#1"), "mixed and mixed#1: one is a study and one is a trial, expected two of a kind\n"
                                       "  try: raz-sweep diff mixed#BEST mixed#1"),
    ],
)  # fmt: skip
def test_messages(whole: Path, words: tuple[str, ...], said: str) -> None:
    best = read_study(whole, "mixed").best
    assert best is not None
    expected = said.replace("STORE", str(whole)).replace("BEST", str(best.number))
    assert call(*words, "--store", str(whole)) == (2, "", expected + "\n")


@pytest.mark.parametrize(
    "words",
    ["studies", "show a", "show a#1", "diff a b", "rerun a#0", "status", "dashboard", "report a",
     "export a --out a.csv", "store ls", "store du", "store verify", "store gc --dry-run"],
)  # fmt: skip
def test_a_store_that_is_not_there_is_told_and_not_made(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*words.split(), "--store", "nope")
    assert (code, out) == (2, "")
    assert err == "store nope: there is no such folder\n  try: --store DIR, or RAZ_STORE; a first run makes one\n"
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_may_only_be_read_is_read(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(index.pq, "write_table", refuse)
    folder = tmp_path / "studies"
    folder.mkdir()
    (folder / "mixed.journal").write_bytes(journal_path(whole, "mixed").read_bytes())
    assert read_study(tmp_path, "mixed").trials == read_records(whole, "mixed")
    assert "mixed.parquet" not in os.listdir(folder)


# ------------------------------------------------------------------ words


def test_sparkline() -> None:
    assert formatting.sparkline([8, 7, 6, 5, 4, 3, 2, 1]) == "█▇▆▅▄▃▂▁"
    assert formatting.sparkline([1, 1]) == "▁▁"
    assert formatting.sparkline([1, math.nan, 8]) == "▁ █"
    assert formatting.sparkline([]) == ""
    assert len(formatting.sparkline(list(range(1000)))) == 40


def test_sizes_and_times() -> None:
    sizes = (0, 999, 1000, 999_949, 999_951, 5 * 10**15)
    assert [formatting.size(n) for n in sizes] == ["0 B", "999 B", "1.0 kB", "999.9 kB", "1.0 MB", "5000.0 TB"]
    assert [formatting.duration(s) for s in (0, 59.94, 59.96, 3600, 200_000)] == [
        "0.0 s", "59.9 s", "1 min 0 s", "1 h 0 min", "2 d 7 h",
    ]  # fmt: skip
