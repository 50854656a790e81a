"""What a GPU would refuse, found without one: tensors of two devices, number formats that do not fit, states that were
saved on another device. Fake tensors have a device and a shape and no values; backward passes need a real GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from raz.config import PRESETS, TrainConfig, TrialConfig
from raz.data.frames import Frames
from raz.pipeline import builders, training_loop
from raz.pipeline.backbones import build_backbone
from raz.pipeline.checkpoint import Checkpoint
from raz.pipeline.graph import TRAINED
from raz.pipeline.keys import open_cached
from raz.pipeline.tasks import (
    Batch,
    TrainingData,
    attention_task,
    counting_task,
    features_from,
    localization_task,
)
from raz.pipeline.training_loop import TrainingTask, train
from tests.golden import given
from tests.gpu.planted import CPU, Planted, configured, distance, planted, training_task

GPU = torch.device("cuda", 0)


@pytest.fixture(scope="module", autouse=True)
def given_images() -> Iterator[None]:
    with given.dataset():
        yield


# ------------------------------------------------------------------ fake tensors


def fake_task(stage: str, config: TrialConfig) -> TrainingTask[Batch]:
    """The stage's task on a fake GPU, its features computed in the step. To be called in a FakeTensorMode."""
    samples = open_cached(given.DATASET, None).items
    data = TrainingData(Frames(samples["train"]), Frames(samples["val"]), 0, GPU)
    with GPU:  # what is made has this device; a module of fake tensors cannot be moved
        backbone = build_backbone(config.backbone, 0)
        counting = builders.build_counting(config.counting, backbone, 0)
        localization = builders.build_localization(config.localization, backbone, 0)
        main = builders.build_attention(config.attention, localization.channels + counting.channels, 0)
        zoomed = builders.build_attention(config.attention, localization.channels, 0)
    modules = nn.ModuleDict({"backbone": backbone})
    features = features_from(backbone, data.train, GPU, None)
    if stage == "counting":
        of = config.counting
        return counting_task(
            data, modules, counting, features, features, of.train, beta=of.beta, kernel=of.kernel, kind=of.loss
        )  # fmt: skip
    if stage in ("localization", "raz"):
        train = config.localization.train if stage == "localization" else config.raz.train
        gamma = config.localization.gamma
        return localization_task(data, stage, modules, localization, features, features, train, gamma=gamma)

    def rich(windows: Batch) -> tuple[Tensor, Tensor | None]:
        own = features(windows)
        return localization(own)[1], counting(own)[1] if stage == "attention" else None

    branch = main if stage == "attention" else zoomed
    return attention_task(
        data, stage, modules, branch, rich, rich, config.attention.train, sigma_z=config.attention.sigma_z,
        kind=config.attention.loss,
    )  # fmt: skip


@pytest.mark.parametrize("stage", TRAINED)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_stage_computes_its_loss_on_the_device(preset: str, stage: str) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        task = fake_task(stage, configured(preset))
        loss = task.loss(next(iter(task.batches(1))))
    assert loss.device == GPU
    assert loss.shape == ()
    assert loss.dtype == torch.float32


