"""A store on a file system that shows other machines' files late: nothing is believed missing that was announced."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

from raz.data.frames import Frames
from raz.engine.study_runner import run_study
from raz.errors import RazError
from raz.pipeline.events import StageEvent
from raz.pipeline.feature_cache import Candidates, _load_or_compute, cached_candidates
from raz.pipeline.graph import Node, chain_key
from raz.pipeline.keys import open_cached, stage_keys
from raz.pipeline.trial import build_stages, run_trial
from raz.store import late_view
from raz.store.cache import StageCache, StageKey
from raz.store.late_view import Mount, exists, exists_announced, look_again, may_be_late, mount_of
from raz.store.lease import ATTEMPT, acquire
from raz.store.manifest import Manifest
from raz.store.paths import StorePaths
from raz.study.ledger import open_ledger
from raz.study.records import is_running, read_records
from tests.journaling import times
from tests.lookup_cache import HERE, emulated, environment
from tests.test_broker import grid
from tests.test_pipeline import artifacts, micro

PARAMETERS = {"fusion.rule": ["density", "average"]}
LONG = 3600.0  # s: such a cache outlives the test
KEY = StageKey("counting", 1, {"a": 1}, {}, {})
ELSEWHERE = f"{'ab' * 16} 000000000007 another-boot/4026531836 1 1\n"  # a lease of another machine


def on_another_machine(code: str, *arguments: object) -> str:
    """Runs the code in a process that has no part in this one's emulated cache. Returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=280, check=False,
        cwd=HERE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def touch(path: Path, text: str = "") -> None:
    code = "import sys; from pathlib import Path; p = Path(sys.argv[1]); p.parent.mkdir(parents=True, exist_ok=True)"
    on_another_machine(f"{code}; p.write_text(sys.argv[2])", path, text)


# ------------------------------------------------------------------ the file system


def test_the_mount_that_a_folder_lies_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mountinfo").write_text(
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        "40 22 0:40 / /shared rw,relatime shared:20 - nfs4 fs-1.efs:/ rw,vers=4.1,lookupcache=pos,hard\n"
        "41 40 0:41 / /shared/my\\040data rw - ext4 /dev/sdb rw\n"
        "42 22 0:42 / /shar rw - tmpfs tmpfs rw\n"
        "50 22 0:50 / /auto rw - autofs systemd-1 rw\n"
        "51 50 0:51 / /auto rw - nfs server:/home rw\n"
    )
    monkeypatch.setattr(late_view, "MOUNTS", str(tmp_path / "mountinfo"))
    nfs = ("rw", "relatime", "rw", "vers=4.1", "lookupcache=pos", "hard")
    assert mount_of(Path("/shared/store")) == Mount("/shared", "nfs4", nfs)
    assert mount_of(Path("/shared")) == Mount("/shared", "nfs4", nfs)
    expected = {"/shared/x": True, "/shared/my data/x": False, "/shares": False, "/auto/x": True, "/": False}
    assert {path: may_be_late(Path(path)) for path in expected} == expected
    monkeypatch.setattr(late_view, "MOUNTS", str(tmp_path / "none"))
    assert mount_of(Path("/shared")) is None
    assert not may_be_late(Path("/shared"))


def test_the_emulated_cache_hides_what_another_machine_makes(tmp_path: Path) -> None:
    """As a client of NFS: also below a folder that it takes to be missing, until that folder's parent is opened."""
    file = tmp_path.resolve() / "a" / "b" / "file"
    with emulated(tmp_path, LONG) as cache:
        assert not file.exists()
        touch(file)
        assert file.exists() is file.parent.is_dir() is False
        with pytest.raises(FileNotFoundError):
            file.read_text()
        assert cache.hidden == 3
        assert exists(file)
        file.with_name("own").write_text("x")
        assert file.with_name("own").read_text() == "x"
    with emulated(tmp_path, LONG, listing_refreshes=False):
        assert not (tmp_path / "c").exists()
        touch(tmp_path / "c")
        assert not exists(tmp_path / "c")
    with emulated(tmp_path, 0.0):
        assert not (tmp_path / "d").exists()
        touch(tmp_path / "d")
        assert (tmp_path / "d").exists()


