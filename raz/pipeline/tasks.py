"""Training tasks: batches of windows, losses and validation values of the three branches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raz.config import TrainConfig
from raz.paper.groundtruth import Kernel, neighbour_count
from raz.paper.losses import attention_loss, counting_loss, localization_loss
from raz.paper.networks import AttentionBranch, Backbone, CountingBranch, LocalizationBranch
from raz.pipeline.feature_cache import BranchFeatureCache, FeatureCache, MultiScaleFeatures
from raz.pipeline.inference import margin
from raz.pipeline.samples import (
    DISTANCES,
    GroundTruth,
    Images,
    Window,
    draw_windows,
    extents,
    load_crops,
    normalised_crops,
)
from raz.pipeline.tiling import Tile, by_size, tiles
from raz.pipeline.training_loop import LoadedBatch, TrainingTask

Batch = list[Window]
Tensors = tuple[Tensor, ...]
MapsT = TypeVar("MapsT")
FeaturesOf = Callable[[Batch], Tensor]  # windows of one size -> (B, C, h/8, w/8)
RichOf = Callable[[Batch], tuple[Tensor, Tensor | None]]  # last feature maps of the localization and counting branch
TilesOf = Callable[[int, int], list[Tile]]  # height and width of an image -> its tiles


def whole_image(height: int, width: int) -> list[Tile]:
    """One tile of the whole image, whatever its size."""
    return tiles(height, width, lambda: None, limit=sys.maxsize)


@dataclass(frozen=True)
class Source(Generic[MapsT]):
    """What a branch reads of windows of one size: read on the CPU, then computed on the device."""

    device: torch.device
    load: Callable[[Batch], Tensors]  # on the CPU; touches neither weights nor the device after `ensure`
    compute: Callable[[Batch, Tensors], MapsT]  # from the loaded tensors, on the device
    ensure: Callable[[Batch], None] | None = None  # compute and keep what `load` would compute on the device

    def __call__(self, windows: Batch) -> MapsT:
        return self.compute(windows, tuple(tensor.to(self.device) for tensor in self.load(windows)))


def _source(of: Callable[[Batch], MapsT], device: torch.device) -> Source[MapsT]:
    """`of` in two steps; a plain function has all of them in the second."""
    return of if isinstance(of, Source) else Source(device, lambda windows: (), lambda windows, _: of(windows))


@dataclass(frozen=True)
class TrainingData:
    """Training and validation images of a stage."""

    train: Images
    val: Images
    seed: int
    device: torch.device
    k: int = 4
    names: tuple[str, str] = ("", "")  # ids of the two sets in the memo of distances; empty: not shared

    def batches(self, stage: str, config: TrainConfig) -> Callable[[int], Iterator[Batch]]:
        """Epoch -> its batches of windows, the same for the same seed, stage and epoch."""

        def of_epoch(epoch: int) -> Iterator[Batch]:
            windows = iter(
                draw_windows(
                    self.train, seed=self.seed, stage=stage, epoch=epoch, crop=config.crop,
                    crops=config.crops_per_image, flip=config.flip, grey=config.grey, scales=config.scales,
                )
            )  # fmt: skip
            while batch := list(islice(windows, config.batch)):
                yield batch

        return of_epoch


def features_from(
    backbone: Backbone, images: Images, device: torch.device, frozen: FeatureCache | MultiScaleFeatures | None
) -> Source[Tensor]:
    """Features of windows: from the cache of a frozen backbone, or computed with gradients where `frozen` is None."""
    if frozen is not None:
        cache = frozen
        return Source(device, lambda w: (cache.load(w),), lambda _, loaded: loaded[0].float(), cache.ensure)

    def compute(windows: Batch, loaded: Tensors) -> Tensor:
        features: Tensor = backbone(normalised_crops(loaded[0], extents(images, windows), backbone.colours))
        return features

    return Source(device, lambda windows: (load_crops(images, windows),), compute)


def rich_from(
    device: torch.device, localization: BranchFeatureCache, counting: BranchFeatureCache | None = None
) -> Source[tuple[Tensor, Tensor | None]]:
    """The last feature maps of frozen branches, from their caches."""
    caches = [localization] if counting is None else [localization, counting]

    def compute(_: Batch, loaded: Tensors) -> tuple[Tensor, Tensor | None]:
        maps = [tensor.permute(0, 3, 1, 2) for tensor in loaded]
        return maps[0], maps[1] if counting is not None else None

    def ensure(windows: Batch) -> None:
        for cache in caches:
            cache.ensure(windows)

    return Source(device, lambda windows: tuple(cache.load(windows) for cache in caches), compute, ensure)


def _stack(maps: list[NDArray[np.float32]]) -> Tensor:
    """Maps (h, w) of a batch as (B, 1, h, w)."""
    return torch.from_numpy(np.stack(maps)[:, None])


@dataclass(frozen=True)
class _Steps(Generic[MapsT]):
    """The loss of a batch in two steps: what it reads with its ground truth, then the networks."""

    source: Source[MapsT]
    target: Callable[[Batch], Tensor]  # (B, 1, h, w) on the CPU
    loss_of: Callable[[Batch, MapsT, Tensor], Tensor]  # () of the maps that the branch reads, and the target

    def load(self, batch: Batch) -> LoadedBatch:
        def loss(tensors: Tensors) -> Tensor:
            return self.loss_of(batch, self.source.compute(batch, tensors[:-1]), tensors[-1])

        return LoadedBatch((*self.source.load(batch), self.target(batch)), loss)

    def task(
        self,
        name: str,
        modules: nn.Module,
        batches: Callable[[int], Iterator[Batch]],
        validate: Callable[[], float],
        pretrained: nn.Module | None = None,
    ) -> TrainingTask[Batch]:
        def loss(batch: Batch) -> Tensor:
            return self.load(batch).compute(self.source.device)

        return TrainingTask(
            name, modules, batches, loss, validate, pretrained, halves, self.load, self.source.ensure
        )  # fmt: skip


def halves(batch: Batch) -> list[tuple[Batch, float]]:
    """Two halves of a batch, the larger first, and their shares of its windows: all losses are means over windows of
    one size, so the shares of the halves' losses add up to the batch's."""
    cut = (len(batch) + 1) // 2
    return [(part, len(part) / len(batch)) for part in (batch[:cut], batch[cut:]) if part]


@dataclass(frozen=True)
class _Piece:
    """A piece of a whole image that is validated at once: all of it, or a tile of a large one."""

    tile: Tile
    input: Window  # the tile with its margin
    window: Window  # the tile
    share: float  # of the image's padded pixels

    def cut(self, values: Tensor, step: int = 1) -> Tensor:
        """The tile's part of a map of the input, (B, C, h, w) with one cell for `step` px."""
        rows, cols = self.tile.inner(step)
        return values[..., rows, cols]


