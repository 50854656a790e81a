"""The broker: each stage made once, whoever wants it, and no longer than somebody does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from raz.engine.stage_queue import (
    GRACE,
    MAX_NODE_LOSSES,
    MAX_WORKER_LOSSES,
    WAITER_TIMEOUT,
    Request,
    StageJob,
    StageQueue,
)
from raz.engine.study_runner import run_study
from raz.spec.space_yaml import parse_space
from raz.study.records import read_records
from raz.utils.yamlfile import parse
from tests.crowds import write_crowd
from tests.journaling import PIPELINE, times
from tests.test_pipeline import MICRO, artifacts


class Machines:
    """Where the desk's stages run, and its clock."""

    def __init__(self, cpus: float = 2.0, gpus: float = 0.0) -> None:
        self.now = 0.0
        self.room = {"CPU": cpus, "GPU": gpus}
        self.started: list[StageJob] = []
        self.cancelled: list[tuple[int, bool]] = []
        self.desk = StageQueue(
            self.started.append, lambda f, force: self.cancelled.append((f.number, force)), lambda: self.room,
            lambda: self.now,
        )  # fmt: skip

    def ask(self, who: str, *keys: str, path: float = 1.0, stored: bool = False, **options: Any) -> dict[str, Any]:
        nodes = tuple(("density", key, 0) for key in keys)
        given = {"lane": keys[0], "cpus": 1.0, "gpus": None, **options}
        return self.desk.ask(Request(who, nodes, keys, path=path, job={}, **given), 0, 0, stored)

    @property
    def names(self) -> list[str]:
        return ["+".join(flight.keys) for flight in self.started]

    def end(self, key: str, **outcome: Any) -> None:
        flight = next(f for f in self.started if key in f.keys and f.running)
        self.desk.ended(flight.number, {"state": "made", **outcome})


def test_two_who_want_a_stage_have_it_made_once() -> None:
    m = Machines()
    assert m.ask("a", "x") | {"flight": 0} == {
        "state": "running", "flight": 0, "log": [], "shared": False, "paid": True,
    }  # fmt: skip
    answer = m.ask("b", "x")
    assert (answer["state"], answer["shared"], answer["paid"]) == ("running", True, False)
    assert m.ask("a", "x")["shared"]
    assert m.names == ["x"]
    m.end("x")
    assert m.ask("a", "x", stored=True)["paid"]
    assert not m.ask("b", "x", stored=True)["paid"]
    assert m.names == ["x"]


def test_what_has_the_longest_way_to_go_is_started_first() -> None:
    m = Machines(cpus=1)
    m.ask("first", "x")
    for who, path in (("short", 2.0), ("long", 9.0), ("middle", 5.0)):
        assert m.ask(who, who, path=path)["state"] == "queued"
    m.ask("longer yet", "short", path=7.0)  # a stage is as urgent as its neediest waiter
    for key in ("x", "long", "short"):
        m.end(key)
    assert m.names == ["x", "long", "short", "middle"]


def test_no_more_runs_than_there_is_room() -> None:
    m = Machines(cpus=4, gpus=1)
    for who in "abc":
        m.ask(who, who, gpus=0.5)
    assert m.names == ["a", "b"]
    m.ask("d", "d", cpus=2.0, gpus=0.0, path=0.5)  # small, and last in line: it does not overtake
    assert m.names == ["a", "b"]
    m.end("a")
    assert m.names == ["a", "b", "c", "d"]
    wide = Machines(cpus=1)
    assert wide.ask("a", "x", cpus=8.0)["state"] == "running"  # a cluster may grow for it
    assert wide.ask("b", "y", cpus=8.0)["state"] == "queued"


def test_a_stage_holds_a_device_where_there_is_one() -> None:
    m = Machines(cpus=8, gpus=2)
    for who in "abc":
        m.ask(who, who)
    assert m.names == ["a", "b"]


def test_chains_of_one_lane_follow_each_other() -> None:
    m = Machines(cpus=8)
    m.ask("a", "ten epochs", lane="chain")
    assert m.ask("b", "twenty epochs", lane="chain")["state"] == "queued"
    m.end("ten epochs")
    assert m.names == ["ten epochs", "twenty epochs"]


def test_a_row_of_stages_is_made_together_but_for_what_others_make() -> None:
    m = Machines(cpus=8)
    m.ask("a", "points", "zoom")
    assert m.ask("b", "density", "points", "other zoom")["state"] == "running"
    assert m.names == ["points+zoom", "density"]
    m.end("density")
    m.desk.record(1, "made", {"key": "points"})
    assert m.ask("b", "points")["state"] == "made"
    m.ask("b", "other zoom")
    assert m.names == ["points+zoom", "density", "other zoom"]
    m.desk.leave("a")
    assert m.cancelled == [(1, False)]  # b has what it wanted of it


def test_who_is_pruned_cancels_what_only_he_wanted() -> None:
    m = Machines()
    m.ask("a", "x")
    m.ask("b", "x")
    m.ask("a", "y")  # goes on to another stage: x is b's now
    m.desk.leave("a")
    assert m.cancelled == [(2, False)]
    m.desk.ended(2, {"state": "lost"})
    m.desk.leave("b")
    assert m.cancelled == [(2, False), (1, False)]
    m.now += GRACE + 1
    m.desk.tick()
    assert m.cancelled[2:] == [(1, True)]
    assert m.ask("c", "x")["state"] == "queued"  # until its old process has ended
    m.desk.ended(1, {"state": "lost"})
    assert m.names == ["x", "y", "x"]


