"""Searches, inline and under Ray: what the study records, whatever happens during the run."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from raz.engine import ray_session
from raz.engine.broker_protocol import RemoteStageError
from raz.engine.events import NullEvents
from raz.engine.interrupt import RunInterrupted
from raz.engine.ray_session import session, set_ray_environment
from raz.engine.results import StudyResult
from raz.engine.runner import parallel_trials
from raz.engine.stage_slots import session_cpus, stage_slots
from raz.engine.study_runner import run_study
from raz.engine.summary import summary
from raz.engine.trial_runner import run_attempt
from raz.engine.trial_source import StudySource
from raz.errors import RazError
from raz.pipeline.events import StageUse
from raz.planning.cost_model import CostModel
from raz.planning.schedule import max_live_trials
from raz.spec.search_space import SearchSpace
from raz.spec.space_yaml import parse_space
from raz.spec.stage_resources import Resources
from raz.study.journal import Journal, journal_path, study_names
from raz.study.ledger import open_ledger
from raz.study.records import TrialRecord, is_running, read_records
from raz.utils.yamlfile import parse
from tests.fakes_engine import STEPS

HERE = Path(__file__).resolve().parent
FAKE = "tests.fakes_engine:run_trial"

GRID = """\
study: grid
base: {preset: tiny, dataset: toy}
design: {sampler: grid}
parameters:
  seed: {choice: [0, 1]}
  depth: {choice: [1, 2, 3]}
"""
TPE = """\
study: tpe
base: {preset: tiny, dataset: toy}
design: {sampler: tpe, trials: 12}
pruner: {name: median, warmup_steps: 1}
parameters:
  depth: {choice: [1, 2, 3, 4]}
  localization.gamma: {float: [1, 1000], log: true}
