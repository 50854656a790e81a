"""The number of heads that a response map expects, without any threshold.

The loss of Eq. 3 weights the pixels of heads by gamma, so a network that minimises it answers a pixel that belongs to a
head with probability p by odds that are gamma times those of p. Undone, the map is a probability again. A head's label
has LABEL_PIXELS pixels (9), so the sum of the probabilities divided by that number is the expected number of heads.

Maps of expected heads have bins of CELL x CELL px of the network's input and one layer for each network, so that it is
known how many heads each expects: (2, ceil(H/CELL), ceil(W/CELL)) float32, Main-Net's layer first.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from raz.errors import RazError
from raz.paper.zoom import Points, region_cores

CELL = 8  # px
BAND = 64 * CELL  # rows of a map that are held in double precision at a time: those of a large image take 0.4 GB
LABEL_PIXELS = 5  # a pixel and its four neighbours

Expected = NDArray[np.float32]


def expected_per_pixel(response: NDArray[np.floating], gamma: float) -> NDArray[np.float64]:
    """Expected heads in each pixel of a response map (H, W) that was trained with this gamma.

    Raises RazError for responses outside 0 to 1, or gamma not above 0.
    """
    r = np.asarray(response, dtype=np.float64)
    if not gamma > 0:
        raise RazError("expected_per_pixel", f"gamma is {gamma}, expected more than 0")
    if r.size and not (r.min() >= 0 and r.max() <= 1):
        raise RazError("expected_per_pixel", "responses that are no probabilities", "a diverged network?")
    out: NDArray[np.float64] = 1 - r  # then in place: maps of large images are large
    out *= gamma
    out += r
    np.divide(r, out, out=out)
    out /= LABEL_PIXELS
    return out


def main_expected(response: NDArray[np.floating], gamma: float) -> Expected:
    """The map of expected heads after pass 1, from Main-Net's response map (H, W)."""
    height, width = response.shape
    found = _binned_bands(lambda top, end: expected_per_pixel(response[top:end], gamma), height, width)
    return np.stack([found, np.zeros_like(found)])


def region_expected(
    response: NDArray[np.floating],
    gamma: float,
    rank: int,
    regions: NDArray[np.float64],
    height: int,
    width: int,
    *,
    zoom: float,
    border: float,
) -> Expected:
    """Heads that RAZ-Net expects at the positions that region `rank` owns, (ceil(H/CELL), ceil(W/CELL)) float32.

    response: (h, w), of the region's zoomed crop. The other arguments are those of `raz.paper.zoom.merge_points`.
    """
    per_pixel = expected_per_pixel(response, gamma)
    x0, y0, x1, y1 = regions[rank]
    rows, cols = per_pixel.shape
    ys, xs = y0 + (np.arange(rows) + 0.5) * (y1 - y0) / rows, x0 + (np.arange(cols) + 0.5) * (x1 - x0) / cols
    cores = region_cores(regions, height, width, border / zoom)
    owned = _inside(ys, xs, cores[rank])
    for better in cores[:rank]:
        owned &= ~_inside(ys, xs, better)
    return _binned(per_pixel * owned, ys, xs, height, width)


def merge_expected(
    before: Expected,
    regions: NDArray[np.float64],
    inside: list[Expected],
    height: int,
    width: int,
    *,
    zoom: float,
    border: float,
) -> Expected:
    """The map of expected heads after a zooming pass: as in `merge_points`, each position has one owner.

    `inside` are the `region_expected` of each region. Of a bin on the edge of a region's core, `before` keeps the share
    of its pixels outside.
    """
    cores = region_cores(regions, height, width, border / zoom)

    def free(top: int, end: int) -> NDArray[np.float64]:
        out = np.ones((end - top, width))
        for core in cores:
            out[_inside(np.arange(top, end) + 0.5, np.arange(width) + 0.5, core)] = 0
        return out

    pixels = _binned_bands(lambda top, end: np.ones((end - top, width)), height, width)
    out = before * (_binned_bands(free, height, width) / pixels)
    for found in inside:
        out[1] += found
    return np.asarray(out, dtype=np.float32)


def best_of_expected(points: Points, expected: Expected) -> NDArray[np.bool_]:
    """Which points count, (n,): of each network as many of the best-scored ones as it expects heads, rounded."""
    counted = np.zeros(len(points), dtype=np.bool_)
    for network, layer in enumerate(expected):
        own = np.flatnonzero(points.network == network)
        best = own[np.argsort(-points.score[own], kind="stable")]
        counted[best[: int(np.rint(layer.sum(dtype=np.float64)))]] = True
    return counted


def _inside(ys: NDArray[np.floating], xs: NDArray[np.floating], box: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which positions of a grid lie in the box x0, y0, x1, y1, (len(ys), len(xs))."""
    return np.asarray(np.outer((ys >= box[1]) & (ys < box[3]), (xs >= box[0]) & (xs < box[2])))


def _binned_bands(of_rows: Callable[[int, int], NDArray[np.float64]], height: int, width: int) -> Expected:
    """Sums in the bins of an image of height x width, of one value for each of its pixels. `of_rows` gives those of the
    rows from its first argument up to its second."""
    xs = np.arange(width) + 0.5
    bands = [np.zeros((0, -(-width // CELL)), np.float32)]
    for top in range(0, height, BAND):
        values = of_rows(top, min(top + BAND, height))
        bands.append(_binned(values, np.arange(len(values)) + 0.5, xs, len(values), width))
    return np.concatenate(bands)


def _binned(
    values: NDArray[np.float64], ys: NDArray[np.floating], xs: NDArray[np.floating], height: int, width: int
) -> Expected:
    """Sums of values (len(ys), len(xs)) at these positions in the bins of an image of height x width; of positions in
    ascending order."""
    rows, cols = -(-height // CELL), -(-width // CELL)
    row, col = ((at // CELL).astype(np.int64) for at in (ys, xs))
    sums = np.zeros((rows, cols))
    if values.size:
        by_row = np.add.reduceat(values, starts := np.flatnonzero(np.diff(row, prepend=-1)), axis=0)
        ends = np.flatnonzero(np.diff(col, prepend=-1))
        sums[np.ix_(row[starts], col[ends])] = np.add.reduceat(by_row, ends, axis=1)
    return sums.astype(np.float32)
