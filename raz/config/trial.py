"""TrialConfig: every value that a trial depends on, as frozen dataclasses. The defaults are the paper's values.

Each part belongs to one stage (`raz.pipeline.graph.STAGES`), and a stage's key is made of the parts that it declares.
Numbers in brackets are rows of the reading of the paper.

Stores and studies exist, so a new field is written `name: float = added(default=0.5, before=0.0)`. `before` is the
value with which the code does what it did without the field. With that value the field enters no key and no study's
meaning. A stored configuration without the field is read as having that value.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal


def added(*, default: Any, before: Any) -> Any:  # as `dataclasses.field`, it stands for a value of any type
    """A dataclass field that was added after stores existed.

    before: the value with which the code does what it did without the field. It has the field's type; for a field that
        is a part (a dataclass) it is such a part.
    """
    return field(default=default, metadata={"before": before})


PAPER_BACKBONE = "vgg16"


@dataclass(frozen=True)
class InputConfig:
    """Size of the network's input (26). Results are scored in original pixels."""

    scale: float = 1.0  # input pixels per original pixel
    max_side: int = 0  # longest side allowed after scaling, 0 = any

    def times(self, size: float) -> InputConfig:
        """The input at `size` times its size."""
        return InputConfig(self.scale * size, round(self.max_side * size))


@dataclass(frozen=True)
class PredictConfig:
    """Size of the images that the trained networks predict."""

    scale: float = added(default=1.0, before=1.0)  # relative to the size that they were trained at


@dataclass(frozen=True)
class BackboneConfig:
    """The network whose features the branches read, at stride 8: the first ten convolutions of VGG-16 (1), or a network
    of timm up to stride 16."""

    name: str = added(default=PAPER_BACKBONE, before=PAPER_BACKBONE)  # vgg16, or timm's name of a network
    weights: str = "imagenet"  # imagenet | none | path of a state dict in torchvision's, or timm's, layout
    width: float = 1.0  # channel multiplier of vgg16, only without pretrained weights
    neck: int = added(default=96, before=96)  # channels of the projected features of timm's networks, 0 = as they are


@dataclass(frozen=True)
class TrainConfig:
    """How a stage is trained (24, 25). `epochs` is not in the key of the chain of epochs."""

    epochs: int = 400
    optimizer: Literal["sgd", "adamw", "schedule-free"] = "sgd"  # schedule-free: AdamW of Defazio et al., 2024
    lr: float = 1e-4
    backbone_lr: float = added(default=0.0, before=0.0)  # of the backbone's pretrained layers, 0 = lr
    warmup: int = added(default=0, before=0)  # steps over which schedule-free raises the learning rates from 0
    momentum: float = 0.95
    weight_decay: float = 0.0
    batch: int = 1
    crop: int = 256  # side of the training crop in input pixels, a multiple of 8; 0 = whole images
    crops_per_image: int = 4  # crops drawn from each image in an epoch
    # Lowest and highest scale of a crop: each draws its own, uniformly in log, at any position. Empty: the scale of the
    # image, or one of its `sizes`, at positions that are multiples of 8.
    scales: tuple[float, ...] = added(default=(), before=())
    flip: bool = True
    grey: float = added(default=0.0, before=0.0)  # share of the crops that lose their colours
    plateau: int = 20  # epochs without a better validation value until the rate is halved
    stop: int = 80  # epochs without a better validation value until training stops
    average: float = 0.0  # decay of the moving average of the weights that is evaluated, 0 = none
    clip: float = 10.0  # largest norm of the gradient, 0 = any
    amp: bool = True  # mixed precision, on CUDA only


@dataclass(frozen=True)
class CountingConfig:
    """The counting branch (2) and its ground truth (7, 8)."""

    channels: tuple[int, ...] = (512, 512, 512, 256, 128, 64)
    beta: float = 0.1
    k: int = 4
    kernel: Literal["raz", "csrnet", "cell"] = "raz"  # cell: all of a head in its cell, whatever beta and k
    output_stride: Literal[8, 4, 2] = 8
    loss: Literal["rmse", "mse", "pyramid", "pyramid-l1"] = "rmse"
    init: Literal["normal", "kaiming", "kaiming-small"] = "normal"
    unfreeze: Literal["backbone", "none"] = "backbone"
    sizes: tuple[float, ...] = (1.0,)  # scales of the training images, relative to their input size
    train: TrainConfig = TrainConfig()


