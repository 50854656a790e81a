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
from raz.pipeline.training_loop import Checkpoint, TrainingTask, train
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
