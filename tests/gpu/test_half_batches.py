"""A batch that is too large for a device's memory: two halves give its gradients, and a stage goes on with them."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from io import StringIO
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from raz.config import TrainConfig
from raz.errors import FailureReason, TrialFailure
from raz.paper.losses import attention_loss, counting_loss, localization_loss
from raz.pipeline import making, training_loop
from raz.pipeline.checkpoint import Checkpoint
from raz.pipeline.device_memory import BatchTooLarge
from raz.pipeline.events import StageEvent
from raz.pipeline.graph import TRAINED
from raz.pipeline.inference import FeatureLru
from raz.pipeline.tasks import Batch, halves
from raz.pipeline.train_stages import PLANS, TrainedStagePlan
from raz.pipeline.training_loop import TrainingTask, train
from raz.pipeline.trial import run_trial
from raz.store.paths import StorePaths
from tests.golden import given
from tests.gpu.planted import CPU, Planted, configured, distance, planted, training_task
from tests.gpu.test_fake import ScalerOfAGpu
from tests.test_pipeline import micro

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{kind: partial(counting_loss, kind=kind) for kind in ("rmse", "mse", "pyramid", "pyramid-l1")},
    "localization": localization_loss,
    **{f"attention-{kind}": partial(attention_loss, kind=kind) for kind in ("mse", "bce")},
}


@pytest.fixture(scope="module", autouse=True)
def given_images() -> Iterator[None]:
    with given.dataset():
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return planted(tmp_path_factory.mktemp("halves") / "store", configured("tiny"))


# ------------------------------------------------------------------ the same gradients


def gradients(task: TrainingTask[Batch], batch: Batch, *, halved: bool) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of a batch as the loop takes them."""
    task.modules.zero_grad()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    losses = training_loop.EpochLosses(task.name, 1, late=False)
    one = replace(task, batches=lambda epoch: [batch])
    with training_loop._batches(one, 1, CPU, halved=halved, ahead=False) as batches:
        for parts in batches:
            losses.add(training_loop._add_gradients(parts, scaler, training_loop._autocast(CPU, None), late=False))
    return losses.total()[0], {
        n: p.grad.double().clone() for n, p in task.modules.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("size", [(48, 48), (22, 37)])
def test_the_loss_of_a_batch_is_the_mean_of_its_items(kind: str, size: tuple[int, int]) -> None:
    """Also where a pyramid's blocks are padded. Then shares by number add up, whatever the halves."""
    draw = torch.Generator().manual_seed(0)
    outputs = torch.randn(5, 1, *size, generator=draw, dtype=torch.float64, requires_grad=True)
    truth = torch.rand(5, 1, *size, generator=draw, dtype=torch.float64)
    loss = LOSSES[kind]
    whole = loss(outputs, truth)
    (at_once,) = torch.autograd.grad(whole, outputs)
    parts = [(loss(outputs[part], truth[part]), share) for part, share in ((slice(3), 0.6), (slice(3, 5), 0.4))]
    (added,) = torch.autograd.grad(sum((part * share for part, share in parts), torch.zeros(())), outputs)
    assert float(sum(part.detach() * share for part, share in parts)) == pytest.approx(float(whole.detach()), rel=1e-12)
    torch.testing.assert_close(added, at_once, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("stage", TRAINED)
def test_two_halves_have_the_gradients_of_the_batch(stage: str, tiny: Planted) -> None:
    """Of a batch of five and of two; halves that counted alike would be off in the batch of five."""
    with tiny.same_regions():
        task = training_task(tiny, stage)
        assert task.halves is not None
        windows = [*islice(chain.from_iterable(chain.from_iterable(map(task.batches, range(1, 9)))), 5)]
        for batch in (windows, windows[:2]):
            whole, at_once = gradients(task, batch, halved=False)
            loss, added = gradients(task, batch, halved=True)
            assert loss == pytest.approx(whole, rel=1e-5)
            assert distance(at_once, added) < 1e-4
            (first, _), (second, _) = task.halves(batch)
            assert len(first) - len(second) in (0, 1)
            of_first, of_second = (gradients(task, part, halved=False)[1] for part in (first, second))
            assert distance(of_first, of_second) > 1e-2, "the halves differ, so their shares can be told apart"
        alone, one = gradients(task, windows[:1], halved=False), gradients(task, windows[:1], halved=True)
        assert alone[0] == one[0]
        assert all(torch.equal(alone[1][name], one[1][name]) for name in alone[1])


# ------------------------------------------------------------------ the loop

Numbers = list[float]


def slope(items: int, calls: list[int] | None = None, limit: int = 99) -> TrainingTask[Numbers]:
    """One weight w with the loss w * mean(batch). Powers of two and dyadic means: every step is exact. Batches above
    `limit` do not fit into the memory."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)

    def loss(batch: Numbers) -> Tensor:
        if calls is not None:
            calls.append(len(batch))
        if len(batch) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return (module.weight * torch.tensor(batch)).mean()

    def batches(epoch: int) -> Iterator[Numbers]:
        numbers = iter([(i % 3 + epoch) / 8 for i in range(items)])
        while batch := list(islice(numbers, 4)):
            yield batch

    def two(batch: Numbers) -> list[tuple[Numbers, float]]:
        cut = (len(batch) + 1) // 2
        return [(part, len(part) / len(batch)) for part in (batch[:cut], batch[cut:]) if part]

    return TrainingTask("counting", module, batches, loss, lambda: float(module.weight.detach()), halves=two)


STEPS = TrainConfig(epochs=2, optimizer="sgd", lr=0.125, momentum=0.5, clip=0.0, batch=4)


@pytest.mark.parametrize("scaler", [torch.amp.GradScaler, ScalerOfAGpu], ids=["float32", "scaled"])
def test_an_epoch_of_halves_is_the_epoch(
    scaler: type[torch.amp.GradScaler], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine items in batches of four, four and one."""
    monkeypatch.setattr(training_loop.torch.amp, "GradScaler", scaler)
    calls: list[int] = []
    whole = train(slope(9), STEPS, Checkpoint(tmp_path / "whole.pt"), CPU)
    parts = train(slope(9, calls, limit=2), STEPS, Checkpoint(tmp_path / "parts.pt"), CPU, halved=True)
    assert calls == [2, 2, 2, 2, 1] * 2
    assert parts.weights["weight"].equal(whole.weights["weight"])
    for of, other in zip(parts.curve, whole.curve, strict=True):
        assert {**of, "seconds": 0.0} == {**other, "seconds": 0.0}


class FrozenNorm(nn.BatchNorm2d):
    """Its statistics are fixed, as those of pretrained networks."""

    def train(self, mode: bool = True) -> FrozenNorm:
        return super().train(False)


@pytest.mark.parametrize(
    ("change", "batch", "crop", "halved", "kind", "told"),
    [
        ({}, 4, 256, False, BatchTooLarge, "memory is full\n  try: set a smaller counting.train.batch (now 4), a "
         "smaller counting.train.crop (now 256) or a smaller input.scale"),
        ({}, 4, 0, True, TrialFailure, "memory is full, with half batches too\n  try: set a smaller "
         "counting.train.batch (now 4), counting.train.crop (now whole images) or a smaller input.scale"),
        ({}, 1, 256, False, TrialFailure, "memory is full\n  try: set a smaller counting.train.crop (now 256) or a "
         "smaller input.scale"),
        ({"norm": nn.BatchNorm2d}, 4, 256, False, TrialFailure, "memory is full, and half batches would train another "
         "network: its batch normalisation learns from whole ones\n  try: set a smaller counting.train.batch (now 4)"),
        ({"norm": FrozenNorm}, 4, 256, False, BatchTooLarge, "memory is full\n"),
        ({"norm": nn.GroupNorm}, 4, 256, False, BatchTooLarge, "memory is full\n"),
        ({"halves": None}, 4, 256, False, TrialFailure, "memory is full"),
    ],
    ids=["batch", "halves", "one", "learned", "frozen", "group", "indivisible"],
)  # fmt: skip
def test_a_full_memory_names_what_helps(
    change: dict[str, Any], batch: int, crop: int, halved: bool, kind: type[TrialFailure], told: str, tmp_path: Path
) -> None:
    task = slope(8, limit=0)
    if "norm" in change:
        norm = change["norm"](2, 2) if change["norm"] is nn.GroupNorm else change["norm"](2)
        task = replace(task, modules=nn.ModuleList([task.modules, norm]))
    elif change:
        task = replace(task, **change)
    settings = replace(STEPS, batch=batch, crop=crop)
    with pytest.raises(TrialFailure) as failure:
        train(task, settings, Checkpoint(tmp_path / "c.pt"), CPU, halved=halved)
    assert type(failure.value) is kind
    assert failure.value.reason == FailureReason.OOM
    assert told in str(failure.value)
    assert str(failure.value).startswith("stage counting, epoch 1: ")


def test_validation_does_not_ask_for_a_smaller_batch(tmp_path: Path) -> None:
    def validate() -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(TrialFailure, match="validation after epoch 1: the device's memory is full") as failure:
        train(replace(slope(8), validate=validate), STEPS, Checkpoint(tmp_path / "c.pt"), CPU)
    assert type(failure.value) is TrialFailure
    assert "input.scale" in failure.value.hint


def test_the_machines_own_memory_is_no_reason_to_halve(tmp_path: Path) -> None:
    """What else runs there decides about it, so the failure is not remembered either."""
    text = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"

    def loss(batch: Numbers) -> Tensor:
        raise RuntimeError(text)

    with pytest.raises(RuntimeError, match="DefaultCPUAllocator") as error:
        train(replace(slope(8), loss=loss), STEPS, Checkpoint(tmp_path / "c.pt"), CPU)
    assert not isinstance(error.value, TrialFailure)


# ------------------------------------------------------------------ a stage


class FullMemory:
    """Stages on a device whose memory holds `limit` windows of a batch, from some epoch on. `alive` counts the modules
    of earlier attempts that were still there when the memory was freed."""

    def __init__(self, stage: str, limit: int, since: int = 1) -> None:
        self.stage, self.limit, self.since = stage, limit, since
        self.plans: list[weakref.ref[nn.Module]] = []
        self.sizes: list[int] = []
        self.alive: list[int] = []
        self._plan = PLANS[stage]
        self._free: Callable[[], None] = making.release_device_memory

    def plan(self, context: Any) -> TrainedStagePlan:
        plan = self._plan(context)
        task = plan.task
        assert task is not None
        self.plans.append(weakref.ref(plan.modules))
        epochs = [0]

        def batches(epoch: int) -> Iterator[Batch]:
            epochs[0] = epoch
            yield from task.batches(epoch)

        def loss(batch: Batch) -> Tensor:
            self.sizes.append(len(batch))
            out = task.loss(batch)
            if len(batch) > self.limit and epochs[0] >= self.since:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return out

        return replace(plan, task=replace(task, loss=loss, batches=batches))

    def free(self) -> None:
        self._free()
        gc.collect()
        self.alive.append(sum(made() is not None for made in self.plans))

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(making, "PLANS", {**PLANS, self.stage: self.plan})
        monkeypatch.setattr(making, "release_device_memory", self.free)
        monkeypatch.setattr(making, "MEMO", FeatureLru())


def trial(**settings: Any) -> Any:
    """Its counting stage takes four windows a batch, and its numbers do not grow from rounding."""
    sgd = {"counting__train__optimizer": "sgd", "counting__train__lr": 1e-3, "counting__train__epochs": 3}
    return micro(depth=1, fusion__rule="density", counting__train__batch=4, **sgd, **settings)


def curve(store: Path) -> list[dict[str, float]]:
    (path,) = StorePaths(store).stages.glob("counting/*/curve.json")
    points: list[dict[str, float]] = json.loads(path.read_text())
    return points


def test_a_stage_goes_on_with_half_batches(crowd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the checkpoint of the last epoch, once, with a line for the user, and with the same result."""
    run_trial(trial(), tmp_path / "whole", data_root=crowd)
    full, events = FullMemory("counting", limit=2, since=2), list[StageEvent]()
    full.install(monkeypatch)
    run_trial(trial(), tmp_path / "halves", data_root=crowd, log=events.append)
    counting = [event for event in events if event.stage == "counting" and event.kind != "hit"]
    assert [event.kind for event in counting] == ["started", "epoch", "warning", "epoch", "epoch", "finished"]
    assert str(counting[2]) == (
        "counting: the device's memory is full: each batch is taken in two halves from the last epoch on, with the"
        " same gradients"
    )
    assert [event.epoch for event in counting if event.kind == "epoch"] == [1, 2, 3]
    assert full.alive == [0], "the first attempt still holds its network, and so the device's memory"
    assert len(full.plans) == 2
    first, others = curve(tmp_path / "whole"), curve(tmp_path / "halves")
    assert others[0] == {**first[0], "seconds": others[0]["seconds"]}
    for name in ("loss", "value"):
        assert [p[name] for p in others] == pytest.approx([p[name] for p in first], rel=1e-4)
    assert not [*(tmp_path / "halves").glob("failures/*/*")]
    refused = max(i for i, size in enumerate(full.sizes) if size == 4)  # the first batch of the second epoch
    assert set(full.sizes[: refused + 1]) == {4}
    assert set(full.sizes[refused + 1 :]) == {2}


def test_halves_that_do_not_fit_fail_for_good(crowd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full, events = FullMemory("counting", limit=1), list[StageEvent]()
    full.install(monkeypatch)
    with pytest.raises(TrialFailure, match="epoch 1: the device's memory is full, with half batches too") as failure:
        run_trial(trial(), tmp_path, data_root=crowd, log=events.append)
    assert type(failure.value) is TrialFailure
    assert full.sizes == [4, 2]
    assert [event.kind for event in events] == ["started", "warning", "failed"]
    with pytest.raises(TrialFailure, match="with half batches too"):  # remembered
        run_trial(trial(), tmp_path, data_root=crowd)
    assert full.sizes == [4, 2]


@pytest.mark.parametrize(
    ("size", "free", "own", "remembered"),
    [(24, 10, 85, True), (24, 10, 30, False), (24, 10, 79, False), (6, 10, 79, True), (6, 10, 60, False)],
)
def test_a_memory_that_others_filled_is_not_remembered(
    size: int, free: int, own: int, remembered: bool, crowd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two stages share a GPU: what did not fit beside the other one fits alone. `size` GiB, of them `free` and `own` in
    percent; the rest is that of other processes and of CUDA itself, which takes up to a GiB."""
    percent = size * (1 << 30) // 100
    FullMemory("counting", limit=1).install(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free * percent, 100 * percent))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: own * percent)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    with pytest.raises(TrialFailure, match="memory is full"):
        run_trial(trial(), tmp_path, data_root=crowd)
    assert bool([*tmp_path.glob("failures/*/*")]) == remembered


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("live", [False, True])
def test_the_user_of_a_run_sees_it_once(live: bool, crowd: Path, tmp_path: Path) -> None:
    """Two trials share the stage, which another process makes."""
    from raz.engine.events import ConsoleProgress
    from raz.engine.study_runner import run_study
    from raz.study.records import read_records
    from tests.test_broker import grid

    out = StringIO()
    console = Console(file=out, width=200, force_terminal=live)
    batch = {"counting.train.batch": 4}
    run_study(
        grid({"fusion.rule": ["density", "average"]}, depth=1, **batch), tmp_path, data_root=crowd, jobs=2,
        run_trial="tests.gpu.full_memory:run_trial", watch=lambda left: ConsoleProgress(console, left, "val.mae"),
    )  # fmt: skip
    assert [record.state for record in read_records(tmp_path, "grid")] == ["complete"] * 2
    assert out.getvalue().count("counting: the device's memory is full: each batch is taken in two halves") == 1


def test_the_memo_of_features_makes_room(crowd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memo, full = FeatureLru(), FullMemory("counting", limit=2)
    full.install(monkeypatch)
    monkeypatch.setattr(making, "MEMO", memo)
    held = memo.get("weights", "image", lambda: torch.zeros(8))
    run_trial(trial(), tmp_path, data_root=crowd)
    assert memo.get("weights", "image", lambda: torch.ones(8)) is not held


def test_halves_of_windows() -> None:
    windows: Any = list("abcde")
    assert halves(windows) == [(list("abc"), 0.6), (list("de"), 0.4)]
    assert halves(windows[:2]) == [(["a"], 0.5), (["b"], 0.5)]
    assert halves(windows[:1]) == [(["a"], 1.0)]