def test_what_was_announced_is_waited_for_only_where_other_machines_write(tmp_path: Path) -> None:
    file, looks = tmp_path.resolve() / "a" / "file", list[bool]()

    def look() -> bool | None:
        looks.append(file.exists())
        return looks[-1] or None

    assert look_again(look, file.parent) is None
    assert looks == [False]
    assert not exists_announced(file, announced=True)
    with emulated(tmp_path, 1.0, listing_refreshes=False):
        assert look() is None
        touch(file)
        assert look_again(look, file.parent) is True
        assert len(looks) > 3
        assert look_again(lambda: None, file.parent, seconds=0.1) is None  # it never comes


def test_a_folder_that_is_not_there_is_waited_for_only_if_its_file_was_announced(tmp_path: Path) -> None:
    file = tmp_path.resolve() / "chain" / "checkpoint.pt"
    with emulated(tmp_path, 1.0, listing_refreshes=False) as cache:
        assert not file.parent.exists()
        touch(file)
        cache.missing[str(file.parent)] = late_view.time.monotonic()
        assert not exists_announced(file, announced=False)
        assert exists_announced(file, announced=True)
        cache.missing[str(file)] = late_view.time.monotonic()  # its folder lists it
        assert exists_announced(file, announced=False)


# ------------------------------------------------------------------ stages


PUBLISH = """
import sys
from pathlib import Path
from raz.store.cache import StageCache
from raz.store.manifest import Manifest
from tests.test_late_view import KEY
StageCache(Path(sys.argv[1])).publish(KEY, lambda folder: (folder / "file").write_text("whole") and None, Manifest())
"""


def test_an_announced_stage_is_found_and_a_damaged_one_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = StageCache(tmp_path.resolve())
    with emulated(tmp_path, LONG):
        assert cache.find(KEY) is None
        on_another_machine(PUBLISH, tmp_path)
        assert cache.find(KEY) is None
        found = cache.find_announced(KEY)
        assert found is not None
        assert (found.folder / "file").read_text() == "whole"
        (found.folder / "file").write_text("other")
        monkeypatch.setattr(late_view.time, "sleep", lambda seconds: pytest.fail("it waited"))
        assert cache.find_announced(KEY) is None
    with emulated(tmp_path, LONG):
        absent = StageKey("counting", 1, {"a": 2}, {}, {})
        with pytest.raises(BaseException, match="it waited"):
            cache.find_announced(absent)
    assert cache.find_announced(absent) is None  # no other machine writes here


def test_publishing_what_another_machine_published_keeps_it(tmp_path: Path) -> None:
    cache = StageCache(tmp_path.resolve())
    folder = cache.paths.stage(KEY.stage, KEY.key)
    with emulated(tmp_path, 1.0, listing_refreshes=False) as clients:
        on_another_machine(PUBLISH, tmp_path)
        clients.missing[str(folder)] = late_view.time.monotonic()
        artifact = cache.publish(KEY, lambda folder: (folder / "file").write_text("mine") and None, Manifest())
        assert clients.hidden
        assert (artifact.folder / "file").read_text() == "whole"


def test_publishing_replaces_what_another_machine_left_damaged(tmp_path: Path) -> None:
    cache = StageCache(tmp_path.resolve())
    folder = cache.paths.stage(KEY.stage, KEY.key)
    with emulated(tmp_path, LONG) as clients:
        on_another_machine(PUBLISH, tmp_path)
        touch(folder / "file", "damaged")
        clients.missing[str(folder)] = late_view.time.monotonic()
        artifact = cache.publish(KEY, lambda folder: (folder / "file").write_text("mine") and None, Manifest())
        assert (artifact.folder / "file").read_text() == "mine"


TRAIN = """
import sys
from pathlib import Path
from raz.pipeline.training_loop import TrialPruned
from raz.pipeline.trial import run_trial
from tests.test_pipeline import micro
store, crowd, last = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
try:
    run_trial(micro(depth=1), store, data_root=crowd, progress=lambda step, value: step >= last)
except TrialPruned:
    print("stopped")
"""


