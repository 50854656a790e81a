"""Region proposals for zooming, and merging of the points found in zoomed regions (15, 16, 17, 28)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raz.errors import RazError, raise_all

Boxes = NDArray[np.int64]
Anchor = tuple[float, float]  # (height / width, side of the square of equal area / shorter edge of the image)

_RATIOS = (1.0, 0.5, 2.0)
ANCHOR_SETS: dict[str, tuple[Anchor, ...]] = {
    "paper": tuple((ratio, scale) for scale in (1 / 3, 2 / 3) for ratio in _RATIOS),
    "square": ((1.0, 1 / 3), (1.0, 2 / 3)),
    "small": tuple((ratio, scale) for scale in (1 / 6, 1 / 3) for ratio in _RATIOS),
    "large": tuple((ratio, scale) for scale in (1 / 2, 1.0) for ratio in _RATIOS),
    "one-scale": tuple((ratio, 1 / 3) for ratio in _RATIOS),
}
SAMPLING = ("attention", "uniform")
BLOCK = 1 << 16  # pairs across a seam that are converted to Python numbers at a time


# --------------------------------------------------------------------------------------------- proposals


def generator_for(seed: int, content: str, zoom_pass: int) -> np.random.Generator:
    """Random generator of one picture in one pass (15).

    content: digest of the picture's pixels at the network's input size, followed by `#rank` for the crop of a region.
    So the numbers are the same on every machine, for any order of the images, and under any name of the picture.
    """
    digest = hashlib.sha256(f"{seed}\n{zoom_pass}\n{content}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))


def candidate_regions(
    attention: NDArray[np.floating],
    generator: np.random.Generator,
    *,
    anchors: str = "paper",
    samples: int = 200,
    sampling: Literal["attention", "uniform"] = "attention",
) -> tuple[Boxes, NDArray[np.float64]]:
    """Boxes around sampled pixels of an attention map (H, W), and the mean attention in each (15, 16).

    Draws `samples` pixels, with probability proportional to the attention or uniformly, and places every anchor of the
    set around each, clipped to the map. Returns boxes (samples x anchors, 4) int64 x0, y0, x1, y1 px, x1 and y1
    exclusive, and their means (samples x anchors,) float64. Without any attention, sampling `attention` returns no
    boxes. Raises RazError for unknown sets, samples < 1, and attention that is not (H, W), negative or not finite.
    """
    attention = np.asarray(attention)
    faults: list[RazError] = []
    if anchors not in ANCHOR_SETS:
        faults.append(RazError("zooming.anchors", f"unknown set {anchors!r}", "legal are " + ", ".join(ANCHOR_SETS)))
    if sampling not in SAMPLING:
        faults.append(RazError("zooming.sampling", f"unknown {sampling!r}", "legal are " + ", ".join(SAMPLING)))
    if samples < 1:
        faults.append(RazError("zooming.samples", f"{samples}, expected 1 or more"))
    if attention.ndim != 2 or attention.size == 0:
        faults.append(RazError("attention", f"a map of shape {attention.shape}, expected (H, W)"))
    elif not (attention.min() >= 0 and math.isfinite(attention.max())):
        faults.append(RazError("attention", "a map with negative values or numbers that are not finite"))
    raise_all(faults)
    height, width = attention.shape
    integral = _integral_image(attention)
    uniform = generator.random((samples, 2))
    if sampling == "uniform":
        row, column = (uniform * (height, width)).astype(np.int64).T
    elif integral[-1, -1] > 0:
        row, column = _sample_pixels(attention, integral[:, -1], uniform)
    else:
        return np.zeros((0, 4), dtype=np.int64), np.zeros(0)
    boxes = _anchor_boxes(row, column, ANCHOR_SETS[anchors], height, width)
    x0, y0, x1, y1 = boxes.T
    total = integral[y1, x1] - integral[y0, x1] - integral[y1, x0] + integral[y0, x0]
    return boxes, np.maximum(total, 0.0) / ((x1 - x0) * (y1 - y0))


def _integral_image(attention: NDArray[np.floating]) -> NDArray[np.float64]:
    """Integral image (H + 1, W + 1) float64: sums over all rows above and columns left of each corner."""
    height, width = attention.shape
    integral = np.empty((height + 1, width + 1))
    integral[0] = 0.0
    integral[:, 0] = 0.0
    running = np.zeros(width)
    for i in range(height):  # row by row, since cumsum down the columns misses the CPU's cache
        running += attention[i]
        np.cumsum(running, out=integral[i + 1, 1:])
    return integral


def _sample_pixels(
    attention: NDArray[np.floating], rows_above: NDArray[np.float64], uniform: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels (row, column), each (n,), drawn in proportion to the attention: first the row, then the column in it."""
    above = rows_above[1:]
    row = _invert_cdf(above, uniform[:, 0])
    column = np.empty(len(row), dtype=np.int64)
    drawn, which = np.unique(row, return_inverse=True)
    along = np.cumsum(attention[drawn], axis=1, dtype=np.float64)
    order = np.argsort(which, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(which[order])) + 1):
        column[group] = _invert_cdf(along[which[group[0]]], uniform[group, 1])
    return row, column