def test_a_tensor_left_on_the_cpu_is_noticed() -> None:
    """That the test above can fail."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        task = fake_task("localization", configured("tiny"))
        window = next(iter(task.batches(1)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training_loop.LoadedBatch, "compute", lambda self, device: self.loss(self.tensors))
            with pytest.raises(RuntimeError, match="device"):
                task.loss(window)


# ------------------------------------------------------------------ half precision


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return planted(tmp_path_factory.mktemp("half") / "store", configured("tiny"))


@pytest.mark.parametrize("stage", TRAINED)
def test_a_stage_learns_in_half_precision(stage: str, tiny: Planted) -> None:
    """Forward and backward as the loop does them on a GPU, here in bfloat16, which has three bits less than float16."""
    with tiny.same_regions():
        task = training_task(tiny, stage)
        losses, gradients = [], []
        for amp in (False, True):
            task.modules.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
                loss = task.loss(tiny.batches[stage])
            loss.backward()
            losses.append(loss.detach())
            of = task.modules.named_parameters()
            gradients.append({n: p.grad.double().clone() for n, p in of if p.grad is not None})
    assert losses[1].dtype == torch.float32
    assert float(losses[1]) == pytest.approx(float(losses[0]), rel=2e-2)
    assert 0 < distance(gradients[0], gradients[1]) < 0.15


# ------------------------------------------------------------------ checkpoints of another device


def one_weight() -> TrainingTask[float]:
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    return TrainingTask("one", module, lambda epoch: [0.5] * 3, lambda x: (module.weight * x).sum(), lambda: 1.0)


class ScalerOfAGpu(torch.amp.GradScaler):
    """The scaler that the loop has on a GPU, on the CPU."""

    def __init__(self, device: str, enabled: bool) -> None:
        super().__init__(device, enabled=True)


OF_A_CPU = torch.amp.GradScaler


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "schedule-free"])
@pytest.mark.parametrize("scalers", [(OF_A_CPU, ScalerOfAGpu), (ScalerOfAGpu, OF_A_CPU)], ids=["to_gpu", "to_cpu"])
def test_a_checkpoint_goes_on_with_and_without_a_scaler(
    scalers: tuple[type[torch.amp.GradScaler], ...], optimizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scaler that is off saves an empty state, which one that is on refuses. The scale is a power of two, so that
    these steps are the same with and without it."""
    settings = TrainConfig(epochs=1, optimizer=optimizer, lr=0.125, momentum=0.5, average=0.5, clip=0.0)
    for epochs, scaler in enumerate(scalers, start=1):
        monkeypatch.setattr(training_loop.torch.amp, "GradScaler", scaler)
        moved = train(one_weight(), replace(settings, epochs=epochs), Checkpoint(tmp_path / "moved.pt"), CPU)
    monkeypatch.setattr(training_loop.torch.amp, "GradScaler", OF_A_CPU)
    alone = train(one_weight(), replace(settings, epochs=2), Checkpoint(tmp_path / "alone.pt"), CPU)
    assert [p["loss"] for p in moved.curve] == [p["loss"] for p in alone.curve]
    saved = torch.load(tmp_path / "moved.pt", weights_only=True)
    assert saved["updates"] == 6
    assert bool(saved["scaler"]) == (scalers[1] is ScalerOfAGpu)


