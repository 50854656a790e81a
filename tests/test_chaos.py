"""Processes killed or paused, nodes lost, disks full: the same command again gives the same bits and repeats little.

The pipeline is the real one on a very small crowd, and the processes that are killed are real. More than three
rounds: RAZ_CHAOS_ROUNDS=20 python -m pytest -m slow tests/test_chaos.py
"""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raz.engine.study_runner import run_study
from raz.pipeline.trial import run_trial
from raz.study.records import read_records
from tests.heads import family
from tests.journaling import journal, times
from tests.test_broker import grid
from tests.test_pipeline import artifacts, micro

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1800)]

HERE = Path(__file__).resolve().parents[1]
ROUNDS = int(os.environ.get("RAZ_CHAOS_ROUNDS", "3"))
PARAMETERS = {"seed": [0, 1], "fusion.rule": ["density", "average"]}
DRIVER = """
import dataclasses, sys
from pathlib import Path
from raz.engine.study_runner import run_study
from tests.journaling import PIPELINE
from tests.test_broker import grid
from tests.test_chaos import PARAMETERS
store, crowd, engine, name = sys.argv[1:]
space = dataclasses.replace(grid(PARAMETERS, depth=1), study=name)
options = {"inline": True} if engine == "inline" else {"jobs": 2}
result = run_study(space, Path(store), data_root=Path(crowd), run_trial=PIPELINE, **options)
sys.exit(1 if result.failed else 0)
"""


@pytest.fixture(scope="module")
def undisturbed(crowd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("undisturbed")
    run_study(grid(PARAMETERS, depth=1), store, data_root=crowd, inline=True)
    return store


def start(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(HERE), "RAZ_LEASE_SECONDS": "5"}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], text=True, env=environment, **options)


def until(met: Callable[[], bool], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.05)


def victim(kind: str, driver: int) -> int | None:
    if kind == "driver":
        return driver
    process = {"broker": "ray::StageBroker", "trial": "ray::ImplicitFunc", "stage": "ray::counting"}[kind]
    if kind == "stage":
        names = ("ray::counting", "ray::localization", "ray::density", "ray::points", "ray::build_on_cpus")
        return next((pid for pid, name in family(driver).items() if name.startswith(names)), None)
    return next((pid for pid, name in family(driver).items() if name.startswith(process)), None)


def events(store: Path) -> int:
    return len(journal(store)) if (store / "journal.jsonl").exists() else 0


@pytest.mark.parametrize("number", range(ROUNDS))
def test_chaos(number: int, crowd: Path, undisturbed: Path, tmp_path: Path) -> None:
    rng = random.Random(number)
    kinds = ["driver", "stage", "broker", "trial"]
    kills = [kinds[number % 4], rng.choice(kinds)]
    killed = 0
    for kind in kills:
        driver = start(DRIVER, tmp_path, crowd, "ray", "grid")
        point = events(tmp_path) + rng.randint(1, 8)
        until(lambda d=driver, p=point: d.poll() is not None or events(tmp_path) >= p)  # type: ignore[misc]
        time.sleep(rng.random() * 0.3)
        until(lambda d=driver, k=kind: d.poll() is not None or victim(k, d.pid) is not None)  # type: ignore[misc]
        pid = victim(kind, driver.pid)
        killing = pid is not None and driver.poll() is None
        if pid is not None and killing:
            os.kill(pid, signal.SIGKILL)
            killed += 1
        assert driver.wait(600) == (-signal.SIGKILL if kind == "driver" and killing else 0)
    assert killed
    assert start(DRIVER, tmp_path, crowd, "ray", "grid").wait(600) == 0
    check(tmp_path, undisturbed, killed)


def check(store: Path, reference: Path, kills: int) -> None:
    """Bit-equal to the undisturbed run, no stage finished twice, at most one epoch repeated for each kill."""
    done, expected = ([r for r in read_records(s, "grid") if r.state == "complete"] for s in (store, reference))
    assert sorted((repr(r.values), repr(r.metrics)) for r in done) == sorted(
        (repr(r.values), repr(r.metrics)) for r in expected
    )
    assert artifacts(store) == artifacts(reference)
    finished = {at: n for at, n in times(store, "finished").items() if "@test" not in at[0]}
    assert set(finished.values()) <= {1}
    repeated = sum(n - 1 for n in times(store, "epoch").values())
    assert repeated <= kills
    assert not list((store / "stages").glob("*/.attempt-*"))


