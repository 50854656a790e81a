"""Points from a response map: 3x3 mean, 3x3 maximum (13, 14), and a score threshold fitted to counts (13)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from raz.errors import RazError, raise_all

BLOCK = 96  # rows smoothed at a time, so that they stay in the CPU's cache


def find_peaks(response: NDArray[np.floating], floor: float) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Peaks of a response map (H, W): points (n, 2) float64 x, y px, and their scores (n,) float32 (13, 14).

    A pixel's score is the mean of the responses in its 3x3 neighbourhood, clipped to the image. A peak is a pixel whose
    score no neighbour exceeds, is at least `floor` and above 0. Adjacent peaks have equal scores and form a plateau,
    which gives one point: the pixel nearest to the plateau's centroid, the first in row-major order among equals. The
    peak in column i, row j is the point (i + 0.5, j + 0.5). Points are sorted by descending score, then y, then x.
    Raises RazError if the response is not 2-D or not finite, or `floor` is nan.
    """
    response = np.asarray(response)
    if response.ndim != 2 or response.size == 0:
        raise RazError("find_peaks", f"a response of shape {response.shape}, expected (H, W)")
    if math.isnan(floor):
        raise RazError("find_peaks", "floor is not a number, expected 0 or more")
    image = response.astype(np.float32, copy=False)
    rows, columns, scores = _local_maxima(image, floor)
    first = _one_per_plateau(rows, columns, image.shape[1])
    rows, columns, scores = rows[first], columns[first], scores[first]
    order = np.lexsort((columns, rows, -scores))
    points = np.stack([columns[order] + 0.5, rows[order] + 0.5], axis=1)
    return points, scores[order]


def fit_threshold(scores_per_image: Sequence[NDArray[np.floating]], counts: Sequence[int]) -> float:
    """The threshold t in (0, 1) that minimises the sum over images of |#(scores >= t) - count| (13).

    The minimum is exact: the sum is constant between adjacent scores, so one sort and one cumulative sum evaluate all
    intervals. Of equally good intervals, clipped to (0, 1), the widest is taken, then the highest; t is its midpoint.
    Raises RazError if the numbers of images and counts differ, a count is negative, or scores are not (n,) numbers.
    """
    faults: list[RazError] = []
    if len(scores_per_image) != len(counts):
        faults.append(RazError("fit_threshold", f"{len(scores_per_image)} images with scores but {len(counts)} counts"))
    if any(count < 0 for count in counts):
        faults.append(RazError("fit_threshold", f"a count of {min(counts)}, expected 0 or more"))
    for i, scores in enumerate(scores_per_image):
        if np.ndim(scores) != 1 or np.isnan(scores).any():
            faults.append(RazError("fit_threshold", f"scores of image {i}: expected numbers, (n,)"))
    raise_all(faults)
    pooled, changes = [np.zeros(0, np.float32)], [np.zeros(0)]
    for scores, count in zip(scores_per_image, counts, strict=True):
        falling = np.sort(np.asarray(scores, dtype=np.float32))[::-1]
        pooled.append(falling)
        # Each further point reduces this image's error until its count is reached, then increases it.
        changes.append(np.where(np.arange(len(falling)) < count, -1.0, 1.0))
    score, change = np.concatenate(pooled), np.concatenate(changes)
    order = np.argsort(-score, kind="stable")
    score, change = score[order], change[order]
    # Interval i is the thresholds in (lower[i], upper[i]], at which all scores >= upper[i] are counted.
    last = np.flatnonzero(np.append(score[1:] != score[:-1], True)) if len(score) else np.zeros(0, np.int64)
    steps = score[last]
    loss = np.append(0.0, np.cumsum(change)[last])
    one = np.float32(1.0)
    below_one = np.nextafter(one, np.float32(0.0))
    upper = np.minimum(np.append(one, steps), below_one)
    lower = np.maximum(np.append(steps, np.float32(0.0)), np.float32(0.0))
    width = upper.astype(np.float64) - lower
    legal = width > 0
    # `upper` decreases with i, so a lower index is a higher interval.
    best = min(np.flatnonzero(legal).tolist(), key=lambda i: (float(loss[i]), -float(width[i]), i))
    middle = np.float32((float(upper[best]) + float(lower[best])) / 2)  # scores are compared as float32
    return float(middle if lower[best] < middle <= upper[best] else upper[best])