def test_who_says_nothing_any_more_waits_no_more() -> None:
    m = Machines()
    m.ask("a", "x")
    for _ in range(3):
        m.now += WAITER_TIMEOUT - 1
        m.ask("b", "x")
    assert m.cancelled == []
    m.now += WAITER_TIMEOUT + 1
    m.desk.tick()
    assert m.cancelled == [(1, False)]


def test_a_lost_process_is_replaced_until_it_gains_nothing() -> None:
    m = Machines()
    lost = {"state": "lost", "reason": "lost", "what": "its process died"}
    m.ask("a", "x")
    for _ in range(2 * MAX_WORKER_LOSSES):  # each gained an epoch: a spot node may go as often as it likes
        m.desk.record(1, "point", {"key": "x", "epoch": 1, "value": 1.0})
        m.desk.ended(1, lost)
    assert len(m.started) == 2 * MAX_WORKER_LOSSES + 1
    for _ in range(MAX_WORKER_LOSSES - 1):
        assert m.ask("a", "x")["state"] == "running"
        m.desk.ended(1, lost)
    answer = m.ask("a", "x")
    assert (answer["state"], answer["outcome"]) == ("failed", lost)
    assert m.ask("a", "x")["state"] == "running"  # told once; asked again, it is tried again


def test_a_lost_machine_is_not_held_against_a_stage() -> None:
    m = Machines()
    m.ask("a", "x")
    process = {"state": "lost", "reason": "lost", "what": "its process died"}
    machine = {"state": "lost", "reason": "node", "what": "its machine went away"}
    for outcome in [process] * (MAX_WORKER_LOSSES - 1) + [machine] * (MAX_NODE_LOSSES - 1):
        m.desk.ended(1, outcome)
        assert m.ask("a", "x")["state"] == "running"
    m.desk.ended(1, machine)  # it may be what breaks them
    assert (m.ask("a", "x")["state"], len(m.started)) == ("failed", MAX_WORKER_LOSSES + MAX_NODE_LOSSES - 1)


def test_a_cluster_that_grows_is_asked_for_all_it_may_have() -> None:
    m = Machines(cpus=0, gpus=0)
    m.room |= {"CPU": 8.0, "GPU": 2.0}  # as `capacity` says it of a head that offers most_gpus
    for who in "abc":
        m.ask(who, who)
    assert m.names == ["a", "b"]


def test_a_failure_reaches_all_that_waited_with_what_came_before() -> None:
    m = Machines()
    m.ask("a", "x")
    m.ask("b", "x")
    point = {"key": "x", "epoch": 1, "value": 3.0}
    m.desk.record(1, "point", point)
    m.end("x", state="failed", args=["stage x", "diverged", "", "nan"])
    for who in "ab":
        answer = m.ask(who, "x")
        assert (answer["state"], answer["log"]) == ("failed", [["point", point]])


def test_a_stage_is_shared_with_every_living_trial_that_has_it_on_its_path() -> None:
    m = Machines()
    assert m.desk.join("a", ["x", "y"]) == []
    assert m.desk.join("b", ["x", "z"]) == ["x"]
    assert m.ask("a", "x")["shared"]
    assert not m.ask("a", "y")["shared"]
    m.desk.leave("b")
    assert not m.ask("a", "x")["shared"]


def test_a_restarted_broker_learns_from_the_next_asking() -> None:
    m = Machines()
    m.ask("a", "x")
    again = Machines()
    answer = again.ask("a", "x")
    assert (answer["state"], answer["paid"]) == ("running", True)


# ------------------------------------------------------------------ under Ray


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_crowd(tmp_path_factory.mktemp("crowd"))


def grid(parameters: Mapping[str, Any], **settings: Any) -> Any:
    """A grid over the smallest real pipeline."""
    given = {**MICRO, **settings}
    document = {
        "study": "grid", "base": {"preset": "tiny", "set": given}, "design": {"sampler": "grid"},
        "parameters": {name: {"choice": list(values)} for name, values in parameters.items()},
    }  # fmt: skip
    return parse_space(parse(json.dumps(document), "grid.yaml"))


def check_once(store: Path, reference: Path, trials: int) -> None:
    """Each distinct stage was made once, and all numbers are those of trials run one after the other without Ray."""
    records, wanted = read_records(store, "grid"), read_records(reference, "grid")
    assert [r.state for r in records] == ["complete"] * trials
    assert [(r.values, r.metrics, r.steps) for r in records] == [(r.values, r.metrics, r.steps) for r in wanted]
    assert artifacts(store) == artifacts(reference)
    finished = times(store, "finished")
    assert set(finished.values()) == {1}
    assert {(stage.partition("@")[0].rstrip("234"), key) for stage, key, _ in finished} == {
        tuple(name.split("/")) for name in artifacts(store)
    }
    assert set(times(store, "epoch").values()) == {1}
    paid = [stage.key for record in records for stage in record.stages if not stage.hit]
    assert len(paid) == len(set(paid)) == sum("@test" not in stage for stage, _, _ in finished)


@pytest.mark.timeout(1200)  # beside other work it takes ten times its time
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