def _invert_cdf(cumulated: NDArray[np.float64], uniform: NDArray[np.float64]) -> NDArray[np.int64]:
    """First index where the cumulative weights exceed uniform x total, (n,); never of weight 0, despite rounding."""
    total = cumulated[-1]
    last = np.searchsorted(cumulated, total)
    drawn = np.searchsorted(cumulated, uniform * total, side="right")
    return np.asarray(np.minimum(drawn, last), dtype=np.int64)


def anchor_sizes(anchors: Sequence[Anchor], height: int, width: int) -> list[tuple[int, int]]:
    """(h, w) px of each anchor in an image of this size, before it is clipped to it."""
    shorter = min(height, width)
    return [
        (max(1, round(scale * shorter * math.sqrt(ratio))), max(1, round(scale * shorter / math.sqrt(ratio))))
        for ratio, scale in anchors
    ]


def _anchor_boxes(
    row: NDArray[np.int64], column: NDArray[np.int64], anchors: Sequence[Anchor], height: int, width: int
) -> Boxes:
    """Every anchor around every pixel, clipped to the map: (n x anchors, 4) x0, y0, x1, y1 px."""
    boxes = []
    for h, w in anchor_sizes(anchors, height, width):
        # the box of whole pixels whose centre is nearest to the pixel's centre, i + 0.5
        x0, y0 = column - (w - 1) // 2, row - (h - 1) // 2
        boxes.append(
            np.stack(
                [np.maximum(x0, 0), np.maximum(y0, 0), np.minimum(x0 + w, width), np.minimum(y0 + h, height)], axis=1
            )
        )
    return np.stack(boxes, axis=1).reshape(-1, 4)


def select_regions(
    boxes: NDArray[np.integer | np.floating], means: NDArray[np.float64], *, theta_z: float, iou: float, k_z: int
) -> NDArray[np.int64]:
    """Indices of the regions to zoom, best first, at most k_z: non-maximum suppression (16).

    Boxes (m, 4) are x0, y0, x1, y1 px; means (m,) their mean attention. Boxes with a mean below `theta_z` are dropped;
    of two boxes with an IoU above `iou`, the one of lower mean is suppressed. Equal means are ordered by coordinates.
    Raises RazError if the shapes of boxes and means do not match.
    """
    boxes = np.asarray(boxes).reshape(-1, 4) if np.size(boxes) == 0 else np.asarray(boxes)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or np.shape(means) != (len(boxes),):
        raise RazError("select_regions", f"boxes {boxes.shape} and means {np.shape(means)}, expected (m, 4) and (m,)")
    order = np.flatnonzero(means >= theta_z)
    corner = boxes[order].T
    order = order[np.lexsort((corner[3], corner[2], corner[1], corner[0], -means[order]))]
    x0, y0, x1, y1 = boxes[order].astype(np.float64).T
    area = (x1 - x0) * (y1 - y0)
    alive = np.arange(len(order))
    chosen: list[int] = []
    while len(alive) and len(chosen) < k_z:  # lower-ranked boxes need not be compared
        best, alive = alive[0], alive[1:]
        chosen.append(int(order[best]))
        across = np.minimum(x1[alive], x1[best]) - np.maximum(x0[alive], x0[best])
        down = np.minimum(y1[alive], y1[best]) - np.maximum(y0[alive], y0[best])
        common = np.maximum(across, 0.0) * np.maximum(down, 0.0)
        alive = alive[common <= iou * (area[alive] + area[best] - common)]
    return np.array(chosen, dtype=np.int64)


