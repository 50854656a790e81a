"""Attention ground truth (11): where the crowd is dense, and distances kept so that another sigma_z costs one exp.

Heads are float64 (n, 2): x, y in pixels of an image of `height` x `width` pixels (27), as in raz.paper.groundtruth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from raz.errors import RazError
from raz.paper.groundtruth import Map, check_window, checked, nearest_of

ATTENTION_NEIGHBOURS = 3
ATTENTION_FLOOR = 1e-7  # attention below this is written as 0
TILE = 16  # px; attention is computed or skipped by whole tiles
TILE_RADIUS = (TILE / 2 - 0.5) * math.sqrt(2.0)  # from a tile's centre to its farthest pixel centre
CACHED = 128  # tiles whose attention is computed at once
COARSE = 2 * TILE
COARSE_RADIUS = (COARSE / 2 - 0.5) * math.sqrt(2.0)


def attention_map(heads: NDArray[Any], height: int, width: int, sigma_z: float = 3.0) -> Map:
    """Where the crowd is dense, in [0, 1], (height, width) float32 (11).

    exp(-m^2 / (2 sigma_z^2)), m the mean distance in px of a pixel's centre to its three nearest heads; fewer than
    three heads: all there are; none: 0. Values below 1e-7 are written as 0; the error is under 1e-6 everywhere.
    Raises RazError on sigma_z <= 0 or heads outside the image.
    """
    return attention_window(heads, height, width, 0, 0, height, width, sigma_z)


def attention_window(
    heads: NDArray[Any], height: int, width: int, x0: int, y0: int, h: int, w: int, sigma_z: float = 3.0
) -> Map:
    """The part of `attention_map` that covers pixels [y0, y0 + h) x [x0, x0 + w), (h, w) float32; 0 beyond it."""
    window = (x0, y0, h, w)
    check_window(window)
    return attention_from(_distances(heads, height, width, window, sigma_z), sigma_z, *window)


@dataclass(frozen=True)
class Distances:
    """m^2 of `attention_map` in every tile that may hold attention above ATTENTION_FLOOR at `sigma_z` or below.

    Attention at any such sigma_z is one exp away, without a look at the heads. `slots`: which of `squares` is a
    tile's, -1 where attention is 0; tiles lie on the image's grid of TILE px, the first of them at `origin` (x, y).
    """

    height: int
    width: int
    sigma_z: float  # px
    origin: tuple[int, int]
    slots: NDArray[np.int32]  # (rows, columns)
    squares: Map  # (t, TILE, TILE) px^2

    @property
    def nbytes(self) -> int:
        return self.slots.nbytes + self.squares.nbytes


def attention_distances(heads: NDArray[Any], height: int, width: int, sigma_z: float = 3.0) -> Distances:
    """What serves `attention_from` for the whole image and every sigma_z up to this one, px.

    About 1 kB a tile that is near the crowd: 1 to 2 MB for a photograph with 500 heads. Raises RazError as
    `attention_map` does.
    """
    return _distances(heads, height, width, (0, 0, height, width), sigma_z)


def attention_from(distances: Distances, sigma_z: float, x0: int, y0: int, h: int, w: int) -> Map:
    """`attention_window` out of distances that are already known; the same bits. May be a part of a larger array.

    Raises RazError for a sigma_z beyond the one the distances were computed for, or an empty window.
    """
    _check_sigma(sigma_z)
    check_window((x0, y0, h, w))
    if sigma_z > distances.sigma_z:
        raise RazError("attention_from", f"sigma_z is {sigma_z}, the distances serve up to {distances.sigma_z} px")
    (left, top), (rows, columns) = distances.origin, distances.slots.shape
    # The tiles that the window meets.
    r0, r1 = max((max(y0, 0) - top) // TILE, 0), min(-(-(min(y0 + h, distances.height) - top) // TILE), rows)
    c0, c1 = max((max(x0, 0) - left) // TILE, 0), min(-(-(min(x0 + w, distances.width) - left) // TILE), columns)
    if r0 >= r1 or c0 >= c1:
        return np.zeros((h, w), dtype=np.float32)
    row, column = np.nonzero(distances.slots[r0:r1, c0:c1] >= 0)
    slots = distances.slots[r0 + row, c0 + column]
    grid = np.zeros((r1 - r0, TILE, c1 - c0, TILE), dtype=np.float32)
    tiles = grid.transpose(0, 2, 1, 3)
    factor, farthest = np.float32(-0.5 / sigma_z**2), np.float32(_reach(sigma_z) ** 2)
    for i in range(0, len(slots), CACHED):
        squares = distances.squares[slots[i : i + CACHED]]
        values = np.exp(squares * factor)
        values *= squares <= farthest
        tiles[row[i : i + CACHED], column[i : i + CACHED]] = values
    # The tiles may reach beyond the window and the image, and the window beyond the tiles.
    y, x = r0 * TILE + top, c0 * TILE + left
    bottom, right = min(y0 + h, distances.height), min(x0 + w, distances.width)
    known = grid.reshape((r1 - r0) * TILE, (c1 - c0) * TILE)[max(y0 - y, 0) : bottom - y, max(x0 - x, 0) : right - x]
    if known.shape == (h, w):
        return known
    out = np.zeros((h, w), dtype=np.float32)
    y, x = max(y - y0, 0), max(x - x0, 0)
    out[y : y + known.shape[0], x : x + known.shape[1]] = known
    return out


def _reach(sigma_z: float) -> float:
    """The mean distance, px, at which attention falls to the floor."""
    return sigma_z * math.sqrt(2.0 * math.log(1.0 / ATTENTION_FLOOR))


def _distances(
    heads: NDArray[Any], height: int, width: int, window: tuple[int, int, int, int], sigma_z: float
) -> Distances:
    """The distances in the tiles that meet the window (x0, y0, h, w).

    The mean distance m is 1-Lipschitz: a tile whose centre is farther than `reach` plus the tile's radius holds
    nothing above ATTENTION_FLOOR and is skipped; for the others a few candidates hold every pixel's three nearest.
    """
    points = checked(heads, height, width)
    _check_sigma(sigma_z)
    x0, y0, h, w = window
    nearest = min(ATTENTION_NEIGHBOURS, len(points))
    reach = _reach(sigma_z)
    # Tiles lie on the image's own grid, so a window decides about a tile exactly as the whole image does.
    left, top = max(x0, 0) // COARSE * COARSE, max(y0, 0) // COARSE * COARSE
    right, bottom = min(x0 + w, width), min(y0 + h, height)
    nothing = Distances(
        height, width, sigma_z, (0, 0), np.zeros((0, 0), np.int32), np.zeros((0, TILE, TILE), np.float32)
    )
    if nearest == 0 or max(x0, 0) >= right or max(y0, 0) >= bottom:
        return nothing
    # The third head of a kept tile's pixel may lie at three times the largest mean that is kept.
    margin = 3 * (reach + COARSE_RADIUS) + 2 * COARSE_RADIUS
    near = (
        (points[:, 0] >= left - margin)
        & (points[:, 0] <= right + COARSE + margin)
        & (points[:, 1] >= top - margin)
        & (points[:, 1] <= bottom + COARSE + margin)
    )
    points = points[near]
    if len(points) < nearest:
        return nothing
    tree = cKDTree(points)

    grid_x, grid_y = np.meshgrid(np.arange(left, right, COARSE), np.arange(top, bottom, COARSE))
    tiles = np.stack([grid_x.ravel(), grid_y.ravel()], axis=1)
    distance, _ = nearest_of(tree, tiles + COARSE / 2, nearest)
    tiles = tiles[distance.mean(axis=1) <= reach + COARSE_RADIUS]
    tiles = (tiles[:, None, :] + np.array([[0, 0], [TILE, 0], [0, TILE], [TILE, TILE]])).reshape(-1, 2)
    tiles = tiles[
        (tiles[:, 0] < right) & (tiles[:, 1] < bottom) & (tiles[:, 0] + TILE > x0) & (tiles[:, 1] + TILE > y0)
    ]

    slots = np.full((-(-(bottom - top) // TILE), -(-(right - left) // TILE)), -1, dtype=np.int32)
    squares: list[Map] = []
    count, k = 0, 8
    while len(tiles):
        k = min(k, len(points))
        distance, which = nearest_of(tree, tiles + TILE / 2, k)
        keep = distance[:, :nearest].mean(axis=1) <= reach + TILE_RADIUS
        tiles, distance, which = tiles[keep], distance[keep], which[keep]
        # A pixel's nearest lie within (distance of the centre's last nearest + 2 radii) of the centre.
        enough = distance[:, nearest - 1] + 2 * TILE_RADIUS
        done = (distance[:, -1] > enough) | (k == len(points))
        need = np.maximum((distance <= enough[:, None]).sum(axis=1), nearest)
        ready = np.flatnonzero(done)
        ready = ready[np.argsort(need[ready], kind="stable")]  # tiles of like need share a block
        slots[(tiles[ready, 1] - top) // TILE, (tiles[ready, 0] - left) // TILE] = np.arange(count, count + len(ready))
        count += len(ready)
        for i in range(0, len(ready), 32):
            block = ready[i : i + 32]
            used = which[block, : int(need[block[-1]])]
            squares.append(_tile_squares(points[used] - tiles[block][:, None, :], nearest))
        tiles = tiles[~done]
        k = k * 5 // 2
    return Distances(height, width, sigma_z, (left, top), slots, np.concatenate([nothing.squares, *squares]))


def _tile_squares(candidates: NDArray[np.float64], nearest: int) -> Map:
    """m^2 of tiles (t, TILE, TILE), px^2, from candidates (t, k, 2), px from each tile's corner."""
    # Relative to the tile float32 is enough; absolute positions would lose 1e-5.
    near = candidates.astype(np.float32)
    centre = np.arange(TILE, dtype=np.float32) + np.float32(0.5)
    dx = np.square(centre - near[:, :, 0, None])
    dy = np.square(centre - near[:, :, 1, None])
    shape = (len(near), TILE, TILE)
    least = [np.full(shape, np.inf, dtype=np.float32) for _ in range(nearest)]
    value, larger = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.float32)
    for j in range(near.shape[1]):
        np.add(dy[:, j, :, None], dx[:, j, None, :], out=value)
        for i in range(nearest):  # insert into the running minima, the larger one is handed on
            if i + 1 < nearest:
                np.maximum(least[i], value, out=larger)
            np.minimum(least[i], value, out=least[i])
            value, larger = larger, value
    total = np.sqrt(least[0])
    for other in least[1:]:
        total += np.sqrt(other)
    total /= np.float32(nearest)
    np.square(total, out=total)
    return total


def _check_sigma(sigma_z: float) -> None:
    if not (math.isfinite(sigma_z) and sigma_z > 0):
        raise RazError("attention_map", f"sigma_z is {sigma_z}, expected more than 0 px")