NODES = """
import os, subprocess, sys, tempfile, time
from pathlib import Path
from raz.engine.ray_session import set_ray_environment
set_ray_environment()
import ray
from ray.cluster_utils import Cluster
from tests.journaling import journal
from tests.test_chaos import DRIVER

store, crowd, point = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
memory = {"object_store_memory": 100 * 2**20}
head = {"num_cpus": 0, "resources": {"coordinator": 8}, "include_dashboard": False, **memory}
folder = tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True)
os.makedirs("/tmp/ray", exist_ok=True)  # Cluster writes its address there and does not make the folder
cluster = Cluster(initialize_head=True, head_node_args={**head, "temp_dir": folder.name})
node = cluster.add_node(num_cpus=2, **memory)
driver = subprocess.Popen(
    [sys.executable, "-c", DRIVER, store, crowd, "ray", "grid"], env={**os.environ, "RAY_ADDRESS": cluster.address}
)

def building():
    events = journal(store) if (store / "journal.jsonl").exists() else []
    begun, over = ({e["key"] for e in events if e["kind"] == kind} for kind in ("started", "finished"))
    return len(events) >= point and begun - over

try:
    while not building():
        assert driver.poll() is None, "the study ended before its node was removed"
        time.sleep(0.02)
    cluster.remove_node(node, allow_graceful=False)
    (store / "removed").touch()
    cluster.add_node(num_cpus=2, **memory)
    sys.exit(driver.wait(600))
finally:
    driver.kill()
    driver.wait()
    cluster.shutdown()
    folder.cleanup()
"""


@pytest.mark.parametrize("number", range(-(-ROUNDS // 4)))  # one kind of failure beside the four of test_chaos
def test_a_node_is_lost(number: int, crowd: Path, undisturbed: Path, tmp_path: Path) -> None:
    """All stages are built on one node, which is removed while it builds one; another node replaces it."""
    cluster = start(NODES, tmp_path, crowd, random.Random(number).randint(1, 14))
    assert cluster.wait(900) == 0
    assert (tmp_path / "removed").exists()
    assert [record.state for record in read_records(tmp_path, "grid")] == [
        "complete"
    ] * 4  # no trial was lost with the node
    check(tmp_path, undisturbed, 2)  # two stages may have been running


def test_two_drivers_share_a_store(crowd: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Two Ray sessions, two brokers, and a process without Ray."""
    drivers = [start(DRIVER, tmp_path, crowd, "ray", "grid"), start(DRIVER, tmp_path, crowd, "ray", "other")]
    drivers.append(start(DRIVER, tmp_path, crowd, "inline", "inline"))
    assert [d.wait(900) for d in drivers] == [0, 0, 0]
    check(tmp_path, undisturbed, 0)
    assert set(times(tmp_path, "finished").values()) == {1}


ONE = """
import sys
from pathlib import Path
from tests.journaling import run_trial
from tests.test_pipeline import micro
print(run_trial(micro(depth=1), Path(sys.argv[1]), data_root=Path(sys.argv[2])).metrics["val.mae"])
"""


def test_a_paused_owner_publishes_nothing(crowd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAZ_LEASE_SECONDS", "2")
    paused = start(ONE, tmp_path, crowd, stdout=subprocess.PIPE)
    until(lambda: any(e["kind"] == "epoch" for e in journal(tmp_path)) if events(tmp_path) else False)
    paused.send_signal(signal.SIGSTOP)
    messages: list[str] = []
    result = run_trial(
        micro(depth=1), tmp_path, data_root=crowd, log=lambda event: messages.append(f"{event.kind} {event.stage}")
    )
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("stages/*/*/manifest.json")}
    checkpoints = {path: path.read_bytes() for path in tmp_path.glob("chains/*/*/*.pt")}
    paused.send_signal(signal.SIGCONT)
    stdout, _ = paused.communicate(timeout=300)
    assert paused.returncode == 0  # it uses the artifacts of the other process
    assert float(stdout) == result.metrics["val.mae"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {path: path.read_bytes() for path in checkpoints} == checkpoints
    both = {e["stage"] for e in journal(tmp_path) if e["kind"] == "finished"} & {
        line.split()[1] for line in messages if line.startswith("finished")
    }
    assert both == set()
    assert not list(tmp_path.glob("**/.attempt-*"))


def test_a_disk_that_is_full_stops_the_run_and_it_goes_on(crowd: Path, undisturbed: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: a checkpoint does not fit."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    stopped = start(DRIVER, tmp_path, crowd, "inline", "grid", preexec_fn=limit, stderr=subprocess.PIPE)
    _, stderr = stopped.communicate(timeout=300)
    assert stopped.returncode != 0
    assert "File too large" in stderr
    assert start(DRIVER, tmp_path, crowd, "inline", "grid").wait(600) == 0
    check(tmp_path, undisturbed, 1)
