"""The broker: each stage is built once for all trials that need it, and cancelled when none does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from raz.config import TrialConfig
from raz.engine.broker_protocol import (
    BuildFailed,
    BuildOutcome,
    BuildRequest,
    BuildSpec,
    Built,
    EpochReport,
    JobStatus,
    LossCause,
    StageMade,
    StageReply,
    StageStatus,
    WorkerLost,
)
from raz.engine.stage_job import StageJob
from raz.engine.stage_queue import GRACE, MAX_NODE_LOSSES, MAX_WORKER_LOSSES, StageQueue
from raz.engine.study_runner import run_study
from raz.engine.trial_paths import WAITER_TIMEOUT
from raz.errors import TrialFailure
from raz.pipeline.events import StageEvent
from raz.pipeline.graph import Node
from raz.spec.space_yaml import parse_space
from raz.study.records import read_records
from raz.utils.yamlfile import parse
from tests.journaling import PIPELINE, times
from tests.test_pipeline import MICRO, artifacts

BUILD = BuildSpec(TrialConfig(), Path("store"), None, "module:function")
BUILT = Built()
LOST = WorkerLost(LossCause.PROCESS, "its process died")


class Machines:
    """Where the queue's jobs run, and its clock."""

    def __init__(self, cpus: float = 2.0, gpus: float = 0.0) -> None:
        self.now = 0.0
        self.capacity = {"CPU": cpus, "GPU": gpus}
        self.started: list[StageJob] = []
        self.cancelled: list[tuple[int, bool]] = []
        self.queue = StageQueue(
            self.started.append, lambda job, kill: self.cancelled.append((job.number, kill)), lambda: self.capacity,
            lambda: self.now,
        )  # fmt: skip

    def poll(
        self, trial: str, *keys: str, remaining: float = 1.0, stored: bool = False, exclusion_key: str = "",
        cpus: float = 1.0, gpus: float | None = None,
    ) -> StageReply:  # fmt: skip
        nodes = tuple(Node("density", key) for key in keys)
        request = BuildRequest(trial, nodes, keys, exclusion_key or keys[0], remaining, cpus, gpus, BUILD)
        return self.queue.poll(request, 0, 0, stored)

    @property
    def names(self) -> list[str]:
        return ["+".join(job.keys) for job in self.started]

    def end(self, key: str, outcome: BuildOutcome = BUILT) -> None:
        job = next(job for job in self.started if key in job.keys and job.running)
        self.queue.finish(job.number, outcome)


def test_a_stage_that_two_trials_need_is_built_once() -> None:
    m = Machines()
    reply = m.poll("a", "x")
    assert reply == StageReply(StageStatus.RUNNING, reply.job, log=(), shared=False, charged=True)
    reply = m.poll("b", "x")
    assert (reply.status, reply.shared, reply.charged) == ("running", True, False)
    assert m.poll("a", "x").shared
    assert m.names == ["x"]
    m.end("x")
    assert m.poll("a", "x", stored=True).charged
    assert not m.poll("b", "x", stored=True).charged
    assert m.names == ["x"]


def test_a_trial_hears_what_a_stage_reported_last_also_when_its_job_has_ended_meanwhile() -> None:
    m = Machines()
    job = m.poll("a", "x", "y").job
    m.poll("b", "x")
    epoch, done = EpochReport("x", 1, 0.5), StageEvent("finished", "x", "x")
    for message in (epoch, done, StageMade("x"), StageMade("y")):
        m.queue.record(job, message)
    assert m.poll("b", "x").status == "made"
    m.end("x")
    reply = m.poll("a", "x", stored=True)
    assert reply == StageReply(
        StageStatus.MADE, job, (epoch, done, StageMade("x"), StageMade("y")), shared=True, charged=True
    )
    assert m.poll("a", "x", stored=True).log == ()  # it is told once
    assert m.poll("b", "x", stored=True).log == ()  # it had heard it
    assert m.names == ["x+y"]


