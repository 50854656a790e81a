"""Training tasks: batches of windows, losses and validation values of the three branches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from raz.config import TrainConfig
from raz.paper.groundtruth import Kernel, neighbour_count
from raz.paper.losses import attention_loss, counting_loss, localization_loss
from raz.paper.networks import AttentionBranch, Backbone, CountingBranch, LocalizationBranch
from raz.pipeline.feature_cache import FeatureCache, MultiScaleFeatures
from raz.pipeline.inference import margin
from raz.pipeline.samples import DISTANCES, GroundTruth, Images, Window, crop_pixels, draw_windows
from raz.pipeline.tiling import Tile, by_size, tiles
from raz.pipeline.training_loop import TrainingTask

Batch = list[Window]
FeaturesOf = Callable[[Batch], Tensor]  # windows of one size -> (B, C, h/8, w/8)
RichOf = Callable[[Batch], tuple[Tensor, Tensor | None]]  # last feature maps of the localization and counting branch
TilesOf = Callable[[int, int], list[Tile]]  # height and width of an image -> its tiles


def whole_image(height: int, width: int) -> list[Tile]:
    """One tile of the whole image, whatever its size."""
    return tiles(height, width, lambda: None, limit=sys.maxsize)


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
) -> FeaturesOf:
    """Features of windows: from the cache of a frozen backbone, or computed with gradients where `frozen` is None."""
    if frozen is not None:
        return lambda windows: torch.cat([frozen.crop(w) for w in windows])
    return lambda windows: backbone(torch.cat([crop_pixels(images, w, device, backbone.colours) for w in windows]))


def _stack(maps: list[np.ndarray], device: torch.device) -> Tensor:
    """Maps (h, w) of a batch as (B, 1, h, w)."""
    return torch.from_numpy(np.stack(maps)[:, None]).to(device)


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

    def loss(batch: Batch) -> Tensor:
        density, _ = branch(features(batch))
        maps = [truth.density(w, branch.output_stride, beta, kernel) for w in batch]
        return counting_loss(density.float(), _stack(maps, data.device), kind)

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

    return TrainingTask("counting", modules, data.batches("counting", config), loss, validate, pretrained, halves)


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

    def loss_of(logits: Tensor, windows: Batch, truth: GroundTruth) -> Tensor:
        return localization_loss(logits.float(), _stack([truth.labels(w) for w in windows], data.device), gamma)

    def piece_loss(piece: _Piece) -> Tensor:
        return loss_of(piece.cut(branch(val_features([piece.input]))[0]), [piece.window], val_truth)

    def validate() -> float:
        return _mean_loss(images, piece_loss)

    batches = data.batches(name, config)

    def loss(batch: Batch) -> Tensor:
        return loss_of(branch(features(batch))[0], batch, train_truth)

    return TrainingTask(name, modules, batches, loss, validate, pretrained, halves)


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

    def logits_of(windows: Batch, rich_of: RichOf) -> Tensor:
        with torch.no_grad():
            localization, counting = rich_of(windows)
        logits: Tensor = branch(localization, counting)
        return logits

    def loss_of(logits: Tensor, windows: Batch, truth: GroundTruth) -> Tensor:
        target = _stack([truth.attention(w, sigma_z) for w in windows], data.device)
        return attention_loss(logits.float(), target, kind)

    def piece_loss(piece: _Piece) -> Tensor:
        return loss_of(piece.cut(logits_of([piece.input], val_rich)), [piece.window], val_truth)

    def validate() -> float:
        return _mean_loss(images, piece_loss)

    batches = data.batches(name, config)

    def loss(batch: Batch) -> Tensor:
        return loss_of(logits_of(batch, rich), batch, train_truth)

    return TrainingTask(name, modules, batches, loss, validate, halves=halves)
