"""The schedule-free optimizer in the training loop, learning rates of pretrained layers, grey crops, and the loss of
preset `small`: against the formulas of Defazio et al. (2024), and loops in numpy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raz.config import PRESETS, TrainConfig, configure
from raz.errors import RazError
from raz.paper.losses import counting_loss
from raz.pipeline.backbones import build_backbone
from raz.pipeline.checkpoint import Checkpoint
from raz.pipeline.samples import Window, crop_pixels, draw_windows
from raz.pipeline.training_loop import TrainedChain, TrainingTask, _optimizer, _parameter_groups, train
from raz.pipeline.trial import run_trial
from tests.crowds import write_crowd
from tests.test_backbones import free, micro
from tests.test_pipeline import artifacts

CPU = torch.device("cpu")
FREE = TrainConfig(
    epochs=5, optimizer="schedule-free", lr=0.05, warmup=4, weight_decay=0.01, clip=0.0, amp=False, plateau=100,
    stop=100,
)  # fmt: skip
BATCHES = 3  # an epoch


class Quadratic(nn.Module):
    """½ Σ s·(w - t)² with noise in t, a batch a target."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([3.0, -2.0, 0.5], dtype=torch.float64))
        self.scale = torch.tensor([1.0, 4.0, 0.3], dtype=torch.float64)

    def forward(self, target: Tensor) -> Tensor:
        return 0.5 * (self.scale * (self.w - target) ** 2).sum()


def targets(epoch: int) -> Iterator[Tensor]:
    rng = np.random.default_rng(epoch)
    for _ in range(BATCHES):
        yield torch.from_numpy(rng.normal(size=3))


def quadratic_task(seen: list[Tensor] | None = None) -> TrainingTask[Tensor]:
    module = Quadratic()

    def validate() -> float:
        if seen is not None:
            seen.append(module.w.detach().clone())
        return float(module(torch.zeros(3, dtype=torch.float64)))

    return TrainingTask("counting", module, targets, module, validate)


def by_the_paper(config: TrainConfig, epochs: int) -> list[NDArray[np.float64]]:
    """x after each epoch, by algorithm 1 of arXiv 2405.15682: AdamW whose averaging replaces the schedule."""
    beta1, beta2, eps = 0.9, 0.999, 1e-8
    x = np.array([3.0, -2.0, 0.5])
    z, v, scale, squares, out = x.copy(), np.zeros(3), np.array([1.0, 4.0, 0.3]), 0.0, []
    step = 0
    for epoch in range(1, epochs + 1):
        for target in targets(epoch):
            step += 1
            y = (1 - beta1) * z + beta1 * x  # where the gradient is taken
            gradient = scale * (y - target.numpy())
            v = beta2 * v + (1 - beta2) * gradient**2
            rate = config.lr * min(1, step / config.warmup if config.warmup else 1)
            z = z - rate * (gradient / (np.sqrt(v / (1 - beta2**step)) + eps) + config.weight_decay * y)
            squares += rate**2
            c = rate**2 / squares
            x = (1 - c) * x + c * z
        out.append(x)
    return out


@pytest.mark.parametrize("warmup", [0, 1, 4, 40])
def test_the_evaluated_weights_are_the_paper_s_average(warmup: int, tmp_path: Path) -> None:
    config, seen = replace(FREE, warmup=warmup), []  # type: tuple[TrainConfig, list[Tensor]]
    chain = train(quadratic_task(seen), config, Checkpoint(tmp_path / "c.pt"), CPU)
    wanted = by_the_paper(config, 5)
    assert len(seen) == 5
    for got, x in zip(seen, wanted, strict=True):
        np.testing.assert_allclose(got.numpy(), x, rtol=1e-9)
    assert chain.weights["w"].numpy() == pytest.approx(wanted[chain.best_epoch - 1], rel=1e-9)


