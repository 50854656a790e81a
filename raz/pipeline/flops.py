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
from raz.paper.networks import STRIDE, AttentionBranch, Backbone, CountingBranch, LocalizationBranch
from raz.pipeline import gflop
from raz.pipeline.backbones import empty_backbone
from raz.pipeline.gflop import BASE, ForwardCost, Record, SizeCost, cost_name, crop_maps, main_maps
from raz.pipeline.graph import Declared, Node
from raz.pipeline.inference import Network
from raz.pipeline.torch_internals import count_flop


class FlopBySize:
    """FLOP of layers by the size of the image, whose sides are padded to multiples of `step` px.

    The four numbers of `formula` are found on four small sizes and checked on a fifth; None where they do not hold.
    Layers that cost anything else (attention over the image) are run at each size.
    """

    def __init__(self, run: Callable[[Tensor], object], step: int) -> None:
        self.step = step
        self._at: Callable[[int, int], int] = lru_cache(maxsize=1 << 16)(
            lambda height, width: count_flop(lambda: run(torch.empty(1, 3, height, width, device="meta")))
        )
        known = {(h, w): self._at(h * BASE, w * BASE) for h in (1, 2) for w in (1, 2)}
        both = known[2, 2] - known[2, 1] - known[1, 2] + known[1, 1]
        formula = SizeCost(step, known[1, 1], known[2, 1] - known[1, 1], known[1, 2] - known[1, 1], both)
        odd = BASE + step, 3 * BASE - step
        self.formula = formula if formula(*odd) == self._at(*odd) else None

    def __call__(self, height: int, width: int) -> int:
        """FLOP of one image of this size px."""
        if self.formula is not None:
            return self.formula(height, width)
        return self._at(-(-height // self.step) * self.step, -(-width // self.step) * self.step)


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

    @property
    def formula(self) -> ForwardCost | None:
        """The same as numbers; None for layers that have none."""
        if self.backbone.formula is None or self.branches.formula is None:
            return None
        return ForwardCost(self.backbones, self.backbone.formula, self.branches.formula)


def forward_flop(inputs: Mapping[str, Declared], *, raz: bool, wanted: tuple[str, ...]) -> ForwardFlop:
    """FLOP of the wanted maps of an image. inputs: stage -> declared inputs, of all stages that the maps need."""
    attention = inputs["attention"].attention if "attention" in wanted else None
    localization = inputs["localization"].localization
    return ForwardFlop(
        inputs["counting"].backbone, inputs["counting"].counting, localization, attention, wanted, raz=raz
    )


def recorded_costs(inputs: Mapping[str, Declared], node: Node) -> Record:
    """What the manifest of an inferred stage keeps: the costs that the score of this pass, or of a later one, takes.
    The stages of pass 1 and 2 keep them. Empty for other stages, and for layers without a formula."""
    if node.stage == "points":
        kinds = [(False, main_maps(1))]
    elif node.stage == "zoom" and node.zoom_pass == 2:
        kinds = [(False, main_maps(2)), (True, crop_maps(2, 2)), (True, crop_maps(2, 3))]
    else:
        return {}
    formulas = {cost_name(raz, wanted): forward_flop(inputs, raz=raz, wanted=wanted).formula for raz, wanted in kinds}
    return {name: formula.numbers() for name, formula in formulas.items() if formula is not None}


def image_gflop(
    inputs: Mapping[str, Declared],
    depth: int,
    sizes: Sequence[tuple[int, int]],
    regions: Sequence[Sequence[NDArray[np.float64]]],
) -> NDArray[np.float64]:
    """`raz.pipeline.gflop.image_gflop`, with costs that are counted here. inputs: stage -> declared inputs, of all
    stages that a score of this depth needs."""
    factor = inputs["zoom"].zooming.factor if depth > 1 else 1

    def cost(raz: bool, wanted: tuple[str, ...]) -> ForwardFlop:
        return forward_flop(inputs, raz=raz, wanted=wanted)

    return gflop.image_gflop(cost, factor, depth, sizes, regions)
