"""Each kind of stage from given weights and inputs: a stage whose output changes must raise its version.

Nothing is trained further than a step, so the values hold on every kind of CPU. What can be known another way than by
the last output is computed here once more, by formulas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from raz.pipeline.checkpoint import Checkpoint
from raz.pipeline.graph import STAGES, TRAINED, Node
from raz.pipeline.stage_context import TrialState
from raz.pipeline.training_loop import train
from tests.golden import given
from tests.golden.outputs import (
    BEGIN,
    CPU,
    CURVE,
    GRADIENTS,
    LOOP,
    Values,
    arrays_of,
    changes,
    deviations,
    loop_outputs,
    loop_task,
    stage_outputs,
    stored,
    task_of,
)
from tests.golden.regenerate import rounded, updated


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Values]:
    return stage_outputs(tmp_path_factory.mktemp("given"))


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_the_meaning_of_a_stage_is_that_of_its_version(stage: str, outputs: dict[str, Values]) -> None:
    assert not (wrong := changes(stage, stored().get(stage, {}), outputs[stage])), "\n".join(wrong)


@pytest.mark.long
def test_the_golden_outputs_do_not_hang_on_rounding(outputs: dict[str, Values], tmp_path: Path) -> None:
    """Weights that are off by ten times what single precision rounds give the same, so no value lies near a tie."""
    nudged = stage_outputs(tmp_path, nudge=1e-6)
    for stage, values in nudged.items():
        off = deviations(outputs[stage], values)
        assert max(off.values()) < 0.5, (stage, max(off, key=lambda name: off[name]))
    assert any(nudged[stage] != outputs[stage] for stage in nudged)


def test_a_change_under_the_old_version_is_not_written_down() -> None:
    version = STAGES["score"].version
    was = {"score": {"version": version, "values": {"val.mae": 1.0, "val.images": 4.0}}}
    changed = {"score": {"val.mae": 1.001, "val.images": 4.0}}
    content, refused = updated(was, changed)
    assert content == was
    assert f"stage score changed: raise its version (now {version}) in STAGES" in refused[0]
    assert "val.mae: 1.0 -> 1.001" in refused[0]
    assert updated(was, {"score": {"val.mae": 1.00001, "val.images": 4.0}}) == (was, [])
    older = {"score": {**was["score"], "version": version - 1}}
    told = f"is of version {version}, its golden outputs are of version {version - 1}"
    assert told in changes("score", older["score"], {})[0]
    assert updated(older, changed) == ({"score": {"version": version, "values": rounded(changed["score"])}}, [])


# ------------------------------------------------------------------ the loop, by formulas


def steps_by_hand(optimizer: str) -> dict[str, list[Any]]:
    """The weights, their moving average and the rate after each epoch, in double precision."""
    w, average, rate = np.array(BEGIN), np.array(BEGIN), LOOP.lr
    buffer, first, second = np.zeros(3), np.zeros(3), np.zeros(3)
    best, best_epoch, updates = math.inf, 0, 0
    out: dict[str, list[Any]] = {"weights": [], "average": [], "rate": [], "best": []}
    for epoch, value in enumerate(CURVE, 1):
        for k in range(2):
            gradient = np.array(GRADIENTS[(2 * epoch + k) % len(GRADIENTS)])
            gradient *= min(1.0, LOOP.clip / (float(np.linalg.norm(gradient)) + 1e-6))
            updates += 1
            if optimizer == "sgd":
                gradient = gradient + LOOP.weight_decay * w
                buffer = gradient if updates == 1 else LOOP.momentum * buffer + gradient
                w = w - rate * buffer
            else:  # decay apart from the gradient; both means corrected for having begun at 0
                w = w * (1 - rate * LOOP.weight_decay)
                first = 0.9 * first + 0.1 * gradient
                second = 0.999 * second + 0.001 * gradient**2
                size = np.sqrt(second / (1 - 0.999**updates)) + 1e-8
                w = w - rate * first / (1 - 0.9**updates) / size
            decay = min(LOOP.average, (1 + updates) / (10 + updates))
            average = decay * average + (1 - decay) * w
        if value < best:
            best, best_epoch, kept = value, epoch, average
        elif (epoch - best_epoch) % LOOP.plateau == 0:
            rate /= 2
        out["weights"].append(w)
        out["average"].append(average)
        out["rate"].append(rate)
        if epoch - best_epoch == LOOP.stop:
            break
    out["best"] = [best_epoch, best, *kept]
    return out


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_steps_plateau_and_patience_are_what_they_are_by_hand(optimizer: str, tmp_path: Path) -> None:
    got, wanted = loop_outputs(tmp_path, optimizer), steps_by_hand(optimizer)
    # 5 4 | 4 4.5 (halved) 3 | 3.5 3.25 (halved) 3 6 (halved, stopped); the 2 that would come is never seen
    assert got["epochs"] == list(range(1, 10))
    assert [rate / LOOP.lr for rate in got["rate"]] == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125]
    assert got["best"][:2] == [5, 3.0]
    for name in ("weights", "average", "rate"):
        assert np.array(got[name]) == pytest.approx(np.array(wanted[name]), rel=1e-5, abs=1e-6), name
    assert got["best"] == pytest.approx(wanted["best"], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("pieces", [(1, 20), (3, 4, 20), (6, 8, 20)])
def test_a_checkpoint_gives_back_what_it_was_given(optimizer: str, pieces: tuple[int, ...], tmp_path: Path) -> None:
    """A run in pieces ends where it would have ended at once: nothing of its state is lost in a checkpoint."""
    config = replace(LOOP, optimizer=optimizer)  # type: ignore[arg-type]
    once, again = Checkpoint(tmp_path / "once.pt"), Checkpoint(tmp_path / "pieces.pt")
    wanted = train(loop_task(), config, once, CPU)
    for epochs in pieces:
        got = train(loop_task(), replace(config, epochs=epochs), again, CPU)
    assert (got.best_epoch, got.best_value) == (wanted.best_epoch, wanted.best_value)
    assert torch.equal(got.weights["w"], wanted.weights["w"])
    assert plain(again.load(CPU)) == plain(once.load(CPU))


def plain(value: Any) -> Any:
    """Tensors as lists; without seconds, and without the name of a file, which is its own each time."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items() if name not in ("seconds", "best_file")}
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value


