"""A GPU against the CPU: steps, predictions, trials, checkpoints, full memory. Runs where PyTorch sees a GPU."""

from __future__ import annotations

import gc
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raz.config import TrainConfig
from raz.errors import FailureReason, TrialFailure
from raz.pipeline import training_loop
from raz.pipeline.checkpoint import Checkpoint
from raz.pipeline.context import MEMO, network_context
from raz.pipeline.device import half_precision, release_device_memory
from raz.pipeline.events import StageEvent
from raz.pipeline.graph import TRAINED, Node
from raz.pipeline.inference import FeatureLru
from raz.pipeline.predict_stages import PREDICTORS
from raz.pipeline.stage_context import TrialState
from raz.pipeline.training_loop import TrainedChain, train
from raz.pipeline.trial import build_stages, forget_failures, run_trial
from raz.store.cache import StageCache
from tests.golden import given
from tests.gpu.planted import CPU, Planted, Step, configured, distance, gradient_norm, plan_of, planted, step
from tests.test_pipeline import MICRO, micro

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that this PyTorch can use"),
]
GPU = torch.device("cuda")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def all_bits() -> Iterator[None]:
    """Convolutions in float32 as they are written. PyTorch rounds their inputs to ten bits (TF32) unless told so."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module", autouse=True)
def given_images() -> Iterator[None]:
    with given.dataset():
        yield


# ------------------------------------------------------------------ one step, one pass


@dataclass
class Reference:
    """A preset's stages on the CPU, and a step of each that was asked for. Its change has norm 1."""

    preset: str
    trial: Planted
    folder: Path
    steps: dict[str, tuple[float, Step]] = field(default_factory=dict)

    def step(self, stage: str) -> tuple[float, Step]:
        if stage not in self.steps:
            rate = 1 / gradient_norm(self.trial, stage)
            self.steps[stage] = rate, step(self.trial, stage, CPU, self.folder / "cpu", rate=rate)
        return self.steps[stage]


PRESETS = [pytest.param(name, marks=pytest.mark.xdist_group(f"gpu-{name}")) for name in ("tiny", "small", "paper")]


@pytest.fixture(scope="module", params=PRESETS)
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp(request.param)
    return Reference(request.param, planted(folder / "store", configured(request.param)), folder)


@pytest.mark.parametrize("stage", TRAINED)
def test_a_step_is_that_of_the_cpu(stage: str, reference: Reference, tmp_path: Path) -> None:
    rate, wanted = reference.step(stage)
    got = step(reference.trial, stage, GPU, tmp_path, rate=rate)
    assert got.loss == pytest.approx(wanted.loss, rel=1e-4)
    assert distance(wanted.change, got.change) < 5e-3


@pytest.mark.parametrize("amp", [False, True], ids=["ten_bits", "half_precision"])
@pytest.mark.parametrize("stage", TRAINED)
def test_a_step_of_few_bits_goes_the_same_way(stage: str, amp: bool, reference: Reference, tmp_path: Path) -> None:
    """As a run computes: TF32, or half precision. On the CPU, float16 changes these steps by at most 0.05; bfloat16 has
    three bits less."""
    if reference.preset == "small":
        pytest.skip("without its pretrained weights, float16 turns the gradient of this deep network by 0.3")
    torch.backends.cudnn.allow_tf32 = True
    rate, wanted = reference.step(stage)
    got = step(reference.trial, stage, GPU, tmp_path, rate=rate, amp=amp)
    assert got.loss == pytest.approx(wanted.loss, rel=2e-2)
    assert distance(wanted.change, got.change) < (0.3 if amp else 0.15)


