"""Leases: one holder at a time, whoever dies, sleeps or wakes up at the wrong moment. Processes here are real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raz.errors import TrialFailure
from raz.store import lease as leases
from raz.store.cache import StageCache, StageKey
from raz.store.failures import Device
from raz.store.lease import ATTEMPT, Lease, LeaseLost, acquire
from raz.store.manifest import Manifest

HERE = Path(__file__).resolve().parents[1]
KEY = StageKey("counting", 1, {"a": 1}, {}, {})


def child(code: str, *arguments: object, seconds: float = 60.0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(HERE), "RAZ_LEASE_SECONDS": str(seconds)},
    )  # fmt: skip


def heard(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().strip() == word


def until(met: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.02)


COUNT = """
import sys
from pathlib import Path
from raz.store.lease import acquire
folder = Path(sys.argv[1])
for _ in range(10):
    with acquire(folder, "x"):
        n = int((folder / "n").read_text())
        (folder / "n").write_text("half-written")
        (folder / "n").write_text(str(n + 1))
"""


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "n").write_text("0")
    children = [child(COUNT, tmp_path) for _ in range(3)]
    assert [c.wait(240) for c in children] == [0] * 3
    assert (tmp_path / "n").read_text() == "30"
    assert [p.name for p in tmp_path.iterdir()] == ["n"]  # and nothing is left lying


HOLD = """
import sys, time
from pathlib import Path
from raz.store.lease import LeaseLost, acquire
folder = Path(sys.argv[1])
with acquire(folder, "x", [folder]) as lease:
    aside = lease.temp_path(folder, ".txt")
    aside.write_text("of the first")
    print("held", flush=True)
    sys.stdin.readline()
    try:
        lease.commit(aside, folder / "result")
        print("committed", flush=True)
    except LeaseLost:
        print("lost", flush=True)
"""


def test_a_killed_holder_of_this_machine_is_not_waited_for(tmp_path: Path) -> None:
    first = child(HOLD, tmp_path, seconds=3600)
    heard(first, "held")
    first.kill()  # unburied: a zombie does not hold on either
    with acquire(tmp_path, "x", [tmp_path], seconds=3600):
        assert not list(tmp_path.glob(f"{ATTEMPT}*"))
    first.wait()


@pytest.mark.long
def test_a_paused_holder_puts_nothing_into_place(tmp_path: Path) -> None:
    first = child(HOLD, tmp_path, seconds=0.6)
    heard(first, "held")
    first.send_signal(signal.SIGSTOP)
    with acquire(tmp_path, "x", [tmp_path], seconds=0.6) as lease:
        first.send_signal(signal.SIGCONT)
        aside = lease.temp_path(tmp_path)
        aside.write_text("of the second")
        first.communicate("go on\n", timeout=240)
        lease.commit(aside, tmp_path / "result")  # which the first one's end did not take away
    assert first.returncode == 0
    assert (tmp_path / "result").read_text() == "of the second"
    assert [p.name for p in tmp_path.iterdir()] == ["result"]


def test_a_holder_that_is_paused_between_the_look_and_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The window that asking alone leaves open: the lease is taken over just after it was found to be held."""
    with acquire(tmp_path, "x", [tmp_path], seconds=3600) as old:
        aside = old.temp_path(tmp_path)
        aside.write_text("old")
        monkeypatch.setattr(leases, "_process_dead", lambda text: True)

        def held(self: Lease) -> bool:
            with acquire(tmp_path, "x", [tmp_path], seconds=3600) as new:
                mine = new.temp_path(tmp_path)
                mine.write_text("new")
                os.replace(mine, tmp_path / "result")
            return True

        with monkeypatch.context() as patch:
            patch.setattr(Lease, "is_held", held)
            with pytest.raises(LeaseLost):
                old.commit(aside, tmp_path / "result")
        with pytest.raises(LeaseLost):
            old.check()
    assert (tmp_path / "result").read_text() == "new"


@pytest.mark.long
def test_a_busy_holder_keeps_its_lease(tmp_path: Path) -> None:
    patience = 4.0  # six heartbeats: a machine whose disk is busy may take a second over one
    first = child(HOLD, tmp_path, seconds=patience)
    heard(first, "held")
    enough = time.monotonic() + 1.6 * patience

    class Enough(Exception):
        pass

    def waiting() -> None:
        if time.monotonic() > enough:
            raise Enough

    with pytest.raises(Enough), acquire(tmp_path, "x", seconds=patience, waiting=waiting):
        pass
    first.communicate("go on\n", timeout=240)
    assert (tmp_path / "result").read_text() == "of the first"


