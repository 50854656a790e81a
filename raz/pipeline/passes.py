"""What a pass finds on an image, and how stages store it. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from raz.paper.expected import Expected
from raz.paper.zoom import Points
from raz.store.paths import ARRAYS

Arrays: TypeAlias = Mapping[str, NDArray[np.generic]]  # what an inferred stage stores, by name


@dataclass(frozen=True)
class PassResult:
    """What was found on an image up to a pass."""

    points: Points
    # (r, 4) x0, y0, x1, y1 input px, that this pass zoomed
    regions: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 4)))
    expected: Expected | None = None  # the heads that the maps expect, where they are asked for


def read_passes(folder: Path) -> list[PassResult]:
    """What the stage in this folder found on each image, up to its pass."""
    with np.load(folder / ARRAYS, allow_pickle=False) as arrays:
        cuts = arrays["ends"][:-1]
        parts = [np.split(arrays[name], cuts) for name in ("xy", "score", "network", "depth")]
        points = [Points(*values) for values in zip(*parts, strict=True)]
        regions = [np.zeros((0, 4)) for _ in points]
        if "regions" in arrays:
            regions = np.split(arrays["regions"], arrays["region_ends"][:-1])
        expected = [arrays.get(f"e{i}") for i in range(len(points))]
    return [PassResult(*found) for found in zip(points, regions, expected, strict=True)]


def pack_passes(found: list[PassResult]) -> Arrays:
    """The points of all images in a row, those of image i at `ends[i - 1]:ends[i]`; and `e0`, `e1`, ...: the heads that
    the maps of each image expect, where `peaks.count: expected` asks for them."""
    points = [f.points for f in found]
    return {
        "xy": np.concatenate([np.zeros((0, 2)), *[p.xy for p in points]]),
        "score": np.concatenate([np.zeros(0, np.float32), *[p.score for p in points]]),
        "network": np.concatenate([np.zeros(0, np.int8), *[p.network for p in points]]),
        "depth": np.concatenate([np.zeros(0, np.int8), *[p.depth for p in points]]),
        "ends": np.cumsum([len(p) for p in points], dtype=np.int64),
        **{f"e{i}": f.expected for i, f in enumerate(found) if f.expected is not None},
    }