# ------------------------------------------------------------------------------------------------- merge


@dataclass(frozen=True)
class Points:
    """Located heads of one image. Raises RazError if the arrays' lengths differ."""

    xy: NDArray[np.float64]  # (n, 2) x, y in px of the network's input
    score: NDArray[np.float32]  # (n,)
    network: NDArray[np.int8]  # (n,) 0 Main-Net, 1 RAZ-Net
    depth: NDArray[np.int8]  # (n,) the pass that found the point, from 1

    def __post_init__(self) -> None:
        n = len(self.xy)
        if np.shape(self.xy) != (n, 2) or any(len(part) != n for part in (self.score, self.network, self.depth)):
            raise RazError(
                "points",
                f"xy {np.shape(self.xy)}, score {len(self.score)}, network {len(self.network)}, depth "
                f"{len(self.depth)}, expected (n, 2) and three times n",
            )

    def __len__(self) -> int:
        return len(self.xy)

    def take(self, selection: NDArray[np.integer | np.bool_]) -> Points:
        """The points at these indices, or where this mask is true."""
        return Points(self.xy[selection], self.score[selection], self.network[selection], self.depth[selection])


def merge_points(
    before: Points,
    regions: NDArray[np.float64],
    inside: Sequence[Points],
    height: int,
    width: int,
    *,
    zoom: float,
    border: float,
    seam: float,
) -> Points:
    """The points of one image after a zooming pass (17, 28), sorted by descending score, then y, then x.

    `before` are the points of earlier passes; `regions` (r, 4) x0, y0, x1, y1 the zoomed regions, best first; `inside`
    the points found in each region; all in input pixels of an image of `height` x `width`. `zoom` is in zoomed pixels
    per input pixel; `border` and `seam` are in zoomed pixels. A seam above 0 is at least one input pixel wide: there
    points of Main-Net meet points of a crop, and Main-Net's are whole pixels, however large the zoom.

    Every position has one owner: the best-ranked region whose core contains it, else `before`. The core of a region is
    the region without a margin of `border`, except along the edges of the image. A point is dropped unless its finder
    owns its position, so no head is counted twice inside a region. Of points of different owners nearer to each other
    than `seam`, the better-ranked one is kept. Raises RazError for bad input.
    """
    regions = np.asarray(regions, dtype=np.float64).reshape(-1, 4)
    faults: list[RazError] = []
    if len(regions) != len(inside):
        faults.append(RazError("merge_points", f"{len(regions)} regions but points of {len(inside)}"))
    if not zoom > 0:
        faults.append(RazError("merge_points", f"zoom is {zoom}, expected more than 0"))
    if border < 0 or seam < 0:
        faults.append(RazError("merge_points", f"border {border} and seam {seam}, expected 0 or more px"))
    raise_all(faults)
    cores = region_cores(regions, height, width, border / zoom)
    groups = [before, *inside]
    owned = [np.flatnonzero(_owners(group.xy, cores) == rank) for rank, group in enumerate(groups, start=-1)]
    pool = Points(
        np.concatenate([group.xy[own] for group, own in zip(groups, owned, strict=True)]),
        np.concatenate([group.score[own] for group, own in zip(groups, owned, strict=True)]),
        np.concatenate([group.network[own] for group, own in zip(groups, owned, strict=True)]),
        np.concatenate([group.depth[own] for group, own in zip(groups, owned, strict=True)]),
    )
    source = np.repeat(np.arange(-1, len(inside), dtype=np.int32), [len(own) for own in owned])
    order = np.lexsort((pool.depth, pool.network, pool.xy[:, 0], pool.xy[:, 1], -pool.score))
    pool, source = pool.take(order), source[order]
    if seam == 0:
        return pool
    seam = max(seam / zoom, 1.0)
    near_seam = np.flatnonzero(_within_seam(pool.xy, cores, seam))
    keep = np.ones(len(pool), dtype=bool)
    keep[near_seam] = _deduplicate(pool.xy[near_seam], source[near_seam], seam)
    return pool.take(keep)