"""


def space_of(text: str) -> SearchSpace:
    return parse_space(parse(text, "f.yaml"))


def run(text: str, store: Path, **options: Any) -> StudyResult:
    return run_study(space_of(text), store, run_trial=FAKE, **{"inline": True, **options})


def states(records: tuple[TrialRecord, ...]) -> Counter[str]:
    return Counter(record.state for record in records)


def lines(store: Path, name: str = "count") -> list[str]:
    return (store / name).read_text().splitlines()


# ------------------------------------------------------------------ inline


def test_a_grid_runs_every_point_once_and_names_the_best(tmp_path: Path) -> None:
    result = run(GRID, tmp_path)
    records = read_records(tmp_path, "grid")
    assert [(r.values["seed"], r.values["depth"]) for r in records] == [(s, d) for s in (0, 1) for d in (1, 2, 3)]
    assert [r.value for r in records] == [10 * abs(d - 3) + s for s in (0, 1) for d in (1, 2, 3)]
    assert result.best is not None
    assert (result.best.number, result.best.value) == (2, 0.0)
    assert dict(result.changed) == {"depth": (2, 3)}
    assert result.counts == {"complete": 6, "pruned": 0, "failed": 0}
    assert result.ran == 6


def test_a_record_holds_the_whole_trial(tmp_path: Path) -> None:
    run(GRID, tmp_path)
    record = read_records(tmp_path, "grid")[4]
    assert record.config["depth"] == 2
    assert record.config["seed"] == 1
    assert record.config["counting.channels"] == [32, 32, 32]
    assert record.metrics == {"val.mae": 11.0, "val.rmse": 16.5}
    assert record.stages == (StageUse("localization", "ab12", hit=True, seconds=0.0),)
    assert record.steps == {step: 11 * (1 + 4 / (step + 1)) for step in range(STEPS)}
    assert record.versions["optuna"] == optuna.__version__
    assert record.started is not None
    assert record.finished is not None
    assert record.started <= record.finished


def test_the_test_split_is_predicted_once_after_the_search(tmp_path: Path) -> None:
    result = run(GRID, tmp_path)
    splits = [line.split()[3] for line in lines(tmp_path)]
    assert splits == ["val"] * 6 + ["val+test"]
    assert result.held_out["test.mae"] == 0.0
    repeated = run(GRID, tmp_path)
    assert repeated.held_out == result.held_out
    assert len(lines(tmp_path)) == 7  # nothing ran again


def test_running_again_does_nothing_and_more_trials_extend(tmp_path: Path) -> None:
    assert run(TPE, tmp_path, trials=5).ran == 5
    assert run(TPE, tmp_path, trials=5).ran == 0
    assert run(TPE, tmp_path).ran == 7
    records = read_records(tmp_path, "tpe")
    assert len(records) == 12
    drawn = [(r.values["depth"], r.values["localization.gamma"]) for r in records]
    assert len(set(drawn)) == 12  # a resumed sampler does not repeat itself


def test_the_same_seed_draws_the_same_trials(tmp_path: Path) -> None:
    run(TPE, tmp_path / "a")
    run(TPE, tmp_path / "b")
    a, b = (read_records(tmp_path / side, "tpe") for side in "ab")
    assert [(r.values, r.state, r.value, r.steps) for r in a] == [(r.values, r.state, r.value, r.steps) for r in b]


def test_tpe_finds_the_known_optimum(tmp_path: Path) -> None:
    result = run(TPE, tmp_path, trials=40)
    assert result.best is not None
    assert result.best.values["depth"] == 3
    assert abs(math.log10(result.best.values["localization.gamma"]) - 2) < 0.3


def test_pruned_trials_are_pruned_where_they_were_worse_than_half(tmp_path: Path) -> None:
    run(TPE, tmp_path, trials=25)
    records = read_records(tmp_path, "tpe")
    pruned = [r for r in records if r.state == "pruned"]
    assert pruned
    for record in records:
        if record.state == "complete":
            assert len(record.steps) == STEPS
    for record in pruned:
        assert record.pruned_at is not None
        step, value = record.pruned_at
        assert step >= 1
        assert step + 1 == len(record.steps)
        earlier = [r.steps[step] for r in records[: record.number] if r.state == "complete"]
        below = sum(other < value for other in earlier)
        assert below >= len(earlier) / 2
        assert record.value is None


@pytest.mark.parametrize(("seed", "reason", "message"), [
    (13, "nan", "localization: the loss is not a number at epoch 2\n  try: a lower rate"),
    (14, "error", "ZeroDivisionError: an unexpected error"),
])  # fmt: skip
def test_a_failing_trial_has_its_reason_and_the_search_goes_on(
    tmp_path: Path, seed: int, reason: str, message: str
) -> None:
    result = run(GRID.replace("[0, 1]", f"[{seed}, 1]"), tmp_path)
    records = read_records(tmp_path, "grid")
    assert [r.state for r in records] == ["failed"] * 3 + ["complete"] * 3
    assert {(r.reason, r.message) for r in records[:3]} == {(reason, message)}
    assert (result.failed, dict(result.reasons)) == (3, {reason: 3})
    assert run(GRID.replace("[0, 1]", f"[{seed}, 1]"), tmp_path).ran == 0  # what failed for good stays failed
    again = run(GRID.replace("[0, 1]", f"[{seed}, 1]"), tmp_path, retry=True)
    assert again.ran == 3
    assert again.counts == {"complete": 3, "pruned": 0, "failed": 3}


def test_values_that_cannot_go_together_are_invalid(tmp_path: Path) -> None:
    text = GRID[: GRID.index("parameters:")] + (
        "parameters:\n  localization.train.crop: {choice: [0, 128]}\n  localization.train.batch: {choice: [1, 2]}\n"
    )
    text = text.replace("dataset: toy", "dataset: toy, set: {localization.train.batch: 1}")
    run(text, tmp_path)
    records = read_records(tmp_path, "grid")
    assert [r.state for r in records] == ["complete", "failed", "complete", "complete"]
    assert records[1].reason == "invalid"
    assert "localization.train.batch is 2, expected 1 with whole images" in records[1].message


def test_a_metric_that_the_trial_does_not_give(tmp_path: Path) -> None:
    run(GRID.replace("parameters:", "objective: {metric: val.bias}\nparameters:"), tmp_path)
    record = read_records(tmp_path, "grid")[0]
    assert (record.state, record.reason) == ("failed", "error")
    assert record.message == "the trial gave no val.bias; did you mean val.mae or val.rmse?"


def test_a_full_disk_ends_the_run_and_loses_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        run(GRID.replace("[0, 1]", "[1, 16]"), tmp_path)
    records = read_records(tmp_path, "grid")
    assert [r.state for r in records] == ["complete"] * 3 + ["lost"] + ["waiting"] * 2


def test_a_changed_question_under_an_old_name_is_refused(tmp_path: Path) -> None:
    run(GRID, tmp_path)
    with pytest.raises(RazError) as raised:
        run(GRID.replace("[1, 2, 3]", "[1, 2]").replace("dataset: toy", "dataset: toy, set: {threads: 2}"), tmp_path)
    assert str(raised.value) == (
        "study grid: the study of this name has another search space:\n"
        "  base.threads: 1 -> 2\n"
        '  parameters.depth: {"choice": [1, 2, 3]} -> {"choice": [1, 2]}\n'
        "  try: use another study name"
    )


@pytest.mark.long
def test_one_driver_at_a_time(tmp_path: Path) -> None:
    assert not is_running(tmp_path / "none", "grid")
    with open_ledger(tmp_path, space_of(GRID)):
        assert is_running(tmp_path, "grid")
        with pytest.raises(RazError, match="another process is running this study"):
            run(GRID, tmp_path)
    assert not is_running(tmp_path, "grid")
    assert study_names(tmp_path) == ("grid",)


def test_a_line_that_was_cut_short_is_mended(tmp_path: Path) -> None:
    run(TPE, tmp_path, trials=3)
    journal = journal_path(tmp_path, "tpe")
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 5, "trial_')
    assert len(read_records(tmp_path, "tpe")) == 3  # a reader does not mind
    assert run(TPE, tmp_path, trials=4).ran == 1
    assert journal.read_bytes().startswith(whole)
    assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_a_trial_that_is_lost_again_and_again_is_given_up(tmp_path: Path) -> None:
    space = space_of(GRID)
    for attempts in (1, 2, 3):
        with open_ledger(tmp_path, space) as ledger:
            assert ledger.recover(1) == 1
            assert ledger.ask() is not None  # and the driver is gone
        assert len([r for r in read_records(tmp_path, "grid") if r.state == "lost"]) == 1
        assert len(read_records(tmp_path, "grid")) == attempts
    with open_ledger(tmp_path, space) as ledger:
        assert ledger.recover(1) == 0
    records = read_records(tmp_path, "grid")
    assert [(r.state, r.reason, r.retry_of) for r in records] == [
        ("failed", "lost", None), ("failed", "lost", 0), ("failed", "lost", 1),
    ]  # fmt: skip
    assert all(r.values == {"seed": 0, "depth": 1} for r in records)


def test_an_outcome_for_each_kind_of_error(tmp_path: Path) -> None:
    def raising(error: Exception) -> Any:
        def run_trial(*args: Any, **options: Any) -> Any:
            raise error

        return run_trial

    for error, reason in [
        (MemoryError(), "oom"), (RuntimeError("CUDA out of memory. Tried to"), "oom"),
        (RazError("data", "is not there"), "invalid"), (OSError(5, "Input/output error"), "error"),
        (KeyError("x"), "error"),
    ]:  # fmt: skip
        outcome = run_attempt(raising(error), {"dataset": "toy"}, tmp_path)
        assert (outcome.state, outcome.reason) == ("failed", reason)
        assert outcome.message
    remote = run_attempt(raising(RemoteStageError("KeyError: 'x'", "its traceback")), {"dataset": "toy"}, tmp_path)
    assert (remote.reason, remote.message, remote.trace) == ("error", "KeyError: 'x'", "its traceback")
    with pytest.raises(PermissionError):
        run_attempt(raising(PermissionError(13, "Permission denied")), {}, tmp_path)
    assert run_attempt(raising(KeyError("x")), {"dpeth": 2}, tmp_path).reason == "invalid"


def test_jobs_leave_each_trial_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raz.engine.ray_session.available_cpus", lambda: 8)
    monkeypatch.setattr("raz.engine.ray_session.local_gpus", lambda: 0)
    assert parallel_trials(space_of(GRID)) == 8
    assert parallel_trials(space_of(GRID.replace("dataset: toy", "dataset: toy, set: {threads: 3}"))) == 2
    assert parallel_trials(space_of(GRID.replace("seed: {choice: [0, 1]}", "threads: {choice: [1, 16]}"))) == 1
    assert parallel_trials(space_of(GRID), 5) == 5


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "slots"),
    [
        ("", 96, 8, 8),  # a stage takes a GPU where there is one
        ("", 96, 0, 96),
        ("", 4, 8, 4),
        ("", 0, 0, 1),
        ("all: {gpus: 0.25}", 96, 8, 32),
        ("all: {gpus: 0.3}", 96, 8, 24),  # three on each: a stage does not lie on two
        ("all: {gpus: 0.25}", 96, 0, 96),
        ("all: {gpus: 0.25, cpus: 8}", 96, 8, 12),
        ("all: {gpus: 0}", 96, 8, 96),
        ("all: {gpus: 0, cpus: 4}", 96, 8, 24),
        ("counting: {gpus: 0.5}", 96, 8, 16),  # the others one each
        ("attention: {gpus: 0}", 96, 8, 8),  # stages that need no GPU keep none busy
        ("density: {gpus: 0.25}", 96, 8, 8),  # not trained: takes little of the time
    ],
)
def test_stages_at_a_time_follow_the_device_that_they_need(
    resources: str, cpus: int, gpus: int, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = space_of(GRID + (f"resources: {{{resources}}}\n" if resources else ""))
    monkeypatch.setattr("raz.engine.ray_session.available_cpus", lambda: cpus)
    monkeypatch.setattr("raz.engine.ray_session.local_gpus", lambda: gpus)
    assert parallel_trials(space) == slots
    monkeypatch.setattr("raz.engine.ray_session.in_cluster", lambda: True)
    monkeypatch.setattr("raz.engine.ray_session.capacity", lambda: {"CPU": float(cpus), "GPU": float(gpus)})
    monkeypatch.setattr("raz.engine.ray_session.local_gpus", lambda: 99)
    assert parallel_trials(space) == slots
    assert parallel_trials(space, 5) == 5


def test_eight_gpus_keep_sixteen_trials_alive() -> None:
    assert max_live_trials(stage_slots({"CPU": 96.0, "GPU": 8.0}, {}, 1), eager=True) == 16


def test_a_local_session_has_the_cpus_that_its_stages_may_use() -> None:
    wide = {"counting": Resources(cpus=4)}
    assert session_cpus(96, 200, {}, 1) == 96  # also with 8 GPUs: predictions and scores run beside
    assert session_cpus(96, 3, {}, 2) == 6
    assert session_cpus(96, 3, wide, 1) == 12
    assert session_cpus(2, 3, wide, 1) == 4  # logical ones: the stage that asks for four runs
    assert session_cpus(8, 0, wide, 1) == 4  # nothing is left but the held-out scores
    assert session_cpus(2, 3, {}, 4) == 4


def test_gpus_are_counted_only_where_the_system_has_a_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(ray_session, "gpus_of_this_machine", lambda: len(asked) or asked.append(True) or 3)
    monkeypatch.setattr(ray_session, "GPU_DEVICES", (str(tmp_path / "nvidia0"),))
    assert (ray_session.local_gpus(), asked) == (0, [])
    (tmp_path / "nvidia0").touch()
    assert ray_session.local_gpus() == 3


def test_the_summary_says_what_to_set_and_where_to_look(tmp_path: Path) -> None:
    text = "\n".join(summary(run(GRID, tmp_path)))
    assert "study grid: 6 complete, 0 pruned, 0 failed" in text
    assert "best: trial 2, val.mae 0" in text
    assert "  depth: 3  (base 2)" in text
    assert "(guessing the training median: " in text
    assert f"raz-sweep report grid --store {tmp_path}" in text
    assert f"raz-sweep dashboard grid --store {tmp_path}" in text  # which cannot write to the study


CURVES = GRID.replace("design:", "pruner: {name: threshold, upper: 5, stages: [counting]}\ndesign:")


def test_a_replayed_curve_is_written_at_once_and_prunes_only_where_nobody_shares_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_ray_environment()
    from raz.engine.trial_messages import REPORT, RunSpec, StepReport, TrialReport
    from raz.engine.tune_bridge import SourceSearch

    def result(*steps: StepReport) -> dict[str, Any]:
        return {REPORT: TrialReport(steps)}

    written: list[Any] = []
    write = Journal.write
    monkeypatch.setattr(Journal, "write", lambda *a, **k: (written.append(k.get("steps")), write(*a, **k))[1])
    with open_ledger(tmp_path, space_of(CURVES)) as ledger:
        ledger.recover(1)
        search = SourceSearch(StudySource(ledger), NullEvents(), RunSpec(FAKE, tmp_path), CostModel(tmp_path))
        search.suggest("a")
        written.clear()
        assert not search.report("a", result(StepReport(1, 9.0, True), StepReport(2, 9.0, True), StepReport(3, 2.0)))
        assert written == [{1: 9.0, 2: 9.0}, {3: 2.0}]
        assert search.report("a", result(StepReport(4, 9.0), StepReport(5, 9.0)))
        search.on_trial_complete("a", {})
        record = ledger.record(0)
    assert (record.state, record.pruned_at, sorted(record.steps)) == ("pruned", (4, 9.0), [1, 2, 3, 4])


def test_further_trials_begin_once_one_has_reported_or_ended(tmp_path: Path) -> None:
    """None asks Tune to ask again; the trial stays in the ledger."""
    set_ray_environment()
    from raz.engine.trial_messages import REPORT, SPEC, RunSpec, TrialReport
    from raz.engine.tune_bridge import SourceSearch

    for begins in ("report", "end"):
        with open_ledger(tmp_path / begins, space_of(GRID)) as ledger:
            left = ledger.recover(6)
            run, costs = RunSpec(FAKE, tmp_path), CostModel(tmp_path)
            search = SourceSearch(StudySource(ledger), NullEvents(), run, costs, first=2)
            first = [search.suggest(name) for name in "abcc"]
            assert first[2:] == [None, None]
            assert ledger.left == left - 2
            if begins == "report":
                assert not search.report("b", {REPORT: TrialReport()})
            else:
                search.on_trial_complete("a", {}, error=True)
            numbers = [spec[SPEC].number for spec in (*first[:2], search.suggest("c"), search.suggest("d")) if spec]
            assert numbers == [0, 1, 2, 3]


PARETO = """\
study: pareto
base: {preset: tiny, dataset: toy}
design: {sampler: grid}
objective: [{metric: val.mae}, {metric: val.rmse, direction: maximize}]
parameters:
  depth: {choice: [1, 2, 3]}