def test_what_an_ended_job_reported_is_forgotten_with_the_trials_that_waited_for_it() -> None:
    m = Machines()
    for trial in ("left", "silent"):
        m.queue.record(m.poll(trial, trial).job, StageMade(trial))
        m.end(trial)
    m.queue.leave("left")
    assert m.poll("left", "left", stored=True).log == ()
    m.now += WAITER_TIMEOUT
    m.queue.tick()
    assert m.poll("silent", "silent", stored=True).log == ()


def test_a_stage_that_was_made_and_is_damaged_is_built_again() -> None:
    m = Machines()
    m.poll("a", "x")
    m.end("x")
    assert m.poll("a", "x", stored=True).status == "made"
    assert m.poll("a", "x", stored=False).status == "running"
    m.end("x")
    assert m.poll("a", "x", stored=False).status == "made"  # no third time: it has just been made
    assert m.names == ["x", "x"]


def test_a_building_process_ends_after_the_broker_has_its_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """The outcome of a task may reach the broker before its reports do, which then belong to no job any more."""
    import ray

    from raz.engine import stage_worker

    class Report:
        sent: ClassVar[list[object]] = []

        def remote(self, number: int, message: object) -> object:
            self.sent.append(message)
            return len(self.sent)

    def build(*_: object, on_epoch: Callable[..., bool], on_made: Callable[..., None], **__: object) -> None:
        on_epoch(node, 1, 0.5)
        on_made(node)
        if fails:
            raise ValueError("wrong")

    node, waited = Node("counting"), list[object]()
    monkeypatch.setattr(ray, "get_actor", lambda *_, **__: SimpleNamespace(report=Report()))
    monkeypatch.setattr(ray, "wait", lambda refs, timeout: waited.extend(refs))
    monkeypatch.setattr(stage_worker, "import_builder", lambda name: build)
    for fails in (False, True):
        outcome = stage_worker.build_stages(BUILD, [node], ["x"], "broker", 1)
        assert isinstance(outcome, BuildFailed if fails else Built)
    assert Report.sent == [EpochReport("x", 1, 0.5), StageMade("x")] * 2
    assert waited == [2, 4]


def test_the_longest_remaining_path_starts_first() -> None:
    m = Machines(cpus=1)
    m.poll("first", "x")
    for trial, remaining in (("short", 2.0), ("long", 9.0), ("middle", 5.0)):
        assert m.poll(trial, trial, remaining=remaining).status == "queued"
    m.poll("longer yet", "short", remaining=7.0)  # a job has the priority of its waiter with the longest path
    for key in ("x", "long", "short"):
        m.end(key)
    assert m.names == ["x", "long", "short", "middle"]


def test_jobs_that_do_not_fit_wait() -> None:
    m = Machines(cpus=4, gpus=1)
    for trial in "abc":
        m.poll(trial, trial, gpus=0.5)
    assert m.names == ["a", "b"]
    m.poll("d", "d", cpus=2.0, gpus=0.0, remaining=0.5)  # fits, but is last in the queue: it does not overtake
    assert m.names == ["a", "b"]
    m.end("a")
    assert m.names == ["a", "b", "c", "d"]
    wide = Machines(cpus=1)
    assert wide.poll("a", "x", cpus=8.0).status == "running"  # a cluster may grow for it
    assert wide.poll("b", "y", cpus=8.0).status == "queued"


def test_a_job_holds_a_gpu_where_there_is_one() -> None:
    m = Machines(cpus=8, gpus=2)
    for trial in "abc":
        m.poll(trial, trial)
    assert m.names == ["a", "b"]


def test_jobs_with_one_exclusion_key_run_one_after_the_other() -> None:
    m = Machines(cpus=8)
    m.poll("a", "ten epochs", exclusion_key="chain")
    assert m.poll("b", "twenty epochs", exclusion_key="chain").status == "queued"
    m.end("ten epochs")
    assert m.names == ["ten epochs", "twenty epochs"]