def test_predicted_maps_are_those_of_the_cpu(reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    maps: list[Mapping[str, Any]] = []
    for device in (CPU, GPU):
        monkeypatch.setattr("raz.pipeline.predict_stages.MEMO", FeatureLru())
        maps.append(PREDICTORS["density"](network_context(reference.trial.on(device), Node("density", "val"))))
    on_cpu, on_gpu = maps
    assert on_cpu.keys() == on_gpu.keys()
    for name, values in on_cpu.items():
        scale = float(np.abs(values).max())
        np.testing.assert_allclose(on_gpu[name], values, rtol=1e-3, atol=1e-3 * scale)


# ------------------------------------------------------------------ checkpoints


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return planted(tmp_path_factory.mktemp("checkpoints") / "store", configured("tiny", seed=5))


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "half_precision"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "schedule-free"])
@pytest.mark.parametrize("devices", [(CPU, GPU), (GPU, CPU)], ids=["cpu_to_gpu", "gpu_to_cpu"])
def test_a_checkpoint_goes_on_on_another_device(
    devices: tuple[torch.device, torch.device], optimizer: Any, amp: bool, tiny: Planted, tmp_path: Path
) -> None:
    settings = TrainConfig(epochs=1, optimizer=optimizer, lr=1e-3, momentum=0.9, average=0.9, clip=1.0, amp=amp)

    def trained(device: torch.device, epochs: int, name: str) -> TrainedChain:
        task = plan_of(tiny.on(device), "counting").task
        assert task is not None
        few = replace(task, batches=lambda epoch: [tiny.batches["counting"]] * 3)
        return train(few, replace(settings, epochs=epochs), Checkpoint(tmp_path / name / "checkpoint.pt"), device)

    first = trained(devices[0], 2, "moved")
    moved = trained(devices[1], 4, "moved")
    assert [p["value"] for p in moved.curve[:2]] == [p["value"] for p in first.curve]
    assert [p["epoch"] for p in moved.curve] == [1, 2, 3, 4]
    assert all(math.isfinite(p["loss"]) for p in moved.curve)
    state = torch.load(tmp_path / "moved" / "checkpoint.pt", map_location="cpu", weights_only=True)
    assert state["updates"] == 12
    if not amp:  # then it is the same training but for the last bits
        alone = trained(CPU, 4, "alone")
        assert [p["loss"] for p in moved.curve] == pytest.approx([p["loss"] for p in alone.curve], rel=1e-2)
        if optimizer == "adamw":
            assert {float(of["step"]) for of in state["optimizer"]["state"].values()} == {12.0}


# ------------------------------------------------------------------ trials


def test_a_trial_runs_on_the_gpu(crowd: Path, tmp_path: Path) -> None:
    result = run_trial(micro(), tmp_path, data_root=crowd, splits=("val", "test"))
    assert result.device == torch.cuda.get_device_name()
    assert all(math.isfinite(value) for value in result.metrics.values())
    assert not any(use.hit for use in result.stages)
    again = run_trial(micro(), tmp_path, data_root=crowd, splits=("val", "test"))
    assert all(use.hit for use in again.stages)
    assert again.metrics == result.metrics


STUDY = f"""
study: gpu
base: {{preset: tiny, dataset: shanghaitech_a, set: {json.dumps({k: v for k, v in MICRO.items() if k != "dataset"})}}}
design: {{sampler: grid}}
objective: {{metric: val.mae, direction: minimize}}
parameters:
  fusion.rule: {{choice: [density, grid]}}
"""


def test_a_study_runs_on_the_gpu(crowd: Path, tmp_path: Path) -> None:
    from raz.engine.study_runner import run_study  # imports Optuna
    from raz.spec.space_yaml import parse_space
    from raz.study.records import read_records
    from raz.utils.yamlfile import parse

    space = parse_space(parse(STUDY, "gpu.yaml"), data_root=crowd)
    result = run_study(space, tmp_path, data_root=crowd, inline=True)
    assert result.counts["complete"] == 2
    assert not result.trouble
    assert {record.device for record in read_records(tmp_path, "gpu")} == {torch.cuda.get_device_name()}


CHILD = """
import sys
from pathlib import Path
from raz.pipeline.trial import run_trial
from tests.test_pipeline import MICRO, micro
result = run_trial(micro(seed=int(sys.argv[3])), Path(sys.argv[1]), data_root=Path(sys.argv[2]), splits=("val",))
print(sum(not use.hit for use in result.stages))
"""


def test_two_processes_share_the_gpu_and_the_store(crowd: Path, tmp_path: Path) -> None:
    """Each makes one trial of its own; a third one waits for what the first makes, and makes nothing twice."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", CHILD, str(tmp_path), str(crowd)]
    children = [
        subprocess.Popen([*command, seed], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
        for seed in ("0", "1", "0")
    ]
    made = [int(child.communicate()[0]) for child in children]
    assert [child.returncode for child in children] == [0, 0, 0]
    assert made[0] + made[2] == made[1]


# ------------------------------------------------------------------ a loop that does not wait


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "half_precision"])
@pytest.mark.parametrize("stage", TRAINED)
def test_loading_ahead_gives_the_same_training(
    stage: str, amp: bool, tiny: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pinned copies that do not wait, against batches that are loaded when they are asked for."""
    curves = []
    of = training_loop._batches
    for ahead in (True, False):
        monkeypatch.setattr(training_loop, "_batches", lambda *a, ahead=ahead, **k: of(*a, **{**k, "ahead": ahead}))
        with tiny.same_regions():
            task = plan_of(tiny.on(GPU), stage).task
            assert task is not None
            task.modules.load_state_dict(tiny.weights[stage])
            settings = TrainConfig(epochs=2, optimizer="sgd", lr=1e-6, momentum=0.0, clip=0.0, crop=48, amp=amp)
            curves.append(train(task, settings, Checkpoint(tmp_path / f"{ahead}.pt"), GPU).curve)
    for name in ("loss", "value"):
        assert [p[name] for p in curves[0]] == pytest.approx([p[name] for p in curves[1]], rel=1e-3)
    assert not [thread for thread in threading.enumerate() if thread.name in ("prefetch", "checkpoint")]