def test_a_lease_that_changed_hands_is_not_taken_from_the_new_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two see the same silent holder; the slower one's rename meets the quicker one's lease, and puts it back."""
    with acquire(tmp_path, "x") as lease:
        found = iter(["silent", lease.token])  # as if it had looked just before
        real = leases._token
        monkeypatch.setattr(leases, "_token", lambda path: next(found, None) or real(path))
        assert leases._break_lease(lease.path, "silent") is None
        assert lease.is_held()
    assert list(tmp_path.iterdir()) == []


def test_a_lease_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError), acquire(tmp_path / "file", "x"):
        pass


def test_threads_exclude_each_other(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        with acquire(tmp_path, "x", seconds=60):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4


# ------------------------------------------------------------------ in the store


def test_a_fenced_owner_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = StageCache(tmp_path)
    places = [cache.paths.stage("counting", KEY.key).parent]
    monkeypatch.setattr(leases, "_process_dead", lambda text: True)  # every holder is taken for dead

    def write(folder: Path) -> None:
        with cache.lease("counting", places) as other:
            cache.publish(KEY, lambda f: (f / "x").write_text("new") and None, Manifest(seconds=1.0), other)
        (folder / "x").write_text("old")

    with cache.lease("counting", places) as lease, pytest.raises(LeaseLost):
        cache.publish(KEY, write, Manifest(seconds=2.0), lease)
    found = cache.find(KEY)
    assert found is not None
    assert (found.folder / "x").read_text() == "new"
    assert [p.name for p in found.folder.parent.iterdir()] == [KEY.key]


CPU, A10, A10_HALF, H100 = Device("cpu"), Device("A10", 24), Device("A10", 12), Device("H100", 80)


@pytest.mark.parametrize(
    ("reason", "met", "counts"),
    [
        ("lost", CPU, ()),
        ("error", A10, ()),
        ("invalid", CPU, (None, CPU, A10, A10_HALF, H100)),
        ("invalid", A10, (None, CPU, A10, A10_HALF, H100)),
        ("nan", CPU, (CPU,)),
        ("nan", A10, (A10, A10_HALF, H100)),  # half precision is that of every GPU
        ("oom", CPU, (CPU,)),
        ("oom", A10, (A10, A10_HALF)),
        ("oom", A10_HALF, (A10_HALF,)),  # the larger card of this name is tried
        ("oom", Device("A10"), (A10, A10_HALF)),  # as earlier versions recorded it
    ],
    ids=lambda value: value if isinstance(value, str) else value.name if isinstance(value, Device) else "",
)
def test_a_failure_counts_where_it_would_happen_again(
    reason: str, met: Device, counts: tuple[Device | None, ...], tmp_path: Path
) -> None:
    cache = StageCache(tmp_path)
    assert cache.failure(KEY, met) is None
    failure = TrialFailure("stage counting", "diverged", "a lower rate", reason=reason)
    cache.record_failure(KEY, failure, met)
    told = {device: cache.failure(KEY, device) for device in (None, CPU, A10, A10_HALF, H100)}
    assert tuple(device for device, known in told.items() if known is not None) == counts
    assert all(known.args == failure.args for known in told.values() if known is not None)
    assert cache.clear_failure(KEY) == bool(counts)
    assert cache.failure(KEY, met) is None


def test_the_failures_of_several_devices_are_kept_apart(tmp_path: Path) -> None:
    """A CPU's note must not make a GPU forget its own, or two machines would try in turn for ever."""
    cache = StageCache(tmp_path)
    for reason, what, device in [
        ("nan", "on the CPU", CPU), ("nan", "on a GPU", A10), ("oom", "full", A10), ("nan", "again", CPU),
        ("oom", "full again", A10),
    ]:  # fmt: skip
        cache.record_failure(KEY, TrialFailure("stage counting", what, reason=reason), device)
    told = [cache.failure(KEY, device) for device in (CPU, A10, H100)]
    assert [known.what if known else "" for known in told] == ["again", "full again", "on a GPU"]
    (path,) = (tmp_path / "failures").glob("*/*.json")
    assert len(json.loads(path.read_text())["failures"]) == 3


def test_a_note_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    cache.record_failure(KEY, TrialFailure("a", "b", reason="nan"), CPU)
    (path,) = (tmp_path / "failures").glob("*/*.json")
    path.write_text('{"where": "stage x", "what": "full", "hint": "", "reason": "oom", "device": "A10", "key": {}}')
    assert cache.failure(KEY, CPU) is None
    known = cache.failure(KEY, A10)
    assert known is not None
    assert (known.what, known.reason) == ("full", "oom")


def test_a_damaged_note_of_a_failure_is_none(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    cache.record_failure(KEY, TrialFailure("a", "b", reason="nan"), CPU)
    (path,) = (tmp_path / "failures").glob("*/*.json")
    path.write_text('{"reason": "nan"')
    assert cache.failure(KEY, CPU) is None
