"""Training tasks: batches of windows, losses and validation values of the three branches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from raz.config import TrainConfig
from raz.paper.groundtruth import Kernel, neighbour_count
from raz.paper.losses import attention_loss, counting_loss, localization_loss
from raz.paper.networks import AttentionBranch, Backbone, CountingBranch, LocalizationBranch
from raz.pipeline.feature_cache import FeatureCache, MultiScaleFeatures
from raz.pipeline.samples import DISTANCES, GroundTruth, Images, Window, crop_pixels, draw_windows, full_window
from raz.pipeline.training_loop import TrainingTask

Batch = list[Window]
FeaturesOf = Callable[[Batch], Tensor]  # windows of one size -> (B, C, h/8, w/8)
RichOf = Callable[[Batch], tuple[Tensor, Tensor | None]]  # last feature maps of the localization and counting branch


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


def _whole_windows(images: Images) -> list[Window]:
    return [full_window(images, i) for i in range(len(images))]


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
) -> TrainingTask[Batch]:
    """Training of the counting branch with the loss of Eq. 1; validated by the mean absolute count error of whole
    images, in persons."""
    truth = GroundTruth(data.train, neighbour_count(kernel, data.k))

    def loss(batch: Batch) -> Tensor:
        density, _ = branch(features(batch))
        maps = [truth.density(w, branch.output_stride, beta, kernel) for w in batch]
        return counting_loss(density.float(), _stack(maps, data.device), kind)

    def validate() -> float:
        errors = []
        for i, w in enumerate(_whole_windows(data.val)):
            density, _ = branch(val_features([w]))
            height, width = data.val.size(i)
            density = density[..., : -(-height // branch.output_stride), : -(-width // branch.output_stride)]
            errors.append(abs(float(density.double().sum()) - len(data.val.heads(i))))
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
) -> TrainingTask[Batch]:
    """Training of a localization branch with the loss of Eq. 3: Main-Net's on images, RAZ-Net's on zoomed regions.
    Validated by the same loss on whole images or regions."""
    train_truth, val_truth = GroundTruth(data.train), GroundTruth(data.val)

    def batch_loss(windows: Batch, features_of: FeaturesOf, truth: GroundTruth) -> Tensor:
        logits, _ = branch(features_of(windows))
        return localization_loss(logits.float(), _stack([truth.labels(w) for w in windows], data.device), gamma)

    def validate() -> float:
        return float(np.mean([float(batch_loss([w], val_features, val_truth)) for w in _whole_windows(data.val)]))

    batches = data.batches(name, config)

    def loss(batch: Batch) -> Tensor:
        return batch_loss(batch, features, train_truth)

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
) -> TrainingTask[Batch]:
    """Training of an attention branch (section 3.1) on frozen branches; validated by the same loss on whole images.

    rich, val_rich: windows -> last feature map of the localization branch and, in Main-Net, of the counting branch.
    """
    DISTANCES.evict_except(*data.names)
    train_truth, val_truth = GroundTruth(data.train, name=data.names[0]), GroundTruth(data.val, name=data.names[1])

    def batch_loss(windows: Batch, rich_of: RichOf, truth: GroundTruth) -> Tensor:
        with torch.no_grad():
            localization, counting = rich_of(windows)
        logits = branch(localization, counting)
        target = _stack([truth.attention(w, sigma_z) for w in windows], data.device)
        return attention_loss(logits.float(), target, kind)

    def validate() -> float:
        return float(np.mean([float(batch_loss([w], val_rich, val_truth)) for w in _whole_windows(data.val)]))

    batches = data.batches(name, config)

    def loss(batch: Batch) -> Tensor:
        return batch_loss(batch, rich, train_truth)

    return TrainingTask(name, modules, batches, loss, validate, halves=halves)