# ------------------------------------------------------------------ outputs that formulas give


def dark(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same with last layers that see nothing: their bias is all they give."""
    return {n: torch.zeros_like(v) if n.endswith("head.weight") else v for n, v in weights.items()}


def distances(heads: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """(places, heads), ascending in each row."""
    return np.sort(np.hypot(at[:, None, 0] - heads[None, :, 0], at[:, None, 1] - heads[None, :, 1]), axis=1)


def centres(height: int, width: int) -> NDArray[np.float64]:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5], axis=1)


def density_by_hand(
    heads: NDArray[np.float64], height: int, width: int, *, stride: int, neighbours: int, factor: float
) -> NDArray[np.float64]:
    """A Gaussian a head, as wide as `factor` times the mean distance of its neighbours, summed over cells."""
    sigma = np.maximum(factor * distances(heads, heads)[:, 1 : neighbours + 1].mean(axis=1), 0.3)
    total = np.zeros((-(-height // stride) * stride, -(-width // stride) * stride))
    at = centres(height, width)
    for (x, y), s in zip(heads, sigma, strict=True):
        each = np.exp(-((at[:, 0] - x) ** 2 + (at[:, 1] - y) ** 2) / s**2)
        total[:height, :width] += (each / each.sum()).reshape(height, width)
    return total.reshape(total.shape[0] // stride, stride, -1, stride).sum(axis=(1, 3))


def labels_by_hand(heads: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    out = np.zeros((height + 2, width + 2))
    for x, y in heads:
        out[int(y) + 1, int(x) : int(x) + 3] = 1
        out[int(y) : int(y) + 3, int(x) + 1] = 1
    return out[1:-1, 1:-1]


def attention_by_hand(heads: NDArray[np.float64], height: int, width: int, sigma: float) -> NDArray[np.float64]:
    mean = distances(heads, centres(height, width))[:, :3].mean(axis=1)
    return np.exp(-(mean**2) / (2 * sigma**2)).reshape(height, width)


def cut(whole: NDArray[np.float64], window: Any, stride: int = 1) -> NDArray[np.float64]:
    """The window's part, 0 beyond the image. Of one that is not mirrored."""
    y, x, h, w = (v // stride for v in (window.y0, window.x0, window.height, window.width))
    part = whole[y : y + h, x : x + w]
    return np.pad(part, ((0, h - part.shape[0]), (0, w - part.shape[1])))


def loss_by_hand(stage: str, at: TrialState, config: Any, window: Any) -> float:
    """What a stage loses on a window when its last layer gives its bias alone."""
    sizes = getattr(getattr(config, stage), "sizes", (1.0,))
    size, index = divmod(window.index, given.IMAGES["train"])
    frames = at.context(Node(stage)).frames("train", sizes[size])
    heads, (height, width) = frames.heads(index), frames.size(index)
    if stage == "counting":
        c = config.counting
        kind = (3, 0.3 * math.sqrt(2)) if c.kernel == "csrnet" else (c.k, c.beta)
        density = density_by_hand(heads, height, width, stride=c.output_stride, neighbours=kind[0], factor=kind[1])
        error = 0.125 - cut(density, window, c.output_stride)
        if c.loss == "rmse":
            return float(np.sqrt((error**2).mean()))
        assert error.shape == (4, 4)  # blocks of 1, 2 and 4 cells, and the whole in one of 8 and one of 16
        blocks = [error.reshape(4 // k, k, 4 // k, k).sum(axis=(1, 3)) for k in (1, 2, 4)]
        terms = [(b**2).sum() / 16 / k for b, k in zip(blocks, (1, 2, 4), strict=True)]
        terms += [error.sum() ** 2 / 16 / k for k in (8, 16)]
        return float(np.sqrt(sum(terms) + 1e-5))
    bias = {"localization": -3.0, "attention": -1.0}[stage]
    chance = 1 / (1 + math.exp(-bias))
    if stage == "localization":
        label = cut(labels_by_hand(heads, height, width), window)
        gamma = config.localization.gamma
        return float((-gamma * label * math.log(chance) - (1 - label) * math.log(1 - chance)).mean())
    v = cut(attention_by_hand(heads, height, width, config.attention.sigma_z), window)
    if config.attention.loss == "mse":
        return float(((chance - v) ** 2).mean())
    return float((-v * math.log(chance) - (1 - v) * math.log(1 - chance)).mean())


@pytest.mark.parametrize("name", given.CONFIGS)
def test_losses_are_what_formulas_give(name: str, tmp_path: Path) -> None:
    """Of all windows of three epochs that are not mirrored, against ground truth that goes through every pixel."""
    config = given.configured(given.CONFIGS[name])
    with given.dataset():
        at = given.trial(tmp_path, config)
        for stage in ("counting", "localization", "attention"):
            task, _ = task_of(at, stage)
            weights = given.weights(stage, task.modules.state_dict())
            task.modules.load_state_dict(dark(weights))
            batches = [batch for epoch in (1, 2, 3) for batch in task.batches(epoch)]
            windows = [window for batch in batches for window in batch if not window.mirrored]
            assert len(windows) >= 2
            for window in windows:
                with torch.no_grad():
                    got = float(task.loss([window]))
                assert got == pytest.approx(loss_by_hand(stage, at, config, window), rel=1e-3), (stage, window)
            given.plant_weights(at, stage, weights)


def test_networks_that_see_nothing_predict_their_bias(tmp_path: Path) -> None:
    """Density is the bias in every cell; a flat response is one peak in the middle; no point comes of zooming, since
    RAZ-Net's response lies below the floor of peaks."""
    config = given.configured({"zooming.theta_z": 0.1, "raz.regions.theta_z": 0.1, "seed": 11})
    with given.dataset():
        at = given.trial(tmp_path, config)
        for stage in TRAINED:
            task, _ = task_of(at, stage)
            weights = dark(given.weights(stage, task.modules.state_dict()))
            if stage == "localization":
                weights["localization.head.bias"] = torch.tensor([1.0])
            given.plant_weights(at, stage, weights)
        sizes = [at.context(Node("counting")).frames("val").size(i) for i in range(given.IMAGES["val"])]
        density = arrays_of(at, Node("density", "val"))
        points = arrays_of(at, Node("points", "val"))
        given.plant_arrays(at, Node("points", "val"), points)
        zoomed = arrays_of(at, Node("zoom", "val", 2))
    for i, (height, width) in enumerate(sizes):
        assert density[f"d{i}"].shape == (-(-height // 8), -(-width // 8))
        assert density[f"d{i}"] == pytest.approx(0.125)
    assert points["ends"].tolist() == [1, 2, 3, 4]
    assert points["score"] == pytest.approx(1 / (1 + math.exp(-1)), rel=1e-5)
    middles = np.array([[width / 2, height / 2] for height, width in sizes])
    assert (np.abs(points["xy"] - middles) <= 0.5).all()
    assert np.diff(zoomed["region_ends"], prepend=0).tolist() == [3] * 4
    assert (zoomed["network"] == 0).all()
    regions = np.split(zoomed["regions"], zoomed["region_ends"][:-1])
    kept = np.split(zoomed["xy"], zoomed["ends"][:-1])
    border = config.zooming.border / config.zooming.factor
    for i, (boxes, xy) in enumerate(zip(regions, kept, strict=True)):
        middle = points["xy"][i]
        covered = any(
            (middle >= box[:2] + border).all() and (middle < box[2:] - border).all() for box in boxes
        )  # what is looked at again is replaced by what is found there
        assert len(xy) == (0 if covered else 1)


def test_points_come_surest_first(tmp_path: Path) -> None:
    """The golden outputs leave their order away."""
    with given.dataset():
        at = given.trial(tmp_path, given.configured({"depth": 1}))
        for stage in ("counting", "localization"):
            task, _ = task_of(at, stage)
            given.plant_weights(at, stage, given.weights(stage, task.modules.state_dict()))
        points = arrays_of(at, Node("points", "val"))
    for scores in np.split(points["score"], points["ends"][:-1]):
        assert len(scores) > 20
        assert (np.diff(scores) <= 0).all()
