"""The trained stages of a preset on the golden tests' few images, at the weights that they begin with.

What is compared between devices, number formats and modes is then one step or one pass, which no training amplifies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from raz.config import PRESETS, TrainConfig, TrialConfig, configure
from raz.pipeline import training_loop
from raz.pipeline.checkpoint import Checkpoint
from raz.pipeline.context import ExecutionContext, network_context
from raz.pipeline.feature_cache import Candidates
from raz.pipeline.graph import TRAINED, Node
from raz.pipeline.inference import FeatureLru
from raz.pipeline.stage_context import TrialState
from raz.pipeline.tasks import Batch
from raz.pipeline.train_stages import PLANS, TrainedStagePlan
from raz.pipeline.training_loop import TrainingTask, snapshot, train
from tests.golden import given

CPU = torch.device("cpu")
_TRAINS = ("counting.train", "localization.train", "attention.train", "raz.train", "raz.attention_train")
SETTINGS: dict[str, Any] = {
    "dataset": given.DATASET, "seed": 3, "backbone.weights": "none", "attention.sigma_z": 6.0, "depth": 3,
    "zooming.samples": 24, "raz.regions.samples": 24, "zooming.theta_z": 0.3, "raz.regions.theta_z": 0.3,
    **{f"{name}.{field}": value for name in _TRAINS for field, value in (("crop", 48), ("batch", 2))},
}  # fmt: skip


def configured(preset: str, **settings: Any) -> TrialConfig:
    """The preset at the size of the given images."""
    named = {name.replace("__", "."): value for name, value in settings.items()}
    return configure(PRESETS[preset], {**SETTINGS, **named}).resolved()


@dataclass(frozen=True)
class Planted:
    """The trained stages of a configuration: a store with the weights they begin with, and a batch of each."""

    state: TrialState  # on the CPU
    weights: Mapping[str, Mapping[str, Tensor]]  # stage -> weights
    batches: Mapping[str, Batch]  # stage -> its first batch
    regions: Mapping[str, list[Candidates]]  # split -> regions that RAZ-Net learns from

    def on(self, device: torch.device) -> TrialState:
        """The same trial on another device."""
        state = replace(self.state, artifacts=dict(self.state.artifacts))
        state.device = device
        return state

    @contextmanager
    def same_regions(self) -> Iterator[None]:
        """Meanwhile every device learns from these regions. Without this a last bit may choose another region."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ExecutionContext, "candidates", lambda _, network, split, zooming: self.regions[split])
            yield


def planted(folder: Path, config: TrialConfig) -> Planted:
    """The stages of a configuration on the given data set, which is known by its name (`given.dataset`)."""
    regions: dict[str, list[Candidates]] = {}
    compute = ExecutionContext.candidates

    def recorded(context: ExecutionContext, network: Any, split: str, zooming: Any) -> list[Candidates]:
        regions[split] = compute(context, network, split, zooming)
        return regions[split]

    weights: dict[str, dict[str, Tensor]] = {}
    batches: dict[str, Batch] = {}
    state = given.trial(folder, config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ExecutionContext, "candidates", recorded)
        patch.setattr("raz.pipeline.context.MEMO", FeatureLru())
        for stage in TRAINED:
            plan = plan_of(state, stage)
            assert plan.task is not None, f"{stage} has nothing to learn from"
            weights[stage] = snapshot(plan.modules)
            batches[stage] = next(iter(plan.task.batches(1)))
            given.plant_weights(state, stage, weights[stage])
    return Planted(state, weights, batches, regions)


def plan_of(state: TrialState, stage: str) -> TrainedStagePlan:
    """The stage on the state's device."""
    return PLANS[stage](network_context(state, Node(stage)))


@dataclass(frozen=True)
class Step:
    """One step of gradient descent."""

    loss: float
    change: dict[str, Tensor]  # parameter -> new value minus old one, float64 on the CPU


def step(trial: Planted, stage: str, device: torch.device, folder: Path, *, rate: float, amp: bool = False) -> Step:
    """One step of the training loop on `device`, from the planted weights, on the stage's batch.

    In mixed precision the loop skips steps whose scaled gradients overflow, and halves the scale. Here the scale at
    which it would arrive is searched.
    """
    with trial.same_regions():
        plan = plan_of(trial.on(device), stage)
        task = plan.task
        assert task is not None
        one = replace(task, batches=lambda epoch: [trial.batches[stage]], validate=lambda: 1.0)
        settings = TrainConfig(epochs=1, optimizer="sgd", lr=rate, momentum=0.0, clip=0.0, amp=amp)
        before = trial.weights[stage]
        for scale in (2.0**16, 2.0**12, 2.0**8, 1.0) if amp else (1.0,):
            with pytest.MonkeyPatch.context() as patch:
                scaler = partial(torch.amp.GradScaler, init_scale=scale)
                patch.setattr(training_loop.torch.amp, "GradScaler", scaler)
                task.modules.load_state_dict(before)
                done = train(one, settings, Checkpoint(folder / f"{stage}-{scale}.pt"), device)
            learned = {name for name, p in task.modules.named_parameters() if p.requires_grad}
            change = {name: done.weights[name].cpu().double() - before[name].double() for name in learned}
            if norm(change) > 0:
                break
    return Step(done.curve[0]["loss"], change)


def training_task(trial: Planted, stage: str) -> TrainingTask[Batch]:
    """A stage's task on the CPU, with the planted weights, ready to learn."""
    task = plan_of(trial.on(CPU), stage).task
    assert task is not None
    task.modules.load_state_dict(trial.weights[stage])
    task.modules.train()
    return task


def gradient_norm(trial: Planted, stage: str) -> float:
    """Norm of the loss's gradient on the CPU."""
    with trial.same_regions():
        task = training_task(trial, stage)
        task.loss(trial.batches[stage]).backward()
        return norm({n: p.grad.double() for n, p in task.modules.named_parameters() if p.grad is not None})


def norm(tensors: Mapping[str, Tensor]) -> float:
    """Norm of all tensors together."""
    return float(torch.sqrt(sum((t.square().sum() for t in tensors.values()), torch.zeros((), dtype=torch.float64))))


def distance(wanted: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> float:
    """Norm of the difference over the norm of `wanted`."""
    assert wanted.keys() == got.keys()
    return norm({name: got[name] - wanted[name] for name in wanted}) / norm(wanted)