def owned_points(
    points: Points, rank: int, regions: NDArray[np.float64], height: int, width: int, *, zoom: float, border: float
) -> Points:
    """The points found in region `rank` that it owns; arguments as in `merge_points`, which drops the others.

    Dropping them region by region bounds the memory for large photographs with many regions.
    """
    return points.take(_owners(points.xy, region_cores(regions, height, width, border / zoom)) == rank)


def region_cores(regions: NDArray[np.float64], height: int, width: int, border: float) -> NDArray[np.float64]:
    """The regions (r, 4) without their border; unbounded along the edges of the image."""
    core = regions.copy()
    core[:, 0] = np.where(regions[:, 0] > 0, regions[:, 0] + border, -np.inf)
    core[:, 1] = np.where(regions[:, 1] > 0, regions[:, 1] + border, -np.inf)
    core[:, 2] = np.where(regions[:, 2] < width, regions[:, 2] - border, np.inf)
    core[:, 3] = np.where(regions[:, 3] < height, regions[:, 3] - border, np.inf)
    return core


def _inside_box(x: NDArray[np.float64], y: NDArray[np.float64], box: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points lie in the box x0, y0, x1, y1, (n,)."""
    inside: NDArray[np.bool_] = (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])
    return inside


def _owners(xy: NDArray[np.float64], cores: NDArray[np.float64]) -> NDArray[np.int32]:
    """Rank of the core that owns each point, (n,); -1 where none does."""
    owner = np.full(len(xy), -1, dtype=np.int32)
    x, y = np.ascontiguousarray(xy.T)
    for rank in range(len(cores) - 1, -1, -1):  # the best region comes last and overwrites the others
        owner[_inside_box(x, y, cores[rank])] = rank
    return owner


def _within_seam(xy: NDArray[np.float64], cores: NDArray[np.float64], reach: float) -> NDArray[np.bool_]:
    """Which points lie within `reach` px of a core's edge: only they can have a neighbour of another owner."""
    near = np.zeros(len(xy), dtype=bool)
    x, y = np.ascontiguousarray(xy.T)
    wider = np.array([-reach, -reach, reach, reach])
    for core in cores:
        near |= _inside_box(x, y, core + wider) & ~_inside_box(x, y, core - wider)
    return near


def _deduplicate(xy: NDArray[np.float64], owner: NDArray[np.int32], least: float) -> NDArray[np.bool_]:
    """Which points remain, (n,), if each in order removes the later points of other owners nearer than `least` px."""
    from scipy.spatial import cKDTree  # takes half a second to import, which commands that check files avoid

    keep = np.ones(len(xy), dtype=bool)
    if len(xy) < 2:
        return keep
    pairs = cKDTree(xy).query_pairs(least, output_type="ndarray")
    pairs = pairs[owner[pairs[:, 0]] != owner[pairs[:, 1]]]
    pairs = pairs[np.hypot(*(xy[pairs[:, 0]] - xy[pairs[:, 1]]).T) < least]
    pairs.sort(axis=1)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    for start in range(0, len(pairs), BLOCK):  # all pairs as Python numbers would take ten times the memory
        for better, worse in pairs[start : start + BLOCK].tolist():
            if keep[better]:
                keep[worse] = False
    return keep