def test_one_job_builds_the_stages_of_a_request_that_no_other_job_builds() -> None:
    m = Machines(cpus=8)
    m.poll("a", "points", "zoom")
    assert m.poll("b", "density", "points", "other zoom").status == "running"
    assert m.names == ["points+zoom", "density"]
    m.end("density")
    m.queue.record(1, StageMade("points"))
    assert m.poll("b", "points").status == "made"
    m.poll("b", "other zoom")
    assert m.names == ["points+zoom", "density", "other zoom"]
    m.queue.leave("a")
    assert m.cancelled == [(1, False)]  # b has its stage of that job


def test_a_pruned_trial_cancels_the_jobs_that_no_other_trial_waits_for() -> None:
    m = Machines()
    m.poll("a", "x")
    m.poll("b", "x")
    m.poll("a", "y")  # moves on to another stage: b alone waits for x
    m.queue.leave("a")
    assert m.cancelled == [(2, False)]
    m.queue.finish(2, LOST)
    m.queue.leave("b")
    assert m.cancelled == [(2, False), (1, False)]
    m.now += GRACE + 1
    m.queue.tick()
    assert m.cancelled[2:] == [(1, True)]
    assert m.poll("c", "x").status == "queued"  # until its old process has ended
    m.queue.finish(1, LOST)
    assert m.names == ["x", "y", "x"]


def test_a_silent_trial_expires() -> None:
    m = Machines()
    m.poll("a", "x")
    for _ in range(3):
        m.now += WAITER_TIMEOUT - 1
        m.poll("b", "x")
    assert m.cancelled == []
    m.now += WAITER_TIMEOUT + 1
    m.queue.tick()
    assert m.cancelled == [(1, False)]


def test_a_lost_process_is_replaced_while_it_makes_progress() -> None:
    m = Machines()
    m.poll("a", "x")
    for epoch in range(1, 2 * MAX_WORKER_LOSSES + 1):  # each gained an epoch: spot nodes may be lost without limit
        m.queue.record(1, EpochReport("x", epoch, 1.0))
        m.queue.finish(1, LOST)
    assert len(m.started) == 2 * MAX_WORKER_LOSSES + 1
    for _ in range(MAX_WORKER_LOSSES - 1):
        assert m.poll("a", "x").status == "running"
        for epoch in range(1, 2 * MAX_WORKER_LOSSES + 1):  # of the checkpoint: nothing new
            m.queue.record(1, EpochReport("x", epoch, 1.0))
        m.queue.finish(1, LOST)
    reply = m.poll("a", "x")
    assert (reply.status, reply.outcome) == ("failed", LOST)
    assert m.poll("a", "x").status == "running"  # the failure was replied once: the next poll builds it again


def test_lost_machines_count_apart_from_lost_processes() -> None:
    m = Machines()
    m.poll("a", "x")
    machine = WorkerLost(LossCause.NODE, "its machine went away")
    for outcome in [LOST] * (MAX_WORKER_LOSSES - 1) + [machine] * (MAX_NODE_LOSSES - 1):
        m.queue.finish(1, outcome)
        assert m.poll("a", "x").status == "running"
    m.queue.finish(1, machine)  # the stage itself may be the cause
    assert (m.poll("a", "x").status, len(m.started)) == ("failed", MAX_WORKER_LOSSES + MAX_NODE_LOSSES - 1)


def test_jobs_start_up_to_the_size_that_a_cluster_may_grow_to() -> None:
    m = Machines(cpus=0, gpus=0)
    m.capacity |= {"CPU": 8.0, "GPU": 2.0}  # as `capacity` reads them from a head that offers most_gpus
    for trial in "abc":
        m.poll(trial, trial)
    assert m.names == ["a", "b"]


def test_a_failure_and_the_log_before_it_reach_every_waiter() -> None:
    m = Machines()
    m.poll("a", "x")
    m.poll("b", "x")
    epoch = EpochReport("x", 1, 3.0)
    m.queue.record(1, epoch)
    failure = BuildFailed(TrialFailure("stage x", "diverged", reason="nan"))
    m.end("x", failure)
    for trial in "ab":
        reply = m.poll(trial, "x")
        assert (reply.status, reply.log, reply.outcome) == ("failed", (epoch,), failure)


