"""Where to zoom, and how zoomed points join the others (15, 16, 17, 28)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raz.errors import RazError, raise_all

Boxes = NDArray[np.int64]
Anchor = tuple[float, float]  # height / width, and the side of the square of equal area / the image's shorter edge

_RATIOS = (1.0, 0.5, 2.0)
ANCHOR_SETS: dict[str, tuple[Anchor, ...]] = {
    "paper": tuple((ratio, scale) for scale in (1 / 3, 2 / 3) for ratio in _RATIOS),
    "square": ((1.0, 1 / 3), (1.0, 2 / 3)),
    "small": tuple((ratio, scale) for scale in (1 / 6, 1 / 3) for ratio in _RATIOS),
    "large": tuple((ratio, scale) for scale in (1 / 2, 1.0) for ratio in _RATIOS),
    "one-scale": tuple((ratio, 1 / 3) for ratio in _RATIOS),
}
SAMPLING = ("attention", "uniform")
BLOCK = 1 << 16  # pairs across a seam that are gone through at a time


# --------------------------------------------------------------------------------------------- proposals


def generator_for(seed: int, image_id: str, zoom_pass: int) -> np.random.Generator:
    """The random numbers of one image in one pass: the same on every machine, in any order of images (15)."""
    digest = hashlib.sha256(f"{seed}\n{zoom_pass}\n{image_id}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))


def candidate_regions(
    attention: NDArray[Any],
    generator: np.random.Generator,
    *,
    anchors: str = "paper",
    samples: int = 200,
    sampling: Literal["attention", "uniform"] = "attention",
) -> tuple[Boxes, NDArray[np.float64]]:
    """Boxes around sampled points of an attention map (H, W), and the mean attention in each (15, 16).

    `samples` pixels are drawn, with probability proportional to the attention or uniformly; around each, every anchor
    of the set, clipped to the map. Boxes (samples x anchors, 4) int64 are x0, y0, x1, y1 px, x1 and y1 excluded; means
    (m,) float64. A map that is 0 everywhere has no boxes under `attention`. Raises RazError on bad input, among it
    attention that is negative or not finite.
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
    integral = _integral(attention)
    uniform = generator.random((samples, 2))
    if sampling == "uniform":
        row, column = (uniform * (height, width)).astype(np.int64).T
    elif integral[-1, -1] > 0:
        row, column = _draw(attention, integral[:, -1], uniform)
    else:
        return np.zeros((0, 4), dtype=np.int64), np.zeros(0)
    boxes = _anchored(row, column, ANCHOR_SETS[anchors], height, width)
    x0, y0, x1, y1 = boxes.T
    total = integral[y1, x1] - integral[y0, x1] - integral[y1, x0] + integral[y0, x0]
    return boxes, np.maximum(total, 0.0) / ((x1 - x0) * (y1 - y0))


def _integral(attention: NDArray[Any]) -> NDArray[np.float64]:
    """Sums over all rows above and columns left of each pixel's corner, (H + 1, W + 1)."""
    height, width = attention.shape
    integral = np.empty((height + 1, width + 1))
    integral[0] = 0.0
    integral[:, 0] = 0.0
    running = np.zeros(width)
    for i in range(height):  # a row at a time stays in the cache; cumsum down the columns does not
        running += attention[i]
        np.cumsum(running, out=integral[i + 1, 1:])
    return integral