def _local_maxima(
    image: NDArray[np.float32], floor: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Rows, columns (in row-major order) and scores, each (n,), of all pixels whose score no neighbour exceeds."""
    height, width = image.shape
    maxima: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = []
    # Two extra rows on each side of the block: one for the comparison, one for the means of that row.
    source = np.zeros((min(BLOCK, height) + 4, width + 2), dtype=np.float32)
    sums = np.empty((len(source) - 2, width + 2), dtype=np.float32)
    across = np.empty((len(source), width), dtype=np.float32)
    steps = [dy * (width + 2) + dx for dy, dx in ((0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1))]
    # Slightly below the floor times nine: a prefilter. The scores are compared exactly below.
    least = np.float32(max(8.9999 * floor, 0.0))
    for top in range(0, height, BLOCK):
        rows = min(BLOCK, height - top)
        low, high = max(top - 2, 0), min(top + rows + 2, height)
        peak = float(image[low:high].max())
        if not math.isfinite(peak):
            raise RazError("find_peaks", f"the response holds {peak}, expected finite numbers")
        if peak * 1.000001 < floor or peak <= 0:  # a mean can exceed the largest response by rounding only
            continue
        src, smooth, wide = source[: rows + 4], sums[: rows + 2], across[: rows + 4]
        before = low - (top - 2)  # rows of the frame above the image
        src[:before] = 0.0
        src[before : before + high - low, 1:-1] = image[low:high]
        src[before + high - low :] = 0.0
        np.add(src[:, :-2], src[:, 1:-1], out=wide)
        wide += src[:, 2:]
        inner = smooth[:, 1:-1]
        np.add(wide[:-2], wide[1:-1], out=inner)
        inner += wide[2:]
        # Nine times the mean over the pixels inside the image: 9/6 on an edge, 9/4 in a corner.
        if width == 1:
            inner *= 3.0
        else:
            inner[:, 0] *= 1.5
            inner[:, -1] *= 1.5
        if height == 1:
            inner *= 3.0
        else:
            for edge in (1 - top, height - top):  # the image's first and last row, if they are in this block
                if 0 <= edge < rows + 2:
                    inner[edge] *= 1.5
        smooth[:, 0] = smooth[:, -1] = -np.inf
        if top == 0:
            smooth[0] = -np.inf
        if top + rows == height:
            smooth[rows + 1] = -np.inf
        # Compare one neighbour after the other: about half of the remaining pixels drop out at each step.
        flat = smooth.reshape(-1)
        at = np.flatnonzero(smooth[1:-1] > least) + width + 2
        value = flat[at]
        for step in steps:
            best = np.flatnonzero(value >= flat[at + step])
            at, value = at[best], value[best]
        row, column = at // (width + 2) - 1, at % (width + 2) - 1
        score = value / np.float32(9.0)
        keep = (score >= np.float32(floor)) & (score > 0)
        maxima.append((row[keep] + top, column[keep], score[keep]))
    if not maxima:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    all_rows, columns, scores = (np.concatenate(parts) for parts in zip(*maxima, strict=True))
    return all_rows, columns, scores


def _one_per_plateau(rows: NDArray[np.int64], columns: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Indices (m,) of one maximum per group of adjacent ones; rows and columns (n,) are in row-major order."""
    n = len(rows)
    if n == 0:
        return np.arange(0)
    # Runs within a row are merged first: a flat map then has a node per row, not per pixel.
    pitch = width + 2  # two extra columns, so that the right edge is never adjacent to the left one
    flat = rows * pitch + columns
    begin = np.flatnonzero(np.append(True, np.diff(flat) != 1))
    length = np.diff(np.append(begin, n))
    start, end = flat[begin], flat[begin] + length - 1
    # the runs of the next row that overlap this run extended by one column on each side
    low = np.searchsorted(end, start + pitch - 1)
    count = np.maximum(np.searchsorted(start, end + pitch + 1, side="right") - low, 0)
    runs, links = len(begin), int(count.sum())
    if runs == n and links == 0:
        return np.arange(n)
    upper = np.repeat(np.arange(runs), count)
    lower = np.arange(links) + np.repeat(low - np.cumsum(count) + count, count)
    graph = coo_array((np.ones(links, bool), (upper, lower)), shape=(runs, runs))
    number, group_of_run = connected_components(graph, directed=False)
    group = np.repeat(group_of_run, length)
    size = np.bincount(group, minlength=number)
    middle_row = np.bincount(group, rows, number) / size
    middle_column = np.bincount(group, columns, number) / size
    away = (rows - middle_row[group]) ** 2 + (columns - middle_column[group]) ** 2
    least = np.full(number, np.inf)
    np.minimum.at(least, group, away)
    nearest = np.flatnonzero(away == least[group])
    _, first = np.unique(group[nearest], return_index=True)
    return np.sort(nearest[first])
