"""The ledger: what the study records after a driver was killed, under every pruner; and what a long study costs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest

from raz.config import parameters
from raz.spec.search_space import SearchSpace
from raz.spec.space_yaml import parse_space
from raz.study.ledger import open_ledger
from raz.study.records import Outcome, read_records
from raz.utils.yamlfile import parse
from tests.test_stage_pruner import PRUNERS, run, space_of

DRIVER = """\
import sys, time
from pathlib import Path
from raz.study.records import Outcome; from raz.study.ledger import open_ledger
from tests.test_stage_pruner import PRUNERS, curve, run, space_of

name, store = sys.argv[1], Path(sys.argv[2])
with open_ledger(store, space_of(PRUNERS[name])) as ledger:
    run(ledger, 12)
    ledger.recover(30)
    for _ in range(3):
        number = ledger.ask()[0]
        for step, value in curve(number)[:2]:
            ledger.report(number, step, value, shared=True)
    print("halfway", flush=True)
    time.sleep(600)
"""


QUICK = ("median", "hyperband")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in PRUNERS])
@pytest.mark.filterwarnings("ignore")
def test_what_a_killed_driver_left_is_settled_by_the_next_command(tmp_path: Path, name: str) -> None:
    with subprocess.Popen([sys.executable, "-c", DRIVER, name, str(tmp_path)], stdout=subprocess.PIPE, text=True) as p:
        assert p.stdout is not None
        assert p.stdout.readline() == "halfway\n"
        before = read_records(tmp_path, "p")
        os.kill(p.pid, signal.SIGKILL)
    assert [r.state for r in before[12:]] == ["running"] * 3
    lost = read_records(tmp_path, "p")
    assert [r.state for r in lost[12:]] == ["lost"] * 3
    with open_ledger(tmp_path, space_of(PRUNERS[name])) as ledger:
        stopped = run(ledger, 30)
    records = read_records(tmp_path, "p")
    assert records[:12] == lost[:12]  # what was done is as it was
    assert [(r.state, r.reason) for r in records[12:15]] == [("failed", "lost")] * 3
    assert [r.retry_of for r in records[15:18]] == [12, 13, 14]
    assert [r.values for r in records[15:18]] == [r.values for r in records[12:15]]
    assert len(records) == 33
    assert {r.number for r in records[15:] if r.state == "pruned"} == {n for n, s in stopped.items() if s is not None}
    assert {r.number for r in records[15:] if r.state == "complete"} == {n for n, s in stopped.items() if s is None}


def long_space(n: int) -> SearchSpace:
    text = (
        f"study: long\nbase: {{preset: tiny, dataset: toy}}\ndesign: {{sampler: random, trials: {n}}}\n"
        "pruner: {name: threshold, upper: 1000, stages: [counting]}\nparameters:\n  depth: {choice: [1, 2, 3]}\n"
        "  zooming.theta_z: {float: [0.001, 0.5]}\n"
    )
    return parse_space(parse(text, "f.yaml"))


@pytest.mark.long
def test_a_trial_writes_as_much_late_in_a_study_as_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost of a trial counted, not timed: lines and bytes of the journal, and lists of all trials taken."""
    lists = 0
    whole = optuna.Study.get_trials

    def counted(self: optuna.Study, *args: Any, **options: Any) -> Any:
        nonlocal lists
        lists += 1
        return whole(self, *args, **options)

    monkeypatch.setattr(optuna.Study, "get_trials", counted)
    costs = []
    with open_ledger(tmp_path, long_space(120)) as ledger:
        ledger.recover(120)
        journal = tmp_path / "studies" / "long.journal"
        for _ in range(120):
            lists, size = 0, journal.stat().st_size
            asked = ledger.ask()
            assert asked is not None
            ledger.report_many(asked[0], [(step, 100 / step) for step in range(1, 31)])
            ledger.tell(asked[0], Outcome("complete", 1.0, {"val.mae": 1.0}))
            costs.append((lists, journal.stat().st_size - size))
    assert {count for count, _ in costs[10:]} == {0}
    assert costs[-1][1] <= costs[10][1] * 1.1


def test_a_record_has_the_whole_configuration_though_only_changes_are_written(tmp_path: Path) -> None:
    space = long_space(3)
    with open_ledger(tmp_path, space) as ledger:
        ledger.recover(3)
        asked = [ledger.ask() for _ in range(3)]
        for one in asked:
            assert one is not None
            outcome = Outcome("complete", 2.0, {"val.mae": 1.0}, device="cpu", data={"val": "f00d"})
            ledger.tell(one[0], outcome)
    for record, one in zip(read_records(tmp_path, "long"), asked, strict=True):
        assert one is not None
        assert record.config == one[2] == parameters(space.config(one[1]))
        assert (record.device, record.data, record.objectives) == ("cpu", {"val": "f00d"}, {"val.mae": 1.0})
    assert (tmp_path / "studies" / "long.journal").read_text().count("localization.train.lr") == 1


def test_optuna_s_own_tools_read_the_journal(tmp_path: Path) -> None:
    with open_ledger(tmp_path, long_space(5)) as ledger:
        run_all = [ledger.recover(5), *(ledger.ask() for _ in range(5))]
        for number in range(5):
            ledger.report(number, 1, 5.0)
            ledger.tell(number, Outcome("complete", 1.0, {"val.mae": float(number)}))
    assert len(run_all) == 6
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "studies" / "long.journal"))
    study = optuna.load_study(study_name="long", storage=optuna.storages.JournalStorage(backend))
    assert study.best_value == 0.0
    assert [t.intermediate_values for t in study.trials] == [{1: 5.0}] * 5


def test_several_slots_are_asked_to_begin_what_shares_least(tmp_path: Path) -> None:
    """All of one seed come before the next in the file; side by side they begin with a seed each. Numbers stay."""
    text = "study: spread\nbase: {preset: tiny, dataset: toy}\ndesign: {sampler: loo, seeds: [5, 6]}\nparameters:\n"
    space = parse_space(parse(text + "  fusion.rule: {choice: [grid, average, density]}\n", "f.yaml"))
    with open_ledger(tmp_path, space) as ledger:
        assert ledger.recover(6) == 6
        ledger.order_queue()
        asked = []
        for _ in range(3):
            found = ledger.ask()
            assert found is not None
            asked.append(found)
            assert space.points[found[0]] == found[1]
        assert [values["seed"] for _, values, _ in asked[:2]] == [5, 6]
        ledger.tell(asked[0][0], Outcome("complete", metrics={"val.mae": 1.0}))
        ledger.report(asked[2][0], 1, 2.0)
        ledger.requeue(asked[2][0])
    with open_ledger(tmp_path, space) as ledger:  # what was lost is queued again, what had begun comes first
        assert ledger.recover(6) == 5
        ledger.order_queue()
        again = []
        while (found := ledger.ask()) is not None:
            again.append(found)
        assert again[0][0] == asked[2][0]
        wanted = sorted(map(str, space.points))
        assert sorted(str(values) for _, values, _ in [asked[0], *again]) == wanted