def test_a_stage_is_shared_with_every_living_trial_that_has_it_on_its_path() -> None:
    m = Machines()
    assert m.queue.join("a", ["x", "y"]) == []
    assert m.queue.join("b", ["x", "z"]) == ["x"]
    assert m.poll("a", "x").shared
    assert not m.poll("a", "y").shared
    m.queue.leave("b")
    assert not m.poll("a", "x").shared


def test_a_restarted_broker_learns_its_state_from_the_next_poll() -> None:
    m = Machines()
    m.poll("a", "x")
    restarted = Machines()
    reply = restarted.poll("a", "x")
    assert (reply.status, reply.charged) == ("running", True)


def test_the_status_of_each_job() -> None:
    m = Machines(cpus=1)
    m.poll("a", "x")
    m.poll("b", "y")
    m.queue.record(1, EpochReport("x", 1, 3.0))
    x, y = Node("density", "x"), Node("density", "y")
    queued = JobStatus((y,), "y", StageStatus.QUEUED, ("b",), None)
    assert m.queue.status() == [JobStatus((x,), "x", StageStatus.RUNNING, ("a",), EpochReport("x", 1, 3.0)), queued]
    m.queue.leave("a")
    assert [job.status for job in m.queue.status()] == ["cancelled", "queued"]


# ------------------------------------------------------------------ under Ray


def grid(parameters: Mapping[str, Any], more: Mapping[str, Any] | None = None, **settings: Any) -> Any:
    """A grid over the smallest real pipeline. `more`: further keys of its file."""
    base = {**MICRO, **settings}
    document = {
        "study": "grid", "base": {"preset": "tiny", "set": base}, "design": {"sampler": "grid"},
        "parameters": {name: {"choice": list(values)} for name, values in parameters.items()}, **(more or {}),
    }  # fmt: skip
    return parse_space(parse(json.dumps(document), "grid.yaml"))


def check_once(store: Path, reference: Path, trials: int) -> None:
    """Each distinct stage was made once, and all values are those of a run without Ray."""
    records, expected = read_records(store, "grid"), read_records(reference, "grid")
    assert [r.state for r in records] == ["complete"] * trials
    assert [(r.values, r.metrics, r.steps) for r in records] == [(r.values, r.metrics, r.steps) for r in expected]
    assert artifacts(store) == artifacts(reference)
    finished = times(store, "finished")
    assert set(finished.values()) == {1}
    assert {(stage.partition("@")[0].rstrip("234"), key) for stage, key, _ in finished} == {
        tuple(name.split("/")) for name in artifacts(store)
    }
    assert set(times(store, "epoch").values()) == {1}
    charged = [stage.key for record in records for stage in record.stages if not stage.hit]
    assert len(charged) == len(set(charged)) == sum("@test" not in stage for stage, _, _ in finished)


@pytest.mark.long
@pytest.mark.timeout(1200)  # on a busy machine it takes ten times as long
@pytest.mark.usefixtures("ray_session")
def test_each_distinct_stage_is_made_once(tmp_path: Path, crowd: Path) -> None:
    space = grid({"fusion.rule": ["density", "average"]}, depth=1)
    run_study(space, tmp_path / "inline", data_root=crowd, inline=True)
    run_study(space, tmp_path / "ray", data_root=crowd, jobs=1, run_trial=PIPELINE)
    check_once(tmp_path / "ray", tmp_path / "inline", 2)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_27_trials_on_8_workers(tmp_path: Path, crowd: Path) -> None:
    space = grid({"seed": [0, 1, 2], "depth": [1, 2, 3], "fusion.rule": ["density", "average", "localization"]})
    run_study(space, tmp_path / "inline", data_root=crowd, inline=True)
    run_study(space, tmp_path / "ray", data_root=crowd, jobs=8, run_trial=PIPELINE)
    check_once(tmp_path / "ray", tmp_path / "inline", 27)