def _pieces(images: Images, tiles_of: TilesOf) -> list[list[_Piece]]:
    """The pieces of each image. Raises RazError for an image that is too large for a network that sees all of it."""
    out = []
    for i in range(len(images)):
        parts = by_size(tiles_of(*images.size(i)))
        total = sum(tile.pixels for tile in parts)
        out.append(
            [
                _Piece(
                    t, Window(i, False, t.left, t.top, t.bottom - t.top, t.right - t.left),
                    Window(i, False, t.x0, t.y0, t.y1 - t.y0, t.x1 - t.x0), t.pixels / total,
                )
                for t in parts
            ]
        )  # fmt: skip
    return out


def tiles_from(
    backbone: Backbone,
    *,
    counting: CountingBranch | None = None,
    localization: LocalizationBranch | None = None,
    attention: AttentionBranch | None = None,
) -> TilesOf:
    """The tiles by which these parts compute an image (`raz.pipeline.tiling`)."""
    parts = partial(margin, backbone, counting=counting, localization=localization, attention=attention)
    return lambda height, width: tiles(height, width, parts, backbone.alignment)


def _mean_loss(images: list[list[_Piece]], loss: Callable[[_Piece], Tensor]) -> float:
    """The mean over the images of a loss that is a mean over pixels, from that of each piece."""
    return float(np.mean([sum(piece.share * float(loss(piece)) for piece in pieces) for pieces in images]))