@dataclass(frozen=True)
class LocalizationConfig:
    """The localization branch (3) and its loss (9, 10)."""

    channels: tuple[int, ...] = (512, 512, 512)
    upsample: tuple[int, int, int] = (256, 128, 64)
    gamma: float = 100.0
    init: Literal["normal", "kaiming", "kaiming-small"] = "normal"
    unfreeze: Literal["none", "backbone"] = "none"
    sizes: tuple[float, ...] = (1.0,)  # as counting.sizes
    train: TrainConfig = TrainConfig()


@dataclass(frozen=True)
class AttentionConfig:
    """The zooming region proposal branch (4) and its ground truth (11, 12)."""

    channels: int = 64
    init: Literal["normal", "kaiming", "kaiming-small"] = "normal"
    sigma_z: float = 3.0  # pixels of the network's input
    loss: Literal["mse", "bce"] = "mse"
    train: TrainConfig = TrainConfig()


@dataclass(frozen=True)
class ZoomingConfig:
    """Selection of the regions that are zoomed, and their crops (15, 16, 17, 28)."""

    theta_z: float = 0.01
    k_z: int = 10
    anchors: str = "paper"  # a name in raz.paper.zoom.ANCHOR_SETS
    sampling: Literal["attention", "uniform"] = "attention"
    samples: int = 200
    iou: float = 0.5
    factor: int = 2
    border: int = 8  # margin of a crop whose own points are dropped, pixels of the zoomed crop
    seam: float = 3.0  # points nearer than this across a crop's edge are one: zoomed px, but at least one input px


@dataclass(frozen=True)
class RazConfig:
    """RAZ-Net (5): the crops that it is trained on, and how."""

    regions: ZoomingConfig | Literal["same"] = ZoomingConfig()  # `same` ties them to `zooming`
    unfreeze: Literal["backbone", "none"] = "backbone"
    train: TrainConfig = TrainConfig()
    attention_train: TrainConfig = TrainConfig()


@dataclass(frozen=True)
class PeaksConfig:
    """From a response map to counted points (13)."""

    threshold: float | Literal["fitted"] = "fitted"
    # `threshold`: the points that reach it. `expected`: the sum of the map's calibrated probabilities; the points are
    # as many of the best peaks.
    count: Literal["threshold", "expected"] = added(default="threshold", before="threshold")


@dataclass(frozen=True)
class FusionConfig:
    """Two-stream fusion (Eq. 4, 18)."""

    rule: str = "grid"  # a name in raz.paper.fusion.RULES
    theta_f: float | Literal["cell", "shared", "image"] = "cell"
    fit_on: Literal["val", "train"] = "train"
    cells: int = 4
    folds: int = 5


@dataclass(frozen=True)
class MetricsConfig:
    """The localization metric (22, 23, 28), and F1 of points matched one to one."""

    sigmas: tuple[float, ...] = (40.0, 20.0, 5.0)
    radii: tuple[float, ...] = added(default=(8.0, 4.0), before=(8.0, 4.0))  # of F1, pixels of the original image
    points: Literal["counted", "all"] = "counted"
    pool: Literal["dataset", "image"] = "dataset"
    floor: float = 0.05  # least score of a point under `points: all`


@dataclass(frozen=True)
class TrialConfig:
    """All values of a trial. `threads` is in every key, since it changes the last bits of results."""

    dataset: str = "shanghaitech_a"
    seed: int = 0
    threads: int = 1
    input: InputConfig = InputConfig()
    backbone: BackboneConfig = BackboneConfig()
    counting: CountingConfig = CountingConfig()
    localization: LocalizationConfig = LocalizationConfig()
    attention: AttentionConfig = AttentionConfig()
    raz: RazConfig = RazConfig()
    zooming: ZoomingConfig = ZoomingConfig()
    peaks: PeaksConfig = PeaksConfig()
    depth: int = 2
    fusion: FusionConfig = FusionConfig()
    metrics: MetricsConfig = MetricsConfig()
    predict: PredictConfig = PredictConfig()

    def resolved(self) -> TrialConfig:
        """The same trial with `raz.regions: same` written out."""
        if self.raz.regions == "same":
            return replace(self, raz=replace(self.raz, regions=self.zooming))
        return self
