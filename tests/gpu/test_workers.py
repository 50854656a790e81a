"""Processes that hold GPUs: which worker builds a job, when it ends, and that no process ever serves two devices.

The GPUs under Ray are resources without a device; the stages compute on the CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from raz.engine import stage_worker
from raz.engine.broker_protocol import BuildFailed
from raz.engine.gpu_workers import IDLE_SECONDS, GpuWorkers, Share
from raz.engine.study_runner import run_study
from raz.errors import FailureReason, TrialFailure
from raz.inspection.machine_checks import check_devices
from raz.pipeline import device
from raz.pipeline.events import StageEvent
from raz.pipeline.graph import Node
from raz.study.records import read_records
from tests.test_broker import grid
from tests.test_pipeline import artifacts

ROOT = Path(__file__).parents[2]
WHOLE, HALF = Share(1.0, 1.0), Share(1.0, 0.5)


class Fleet:
    """Workers by number, and a clock."""

    def __init__(self) -> None:
        self.now, self.started, self.ended = 0.0, list[Share](), list[int]()
        self.workers: GpuWorkers[int] = GpuWorkers(self.start, self.ended.append, lambda: self.now)

    def start(self, share: Share) -> int:
        self.started.append(share)
        return len(self.started)


def test_an_idle_worker_with_the_same_share_builds_the_next_job() -> None:
    fleet = Fleet()
    first, second = fleet.workers.take(WHOLE), fleet.workers.take(WHOLE)
    assert (first, second) == (1, 2)
    fleet.workers.release(first, WHOLE)
    fleet.workers.release(second, WHOLE)
    assert fleet.workers.take(HALF) == 3
    assert fleet.workers.take(WHOLE) == second  # the one whose memory is warmest
    assert fleet.workers.idle == [first]


def test_idle_workers_make_room_for_what_jobs_hold() -> None:
    fleet = Fleet()
    for share in (WHOLE, HALF, HALF):
        fleet.workers.take(share)
    for worker, share in ((1, WHOLE), (2, HALF), (3, HALF)):
        fleet.workers.release(worker, share)
    fleet.workers.make_room(Share(3.0, 2.0))
    assert fleet.ended == []
    fleet.workers.make_room(Share(3.0, 1.9))
    assert (fleet.ended, fleet.workers.idle) == ([1], [2, 3])
    fleet.workers.make_room(Share(1.0, 8.0))  # CPUs too
    assert (fleet.ended, fleet.workers.idle) == ([1, 2], [3])
    fleet.workers.make_room(Share(0.0, 0.0))
    assert fleet.workers.idle == []


def test_idle_workers_end_after_a_while() -> None:
    fleet = Fleet()
    fleet.workers.release(fleet.workers.take(WHOLE), WHOLE)
    fleet.now = IDLE_SECONDS - 1
    fleet.workers.release(fleet.workers.take(HALF), HALF)
    fleet.workers.tick()
    assert fleet.ended == []
    fleet.now = IDLE_SECONDS
    fleet.workers.tick()
    assert (fleet.ended, fleet.workers.idle) == ([1], [2])


def test_all_idle_workers_can_be_ended() -> None:
    fleet = Fleet()
    for share in (WHOLE, HALF, HALF):
        fleet.workers.take(share)
    fleet.workers.release(1, WHOLE)
    fleet.workers.release(3, HALF)
    fleet.workers.end_all()
    assert (fleet.ended, fleet.workers.idle) == ([1, 3], [])


# ------------------------------------------------------------------ a process that holds a GPU without CUDA


def test_a_stage_names_the_device_that_it_starts_on() -> None:
    assert str(StageEvent("started", "counting", "k")) == "counting starts"
    assert str(StageEvent("started", "counting", "k", device="GPU 1 of n7")) == "counting starts on GPU 1 of n7"


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells why there is no CUDA")
def test_the_reason_for_no_cuda_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(device.VISIBLE, "7")
    problem = device.cuda_problem()
    assert "\n" not in problem
    if torch.version.cuda is None:
        assert problem == f"this PyTorch ({torch.__version__}) is built without CUDA"
    else:
        assert f"is built for CUDA {torch.version.cuda} (CUDA_VISIBLE_DEVICES is '7')" in problem


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (
            RuntimeError("The driver is too old (found version 11040). Please update it"),
            "The driver is too old (found version 11040); this PyTorch (9.9) is built for CUDA 99",
        ),
        (RuntimeError("No CUDA GPUs are available"), "No CUDA GPUs are available; this PyTorch (9.9) is built for"),
        (AssertionError(), "AssertionError; this PyTorch (9.9) is built for CUDA 99"),
    ],
)
def test_what_torch_raises_is_passed_on(raised: Exception, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise raised

    monkeypatch.setattr(torch, "__version__", "9.9")
    monkeypatch.setattr(torch.version, "cuda", "99")
    monkeypatch.setattr(torch.cuda, "init", init)
    assert device.cuda_problem().startswith(told)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    assert device.cuda_problem() == ""


def test_a_process_without_a_gpu_hides_them() -> None:
    code = "from raz.pipeline import device; device.hide_gpus(); import os; print(repr(os.environ[device.VISIBLE]))"
    environment = {**os.environ, device.VISIBLE: "0,1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "''\n"


def test_no_cuda_is_the_machines_fault_and_not_the_stages() -> None:
    error = TrialFailure("stage counting", "holds GPU 0", reason="error")
    outcome = stage_worker.failed(error, Node("counting"))
    assert isinstance(outcome, BuildFailed)
    assert isinstance(outcome.error, TrialFailure)
    assert outcome.error.reason is FailureReason.ERROR


# ------------------------------------------------------------------ under Ray


def fake_study(case: str, store: Path, data: Path) -> list[dict[str, Any]]:
    """The trials of a study on two GPUs that are none."""
    command = [sys.executable, "-m", "tests.gpu.fake_study", case, str(store), str(data)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    trials: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return trials


def processes(store: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (store / "devices.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def inline(crowd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("inline")
    run_study(
        grid({"seed": [0, 1], "fusion.rule": ["density", "average"]}, depth=1), store, data_root=crowd, inline=True
    )
    return store


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", ["whole", "mixed"])
def test_no_process_serves_two_devices(case: str, tmp_path: Path, crowd: Path, inline: Path) -> None:
    (tmp_path / "kill").touch()  # of a worker with a job
    trials = fake_study(case, tmp_path, crowd)
    expected = [r.metrics for r in read_records(inline, "grid")]
    assert [(t["state"], t["metrics"]) for t in trials] == [("complete", metrics) for metrics in expected]
    assert artifacts(tmp_path) == artifacts(inline)  # the held-out predictions among them

    served = defaultdict(set)
    for line in processes(tmp_path):
        assert line["pid"] != os.getpid()
        served[line["pid"]].add((*line["ids"], line["visible"]))
    assert all(len(given) == 1 for given in served.values()), served
    given = [next(iter(each)) for each in served.values()]
    shares = sorted(each for each in given if len(each) == 2)  # (id, CUDA_VISIBLE_DEVICES)
    assert all(number == visible for number, visible in shares)
    on_cpus = [line for line in processes(tmp_path) if not line["ids"]]
    if case == "whole":
        assert on_cpus == []
        assert {number for number, _ in shares} == {"0", "1"}
        assert 3 <= len(shares) < len(processes(tmp_path))  # they are kept for other stages; one was killed
    else:
        assert len(shares) >= 3  # of half a device each; one was killed
        assert {line["visible"] for line in on_cpus} == {""}
        assert {stage.partition("@")[0] for line in on_cpus for stage in line["stages"]} == {"density", "points"}
    assert any("test" in line["splits"] for line in processes(tmp_path))  # not in the process that runs the study


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a process without CUDA")
def test_a_gpu_without_cuda_fails_the_trial_and_is_not_remembered(tmp_path: Path, crowd: Path) -> None:
    for trial in fake_study("no cuda", tmp_path, crowd):
        assert (trial["state"], trial["reason"]) == ("failed", "error")
        assert "stage counting: holds GPU " in trial["message"]
        assert "finds no CUDA" in trial["message"]
        assert "raz-sweep doctor" in trial["message"]
    assert list((tmp_path / "failures").glob("*/*.json")) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a process without CUDA")
def test_doctor_tells_of_a_gpu_that_pytorch_cannot_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(device.VISIBLE, raising=False)
    node = tmp_path / "nvidia0"
    assert check_devices(node).status == "ok"
    node.touch()
    check = check_devices(node)
    assert (check.status, check.found.startswith("there is a GPU, and PyTorch finds no CUDA: ")) == ("fail", True)
    monkeypatch.setenv(device.VISIBLE, "")  # hidden on purpose
    assert check_devices(node).status == "ok"