@pytest.mark.long
def test_training_that_another_machine_began_goes_on(crowd: Path, tmp_path: Path) -> None:
    store, events = tmp_path.resolve(), list[StageEvent]()
    key = stage_keys(micro(depth=1), data_root=crowd)[Node("counting")]
    with emulated(store, LONG) as cache:
        assert on_another_machine(TRAIN, store, crowd, 1) == "stopped\n"
        cache.missing[str(StorePaths(store).chain("counting", chain_key(key)))] = late_view.time.monotonic()
        run_trial(micro(depth=1), store, data_root=crowd, log=events.append)
        assert cache.hidden
    assert [event.epoch for event in events if (event.kind, event.stage) == ("epoch", "counting")] == [2]


@pytest.mark.long
def test_what_a_stage_needs_is_not_made_again_where_it_is_seen_late(crowd: Path, tmp_path: Path) -> None:
    """Nor by a client that opening a folder tells nothing: the stage was made before this one was asked for."""
    store, events = tmp_path.resolve(), list[StageEvent]()
    key = stage_keys(micro(depth=1), data_root=crowd)[Node("counting")]
    with emulated(store, 1.0, listing_refreshes=False) as cache:
        on_another_machine(TRAIN, store, crowd, 3)  # counting is made, localization begun
        cache.missing[str(StorePaths(store).stage("counting", key.key))] = late_view.time.monotonic()
        build_stages(
            micro(depth=1), store, [Node("localization")], data_root=crowd, log=events.append, needs_made=True
        )  # fmt: skip
        assert cache.hidden
    assert {event.kind for event in events if event.stage == "counting"} == {"hit"}


def test_features_candidates_and_packs_that_another_machine_made_are_read(crowd: Path, tmp_path: Path) -> None:
    store = tmp_path.resolve()
    run = "import sys; from pathlib import Path; from tests.test_late_view import make_caches"
    with emulated(store, LONG) as cache:
        on_another_machine(f"{run}; print(make_caches(Path(sys.argv[1]), Path(sys.argv[2])))", store, crowd)
        made = [path for path in store.rglob("*") if path.is_file()]
        assert len(made) == 3
        cache.missing = {str(path): late_view.time.monotonic() for path in made}
        assert make_caches(store, crowd) == 0
        assert cache.hidden == 3


def make_caches(store: Path, crowd: Path) -> int:
    """How many of a feature map, a file of candidates and a pack had to be made."""
    calls: list[str] = []

    def features() -> Iterator[torch.Tensor]:
        calls.append("features")
        yield torch.zeros(2, 3)

    def candidates() -> list[Candidates]:
        calls.append("candidates")
        return [(np.zeros((1, 4), np.int64), np.zeros(1))]

    _load_or_compute(store / "features" / "0.npy", (2, 3), features)
    cached_candidates(store / "regions" / "candidates.npz", 1, candidates)
    build = Frames._build
    with patch.object(Frames, "_build", autospec=True, side_effect=build) as built:
        Frames(open_cached("shanghaitech_a", crowd).items["val"], pack=store / "packs")
    return len(calls) + built.call_count


# ------------------------------------------------------------------ leases


def test_a_lease_says_whether_its_holder_was_lost_with_another_machine(tmp_path: Path) -> None:
    with acquire(tmp_path, "x", seconds=0.3) as lease:
        assert not lease.from_lost_machine
    (tmp_path / "x.lease").write_text(ELSEWHERE)
    with acquire(tmp_path, "x", seconds=0.3) as lease:
        assert lease.from_lost_machine
    code = "from raz.store.lease import _holder_id; print(_holder_id())"
    (tmp_path / "x.lease").write_text(f"{'ab' * 16} 000000000000 {on_another_machine(code)}")
    with acquire(tmp_path, "x", seconds=LONG) as lease:
        assert not lease.from_lost_machine