def test_a_checkpoint_holds_both_points(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    task = quadratic_task()
    train(task, FREE, Checkpoint(path), CPU)
    state = Checkpoint(path).load(CPU)
    assert state is not None
    stored: Any = state["optimizer"]
    np.testing.assert_allclose(state["modules"]["w"].numpy(), by_the_paper(FREE, 5)[-1], rtol=1e-9)
    z = stored["state"][0]["z"]
    assert not torch.allclose(z, state["modules"]["w"])
    assert stored["param_groups"][0]["k"] == 5 * BATCHES
    assert not stored["param_groups"][0]["train_mode"]


def same(a: TrainedChain, b: TrainedChain) -> bool:
    curves = [[(p["epoch"], p["loss"], p["value"], p["rate"]) for p in chain.curve] for chain in (a, b)]
    return curves[0] == curves[1] and all(torch.equal(a.weights[n], b.weights[n]) for n in a.weights)


class Killed(Exception):
    pass


def test_two_epochs_and_then_three_are_five(tmp_path: Path) -> None:
    once = train(quadratic_task(), FREE, Checkpoint(tmp_path / "once.pt"), CPU)
    path = Checkpoint(tmp_path / "pieces.pt")
    train(quadratic_task(), replace(FREE, epochs=2), path, CPU)
    assert same(train(quadratic_task(), FREE, path, CPU), once)


@pytest.mark.parametrize("at", [(1, 1), (3, 0), (3, 2), (5, 1)])
def test_killed_in_mid_epoch_ends_with_the_same_bits(at: tuple[int, int], tmp_path: Path) -> None:
    once = train(quadratic_task(), FREE, Checkpoint(tmp_path / "once.pt"), CPU)
    path, whole = Checkpoint(tmp_path / "killed.pt"), quadratic_task()

    def until(epoch: int) -> Iterator[Tensor]:
        for number, batch in enumerate(whole.batches(epoch)):
            if (epoch, number) == at:
                raise Killed
            yield batch

    with pytest.raises(Killed):
        train(replace(whole, batches=until), FREE, path, CPU)
    assert same(train(quadratic_task(), FREE, path, CPU), once)


@pytest.mark.long
def test_a_whole_stage_in_pieces_is_the_stage_at_once(tmp_path: Path) -> None:
    """With statistics that are learned, weights in channels_last, and two learning rates."""
    crowd = write_crowd(tmp_path / "crowd", train=16)
    settings = {
        "depth": 1, "fusion.rule": "density", "counting.train.backbone_lr": 1e-4, "counting.train.grey": 0.3,
        **free("counting.train", False),
    }  # fmt: skip
    short, long = (micro("resnet18", **settings, **{"counting.train.epochs": n}) for n in (2, 4))
    run_trial(long, tmp_path / "once", data_root=crowd)
    run_trial(short, tmp_path / "pieces", data_root=crowd)
    run_trial(long, tmp_path / "pieces", data_root=crowd)
    assert artifacts(tmp_path / "once").items() <= artifacts(tmp_path / "pieces").items()


@pytest.mark.parametrize("optimizer", ["schedule-free", "adamw"])
def test_learned_statistics_are_those_of_the_evaluated_weights(optimizer: Any, tmp_path: Path) -> None:
    """Batch normalisation's statistics belong to the weights below it, and the evaluated ones see no training step."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 1, 1)).double()
    frozen = nn.BatchNorm2d(1).double().eval().requires_grad_(False)
    modules = nn.ModuleDict({"a": layers, "frozen": frozen})

    def batches(epoch: int) -> Iterator[Tensor]:
        rng = np.random.default_rng(epoch)
        for _ in range(60):  # more than are measured
            yield torch.from_numpy(rng.normal(epoch, 2, size=(2, 1, 6, 6)))

    def loss(batch: Tensor) -> Tensor:
        frozen.eval()  # as a pretrained backbone keeps it
        return (layers(frozen(batch)) - 3).square().mean()

    def validate() -> float:
        assert not layers.training
        return 1.0

    task = TrainingTask("counting", modules, batches, loss, validate)
    train(task, replace(FREE, optimizer=optimizer, warmup=0, epochs=2), Checkpoint(tmp_path / "c.pt"), CPU)
    state = Checkpoint(tmp_path / "c.pt").load(CPU)
    assert state is not None
    kept = state["modules"]
    conv = nn.Conv2d(1, 3, 3).double()
    conv.load_state_dict({n: kept[f"a.0.{n}"] for n in ("weight", "bias")})
    with torch.no_grad():
        maps = [conv(batch / math.sqrt(1 + 1e-5)) for batch in list(batches(2))[:50]]
    mean = torch.stack([each.mean(dim=(0, 2, 3)) for each in maps]).mean(0)
    var = torch.stack([each.var(dim=(0, 2, 3)) for each in maps]).mean(0)
    own = kept["a.1.running_mean"], kept["a.1.running_var"]
    fits = torch.allclose(own[0], mean, rtol=1e-9) and torch.allclose(own[1], var, rtol=1e-9)
    assert fits == (optimizer == "schedule-free")  # others keep the moving averages of the training
    assert torch.equal(kept["frozen.running_mean"], torch.zeros(1, dtype=torch.float64))
    assert layers[1].momentum == 0.1


# ------------------------------------------------------------------ learning rates


@pytest.mark.parametrize("name", ["resnet18", "vgg16"])
def test_pretrained_layers_have_a_rate_of_their_own(name: str) -> None:
    backbone = build_backbone(replace(micro(name).backbone, weights="none"), 0)
    head = nn.Conv2d(backbone.channels, 1, 1)
    modules = nn.ModuleDict({"counting": head, "backbone": backbone})
    task = TrainingTask("counting", modules, lambda _: (), lambda _: torch.zeros(()), lambda: 0.0, backbone.pretrained)
    groups = _parameter_groups(task, replace(FREE, backbone_lr=1e-3))
    assert [group.get("lr", FREE.lr) for group in groups] == [FREE.lr, 1e-3]
    covered = [id(p) for group in groups for p in group["params"]]
    assert sorted(covered) == sorted(id(p) for p in modules.parameters())  # each exactly once
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in backbone.pretrained.parameters()}
    assert len(_parameter_groups(task, FREE)) == 1
    next(backbone.pretrained.parameters()).requires_grad_(False)
    rest = [id(p) for group in _parameter_groups(task, replace(FREE, backbone_lr=1e-3)) for p in group["params"]]
    assert sorted(rest) == sorted(id(p) for p in modules.parameters() if p.requires_grad)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "schedule-free"])
def test_they_move_as_much_less_as_their_rate(optimizer: Any) -> None:
    slow, fast = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    fast.load_state_dict(slow.state_dict())
    start = slow.weight.detach().clone()
    task = TrainingTask(
        "counting", nn.ModuleDict({"a": fast, "b": slow}), lambda _: (), lambda _: torch.zeros(()), lambda: 0.0, slow
    )
    config = replace(FREE, optimizer=optimizer, warmup=0, weight_decay=0.0, lr=1e-2, backbone_lr=1e-3)
    stepper = _optimizer(task, config)
    if optimizer == "schedule-free":
        stepper.train()  # type: ignore[attr-defined]
    x = torch.tensor([[1.0, -2.0]])
    (fast(x).sum() + slow(x).sum()).backward()
    stepper.step()
    moved = [(layer.weight.detach() - start) for layer in (fast, slow)]
    torch.testing.assert_close(moved[0], 10 * moved[1], rtol=1e-3, atol=0)
    assert float(moved[1].abs().min()) > 0


def test_a_plateau_halves_both_rates(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(1, 1), nn.Linear(1, 1)

    modules = Two()
    task = TrainingTask(
        "counting", modules, lambda _: [0], lambda _: modules.a.weight.sum() + modules.b.weight.sum(), lambda: 1.0,
        modules.b,
    )  # fmt: skip
    config = TrainConfig(epochs=4, optimizer="adamw", lr=0.4, backbone_lr=0.04, plateau=1, stop=99, amp=False)
    train(task, config, Checkpoint(tmp_path / "c.pt"), CPU)
    state = Checkpoint(tmp_path / "c.pt").load(CPU)
    assert state is not None
    stored: Any = state["optimizer"]
    assert [group["lr"] for group in stored["param_groups"]] == pytest.approx([0.4 / 8, 0.04 / 8])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"counting.train.warmup": 10}, "0 unless schedule-free"),
        ({"counting.train.optimizer": "schedule-free"}, "averages the weights itself"),  # tiny averages
        ({"attention.train.grey": 0.2}, "0 where the backbone is frozen"),
        ({"localization.train.backbone_lr": 1e-4}, "where the backbone is frozen"),
        ({"counting.train.grey": 1.5}, "0 to 1"),
    ],
)
def test_options_that_would_do_nothing_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(RazError, match=words):
        configure(PRESETS["tiny"], settings)


# ------------------------------------------------------------------ grey crops


class Colours:
    """Images of noise."""

    def __init__(self, count: int) -> None:
        self.arrays = [np.random.default_rng(i).integers(0, 256, (40, 48, 3), dtype=np.uint8) for i in range(count)]

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(map(str, range(len(self.arrays))))

    def __len__(self) -> int:
        return len(self.arrays)

    def size(self, index: int) -> tuple[int, int]:
        return 40, 48

    def pixels(self, index: int) -> NDArray[np.uint8]:
        return self.arrays[index]

    def heads(self, index: int) -> NDArray[np.float64]:
        return np.zeros((0, 2))


def test_a_share_of_the_crops_is_grey_and_nothing_else_changes() -> None:
    images = Colours(400)

    def drawn(grey: float) -> list[Window]:
        return draw_windows(images, seed=1, stage="counting", epoch=3, crop=16, crops=4, flip=True, grey=grey)

    colourful, some = drawn(0.0), drawn(0.2)
    assert not any(w.grey for w in colourful)
    assert [replace(w, grey=False) for w in some] == colourful
    share = np.mean([w.grey for w in some])
    assert abs(share - 0.2) < 4 * math.sqrt(0.2 * 0.8 / len(some))
    assert {(w.index, w.x0, w.y0) for w in some if w.grey} <= {(w.index, w.x0, w.y0) for w in drawn(0.5) if w.grey}
    assert all(w.grey for w in drawn(1.0))


def test_a_grey_crop_has_the_mean_of_its_colours() -> None:
    images = Colours(1)
    window = Window(0, True, 8, 16, 24, 16, grey=True)
    x = crop_pixels(images, window, CPU)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    levels = (x[0].permute(1, 2, 0) * std + mean) * 255
    wanted = np.rint(images.pixels(0)[16:40, ::-1][:, 8:24].astype(np.float64).mean(axis=2))
    for channel in range(3):
        assert np.abs(levels[..., channel].numpy() - wanted).max() < 1e-3


# ------------------------------------------------------------------ pyramid-l1


@pytest.mark.parametrize("shape", [(16, 24), (5, 21), (8, 9), (1, 3)])
def test_the_l1_pyramid_compares_the_counts_of_blocks(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 2, 1, *shape))
    rows, cols = shape
    literal = 0.0
    for error in (a - b)[:, 0]:
        total = 0.0
        for y in range(rows):  # single cells, smoothed by (1 2 1)/4 each way; the edge repeats
            for x in range(cols):
                smooth = 0.0
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        weight = (2 - abs(dy)) * (2 - abs(dx)) / 16
                        smooth += weight * error[min(max(y + dy, 0), rows - 1), min(max(x + dx, 0), cols - 1)]
                total += abs(smooth)
        for k in (2, 4, 8):
            for y in range(0, rows, k):
                for x in range(0, cols, k):
                    total += abs(error[y : y + k, x : x + k].sum()) / k * k**2  # a block stands for its k² cells
        literal += total / (rows * cols) / 2
    ours = float(counting_loss(torch.from_numpy(a), torch.from_numpy(b), "pyramid-l1"))
    assert ours == pytest.approx(literal, rel=1e-9)


def test_the_l1_pyramid_has_finite_gradients() -> None:
    x = torch.zeros(1, 1, 9, 8, requires_grad=True)
    counting_loss(x, torch.zeros(1, 1, 9, 8), "pyramid-l1").backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    y = torch.randn(1, 1, 9, 8, dtype=torch.float64, requires_grad=True)
    truth = torch.rand(1, 1, 9, 8, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda given: counting_loss(given, truth, "pyramid-l1"), (y,))
