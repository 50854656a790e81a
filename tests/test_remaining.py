"""What is finished and what a run begins: the dry run, the run and the reports give one answer."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from raz.cli.dry_run import plan_file
from raz.engine.study_runner import run_study
from raz.engine.table_runner import run_table
from raz.planning.plan import Plan
from raz.report.fill import fill_table
from raz.spec.ablation_yaml import parse_table
from raz.spec.search_space import SearchSpace
from raz.spec.space_yaml import parse_space
from raz.study.ledger import open_ledger
from raz.study.records import Outcome, read_records
from raz.study.remaining import MAX_ATTEMPTS, RecordedTrial, finished_table_trials, study_progress
from raz.study.trial_status import TrialStatus
from raz.utils.yamlfile import parse

FAKE = "tests.fakes_engine:run_trial"
GRID = """\
study: grid
base: {preset: tiny, dataset: toy}
design: {sampler: grid}
parameters:
  seed: {choice: [0, 13]}
  depth: {choice: [1, 2, 3]}
"""
SEARCH = GRID.replace("study: grid", "study: search").replace("{sampler: grid}", "{sampler: random, trials: 6}")
LOST = Outcome(TrialStatus.FAILED, reason="lost", message="its process died")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid.yaml").write_text(GRID)
    (tmp_path / "search.yaml").write_text(SEARCH)
    return tmp_path / "store"


def space_of(name: str) -> SearchSpace:
    return parse_space(parse(Path(f"{name}.yaml").read_text(), f"{name}.yaml"))


def planned(store: Path, name: str, **options: bool | int) -> Plan:
    return plan_file(f"{name}.yaml", store, settings=[], inline=True, **options)  # type: ignore[arg-type]  # by name


def begun(store: Path) -> list[str]:
    """The trials that runs have begun so far: depth, gamma, seed of each. Predictions of the test images left out."""
    count = store / "count"
    lines = count.read_text().splitlines() if count.exists() else []
    return [" ".join(line.split()[:3]) for line in lines if line.split()[3] == "val"]


def run(store: Path, name: str, **options: bool | int) -> list[str]:
    """Runs the study, and returns the trials that it began."""
    before = len(begun(store))
    run_study(space_of(name), store, inline=True, run_trial=FAKE, **options)  # type: ignore[arg-type]  # by name
    return begun(store)[before:]


@pytest.mark.long
@pytest.mark.parametrize("name", ["grid", "search"])
def test_lost_trials_are_run_again_and_planned_again(store: Path, name: str) -> None:
    """Trials whose processes died are FAIL in the journal, yet the next run begins them again."""
    with open_ledger(store, space_of(name)) as ledger:
        ledger.recover(6)
        for _ in range(6):
            asked = ledger.ask()
            assert asked is not None
            done = Outcome(TrialStatus.COMPLETE, metrics={"val.mae": 1.0})
            ledger.tell(asked[0], LOST if asked[0] % 2 else done)
    plan = planned(store, name)
    assert (plan.trials, plan.done, plan.exact) == (3, 3, True)
    assert len(run(store, name)) == 3
    assert planned(store, name).trials == 0


def test_a_killed_driver_leaves_running_and_waiting_trials_to_run(store: Path) -> None:
    with open_ledger(store, space_of("grid")) as ledger:
        ledger.recover(6)
        for _ in range(3):
            ledger.ask()
    assert (planned(store, "grid").trials, planned(store, "grid").done) == (6, 0)
    assert len(run(store, "grid")) == 6


def test_retry_is_planned_as_it_is_run(store: Path) -> None:
    run(store, "grid")  # the three trials with seed 13 fail
    assert planned(store, "grid").trials == len(run(store, "grid")) == 0
    plan = planned(store, "grid", retry=True)
    assert (plan.trials, plan.done) == (3, 3)
    assert len(run(store, "grid", retry=True)) == 3


def test_a_trial_that_is_given_up_is_finished(store: Path) -> None:
    for attempt in range(MAX_ATTEMPTS):
        with open_ledger(store, space_of("grid")) as ledger:
            assert ledger.recover(1) == 1
            asked = ledger.ask()
            assert asked is not None
            ledger.tell(asked[0], LOST)
        assert planned(store, "grid", trials=1).trials == (0 if attempt + 1 == MAX_ATTEMPTS else 1)
    assert run(store, "grid", trials=1) == []


@pytest.mark.parametrize("trials", [4, 6])
def test_the_plan_names_the_points_that_are_left(store: Path, trials: int) -> None:
    """Of a grid whose finished points are not the first ones the plan has the stages of the others."""
    with open_ledger(store, space_of("grid")) as ledger:
        ledger.recover(6)
        ledger.ask()
        asked = ledger.ask()
        assert asked is not None
        ledger.tell(asked[0], Outcome(TrialStatus.COMPLETE, metrics={"val.mae": 1.0}))
    plan = planned(store, "grid", trials=trials)
    ran = run(store, "grid", trials=trials)
    assert plan.trials == len(ran) == trials - 1
    assert sum(row.distinct for row in plan.rows if row.stage == "counting") == len({line.split()[2] for line in ran})
    zooms = {(depth, seed) for depth, _, seed in (line.split() for line in ran)}
    passes = {(n, seed) for depth, seed in zooms for n in range(2, int(depth) + 1)}
    assert sum(row.distinct for row in plan.rows if row.stage == "zoom") == len(passes)


def test_an_extended_target_is_what_is_added(store: Path) -> None:
    run(store, "search")
    plan = planned(store, "search", trials=10)
    assert (plan.trials, plan.done, plan.exact) == (4, 6, False)
    assert len(run(store, "search", trials=10)) == 4


def test_a_trial_that_runs_is_neither_finished_nor_begun(store: Path) -> None:
    states = (TrialStatus.RUNNING, TrialStatus.WAITING, TrialStatus.PRUNED)
    trials = [RecordedTrial(i, state, "", 0 if i == 2 else None) for i, state in enumerate(states)]
    assert study_progress(trials).waiting == (1,)
    assert study_progress(trials).finished == (2,)
    assert study_progress(trials[:2]).left(2) == 2


TABLE = """\
table: small
metrics: [test.mae]
seeds: [0, 1]
profiles:
  toy:
    base: {preset: tiny, set: {counting.train.epochs: 1, localization.train.epochs: 1, backbone.width: 0.05}}
    datasets: [toy]
