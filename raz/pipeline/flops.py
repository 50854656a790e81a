"""FLOP of predicting an image, counted while the networks run on the meta device: shapes are computed, and no numbers.

A multiply-add counts as two, as in PyTorch's own counter. Counted are convolutions, products of matrices and attention;
each image in one piece (tiles overlap, and cost some more), and each crop in one run for all maps that are wanted of
it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raz.config import AttentionConfig, BackboneConfig, CountingConfig, LocalizationConfig
from raz.data.frames import zoomed_size
from raz.paper.networks import STRIDE, AttentionBranch, Backbone, CountingBranch, LocalizationBranch
from raz.pipeline.backbones import empty_backbone
from raz.pipeline.graph import Declared
from raz.pipeline.inference import Network
from raz.pipeline.torch_internals import count_flop

_STEP = 64  # px; the layers of usual networks divide its multiples without a remainder


class FlopBySize:
    """FLOP of layers by the size of the image, whose sides are multiples of `step` px.

    A convolution costs a constant for each of its pixels, so layers cost a + b·H + c·W + d·H·W. The four numbers are
    found on four small sizes and checked on a fifth; `regular` says whether they hold. Layers that cost anything else
    (attention over the image) are run at each size.
    """

    def __init__(self, run: Callable[[Tensor], object], step: int) -> None:
        self.step = step
        self._at: Callable[[int, int], int] = lru_cache(maxsize=1 << 16)(
            lambda height, width: count_flop(lambda: run(torch.empty(1, 3, height, width, device="meta")))
        )
        known = {(h, w): self._at(h * _STEP, w * _STEP) for h in (1, 2) for w in (1, 2)}
        self._first, self._down, self._across = known[1, 1], known[2, 1] - known[1, 1], known[1, 2] - known[1, 1]
        self._both = known[2, 2] - known[2, 1] - known[1, 2] + known[1, 1]
        odd = _STEP + step, 3 * _STEP - step
        self.regular = self._bilinear(*odd) == self._at(*odd)

    def _bilinear(self, height: int, width: int) -> int:
        u, v = height - _STEP, width - _STEP
        return self._first + ((self._down * u + self._across * v) * _STEP + self._both * u * v) // _STEP**2

    def __call__(self, height: int, width: int) -> int:
        """FLOP of one image of this size px; its sides are padded."""
        padded = -(-height // self.step) * self.step, -(-width // self.step) * self.step
        return self._bilinear(*padded) if self.regular else self._at(*padded)


class _Features(Backbone):
    """In place of a backbone: its features, without the work."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        return x.new_empty(batch, self.channels, height // STRIDE, width // STRIDE)


@lru_cache(maxsize=8)
def _backbone_flop(config: BackboneConfig) -> tuple[FlopBySize, int]:
    """FLOP of a backbone, and the channels of its features."""
    with torch.device("meta"):
        backbone = empty_backbone(config)
    backbone.eval()
    return FlopBySize(backbone, backbone.alignment), backbone.channels


@lru_cache(maxsize=64)
def _branch_flop(
    channels: int,
    counting: CountingConfig | None,
    localization: LocalizationConfig,
    attention: AttentionConfig | None,
    wanted: tuple[str, ...],
) -> FlopBySize:
    """FLOP of the branches that the wanted maps take. counting: None for RAZ-Net, which has no such branch."""
    with torch.device("meta"):
        count = CountingBranch(channels, counting.channels, counting.output_stride) if counting is not None else None
        locate = LocalizationBranch(channels, localization.channels, localization.upsample)
        read = locate.channels + (count.channels if count is not None else 0)
        zoom = AttentionBranch(read, attention.channels) if attention is not None else None
    below = _Features(channels)
    network = Network("", below, below, count, locate, zoom)
    return FlopBySize(lambda x: network.tensors(x, wanted), STRIDE)


class ForwardFlop:
    """FLOP of the wanted maps of an image, by Main-Net or by RAZ-Net. The backbone pads an image to its own alignment,
    the branches to theirs."""

    def __init__(
        self, backbone: BackboneConfig, counting: CountingConfig, localization: LocalizationConfig,
        attention: AttentionConfig | None, wanted: tuple[str, ...], *, raz: bool,
    ) -> None:  # fmt: skip
        self.backbone, channels = _backbone_flop(backbone)
        # Main-Net has two where its localization branch trained one of its own, and runs those that the maps take.
        two = not raz and localization.unfreeze == "backbone" and wanted not in (("density",), ("response",))
        self.backbones = 2 if two else 1
        self.branches = _branch_flop(channels, None if raz else counting, localization, attention, wanted)

    def __call__(self, height: int, width: int) -> int:
        """FLOP of one image of this size px."""
        return self.backbones * self.backbone(height, width) + self.branches(height, width)


def image_gflop(
    inputs: Mapping[str, Declared],
    depth: int,
    sizes: Sequence[tuple[int, int]],
    regions: Sequence[Sequence[NDArray[np.float64]]],
) -> NDArray[np.float64]:
    """GFLOP of predicting each image with `depth` passes, (images,).

    inputs: stage -> declared inputs, of all stages that a score of this depth needs. sizes: (H, W) of the networks'
    input. regions: [pass - 2][image] (r, 4) input px.

    An image costs Main-Net on itself (density and response; with more than one pass, attention), and RAZ-Net on each
    crop of each pass: its response, and its attention where another pass proposes regions in it.
    """
    backbone, counting = inputs["counting"].backbone, inputs["counting"].counting
    localization = inputs["localization"].localization
    attention = inputs["attention"].attention if depth > 1 else None

    def cost(raz: bool, *wanted: str) -> ForwardFlop:
        return ForwardFlop(backbone, counting, localization, attention, wanted, raz=raz)

    main = cost(False, "density", "response", *(("attention",) if depth > 1 else ()))
    total = np.array([main(*size) for size in sizes], dtype=np.float64)
    for number in range(2, depth + 1):
        crop = cost(True, "response", *(("attention",) if number < depth else ()))
        zoom = float(inputs["zoom"].zooming.factor ** (number - 1))
        for i, boxes in enumerate(regions[number - 2]):
            total[i] += sum(crop(*zoomed_size(box, zoom)) for box in boxes.tolist())
    return np.asarray(total / 1e9)