"""


def test_the_summary_of_several_objectives_shows_the_front(tmp_path: Path) -> None:
    result = run(PARETO, tmp_path)  # rmse is 1.5 times mae, and here the more the better: none beats another
    text = summary(result)
    assert "front: 3 trials that no other beats in every objective" in text
    assert [line.split() for line in text if line.startswith("  ") and "#" in line] == [
        ["#0", "20", "30", "depth=1"], ["#1", "10", "15", "depth=2"], ["#2", "0", "0", "depth=3"],
    ]  # fmt: skip
    assert "best in val.mae: trial 2, val.mae 0" in text
    assert [trial["objectives"] for trial in result.as_json()["front"]] == [
        {"val.mae": 10.0 * n, "val.rmse": 15.0 * n} for n in (2, 1, 0)
    ]


# ------------------------------------------------------------------ a driver that is stopped

DRIVER = """
import sys
from pathlib import Path
from raz.engine.study_runner import run_study
from raz.spec.space_yaml import parse_space
from raz.utils.yamlfile import parse
try:
    space = parse_space(parse(sys.argv[2], "f.yaml"))
    options = {"inline": sys.argv[3] == "inline", "jobs": 2}
    run_study(space, Path(sys.argv[1]), run_trial="tests.fakes_engine:run_trial", **options)