def test_a_step_does_not_wait_for_the_gpu(tiny: Planted, tmp_path: Path) -> None:
    """In bfloat16: PyTorch raises where a step would wait; epochs may, when they read losses and validate."""
    if half_precision() is not torch.bfloat16:
        pytest.skip("a scaler reads once a step whether gradients are finite")
    task = plan_of(tiny.on(GPU), "counting").task
    assert task is not None
    load = task.load
    assert load is not None

    def watched(batch: Any) -> Any:
        loaded = load(batch)

        def loss(tensors: Any) -> Any:
            torch.cuda.set_sync_debug_mode("error")
            try:
                return loaded.loss(tensors)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return replace(loaded, loss=loss)

    settings = TrainConfig(epochs=1, optimizer="adamw", lr=1e-4, crop=48, amp=True)
    chain = train(replace(task, load=watched), settings, Checkpoint(tmp_path / "c.pt"), GPU)
    assert math.isfinite(chain.curve[0]["loss"])


# ------------------------------------------------------------------ full memory


@contextmanager
def full_memory() -> Iterator[None]:
    """Meanwhile this process gets no more of the device's memory, and what it has is in use."""
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(GPU).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**22) / total)
    held = []
    try:
        with suppress(torch.OutOfMemoryError):
            while True:
                held.append(torch.empty(2**12, dtype=torch.uint8, device=GPU))
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_full_memory_is_told_and_the_next_trial_runs(crowd: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        with full_memory(), pytest.raises(TrialFailure, match="the device's memory is full") as failure:
            run_trial(micro(), store, data_root=crowd)
        assert failure.value.reason == FailureReason.OOM
        assert "batch" in failure.value.hint
        (recorded,) = store.glob("failures/*/*.json")
        (note,) = json.loads(recorded.read_text())["failures"]
        assert note["device"] == torch.cuda.get_device_name()
        assert note["memory"] == torch.cuda.get_device_properties(GPU).total_memory
        with pytest.raises(TrialFailure, match="memory is full"):  # known: not tried again on this device
            run_trial(micro(), store, data_root=crowd)
        assert forget_failures(micro(), store, data_root=crowd) == 1
        assert math.isfinite(run_trial(micro(), store, data_root=crowd).metrics["val.mae"])


@contextmanager
def limited_memory(limit: int) -> Iterator[None]:
    """Meanwhile this process gets this many bytes of the device's memory."""
    release_device_memory()
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(GPU).total_memory)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_batch_that_does_not_fit_is_taken_in_halves(crowd: Path, tmp_path: Path) -> None:
    """An epoch of whole batches and one of halves tell what they take; then there is memory for the halves alone."""
    config = micro(
        depth=1, fusion__rule="density", backbone__width=0.25, counting__train__batch=8, counting__train__crop=1024
    ).resolved()

    def trained(halved: bool) -> tuple[int, TrainedChain]:
        state = TrialState(config, StageCache(tmp_path / "measured"), crowd, lambda _: None)
        release_device_memory()
        torch.cuda.reset_peak_memory_stats()
        plan = plan_of(state, "counting")
        assert plan.task is not None
        checkpoint = Checkpoint(tmp_path / f"{halved}.pt")
        chain = train(plan.task, plan.settings, checkpoint, GPU, halved=halved)
        return torch.cuda.max_memory_reserved(), chain

    (whole, at_once), (halves, added) = trained(False), trained(True)
    assert halves < 0.8 * whole
    for name in ("loss", "value"):
        assert [p[name] for p in added.curve] == pytest.approx([p[name] for p in at_once.curve], rel=0.1)
    events: list[StageEvent] = []
    MEMO.clear()
    with limited_memory((whole + halves) // 2):
        build_stages(config, tmp_path / "store", [Node("counting")], data_root=crowd, log=events.append)
    assert [event.kind for event in events] == ["started", "warning", "epoch", "epoch", "finished"]
    assert "two halves" in events[1].reason
    assert all(event.loss is not None and math.isfinite(event.loss) for event in events if event.kind == "epoch")