def test_a_lost_machines_files_are_removed_from_a_folder_that_is_seen_late(tmp_path: Path) -> None:
    folder = tmp_path.resolve() / "chains" / "counting" / "x"
    attempt = folder / f"{ATTEMPT}{'ab' * 16}-1.pt"
    with emulated(tmp_path, LONG):
        assert not folder.exists()
        touch(attempt)
        touch(tmp_path / "leases" / "x.lease", ELSEWHERE)
        with acquire(tmp_path.resolve() / "leases", "x", [folder], seconds=0.3):
            pass
    assert folder.is_dir()
    assert not attempt.exists()


# ------------------------------------------------------------------ studies


STUDY = """
import sys
from pathlib import Path
from raz.study.ledger import open_ledger
from tests.test_broker import grid
from tests.test_late_view import PARAMETERS
with open_ledger(Path(sys.argv[1]), grid(PARAMETERS)) as ledger:
    ledger.recover(1)
    ledger.ask()
    if sys.argv[2:]:
        with ledger.path.open("a") as file:
            file.write('{"op_code"')
        sys.stdout.write("cut")
        sys.stdout.flush()
        import os
        os._exit(0)
"""


def test_a_study_that_another_machine_began_is_read_and_goes_on(tmp_path: Path) -> None:
    store = tmp_path.resolve()
    with emulated(store, LONG):
        with pytest.raises(RazError, match="no such study"):
            read_records(store, "grid")
        assert on_another_machine(STUDY, store, "cut") == "cut"  # its driver is killed while it writes a line
        assert [record.state for record in read_records(store, "grid")] == ["lost"]
    with emulated(store, LONG) as cache:
        cache.missing[str(StorePaths(store).journal("grid"))] = late_view.time.monotonic()
        with open_ledger(store, grid(PARAMETERS)) as ledger:
            ledger.recover(2)
            assert ledger.ask() is not None
    first, second = read_records(store, "grid")[:2]
    assert (first.state, first.reason, second.state) == ("failed", "lost", "lost")
    assert not is_running(store, "grid")


# ------------------------------------------------------------------ trials under Ray


DRIVER = """
import sys
from pathlib import Path
from raz.engine.study_runner import run_study
from tests.journaling import PIPELINE
from tests.test_broker import grid
from tests.test_late_view import PARAMETERS
store, crowd = sys.argv[1:]
result = run_study(grid(PARAMETERS, depth=1), Path(store), data_root=Path(crowd), run_trial=PIPELINE, jobs=2)
sys.exit(1 if result.failed else 0)
"""


def check_trials(crowd: Path, folder: Path, seconds: float, *, listing_refreshes: bool) -> None:
    """Two trials whose coordinators, broker, stage workers and driver are each a machine of their own."""
    folder = folder.resolve()
    store = folder / "store"
    store.mkdir()
    run_study(grid(PARAMETERS, depth=1), folder / "inline", data_root=crowd, inline=True)
    variables = environment(folder / "site", store, seconds, listing_refreshes)
    variables.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-c", DRIVER, str(store), str(crowd)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=1500, check=False)
    records = read_records(store, "grid")
    assert [(r.state, r.reason, r.message) for r in records] == [("complete", "", "")] * 2, done.stderr
    assert done.returncode == 0, done.stderr
    assert artifacts(store) == artifacts(folder / "inline")
    hidden = [line.split(" ", 1) for line in Path(f"{store}.hidden").read_text().splitlines()]
    assert len({pid for pid, path in hidden if "/stages/" in path}) >= 2  # else nothing was tried
    assert set(times(store, "epoch").values()) == {1}  # nothing was trained twice
    assert set(times(store, "finished").values()) == {1}


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(1200)
def test_trials_under_a_lookup_cache(crowd: Path, tmp_path: Path) -> None:
    check_trials(crowd, tmp_path, 10.0, listing_refreshes=True)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("seconds", "listing_refreshes"), [(30.0, True), (8.0, False)])
def test_trials_under_a_longer_or_stubborn_cache(
    seconds: float, listing_refreshes: bool, crowd: Path, tmp_path: Path
) -> None:
    check_trials(crowd, tmp_path, seconds, listing_refreshes=listing_refreshes)