except KeyboardInterrupt as stop:
    sys.exit(stop.code)
"""


def driver(store: Path, text: str, engine: str) -> subprocess.Popen[bytes]:
    paths = str(HERE.parent)
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(store), text, engine], env={**os.environ, "PYTHONPATH": paths}
    )


def until(met: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.05)


def started(store: Path, n: int) -> bool:
    return (store / "count").exists() and len(lines(store)) >= n


SLOW = GRID.replace("seed: {choice: [0, 1]}", "seed: {choice: [0, 1, 2]}")


def check_resumed(store: Path, lost: int) -> None:
    (store / "sleep").unlink()
    result = run(SLOW, store)
    records = read_records(store, "grid")
    final = [r for r in records if r.state == "complete"]
    assert sorted((r.values["seed"], r.values["depth"]) for r in final) == [
        (s, d) for s in (0, 1, 2) for d in (1, 2, 3)
    ]
    failed = [r for r in records if r.state == "failed"]
    assert {r.reason for r in failed} == {"lost"}
    assert len(failed) == lost
    assert {r.retry_of for r in records} - {None} == {r.number for r in failed}
    assert states(records) == {"complete": 9, "failed": lost}
    assert result.counts == {"complete": 9, "pruned": 0, "failed": 0}


@pytest.mark.long
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_inline_driver_is_resumed_exactly(tmp_path: Path, sent: signal.Signals, code: int) -> None:
    (tmp_path / "sleep").write_text("0 0 600")  # the third waits for the signal
    process = driver(tmp_path, SLOW, "inline")
    until(lambda: started(tmp_path, 3))
    process.send_signal(sent)
    assert process.wait(240) == code
    assert states(read_records(tmp_path, "grid")) == {"complete": 2, "lost": 1, "waiting": 6}
    check_resumed(tmp_path, lost=1)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
@pytest.mark.slow
@pytest.mark.ray
def test_a_stopped_ray_driver_is_resumed_exactly(tmp_path: Path, sent: signal.Signals, code: int) -> None:
    (tmp_path / "sleep").write_text("0.3")
    process = driver(tmp_path, SLOW, "ray")
    until(lambda: started(tmp_path, 4))
    process.send_signal(sent)
    assert process.wait(240) == code
    left = states(read_records(tmp_path, "grid"))
    assert "running" not in left
    assert 1 <= left["lost"] <= 4  # two jobs, and two trials that may wait for stages beside them
    check_resumed(tmp_path, lost=left["lost"])


# ------------------------------------------------------------------ under Ray


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_ray_and_inline_give_the_same_records(tmp_path: Path) -> None:
    text = GRID.replace("[0, 1]", "[0, 13, 14]")
    run(text, tmp_path / "inline")
    run(text, tmp_path / "ray", inline=False, jobs=2)

    def compared(engine: str) -> list[Any]:
        return [
            (r.number, r.state, r.values, r.config, r.value, r.metrics, r.stages, r.steps, r.reason, r.message)
            for r in read_records(tmp_path / engine, "grid")
        ]

    assert compared("ray") == compared("inline")
    assert len(compared("ray")) == 9
    workers = {line.split()[4] for line in lines(tmp_path / "ray") if line.split()[3] == "val"}
    assert str(os.getpid()) not in workers
    assert len(workers) <= max_live_trials(2, eager=True) < 9  # processes are reused


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_ray_prunes_what_the_study_says(tmp_path: Path) -> None:
    (tmp_path / "sleep").write_text("0.01")
    result = run(TPE, tmp_path, trials=20, inline=False, jobs=2)
    records = read_records(tmp_path, "tpe")
    assert set(states(records)) == {"complete", "pruned"}
    assert len(records) == result.ran == 20
    for record in records:
        assert (len(record.steps) == STEPS) if record.state == "complete" else record.pruned_at is not None
        assert sorted(record.steps) == list(range(len(record.steps)))


@pytest.mark.parametrize(
    ("error", "reason"),
    [("ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.", "oom"),
     ("ray.exceptions.ActorDiedError: The actor died unexpectedly", "lost")],
)  # fmt: skip
def test_a_process_that_was_killed_for_memory_says_so(tmp_path: Path, error: str, reason: str) -> None:
    set_ray_environment()
    from raz.engine.trial_messages import RunSpec
    from raz.engine.tune_bridge import SourceScheduler, SourceSearch

    with open_ledger(tmp_path, space_of(GRID)) as ledger:
        ledger.recover(1)
        search = SourceSearch(StudySource(ledger), NullEvents(), RunSpec(FAKE, tmp_path), CostModel(tmp_path))
        assert search.suggest("a") != "FINISHED"
        assert search.suggest("b") == "FINISHED"
        trial = SimpleNamespace(trial_id="a", get_error=lambda: error, get_pickled_error=lambda: None)
        wrapped = SimpleNamespace(searcher=SimpleNamespace(searcher=search))
        SourceScheduler().on_trial_error(SimpleNamespace(search_alg=wrapped), trial)
        search.on_trial_complete("a", None, error=True)
        assert [(r.state, r.reason) for r in ledger.records()[:1]] == [("failed", reason)]


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_a_full_disk_under_ray(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        run(GRID.replace("[0, 1]", "[16, 1]"), tmp_path, inline=False, jobs=1)
    left = states(read_records(tmp_path, "grid"))
    assert set(left) == {"lost", "waiting"}
    assert sum(left.values()) == 6


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_trial_whose_process_dies_is_lost_and_the_search_goes_on(tmp_path: Path) -> None:
    text = GRID.replace("[0, 1]", "[15, 1]").replace("[1, 2, 3]", "[2]")
    result = run(text, tmp_path, inline=False, jobs=1)
    records = read_records(tmp_path, "grid")
    assert [(r.state, r.reason) for r in records] == [("failed", "lost"), ("complete", "")]
    assert result.failed == 1
    ran = [line.split()[2] for line in lines(tmp_path)]
    assert ran.count("15") == 3  # restarted twice


@pytest.mark.parametrize(("code", "raised"), [("its message", "its message"), (signal.SIGTERM.value, 143)])
def test_only_the_exit_of_sigterm_is_an_interruption(code: Any, raised: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it starts, Ray answers SIGTERM with an exit of that number; other exits keep their message."""
    import ray

    for name in ("init", "shutdown"):
        monkeypatch.setattr(ray, name, lambda **options: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises((SystemExit, RunInterrupted)) as caught, session(1):
        sys.exit(code)
    assert caught.value.code == raised
