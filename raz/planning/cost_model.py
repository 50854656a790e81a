"""The cost of a stage: seconds of a device and bytes of the store, from similar stages in the store or from priors.

The work of a stage is counted in GFLOP of its convolutions, from the configuration and the sizes of the images. Its
seconds are that work over a rate: the rate of similar stages in the store (same stage, data set, threads and device),
else the rate in `PRIORS`. torch is not imported: that would take longer than the plan.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from raz.config import PAPER_BACKBONE, BackboneConfig, TrainConfig, TrialConfig, from_parameters
from raz.data.frames import input_size
from raz.errors import RazError
from raz.pipeline.graph import STAGES, Node
from raz.pipeline.keys import open_cached
from raz.store.manifest import read_manifest
from raz.store.paths import MANIFEST, StorePaths

VGG = ((64, 2), (128, 2), (256, 3), (512, 3))  # channels and convolutions at strides 1, 2, 4, 8
SAMPLE = 8  # images of a split that are read for the mean size
MAX_MANIFESTS = 400  # about how many of one stage are read, evenly spread over their keys


@dataclass(frozen=True)
class Prior:
    """Rates of a stage in GFLOP a second, the slowest, likely and fastest expected, and their source."""

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
# n threads do n ** THREADS_EXPONENT times the work of one (measured as above: 1.7 times with two)
THREADS_EXPONENT = 0.75
SCORE_SECONDS = 0.004  # an image of the score stage on one core (measured as above: 0.05 to 0.1 s for 20 images)
START_SECONDS = 8.0  # Ray's start (measured as above: 5 to 8.5 s)
ZOOMED_AREA = 0.5  # assumed fraction of an image that its zoomed regions cover


Bound = Literal["low", "likely", "high"]
BOUNDS: tuple[Bound, ...] = ("low", "likely", "high")


@dataclass(frozen=True)
class Estimate:
    """A likely value, and the bounds between which it is expected."""

    low: float
    likely: float
    high: float

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(self.low + other.low, self.likely + other.likely, self.high + other.high)

    def at(self, bound: Bound) -> float:
        """The value at one of BOUNDS."""
        return {"low": self.low, "likely": self.likely, "high": self.high}[bound]

    def times(self, factor: float) -> Estimate:
        return Estimate(self.low * factor, self.likely * factor, self.high * factor)


ZERO = Estimate(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class DatasetSizes:
    """The number of images of each split and their mean megapixels at the network's input size."""

    images: Mapping[str, int]
    megapixels: Mapping[str, float]


def dataset_sizes(config: TrialConfig, data_root: Path | None) -> DatasetSizes:
    """The sizes of a data set, from SAMPLE images of each split. Raises RazError as `open_dataset`."""
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


@dataclass(frozen=True)
class BackboneSize:
    """FLOP for one pixel of the input (a multiply-add counts as two), weights, and channels of the features."""

    flop: float
    weights: int
    channels: int


def backbone_size(config: BackboneConfig) -> BackboneSize:
    """The size of a backbone: of VGG-16 by arithmetic, of a network of timm by counting its operations."""
    if config.name != PAPER_BACKBONE:
        return _timm_size(config.name, config.neck)
    total, weights, channels, stride = 0.0, 0, 3, 1
    for full_width, count in VGG:
        out = max(1, round(full_width * config.width))
        for _ in range(count):
            total += 2 * 9 * channels * out / stride**2
            weights += 9 * channels * out + out
            channels = out
        stride *= 2
    return BackboneSize(total, weights, channels)


@lru_cache(maxsize=16)
def _timm_size(name: str, neck: int) -> BackboneSize:
    from raz.pipeline.backbones import measured_size  # imports torch

    return BackboneSize(*measured_size(name, neck))


