"""What a stage costs: seconds of a device and bytes of the store, measured on like stages or from stated priors.

The work of a stage is counted in GFLOP of its convolutions from the configuration and the sizes of the images. Its
seconds are that work over a rate: of like stages that the store holds (same stage, data set, threads and device), or
of `PRIORS`. No torch: a plan must be there at once.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raz.config import TrainConfig, TrialConfig, from_parameters
from raz.data.frames import input_size
from raz.errors import RazError
from raz.pipeline.graph import STAGES, Node
from raz.pipeline.keys import open_cached
from raz.store.manifest import read_manifest
from raz.store.paths import MANIFEST, StorePaths

VGG = ((64, 2), (128, 2), (256, 3), (512, 3))  # channels and convolutions at strides 1, 2, 4, 8
SAMPLE = 8  # images of a split whose sizes stand for all
MAX_MANIFESTS = 400  # manifests of one stage that are read at most, evenly spread


@dataclass(frozen=True)
class Prior:
    """GFLOP a second that a stage gets done, from the slowest to the fastest that is expected, and for whom."""

    slow: float
    likely: float
    fast: float
    source: str


# GFLOP/s of one CPU thread, or of one GPU, over a whole stage (ground truth, loading and validation included).
PRIORS: dict[str, Prior] = {
    "cpu": Prior(12, 35, 70, "measured: presets tiny and small, AMD EPYC, shared by other work, 2026-11-23"),
    "cuda": Prior(
        1_000, 4_000, 15_000, "not measured: a tenth of the 10 to 150 TFLOP/s that makers print for 2018 to 2024"
    ),
}
THREADS = 0.75  # n threads do n ** THREADS times the work of one (measured as above: 1.7 times with two)
SCORE_SECONDS = 0.004  # an image of the score stage on one core (measured as above: 0.05 to 0.1 s for 20 images)
START_SECONDS = 8.0  # Ray's start (measured as above: 5 to 8.5 s)
REGIONS = 0.5  # part of an image's area that its zoomed regions cover, where nothing is measured


@dataclass(frozen=True)
class Estimate:
    """Low, likely, high."""

    low: float
    likely: float
    high: float

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(self.low + other.low, self.likely + other.likely, self.high + other.high)

    def times(self, factor: float) -> Estimate:
        return Estimate(self.low * factor, self.likely * factor, self.high * factor)


NOTHING = Estimate(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class DatasetSizes:
    """Of a data set at the network's input size: images and mean megapixels of each split."""

    images: Mapping[str, int]
    megapixels: Mapping[str, float]


