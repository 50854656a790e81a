"""What the golden outputs are made from: images, weights, predictions. Whole numbers out of a hash, so that they are
the same on every machine.

Nothing here is trained: a training amplifies the last bits in which kinds of CPUs differ, one pass through a network
does not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from raz.config import PRESETS, TrialConfig, configure, parameters
from raz.data import DATASETS
from raz.data.contract import SPLITS, Reader, Sample, ScannedSample, ScanResult, Split
from raz.pipeline.graph import Node
from raz.pipeline.stage_context import TrialState
from raz.store.cache import StageCache
from raz.store.manifest import Manifest

DATASET = "given"
IMAGES: dict[Split, int] = {"train": 4, "val": 4, "test": 3}
REGION = ((4.0, 3.0), (58.0, 6.0), (50.0, 49.0), (7.0, 44.0))  # of interest, in the last image of val

# Two configurations a stage, so that both sides of most options are seen. Without averaging, one step shows itself.
_TRAINS = ("counting.train", "localization.train", "attention.train", "raz.train", "raz.attention_train")
_COMMON: dict[str, Any] = {
    "dataset": DATASET, "seed": 3, "backbone.width": 0.0625, "counting.channels": [6, 5],
    "localization.channels": [6], "localization.upsample": [6, 5, 4], "attention.channels": 4,
    "attention.sigma_z": 6.0, "depth": 3, "zooming.k_z": 3, "zooming.samples": 24, "raz.regions.samples": 24,
    "zooming.theta_z": 0.3, "raz.regions.theta_z": 0.3, "fusion.folds": 2, "fusion.cells": 2,
    **{f"{name}.{field}": value for name in _TRAINS for field, value in (("crop", 32), ("batch", 2), ("average", 0.0))},
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "first": {"counting.loss": "pyramid", "zooming.anchors": "large", "zooming.border": 2},
    "second": {
        "seed": 4, "input.scale": 0.75, "counting.loss": "rmse", "counting.kernel": "csrnet",
        "counting.output_stride": 2, "counting.sizes": [1.0, 0.7], "counting.init": "normal",
        "counting.train.crop": 0, "counting.train.batch": 1, "localization.unfreeze": "backbone",
        "localization.gamma": 20.0, "attention.loss": "bce", "attention.sigma_z": 4.0, "attention.init": "normal",
        "raz.unfreeze": "none", "raz.train.flip": True, "zooming.sampling": "uniform", "zooming.anchors": "square",
        "zooming.k_z": 2, "zooming.border": 1, "zooming.factor": 3, "raz.regions.k_z": 1,
        "raz.regions.anchors": "small",
    },
}  # fmt: skip
SCORINGS: dict[str, dict[str, Any]] = {
    "cell": {"fusion.fit_on": "val"},
    "image": {"fusion.fit_on": "train", "fusion.theta_f": "image", "metrics.points": "all", "metrics.pool": "image"},
    "shared": {"fusion.fit_on": "val", "fusion.theta_f": "shared", "depth": 2, "counting.output_stride": 4},
    "average": {"fusion.rule": "average", "peaks.threshold": 0.5, "depth": 1},
}


def configured(settings: Mapping[str, Any]) -> TrialConfig:
    return configure(PRESETS["tiny"], {**_COMMON, **settings}).resolved()


def whole_numbers(name: str, count: int, low: int, high: int) -> NDArray[np.int64]:
    """`count` numbers from low to high, both included, that depend on the name alone."""
    drawn = np.frombuffer(hashlib.shake_256(name.encode()).digest(2 * count), "<u2")
    return drawn.astype(np.int64) % (high - low + 1) + low


# ------------------------------------------------------------------ images


def size_of(split: str, n: int) -> tuple[int, int]:
    """(H, W), never multiples of 8."""
    return 50 + 3 * n + len(split) % 2, 67 - 5 * n


def heads_of(split: str, n: int) -> NDArray[np.float64]:
    """Quarters of pixels."""
    height, width = size_of(split, n)
    count = 5 + 4 * n
    x = whole_numbers(f"x {split} {n}", count, 8, 4 * width - 9) / 4
    y = whole_numbers(f"y {split} {n}", count, 8, 4 * height - 9) / 4
    return np.stack([x, y], axis=1)


def pixels_of(split: str, n: int) -> NDArray[np.uint8]:
    """Bright discs on noise: no two places alike."""
    height, width = size_of(split, n)
    image = whole_numbers(f"noise {split} {n}", height * width * 3, 40, 120).reshape(height, width, 3)
    rows, columns = np.mgrid[:height, :width]
    for k, (x, y) in enumerate(heads_of(split, n)):
        disc = (4 * columns + 2 - 4 * x) ** 2 + (4 * rows + 2 - 4 * y) ** 2 <= 16 * (4 + k % 6)
        image[disc] = image[disc] // 4 + [200 - 9 * k, 170, 120 + 5 * k]
    return np.clip(image, 0, 255).astype(np.uint8)


def _scan(_: Path | None) -> ScanResult:
    def found(split: Split, n: int) -> ScannedSample:
        name = f"{split}/{n}"
        region = REGION if name == f"val/{IMAGES['val'] - 1}" else ()
        part = f"scene{n % 2}" if split == "test" else ""
        heads = partial(heads_of, split, n)
        return ScannedSample(Sample(name, name, partial(pixels_of, split, n), heads, name, region, part), name)

    return ScanResult({split: tuple(found(split, n) for n in range(IMAGES[split])) for split in SPLITS})


@contextmanager
def dataset() -> Iterator[None]:
    """The data set is known by its name while this lasts."""
    DATASETS[DATASET] = Reader("Given", _scan, "nothing")
    try:
        yield
    finally:
        del DATASETS[DATASET]


# ------------------------------------------------------------------ weights


def weights(stage: str, like: Mapping[str, Tensor], nudge: float = 0.0) -> dict[str, Tensor]:
    """Whole numbers times powers of two, about as large as He's initialisation, by which signals keep their size.

    With `nudge` each is off by at most that part of itself: what rounding does, but more of it.
    """
    out = {}
    for name, value in like.items():
        part = name.partition(".")[0]
        numbers = whole_numbers(f"{stage} {name}", value.numel(), -8, 8).reshape(value.shape)
        if name.endswith("bias"):
            given = numbers / 64
            if name.endswith("head.bias"):  # where all is dark, a response lies below the floor of peaks
                given = np.full(value.shape, {"counting": 0.125, "localization": -3.0, "attention": -1.0}[part])
        elif name.endswith("head.weight"):
            given = (numbers + 4) / 2**7 if part == "attention" else np.abs(numbers) / 2**6
        else:
            shape = tuple(value.shape)
            # taps that each output sees; de-convolutions are stored (in, out, 4, 4), of stride 2
            taps = shape[0] * 4 if shape[2:] == (4, 4) else shape[1] * shape[2] * shape[3]
            given = numbers / 2.0 ** ((taps.bit_length() + 3) // 2)
        if nudge:
            off = whole_numbers(f"nudge {stage} {name}", value.numel(), -64, 64).reshape(value.shape) / 64
            given = given * (1 + nudge * off)
        out[name] = torch.from_numpy(given).float()
    return out


# ------------------------------------------------------------------ a store with what is given in it


def trial(folder: Path, config: TrialConfig) -> TrialState:
    state = TrialState(config, StageCache(folder), None, lambda _: None)
    state.device = torch.device("cpu")  # an accelerator may round to ten bits
    return state


def plant_weights(at: TrialState, stage: str, state: Mapping[str, Tensor]) -> None:
    """As if the stage had been trained to these weights."""

    def write(folder: Path) -> None:
        (folder / "weights.safetensors").write_bytes(save({n: v.contiguous() for n, v in state.items()}))

    _plant(at, Node(stage), write)


def plant_arrays(at: TrialState, node: Node, arrays: Mapping[str, NDArray[Any]]) -> None:
    """As if the stage had predicted these arrays."""
    _plant(at, node, lambda folder: np.savez(folder / "arrays.npz", allow_pickle=False, **arrays))


def _plant(at: TrialState, node: Node, write: Any) -> None:
    about = Manifest(config=parameters(at.config), seconds=0.0)
    at.artifacts[node] = at.cache.publish(at.keys[node], write, about, durable=False)


# ------------------------------------------------------------------ predictions to score


def predictions(split: str, stride: int) -> dict[str, dict[str, NDArray[Any]]]:
    """Arrays of the stages `density`, `points`, `zoom2`, `zoom3` of a split: no two scores equal, and each image's
    points lie some pixels off its heads."""
    images = range(IMAGES[split])  # type: ignore[index]
    sizes = [size_of(split, n) for n in images]
    shapes = [(-(-height // stride), -(-width // stride)) for height, width in sizes]
    density = {
        f"d{n}": (whole_numbers(f"density {split} {n}", h * w, 0, 30) / 2**8).reshape(h, w).astype(np.float32)
        for n, (h, w) in enumerate(shapes)
    }
    out = {"density": density}
    for number, node in ((1, "points"), (2, "zoom2"), (3, "zoom3")):
        xy, ends, boxes, box_ends = [], [], [], []
        for n in images:
            heads = heads_of(split, n)
            off = whole_numbers(f"off {split} {n} {number}", heads.size, -20, 20).reshape(-1, 2) / 4
            around = np.concatenate([heads + off, heads[::2] + off[::2][::-1]])
            height, width = sizes[n]
            xy.append(np.clip(around, 0.25, [width - 0.25, height - 0.25]))
            ends.append(len(around))
            boxes.append(np.array([[3.0 + k, 5.0, 23.0 + k, 25.0] for k in range((n + number) % 3)]).reshape(-1, 4))
            box_ends.append(len(boxes[-1]))
        total = sum(ends)
        order = np.argsort(whole_numbers(f"score {split} {number}", total, 0, 60000), kind="stable")
        score = np.empty(total, np.float32)
        score[order] = (np.arange(total) * 2 + 17 + number) / 256  # distinct, also between the passes
        network = whole_numbers(f"network {split} {number}", total, 0, min(1, number - 1)).astype(np.int8)
        out[node] = {
            "xy": np.concatenate(xy), "score": score, "network": network,
            "depth": np.where(network == 0, 1, number).astype(np.int8), "ends": np.cumsum(ends),
        }  # fmt: skip
        if number > 1:
            out[node] |= {"regions": np.concatenate(boxes), "region_ends": np.cumsum(box_ends)}
    return out