def _branch(channels: int, bodies: Sequence[int], doublings: Sequence[int]) -> tuple[float, int]:
    """FLOP of a branch for one pixel of the input, and the channels of its last layer. The branch has 3x3 convolutions
    at stride 8 with `bodies` output channels, then up-samplings by 2 with `doublings` output channels."""
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
    """FLOP for one pixel of the input, of the backbone and of each branch of Main-Net. Keys: `backbone`, `counting`,
    `localization`, `attention`."""
    below = backbone_size(config.backbone)
    features = below.channels
    c = config.counting
    last = c.channels[-1] if c.channels else features
    counting, rich = _branch(features, c.channels, [last] * int(math.log2(8 // c.output_stride)))
    localization, own = _branch(features, config.localization.channels, config.localization.upsample)
    # the counting branch's map is convolved before it is up-sampled, with nine kernels (convolved_upsampled)
    inputs = own + rich * 9 / c.output_stride**2
    attention = 2 * 9 * inputs * config.attention.channels + 2 * config.attention.channels
    return {
        "backbone": below.flop, "counting": counting, "localization": localization,
        "attention": float(attention),
    }  # fmt: skip


def stage_gflop(config: TrialConfig, node: Node, of: DatasetSizes) -> float:
    """GFLOP of a stage over all its epochs. A trained branch costs three times its forward pass: forward, gradient of
    the weights, gradient of the inputs."""
    config = config.resolved()
    flop = branch_flop(config)
    body, counting, localization, attention = (flop[n] for n in ("backbone", "counting", "localization", "attention"))
    train_images, train_area = of.images.get("train", 0), of.megapixels.get("train", 0.0)
    val = of.images.get("val", 0) * of.megapixels.get("val", 0.0)

    def trained(train: TrainConfig, learned: float, read: float, frozen: float, images: float, area: float) -> float:
        """GFLOP of a trained stage on `images` of `area` megapixels. FLOP a pixel: `learned` of trained layers, `read`
        of layers that only run with them, `frozen` of a backbone that runs once for each image and its mirror image."""
        crop = train.crop**2 / 1e6 if train.crop else area
        per_epoch = images * train.crops_per_image * crop * (3 * learned + read) + val * (learned + read)
        return (train.epochs * per_epoch + (train_images * train_area * (2 if train.flip else 1) + val) * frozen) * 1e-3

    whole_images = {"images": train_images, "area": train_area}
    if node.stage in ("counting", "localization"):
        part = config.counting if node.stage == "counting" else config.localization
        unfrozen = part.unfreeze == "backbone"
        own = flop[node.stage] + (body if unfrozen else 0.0)
        return trained(part.train, own, 0.0, 0.0 if unfrozen else body, **whole_images)
    if node.stage == "attention":
        return trained(config.attention.train, attention, counting + localization, 0.0, **whole_images)
    if node.stage in ("raz", "raz_attention"):
        regions = config.raz.regions
        assert not isinstance(regions, str)  # resolved
        zoomed = train_area * regions.factor**2 * ZOOMED_AREA / max(1, regions.k_z)
        regions_of_images = {"images": train_images * max(1, regions.k_z), "area": zoomed}
        if node.stage == "raz":
            unfrozen = config.raz.unfreeze == "backbone"
            own = localization + (body if unfrozen else 0.0)
            return trained(config.raz.train, own, 0.0, 0.0 if unfrozen else body, **regions_of_images)
        return trained(config.raz.attention_train, attention, localization, 0.0, **regions_of_images)
    area = of.images.get(node.split, 0) * of.megapixels.get(node.split, 0.0) * config.predict.scale**2
    if node.stage == "density":
        return area * (body + counting) * 1e-3
    if node.stage == "points":
        return area * (body + localization) * 1e-3
    if node.stage == "zoom":
        zoomed = area * config.zooming.factor**2 * ZOOMED_AREA  # later passes zoom further, into less of the image
        return (area * (body + counting + localization + attention) + zoomed * (body + localization)) * 1e-3
    return of.images.get(node.split, 0) * 1e-3  # score: no network; its seconds come from SCORE_SECONDS


# ------------------------------------------------------------------------------------ seconds and bytes


@dataclass(frozen=True)
class Measured:
    """What similar stages in the store took."""

    ratios: tuple[float, ...]  # seconds for each GFLOP
    artifact_bytes: tuple[int, ...]


SimilarityKey = tuple[str, str, int, str]  # stage (with its pass), data set, threads, device


def default_device() -> str:
    """`cuda` where there is an NVIDIA GPU that CUDA_VISIBLE_DEVICES does not hide, else `cpu`."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    return "cuda" if Path("/dev/nvidia0").exists() and not hidden else "cpu"


def _similarity_key(config: TrialConfig, node: Node, device: str) -> SimilarityKey:
    name = f"{node.stage}{node.zoom_pass or ''}"
    return name, config.dataset, config.threads, device


class CostModel:
    """The cost of stages on this machine. Reads the store once, and the sizes of each data set once."""

    def __init__(self, store: Path, data_root: Path | None = None, device: str | None = None) -> None:
        self.store, self.data_root, self.device = store, data_root, device or default_device()
        self._sizes: dict[tuple[str, float, int], DatasetSizes] = {}
        self._measured = self._read()

    def sizes(self, config: TrialConfig) -> DatasetSizes:
        key = (config.dataset, config.input.scale, config.input.max_side)
        if key not in self._sizes:
            self._sizes[key] = dataset_sizes(config, self.data_root)
        return self._sizes[key]

    def seconds(self, config: TrialConfig, node: Node) -> tuple[Estimate, bool]:
        """Seconds of the stage on one device, and whether they are from similar stages in the store. Raises RazError
        when the data set cannot be opened."""
        amount = stage_gflop(config, node, self.sizes(config))
        measured = self._measured.get(_similarity_key(config, node, self.device))
        if measured is not None:
            ratios = np.sort(measured.ratios)
            spread = 1.0 if len(ratios) >= 3 else 1.5  # one or two stages do not show how much they vary
            low, likely, high = np.quantile(ratios, [0.1, 0.5, 0.9])
            return Estimate(amount * low / spread, amount * float(likely), amount * high * spread), True
        if node.stage == "score":
            likely = amount * 1e3 * SCORE_SECONDS
            return Estimate(likely / 3, likely, likely * 3), False
        prior = PRIORS[self.device]
        threads = config.threads**THREADS_EXPONENT if self.device == "cpu" else 1.0
        fewest = 1.0
        if STAGES[node.stage].kind == "trained":  # the low bound is early stopping as soon as it is allowed
            train = _train_of(config, node.stage)
            fewest = min(1.0, (train.stop + 1) / train.epochs)
        return Estimate(
            amount / prior.fast / threads * fewest, amount / prior.likely / threads, amount / prior.slow / threads
        ), False

    def bytes(self, config: TrialConfig, node: Node) -> float:
        """Bytes of the artifact, and of a trained stage's checkpoint."""
        measured = self._measured.get(_similarity_key(config, node, self.device))
        of = self.sizes(config)
        if measured is not None:
            return float(np.median(measured.artifact_bytes)) * (5 if STAGES[node.stage].kind == "trained" else 1)
        if STAGES[node.stage].kind == "trained":
            # float32: the artifact, and in the checkpoint the weights, their average, the best ones and the moments
            return 4 * parameter_count(config, node.stage) * 5
        if node.stage == "score":
            return 4096.0 + 100 * of.images.get(node.split, 0)
        area = of.images.get(node.split, 0) * of.megapixels.get(node.split, 0.0) * 1e6 * config.predict.scale**2
        # density: a float32 per cell; a pass: at most a point (two coordinates and a score) per 25 pixels
        return area / config.counting.output_stride**2 * 4 if node.stage == "density" else area / 25 * 24

    def _read(self) -> dict[SimilarityKey, Measured]:
        """The seconds and bytes of the stages in the store. Manifests that cannot be read are left out."""
        ratios: dict[SimilarityKey, list[float]] = {}
        bytes_of: dict[SimilarityKey, list[int]] = {}
        for stage in STAGES:
            manifests = sorted((StorePaths(self.store).stages / stage).glob(f"[0-9a-f]*/{MANIFEST}"))
            for path in manifests[:: max(1, len(manifests) // MAX_MANIFESTS)]:
                try:
                    manifest = read_manifest(path.parent)
                    config = from_parameters(manifest.config)
                    node = Node.parse(manifest.stage)
                    device = "cpu" if manifest.device == "cpu" else "cuda"
                    amount = stage_gflop(config, node, self.sizes(config))
                    size = sum((path.parent / name).stat().st_size for name in manifest.files)
                    seconds = manifest.seconds
                except (OSError, ValueError, KeyError, TypeError, RazError):
                    continue
                if amount > 0 and seconds > 0:
                    ratios.setdefault(_similarity_key(config, node, device), []).append(seconds / amount)
                    bytes_of.setdefault(_similarity_key(config, node, device), []).append(size)
        return {key: Measured(tuple(ratios[key]), tuple(bytes_of[key])) for key in ratios}


def _train_of(config: TrialConfig, stage: str) -> TrainConfig:
    """The training options of a trained stage: the part of the configuration that has its `epochs`."""
    part: object = config
    for name in STAGES[stage].epochs.split(".")[:-1]:
        part = getattr(part, name)
    assert isinstance(part, TrainConfig)
    return part


def parameter_count(config: TrialConfig, stage: str) -> int:
    """The number of weights in a trained stage's artifact."""
    config = config.resolved()
    below = backbone_size(config.backbone)
    features, body = below.channels, below.weights

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
        unfrozen = (config.localization if stage == "localization" else config.raz).unfreeze == "backbone"
        return own + (body if unfrozen else 0)
    inputs = config.localization.upsample[-1] + (last if stage == "attention" else 0)
    return (9 * inputs + 2) * config.attention.channels + 1
