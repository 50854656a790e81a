"""GFLOP of predicting an image, from what the networks cost by the size of their input. Imports no torch.

`raz.pipeline.flops` counts the costs. The stages that run the networks keep them in their manifests, so that a process
that only scores need not load PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from raz.data.frames import zoomed_size

BASE = 64  # px; the layers of usual networks divide its multiples without a remainder
Cost: TypeAlias = Callable[[int, int], int]  # (H, W) px of a network's input -> FLOP
Record: TypeAlias = Mapping[str, tuple[int, ...]]  # name of a cost -> its numbers, as manifests keep them


@dataclass(frozen=True)
class SizeCost:
    """FLOP of layers by the size of the image, whose sides are padded to multiples of `step` px.

    A convolution costs a constant for each of its pixels, so layers cost a + b·H + c·W + d·H·W: `first` at a square of
    BASE px, `down` and `across` more for BASE px more of H or W, and `both` more for both.
    """

    step: int
    first: int
    down: int
    across: int
    both: int

    def __call__(self, height: int, width: int) -> int:
        """FLOP of one image of this size px."""
        u = -(-height // self.step) * self.step - BASE
        v = -(-width // self.step) * self.step - BASE
        return self.first + ((self.down * u + self.across * v) * BASE + self.both * u * v) // BASE**2


@dataclass(frozen=True)
class ForwardCost:
    """FLOP of the wanted maps of an image. Backbones pad an image to their own alignment, branches to theirs."""

    backbones: int  # that run
    backbone: SizeCost
    branches: SizeCost

    def __call__(self, height: int, width: int) -> int:
        """FLOP of one image of this size px."""
        return self.backbones * self.backbone(height, width) + self.branches(height, width)

    def numbers(self) -> tuple[int, ...]:
        """The inverse of `from_numbers`."""
        parts = (self.backbone, self.branches)
        return (
            self.backbones,
            *(n for part in parts for n in (part.step, part.first, part.down, part.across, part.both)),
        )

    @classmethod
    def from_numbers(cls, numbers: Sequence[int]) -> ForwardCost:
        """From eleven whole numbers."""
        return cls(numbers[0], SizeCost(*numbers[1:6]), SizeCost(*numbers[6:11]))


def main_maps(depth: int) -> tuple[str, ...]:
    """The maps that are wanted of Main-Net: with more than one pass, attention too."""
    return ("density", "response", *(("attention",) if depth > 1 else ()))


def crop_maps(zoom_pass: int, depth: int) -> tuple[str, ...]:
    """The maps that are wanted of RAZ-Net on a crop: attention too where another pass proposes regions in it."""
    return ("response", *(("attention",) if zoom_pass < depth else ()))


def cost_name(raz: bool, wanted: Sequence[str]) -> str:
    """How a manifest names the cost of these maps, by Main-Net or by RAZ-Net."""
    return " ".join(("raz" if raz else "main", *wanted))


def image_gflop(
    cost: Callable[[bool, tuple[str, ...]], Cost],
    factor: float,
    depth: int,
    sizes: Sequence[tuple[int, int]],
    regions: Sequence[Sequence[NDArray[np.float64]]],
) -> NDArray[np.float64]:
    """GFLOP of predicting each image with `depth` passes, (images,).

    cost: (whether by RAZ-Net, wanted maps) -> what one image or crop costs. factor: of zooming. sizes: (H, W) of the
    networks' input. regions: [pass - 2][image] (r, 4) input px.

    An image costs Main-Net on itself, and RAZ-Net on each crop of each pass.
    """
    main = cost(False, main_maps(depth))
    total = np.array([main(*size) for size in sizes], dtype=np.float64)
    for number in range(2, depth + 1):
        crop, zoom = cost(True, crop_maps(number, depth)), float(factor ** (number - 1))
        for i, boxes in enumerate(regions[number - 2]):
            total[i] += sum(crop(*zoomed_size(box, zoom)) for box in boxes.tolist())
    return np.asarray(total / 1e9)