def _draw(
    attention: NDArray[Any], rows_above: NDArray[np.float64], uniform: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels (row, column) with probability proportional to the attention: first the row, then the column in it."""
    above = rows_above[1:]
    row = _invert(above, uniform[:, 0])
    column = np.empty(len(row), dtype=np.int64)
    drawn, which = np.unique(row, return_inverse=True)
    along = np.cumsum(attention[drawn], axis=1, dtype=np.float64)
    order = np.argsort(which, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(which[order])) + 1):
        column[group] = _invert(along[which[group[0]]], uniform[group, 1])
    return row, column


def _invert(cumulated: NDArray[np.float64], uniform: NDArray[np.float64]) -> NDArray[np.int64]:
    """Where the cumulated weights exceed uniform x total; never an entry of weight 0, also when that rounds up."""
    total = cumulated[-1]
    last = np.searchsorted(cumulated, total)
    drawn = np.searchsorted(cumulated, uniform * total, side="right")
    return np.asarray(np.minimum(drawn, last), dtype=np.int64)


def _anchored(
    row: NDArray[np.int64], column: NDArray[np.int64], anchors: Sequence[Anchor], height: int, width: int
) -> Boxes:
    shorter = min(height, width)
    boxes = []
    for ratio, scale in anchors:
        h = max(1, round(scale * shorter * math.sqrt(ratio)))
        w = max(1, round(scale * shorter / math.sqrt(ratio)))
        # The box of whole pixels whose middle is nearest to the pixel's centre, i + 0.5.
        x0, y0 = column - (w - 1) // 2, row - (h - 1) // 2
        boxes.append(
            np.stack(
                [np.maximum(x0, 0), np.maximum(y0, 0), np.minimum(x0 + w, width), np.minimum(y0 + h, height)], axis=1
            )
        )
    return np.stack(boxes, axis=1).reshape(-1, 4)


def select_regions(
    boxes: NDArray[Any], means: NDArray[np.float64], *, theta_z: float, iou: float, k_z: int
) -> NDArray[np.int64]:
    """Indices of the regions to zoom, best first, at most k_z (16).

    Boxes (m, 4) x0, y0, x1, y1, whole or fractional px, with mean attention below `theta_z` are dropped; of two that
    overlap by more than `iou` the one of lower mean is suppressed. Equal means rank by their coordinates. Raises
    RazError when boxes and means do not belong together.
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
    while len(alive) and len(chosen) < k_z:  # stops at k_z: what lies below is never compared
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
    """Located heads of one image: xy (n, 2) float64 px of the network's input, score (n,) float32, network (n,) int8
    (0 Main-Net, 1 RAZ-Net) and depth (n,) int8, the pass that found each."""

    xy: NDArray[np.float64]
    score: NDArray[np.float32]
    network: NDArray[np.int8]
    depth: NDArray[np.int8]

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

    def take(self, which: NDArray[Any]) -> Points:
        """The points at these indices, or where this mask is true."""
        return Points(self.xy[which], self.score[which], self.network[which], self.depth[which])


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
    """The points of one image after a zooming pass (17, 28), sorted by falling score, then y, then x.

    `before` are the points so far; `regions` (r, 4) x0, y0, x1, y1 are what was zoomed, ranked best first; `inside`
    are the points found in each region; all in input pixels of an image of `height` x `width`. `zoom` is zoomed pixels
    per input pixel; `border` and `seam` are zoomed pixels.

    Every place has one owner: the best-ranked region that holds it, else `before`. A region does not hold its outer
    `border`, except along the image's own edge. Points found by another than the owner are dropped, so nothing is
    counted twice inside a region; across a seam, of points of different owners nearer than `seam` the better-ranked
    one stays. Raises RazError on bad input.
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
    cores = _cores(regions, height, width, border / zoom)
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
    seam = seam / zoom
    beside = np.flatnonzero(_within_seam(pool.xy, cores, seam))
    keep = np.ones(len(pool), dtype=bool)
    keep[beside] = _deduplicate(pool.xy[beside], source[beside], seam)
    return pool.take(keep)


def owned_points(
    found: Points, rank: int, regions: NDArray[np.float64], height: int, width: int, *, zoom: float, border: float
) -> Points:
    """Those of the points found in region `rank` that it owns: `merge_points`, of which see the arguments, drops the
    others. Of a large photograph's many regions it keeps the memory small to drop them at once."""
    return found.take(_owners(found.xy, _cores(regions, height, width, border / zoom)) == rank)


def _cores(regions: NDArray[np.float64], height: int, width: int, border: float) -> NDArray[np.float64]:
    """The regions without their inner border; along the image's own edge they are open."""
    core = regions.copy()
    core[:, 0] = np.where(regions[:, 0] > 0, regions[:, 0] + border, -np.inf)
    core[:, 1] = np.where(regions[:, 1] > 0, regions[:, 1] + border, -np.inf)
    core[:, 2] = np.where(regions[:, 2] < width, regions[:, 2] - border, np.inf)
    core[:, 3] = np.where(regions[:, 3] < height, regions[:, 3] - border, np.inf)
    return core


def _covered(x: NDArray[np.float64], y: NDArray[np.float64], box: NDArray[np.float64]) -> NDArray[np.bool_]:
    held: NDArray[np.bool_] = (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])
    return held


def _owners(xy: NDArray[np.float64], cores: NDArray[np.float64]) -> NDArray[np.int32]:
    """Rank of the core that owns each point, -1 where none does."""
    owner = np.full(len(xy), -1, dtype=np.int32)
    x, y = np.ascontiguousarray(xy.T)
    for rank in range(len(cores) - 1, -1, -1):  # the best region comes last and takes what it holds
        owner[_covered(x, y, cores[rank])] = rank
    return owner


def _within_seam(xy: NDArray[np.float64], cores: NDArray[np.float64], reach: float) -> NDArray[np.bool_]:
    """Which points lie within `reach` of an edge of a core: only they can have a neighbour of another owner."""
    beside = np.zeros(len(xy), dtype=bool)
    x, y = np.ascontiguousarray(xy.T)
    wider = np.array([-reach, -reach, reach, reach])
    for core in cores:
        beside |= _covered(x, y, core + wider) & ~_covered(x, y, core - wider)
    return beside


def _deduplicate(xy: NDArray[np.float64], owner: NDArray[np.int32], least: float) -> NDArray[np.bool_]:
    """Which points stay when, in their order, each removes the later ones of other owners nearer than `least`."""
    from scipy.spatial import cKDTree  # half a second to import, and files are checked without it

    keep = np.ones(len(xy), dtype=bool)
    if len(xy) < 2:
        return keep
    pairs = cKDTree(xy).query_pairs(least, output_type="ndarray")
    pairs = pairs[owner[pairs[:, 0]] != owner[pairs[:, 1]]]
    pairs = pairs[np.hypot(*(xy[pairs[:, 0]] - xy[pairs[:, 1]]).T) < least]
    pairs.sort(axis=1)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    for start in range(0, len(pairs), BLOCK):  # as Python's numbers all of them would take ten times the room
        for better, worse in pairs[start : start + BLOCK].tolist():
            if keep[better]:
                keep[worse] = False
    return keep