def test_a_scale_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an overflow the scale is half as large, also for the epochs after a stop."""
    monkeypatch.setattr(training_loop.torch.amp, "GradScaler", ScalerOfAGpu)
    task, checkpoint = one_weight(), Checkpoint(tmp_path / "checkpoint.pt")
    settings = TrainConfig(epochs=1, lr=0.125, clip=0.0)
    overflow = replace(task, batches=lambda epoch: [3e38 / 2.0**15, 0.5])  # finite, times 2**16 not
    train(overflow, settings, checkpoint, CPU)
    train(task, replace(settings, epochs=2), checkpoint, CPU)
    state = checkpoint.load(CPU)
    assert state is not None
    assert state["scaler"]["scale"] == 2.0**15


def test_only_weights_are_loaded_onto_the_device(tmp_path: Path) -> None:
    """What the optimizer and the scaler keep goes where they need it; a counter of steps on a GPU stalls each step."""
    path = tmp_path / "checkpoint.pt"
    train(one_weight(), TrainConfig(epochs=1, optimizer="adamw", average=0.5), Checkpoint(path), CPU)
    with FakeTensorMode(allow_non_fake_inputs=True):
        state = Checkpoint(path).load(GPU)
    assert state is not None
    assert {v.device for name in ("best", "average") for v in state[name].values()} == {GPU}  # type: ignore[literal-required]
    kept = [v for of in state["optimizer"]["state"].values() for v in of.values()]  # type: ignore[attr-defined]
    assert {v.device for v in kept} == {CPU}


@pytest.mark.parametrize("name", ["sgd", "adamw", "schedule-free"])
@pytest.mark.parametrize("to_gpu", [False, True])
def test_how_steps_are_taken_is_the_devices_matter(name: Any, to_gpu: bool) -> None:
    """A checkpoint names how the other device took them. Fused steps work on a CPU too, with other last bits."""
    settings = TrainConfig(optimizer=name, lr=0.125, momentum=0.5, weight_decay=0.0)
    task, other = one_weight(), one_weight()
    first = training_loop._optimizer(task, settings, on_gpu=not to_gpu)
    second = training_loop._optimizer(other, settings, on_gpu=to_gpu)
    plain = [dict(group) for group in training_loop._optimizer(other, settings, on_gpu=to_gpu).param_groups]
    training_loop._switch(first, training=True)
    task.loss(0.5).backward()
    first.step()
    training_loop._load_optimizer(second, first.state_dict())
    for group, wanted in zip(second.param_groups, plain, strict=True):
        for key in ("fused", "foreach"):
            assert group.get(key) == wanted.get(key)
    assert any(group.get("fused") or group.get("foreach") for group in second.param_groups) == to_gpu
    kept = {key: value for of in second.state.values() for key, value in of.items() if isinstance(value, Tensor)}
    for key, value in kept.items():
        assert value.equal(next(iter(first.state.values()))[key])


@pytest.mark.parametrize(("native", "half", "scaled"), [(True, torch.bfloat16, False), (False, torch.float16, True)])
def test_mixed_precision_takes_a_scaler_for_float16_alone(
    native: bool, half: torch.dtype, scaled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps and validation; a device that says `cuda` and is the CPU."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    asked: list[tuple[torch.dtype | None, bool]] = []
    scalers: list[bool] = []

    class Autocast:
        def __init__(self, device: str, dtype: torch.dtype | None, enabled: bool) -> None:
            self.given = dtype, enabled

        def __enter__(self) -> None:
            asked.append(self.given)

        def __exit__(self, *_: object) -> None:
            pass

    def scaler(device: str, enabled: bool) -> torch.amp.GradScaler:
        scalers.append(enabled)
        return OF_A_CPU("cpu", enabled=enabled)

    monkeypatch.setattr(training_loop.torch, "autocast", Autocast)
    monkeypatch.setattr(training_loop.torch.amp, "GradScaler", scaler)
    monkeypatch.setattr(Checkpoint, "load", lambda self, device: None)

    class Device:
        type = "cuda"

    for amp in (True, False):
        asked.clear()
        settings = TrainConfig(epochs=1, lr=0.125, clip=0.0, amp=amp)
        device: Any = Device()
        train(one_weight(), settings, Checkpoint(tmp_path / f"{amp}.pt"), device)
        assert asked == [(half if amp else None, amp)] * 4, "three steps, one validation"
    assert scalers == [scaled, False]


@pytest.mark.parametrize("crop", [0, 64])
def test_convolutions_are_searched_for_crops_of_one_size_alone(crop: int) -> None:
    before = torch.backends.cudnn.benchmark

    def fail() -> None:
        with training_loop._searched_convolutions(crop > 0):
            assert torch.backends.cudnn.benchmark == (before or crop > 0)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.backends.cudnn.benchmark == before


@pytest.mark.parametrize("device", [CPU, GPU])
def test_wide_networks_are_channels_last_on_a_gpu(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked for: a module of fake tensors cannot be changed."""
    asked: list[torch.memory_format] = []
    monkeypatch.setattr(nn.Conv2d, "to", lambda self, memory_format: asked.append(memory_format))
    with FakeTensorMode(), device:
        builders.to_channels_last(PRESETS["paper"].backbone, nn.Conv2d(8, 8, 3))
    assert asked == ([torch.channels_last] if device == GPU else [])
