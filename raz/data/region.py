"""Regions of interest: polygons around the part of an image that is annotated, counted and scored."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Polygon = tuple[tuple[float, float], ...]  # corners (x, y) in original px, in order; () = the whole image

# Pixels outside the region get ImageNet's mean colour, which is 0 in the network's input, as the padding is.
OUTSIDE_COLOUR = (124, 116, 104)


def in_polygon(polygon: Polygon, xy: ArrayLike) -> NDArray[np.bool_]:
    """Which of the points (n, 2) x, y px lie in the polygon, by the even-odd rule, (n,) bool; all of them for ().

    An edge belongs to the region right of it or below it, so that polygons with a common edge have no common point.
    """
    points = np.asarray(xy, dtype=np.float64).reshape(-1, 2)
    if not polygon:
        return np.ones(len(points), dtype=np.bool_)
    corners = np.asarray(polygon, dtype=np.float64)
    crossed = np.zeros(len(points), dtype=np.bool_)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        spans = (y0 <= points[:, 1]) != (y1 <= points[:, 1])
        at = x0 + (points[:, 1] - y0) * ((x1 - x0) / (y1 - y0))
        crossed ^= spans & (points[:, 0] >= at)
    return crossed


def mask(polygon: Polygon, height: int, width: int, scale: tuple[float, float] = (1.0, 1.0)) -> NDArray[np.bool_]:
    """Which pixels have their centre in the polygon, (height, width) bool; `scale` (x, y) is mask px per polygon px."""
    if not polygon:
        return np.ones((height, width), dtype=np.bool_)
    out = np.zeros((height, width), dtype=np.bool_)
    scaled = np.asarray(polygon, dtype=np.float64) * scale
    centres = np.arange(width) + 0.5
    for row in range(height):  # a row's pixels inside are those between an odd and an even crossing
        y = row + 0.5
        x0, y0 = scaled.T
        x1, y1 = np.roll(scaled, -1, axis=0).T
        spans = (y0 <= y) != (y1 <= y)
        at = np.sort(x0[spans] + (y - y0[spans]) * ((x1 - x0)[spans] / (y1 - y0)[spans]))
        out[row] = np.searchsorted(at, centres, side="right") % 2 == 1
    return out


def cell_coverage(
    polygon: Polygon, height: int, width: int, stride: int, scale: tuple[float, float]
) -> NDArray[np.float32]:
    """Fraction of each density cell's pixels in the polygon, (ceil(height/stride), ceil(width/stride)) float32.

    `scale` as in `mask`.
    """
    rows, cols = -(-height // stride), -(-width // stride)
    padded = np.zeros((rows * stride, cols * stride), dtype=np.float32)
    padded[:height, :width] = mask(polygon, height, width, scale)
    in_image = np.zeros_like(padded)
    in_image[:height, :width] = 1
    totals = in_image.reshape(rows, stride, cols, stride).sum(axis=(1, 3))
    return np.asarray(padded.reshape(rows, stride, cols, stride).sum(axis=(1, 3)) / totals, dtype=np.float32)


def polygon_area(polygon: Polygon) -> float:
    """Area in px²; 0 for collinear corners."""
    corners = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
    x, y = corners.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)