def counting_task(
    data: TrainingData,
    modules: nn.ModuleDict,
    branch: CountingBranch,
    features: FeaturesOf,
    val_features: FeaturesOf,
    config: TrainConfig,
    *,
    beta: float,
    kernel: Kernel,
    kind: str,
    pretrained: nn.Module | None = None,
    tiles_of: TilesOf = whole_image,
) -> TrainingTask[Batch]:
    """Training of the counting branch with the loss of Eq. 1; validated by the mean absolute count error of whole
    images, in persons. tiles_of: by which tiles large ones are validated."""
    truth = GroundTruth(data.train, neighbour_count(kernel, data.k))

    def target(batch: Batch) -> Tensor:
        return _stack([truth.density(w, branch.output_stride, beta, kernel) for w in batch])

    def loss_of(_: Batch, maps: Tensor, density: Tensor) -> Tensor:
        return counting_loss(branch(maps)[0].float(), density, kind)

    steps = _Steps(_source(features, data.device), target, loss_of)
    images = _pieces(data.val, tiles_of)

    def validate() -> float:
        errors = []
        for i, pieces in enumerate(images):
            height, width = data.val.size(i)
            count = 0.0
            for piece in pieces:
                density = piece.cut(branch(val_features([piece.input]))[0], branch.output_stride)
                # without the cells of the padding
                rows, cols = height - piece.window.y0, width - piece.window.x0
                density = density[..., : -(-rows // branch.output_stride), : -(-cols // branch.output_stride)]
                count += float(density.double().sum())
            errors.append(abs(count - len(data.val.heads(i))))
        return float(np.mean(errors))

    batches = data.batches("counting", config)
    return steps.task("counting", modules, batches, validate, pretrained)


def localization_task(
    data: TrainingData,
    name: str,
    modules: nn.ModuleDict,
    branch: LocalizationBranch,
    features: FeaturesOf,
    val_features: FeaturesOf,
    config: TrainConfig,
    *,
    gamma: float,
    pretrained: nn.Module | None = None,
    tiles_of: TilesOf = whole_image,
) -> TrainingTask[Batch]:
    """Training of a localization branch with the loss of Eq. 3: Main-Net's on images, RAZ-Net's on zoomed regions.
    Validated by the same loss on whole images or regions. tiles_of: by which tiles large ones are validated."""
    train_truth, val_truth = GroundTruth(data.train), GroundTruth(data.val)
    images = _pieces(data.val, tiles_of)

    def piece_loss(piece: _Piece) -> Tensor:
        logits = piece.cut(branch(val_features([piece.input]))[0])
        return localization_loss(logits.float(), _stack([val_truth.labels(piece.window)]).to(data.device), gamma)

    def validate() -> float:
        return _mean_loss(images, piece_loss)

    def target(batch: Batch) -> Tensor:
        return _stack([train_truth.labels(w) for w in batch])

    def loss_of(_: Batch, maps: Tensor, labels: Tensor) -> Tensor:
        return localization_loss(branch(maps)[0].float(), labels, gamma)

    steps = _Steps(_source(features, data.device), target, loss_of)
    return steps.task(name, modules, data.batches(name, config), validate, pretrained)


def attention_task(
    data: TrainingData,
    name: str,
    modules: nn.ModuleDict,
    branch: AttentionBranch,
    rich: RichOf,
    val_rich: RichOf,
    config: TrainConfig,
    *,
    sigma_z: float,
    kind: str,
    tiles_of: TilesOf = whole_image,
) -> TrainingTask[Batch]:
    """Training of an attention branch (section 3.1) on frozen branches; validated by the same loss on whole images.

    rich, val_rich: windows -> last feature map of the localization branch and, in Main-Net, of the counting branch.
    tiles_of: by which tiles large images are validated.
    """
    DISTANCES.evict_except(*data.names)
    train_truth, val_truth = GroundTruth(data.train, name=data.names[0]), GroundTruth(data.val, name=data.names[1])
    images = _pieces(data.val, tiles_of)

    def piece_loss(piece: _Piece) -> Tensor:
        with torch.no_grad():
            localization, counting = val_rich([piece.input])
        target = _stack([val_truth.attention(piece.window, sigma_z)]).to(data.device)
        return attention_loss(piece.cut(branch(localization, counting)).float(), target, kind)

    def validate() -> float:
        return _mean_loss(images, piece_loss)

    source = _source(rich, data.device)

    def compute(windows: Batch, loaded: Tensors) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            return source.compute(windows, loaded)

    def target(batch: Batch) -> Tensor:
        return _stack([train_truth.attention(w, sigma_z) for w in batch])

    def loss_of(_: Batch, maps: tuple[Tensor, Tensor | None], attention: Tensor) -> Tensor:
        return attention_loss(branch(*maps).float(), attention, kind)

    steps = _Steps(replace(source, compute=compute), target, loss_of)
    return steps.task(name, modules, data.batches(name, config), validate)