def sizes(config: TrialConfig, data_root: Path | None) -> DatasetSizes:
    """Opens the data set and looks at a few images of each split. Raises RazError as `open_dataset`."""
    dataset = open_cached(config.dataset, data_root)
    images: dict[str, int] = {}
    megapixels: dict[str, float] = {}
    for split, items in dataset.items.items():
        images[split] = len(items)
        step = max(1, len(items) // SAMPLE)
        areas = []
        for item in items[::step][:SAMPLE]:
            height, width = item.load_pixels().shape[:2]
            areas.append(math.prod(input_size(height, width, config.input.scale, config.input.max_side)) / 1e6)
        megapixels[split] = float(np.mean(areas)) if areas else 0.0
    return DatasetSizes(images, megapixels)


# ------------------------------------------------------------------------------------ work


def backbone_flop(width: float) -> float:
    """FLOP of the backbone for one pixel of the input: two for each weight of a convolution."""
    total, channels, stride = 0.0, 3, 1
    for wanted, count in VGG:
        out = max(1, round(wanted * width))
        for _ in range(count):
            total += 2 * 9 * channels * out / stride**2
            channels = out
        stride *= 2
    return total


def _branch(channels: int, bodies: Sequence[int], doublings: Sequence[int]) -> tuple[float, int]:
    """FLOP a pixel of the input of 3x3 convolutions at stride 8, then doublings; and the channels they end with."""
    total, area = 0.0, 1 / 64
    for out in bodies:
        total += 2 * 9 * channels * out * area
        channels = out
    for out in doublings:
        area *= 4
        # each output pixel of the 4x4 de-convolution of stride 2 sees 2x2 taps, and a 3x3 convolution follows
        total += (2 * 4 * channels * out + 2 * 9 * out * out) * area
        channels = out
    return total + 2 * channels * area, channels


def branch_flop(config: TrialConfig) -> dict[str, float]:
    """FLOP for one pixel of the input: backbone, counting, localization, attention (Main-Net's)."""
    features = max(1, round(512 * config.backbone.width))
    c = config.counting
    last = c.channels[-1] if c.channels else features
    counting, rich = _branch(features, c.channels, [last] * int(math.log2(8 // c.output_stride)))
    localization, own = _branch(features, config.localization.channels, config.localization.upsample)
    # the counting branch's map is convolved before it is up-sampled, with nine kernels (convolved_upsampled)
    seen = own + rich * 9 / c.output_stride**2
    attention = 2 * 9 * seen * config.attention.channels + 2 * config.attention.channels
    return {
        "backbone": backbone_flop(config.backbone.width), "counting": counting, "localization": localization,
        "attention": float(attention),
    }  # fmt: skip


def stage_gflop(config: TrialConfig, node: Node, of: DatasetSizes) -> float:
    """GFLOP of a stage over all its epochs. A branch that learns costs three times its forward pass."""
    config = config.resolved()
    flop = branch_flop(config)
    body, counting, localization, attention = (flop[n] for n in ("backbone", "counting", "localization", "attention"))
    every = of.images.get("train", 0) * of.megapixels.get("train", 0.0)
    val = of.images.get("val", 0) * of.megapixels.get("val", 0.0)

    def trained(train: TrainConfig, learns: float, reads: float, frozen: float, images: float, area: float) -> float:
        """`frozen` is what a backbone that does not learn costs: once for each image and its mirror, then cached."""
        crop = train.crop**2 / 1e6 if train.crop else area
        per_epoch = images * train.crops_per_image * crop * (3 * learns + reads) + val * (learns + reads)
        return (train.epochs * per_epoch + (every * (2 if train.flip else 1) + val) * frozen) * 1e-3

    train_images, train_area = of.images.get("train", 0), of.megapixels.get("train", 0.0)
    here = {"images": train_images, "area": train_area}
    if node.stage in ("counting", "localization"):
        part = config.counting if node.stage == "counting" else config.localization
        learns = part.unfreeze == "backbone"
        own = flop[node.stage] + (body if learns else 0.0)
        return trained(part.train, own, 0.0, 0.0 if learns else body, **here)
    if node.stage == "attention":
        return trained(config.attention.train, attention, counting + localization, 0.0, **here)
    if node.stage in ("raz", "raz_attention"):
        regions = config.raz.regions
        assert not isinstance(regions, str)  # resolved
        zoomed = train_area * regions.factor**2 * REGIONS / max(1, regions.k_z)
        there = {"images": train_images * max(1, regions.k_z), "area": zoomed}
        if node.stage == "raz":
            learns = config.raz.unfreeze == "backbone"
            own = localization + (body if learns else 0.0)
            return trained(config.raz.train, own, 0.0, 0.0 if learns else body, **there)
        return trained(config.raz.attention_train, attention, localization, 0.0, **there)
    area = of.images.get(node.split, 0) * of.megapixels.get(node.split, 0.0)
    if node.stage == "density":
        return area * (body + counting) * 1e-3
    if node.stage == "points":
        return area * (body + localization) * 1e-3
    if node.stage == "zoom":
        zoomed = area * config.zooming.factor**2 * REGIONS  # later passes zoom further, into less of the image
        return (area * (body + counting + localization + attention) + zoomed * (body + localization)) * 1e-3
    return of.images.get(node.split, 0) * 1e-3  # score: no network; a rate of its own


# ------------------------------------------------------------------------------------ prices


@dataclass(frozen=True)
class Measured:
    """Seconds for each GFLOP of like stages, and their bytes."""

    ratios: tuple[float, ...]
    sizes: tuple[int, ...]


SimilarityKey = tuple[str, str, int, str]  # stage (with its pass), data set, threads, device


def device() -> str:
    """`cuda` where a GPU of NVIDIA is there and not hidden, else `cpu`."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    return "cuda" if Path("/dev/nvidia0").exists() and not hidden else "cpu"


def _similarity_key(config: TrialConfig, node: Node, kind: str) -> SimilarityKey:
    name = f"{node.stage}{node.zoom_pass or ''}"
    return name, config.dataset, config.threads, kind


class CostModel:
    """What stages cost on this machine. Reads the store once; the sizes of each data set once."""

    def __init__(self, store: Path, data_root: Path | None = None, kind: str | None = None) -> None:
        self.store, self.data_root, self.kind = store, data_root, kind or device()
        self._sizes: dict[tuple[str, float, int], DatasetSizes] = {}
        self._measured = self._read()

    def sizes(self, config: TrialConfig) -> DatasetSizes:
        key = (config.dataset, config.input.scale, config.input.max_side)
        if key not in self._sizes:
            self._sizes[key] = sizes(config, self.data_root)
        return self._sizes[key]

    def seconds(self, config: TrialConfig, node: Node) -> tuple[Estimate, bool]:
        """Seconds of the stage on one device, and whether like ones were measured."""
        amount = stage_gflop(config, node, self.sizes(config))
        found = self._measured.get(_similarity_key(config, node, self.kind))
        if found is not None:
            ratios = np.sort(found.ratios)
            spread = 1.0 if len(ratios) >= 3 else 1.5  # one or two say little of how much stages vary
            low, likely, high = np.quantile(ratios, [0.1, 0.5, 0.9])
            return Estimate(amount * low / spread, amount * float(likely), amount * high * spread), True
        if node.stage == "score":
            likely = amount * 1e3 * SCORE_SECONDS
            return Estimate(likely / 3, likely, likely * 3), False
        prior = PRIORS[self.kind]
        threads = config.threads**THREADS if self.kind == "cpu" else 1.0
        fewest = 1.0
        if STAGES[node.stage].kind == "trained":  # it may stop early, at the first chance it has
            train = _train_of(config, node.stage)
            fewest = min(1.0, (train.stop + 1) / train.epochs)
        return Estimate(
            amount / prior.fast / threads * fewest, amount / prior.likely / threads, amount / prior.slow / threads
        ), False

    def bytes(self, config: TrialConfig, node: Node) -> float:
        """Of the artifact, and of a trained stage's checkpoint."""
        found = self._measured.get(_similarity_key(config, node, self.kind))
        of = self.sizes(config)
        if found is not None:
            return float(np.median(found.sizes)) * (5 if STAGES[node.stage].kind == "trained" else 1)
        if STAGES[node.stage].kind == "trained":
            return (
                4 * parameter_count(config, node.stage) * 5
            )  # the artifact; in the checkpoint weights, average, best, moments
        if node.stage == "score":
            return 4096.0 + 100 * of.images.get(node.split, 0)
        area = of.images.get(node.split, 0) * of.megapixels.get(node.split, 0.0) * 1e6
        # density: float32 a cell; a pass: points with two coordinates and a score, at the floor of a response map
        return area / config.counting.output_stride**2 * 4 if node.stage == "density" else area / 25 * 24

    def _read(self) -> dict[SimilarityKey, Measured]:
        """Every readable manifest of the store; a damaged one is none."""
        ratios: dict[SimilarityKey, list[float]] = {}
        sizes_of: dict[SimilarityKey, list[int]] = {}
        for stage in STAGES:
            found = sorted((StorePaths(self.store).stages / stage).glob(f"[0-9a-f]*/{MANIFEST}"))
            for path in found[:: max(1, len(found) // MAX_MANIFESTS)]:
                try:
                    manifest = read_manifest(path.parent)
                    config = from_parameters(manifest.config)
                    node = Node.parse(manifest.stage)
                    kind = "cpu" if manifest.device == "cpu" else "cuda"
                    amount = stage_gflop(config, node, self.sizes(config))
                    size = sum((path.parent / name).stat().st_size for name in manifest.files)
                    seconds = manifest.seconds
                except (OSError, ValueError, KeyError, TypeError, RazError):
                    continue
                if amount > 0 and seconds > 0:
                    ratios.setdefault(_similarity_key(config, node, kind), []).append(seconds / amount)
                    sizes_of.setdefault(_similarity_key(config, node, kind), []).append(size)
        return {like: Measured(tuple(ratios[like]), tuple(sizes_of[like])) for like in ratios}


def _train_of(config: TrialConfig, stage: str) -> TrainConfig:
    value: Any = config
    for part in STAGES[stage].epochs.split(".")[:-1]:
        value = getattr(value, part)
    found: TrainConfig = value
    return found


def parameter_count(config: TrialConfig, stage: str) -> int:
    """How many numbers a trained stage's artifact holds."""
    config = config.resolved()
    features = max(1, round(512 * config.backbone.width))
    body, channels = 0, 3
    for wanted, count in VGG:
        for _ in range(count):
            out = max(1, round(wanted * config.backbone.width))
            body, channels = body + 9 * channels * out + out, out

    def head(channels: int, bodies: Iterable[int], doublings: Iterable[int]) -> int:
        total = 0
        for out in bodies:
            total, channels = total + 9 * channels * out + out, out
        for out in doublings:
            total, channels = total + 16 * channels * out + 9 * out * out + 2 * out, out
        return total + channels + 1

    c = config.counting
    last = c.channels[-1] if c.channels else features
    if stage == "counting":
        own = head(features, c.channels, [last] * int(math.log2(8 // c.output_stride)))
        return own + (body if c.unfreeze == "backbone" else 0)
    if stage in ("localization", "raz"):
        own = head(features, config.localization.channels, config.localization.upsample)
        learns = (config.localization if stage == "localization" else config.raz).unfreeze == "backbone"
        return own + (body if learns else 0)
    seen = config.localization.upsample[-1] + (last if stage == "attention" else 0)
    return (9 * seen + 2) * config.attention.channels + 1