rows:
  once: {set: {depth: 1, fusion.rule: density}}
  points: {set: {depth: 1, fusion.rule: localization}}
"""


@pytest.mark.long
def test_a_table_whose_scores_another_study_made_is_done(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dry run, the report and the run agree on the trials that are left, and the run begins no other."""
    Path("small.yaml").write_text(TABLE)
    Path("alone.yaml").write_text(TABLE.replace("table: small", "table: alone").replace("[0, 1]", "[0]"))
    table, alone = (parse_table(parse(Path(f"{n}.yaml").read_text(), f"{n}.yaml")) for n in ("small", "alone"))
    assert (planned(store, "small").trials, planned(store, "small").done) == (4, 0)
    run_table(alone, store, inline=True)
    for _ in range(2):
        left = fill_table(table, table.profile(), store).missing
        plan = planned(store, "small")
        assert (plan.trials, plan.done, left) == (2, 2, 2)
        trials = list(table.trials(table.profile()))
        done = finished_table_trials(trials, store, data_root=None, splits=table.splits)
        assert {trials[i].seed for i in done} == {0}
        result = run_table(table, store, inline=True)
        made = {cell.seed for cell in result.cells if not all(stage.hit for stage in cell.outcome.stages)}
        assert (len(result.cells), made) == (4, {1})
        assert planned(store, "small").trials == fill_table(table, table.profile(), store).missing == 0
        with monkeypatch.context() as without:
            without.setitem(sys.modules, "raz.engine.tune_runner", None)  # an import of it raises
            assert len(run_table(table, store, jobs=2).cells) == 4  # all served from the store, without Ray
        for score in (store / "stages" / "score").iterdir():  # a score that is gone is to be made again
            if score.name in _scores(store, 1):
                shutil.rmtree(score)


def _scores(store: Path, seed: int) -> set[str]:
    """The keys of the stored scores of one seed."""
    from raz.report.score_index import ScoreIndex

    return {score.key for score in ScoreIndex(store).all_scores() if score.config["seed"] == seed}


def test_records_are_sorted_as_the_ledger_sorts_trials(store: Path) -> None:
    run(store, "grid")
    with open_ledger(store, space_of("grid")) as ledger:
        ledger.recover(6, retry=True)
        ledger.ask()
    records = read_records(store, "grid")
    assert {r.state for r in records} == {"complete", "failed", "lost", "waiting"}
    progress = study_progress(records)
    assert len(progress.finished) == 3
    assert len(progress.waiting) + len(progress.retried) == 3
