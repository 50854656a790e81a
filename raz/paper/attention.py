"""Attention ground truth (11), and cached distances from which a map for another sigma_z costs one exp.

Heads are (n, 2) float64 x, y in pixels of an image of `height` x `width` pixels (27), as in raz.paper.groundtruth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from raz.errors import RazError
from raz.paper.groundtruth import Heads, Map, check_window, checked_heads, nearest_neighbours

ATTENTION_NEIGHBOURS = 3
ATTENTION_FLOOR = 1e-7  # attention below this is set to 0
TILE = 16  # px; attention is computed or skipped tile by tile
TILE_RADIUS = (TILE / 2 - 0.5) * math.sqrt(2.0)  # px from a tile's centre to its farthest pixel centre
TILES_AT_ONCE = 128  # tiles per vectorised step: their arrays stay in the CPU's cache
COARSE = 2 * TILE  # px; tiles of this size are tested first
COARSE_RADIUS = (COARSE / 2 - 0.5) * math.sqrt(2.0)


def attention_map(heads: Heads, height: int, width: int, sigma_z: float = 3.0) -> Map:
    """Attention ground truth in [0, 1], (height, width) float32 (11).

    exp(-m^2 / (2 sigma_z^2)), where m is the mean distance in px from a pixel's centre to its three nearest heads, or
    to all heads if there are fewer. The map is 0 without heads. Values below 1e-7 are set to 0; the absolute error is
    below 1e-6. `sigma_z` is in px. Raises RazError for sigma_z <= 0 or heads outside the image.
    """
    return attention_window(heads, height, width, 0, 0, height, width, sigma_z)


def attention_window(
    heads: Heads, height: int, width: int, x0: int, y0: int, h: int, w: int, sigma_z: float = 3.0
) -> Map:
    """Window of `attention_map` over rows [y0, y0 + h) and columns [x0, x0 + w), (h, w) float32; 0 outside the image.

    Raises RazError as `attention_map`, and for an empty window.
    """
    window = (x0, y0, h, w)
    check_window(window)
    return attention_from_distances(_tile_distances(heads, height, width, window, sigma_z), sigma_z, *window)


@dataclass(frozen=True)
class AttentionDistances:
    """m^2 of `attention_map` for every tile where attention can exceed ATTENTION_FLOOR at `sigma_z` or below.

    `attention_from_distances` turns it into attention without the heads. Tiles lie on the image's grid of TILE px; the
    first tile's corner is `origin` (x, y). `slots` maps a tile to its index in `squares`, -1 where attention is 0.
    """

    height: int
    width: int
    sigma_z: float  # px
    origin: tuple[int, int]
    slots: NDArray[np.int32]  # (rows, columns) of tiles
    squares: Map  # (t, TILE, TILE) px^2

    @property
    def nbytes(self) -> int:
        """Bytes of both arrays."""
        return self.slots.nbytes + self.squares.nbytes


def attention_distances(heads: Heads, height: int, width: int, sigma_z: float = 3.0) -> AttentionDistances:
    """Distances of the whole image, for `attention_from_distances` at any sigma_z up to this one (px).

    About 1 kB per tile near a head: 1 to 2 MB for a photograph with 500 heads. Raises RazError as `attention_map`.
    """
    return _tile_distances(heads, height, width, (0, 0, height, width), sigma_z)


def attention_from_distances(distances: AttentionDistances, sigma_z: float, x0: int, y0: int, h: int, w: int) -> Map:
    """`attention_window` from cached distances, (h, w) float32, bit for bit. May be a view of a larger array.

    Raises RazError for a sigma_z above the one that the distances were computed for, and for an empty window.
    """
    _check_sigma(sigma_z)
    check_window((x0, y0, h, w))
    if sigma_z > distances.sigma_z:
        raise RazError(
            "attention_from_distances", f"sigma_z is {sigma_z}, the distances serve up to {distances.sigma_z} px"
        )
    (left, top), (rows, columns) = distances.origin, distances.slots.shape
    # tiles that overlap the window
    r0, r1 = max((max(y0, 0) - top) // TILE, 0), min(-(-(min(y0 + h, distances.height) - top) // TILE), rows)
    c0, c1 = max((max(x0, 0) - left) // TILE, 0), min(-(-(min(x0 + w, distances.width) - left) // TILE), columns)
    if r0 >= r1 or c0 >= c1:
        return np.zeros((h, w), dtype=np.float32)
    row, column = np.nonzero(distances.slots[r0:r1, c0:c1] >= 0)
    slots = distances.slots[r0 + row, c0 + column]
    grid = np.zeros((r1 - r0, TILE, c1 - c0, TILE), dtype=np.float32)
    tiles = grid.transpose(0, 2, 1, 3)
    factor, farthest = np.float32(-0.5 / sigma_z**2), np.float32(_floor_distance(sigma_z) ** 2)
    for i in range(0, len(slots), TILES_AT_ONCE):
        squares = distances.squares[slots[i : i + TILES_AT_ONCE]]
        values = np.exp(squares * factor)
        values *= squares <= farthest
        tiles[row[i : i + TILES_AT_ONCE], column[i : i + TILES_AT_ONCE]] = values
    # crop the tiles to the window and the image; pad where the window reaches beyond the tiles
    y, x = r0 * TILE + top, c0 * TILE + left
    bottom, right = min(y0 + h, distances.height), min(x0 + w, distances.width)
    inside = grid.reshape((r1 - r0) * TILE, (c1 - c0) * TILE)[max(y0 - y, 0) : bottom - y, max(x0 - x, 0) : right - x]
    if inside.shape == (h, w):
        return inside
    out = np.zeros((h, w), dtype=np.float32)
    y, x = max(y - y0, 0), max(x - x0, 0)
    out[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return out


def _floor_distance(sigma_z: float) -> float:
    """Mean distance (px) at which attention equals ATTENTION_FLOOR."""
    return sigma_z * math.sqrt(2.0 * math.log(1.0 / ATTENTION_FLOOR))


def _tile_distances(
    heads: Heads, height: int, width: int, window: tuple[int, int, int, int], sigma_z: float
) -> AttentionDistances:
    """Distances in the tiles that overlap the window (x0, y0, h, w).

    The mean distance m is 1-Lipschitz. So a tile whose centre has m > `reach` + the tile's radius stays below
    ATTENTION_FLOOR and is skipped. For the other tiles, a few candidate heads contain every pixel's three nearest.
    """
    points = checked_heads(heads, height, width)
    _check_sigma(sigma_z)
    x0, y0, h, w = window
    nearest = min(ATTENTION_NEIGHBOURS, len(points))
    reach = _floor_distance(sigma_z)
    # Tiles lie on the image's grid, so a window skips exactly the tiles that the whole image skips.
    left, top = max(x0, 0) // COARSE * COARSE, max(y0, 0) // COARSE * COARSE
    right, bottom = min(x0 + w, width), min(y0 + h, height)
    nothing = AttentionDistances(
        height, width, sigma_z, (0, 0), np.zeros((0, 0), np.int32), np.zeros((0, TILE, TILE), np.float32)
    )
    if nearest == 0 or max(x0, 0) >= right or max(y0, 0) >= bottom:
        return nothing
    # A pixel's third nearest head may be three times as far away as the mean of the three.
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
    distance, _ = nearest_neighbours(tree, tiles + COARSE / 2, nearest)
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
        distance, which = nearest_neighbours(tree, tiles + TILE / 2, k)
        keep = distance[:, :nearest].mean(axis=1) <= reach + TILE_RADIUS
        tiles, distance, which = tiles[keep], distance[keep], which[keep]
        # The nearest heads of every pixel lie within (distance of the centre's third head + 2 radii) of the centre.
        enough = distance[:, nearest - 1] + 2 * TILE_RADIUS
        done = (distance[:, -1] > enough) | (k == len(points))
        need = np.maximum((distance <= enough[:, None]).sum(axis=1), nearest)
        ready = np.flatnonzero(done)
        ready = ready[np.argsort(need[ready], kind="stable")]  # tiles with similar candidate counts share a block
        slots[(tiles[ready, 1] - top) // TILE, (tiles[ready, 0] - left) // TILE] = np.arange(count, count + len(ready))
        count += len(ready)
        for i in range(0, len(ready), 32):
            block = ready[i : i + 32]
            used = which[block, : int(need[block[-1]])]
            squares.append(_tile_squares(points[used] - tiles[block][:, None, :], nearest))
        tiles = tiles[~done]
        k = k * 5 // 2
    return AttentionDistances(height, width, sigma_z, (left, top), slots, np.concatenate([nothing.squares, *squares]))


def _tile_squares(candidates: NDArray[np.float64], nearest: int) -> Map:
    """m^2 of tiles, (t, TILE, TILE) px^2, from candidate heads (t, k, 2) in px relative to each tile's corner."""
    # float32 is precise enough for positions relative to the tile; absolute positions would lose 1e-5.
    near = candidates.astype(np.float32)
    centre = np.arange(TILE, dtype=np.float32) + np.float32(0.5)
    dx = np.square(centre - near[:, :, 0, None])
    dy = np.square(centre - near[:, :, 1, None])
    shape = (len(near), TILE, TILE)
    least = [np.full(shape, np.inf, dtype=np.float32) for _ in range(nearest)]
    value, larger = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.float32)
    for j in range(near.shape[1]):
        np.add(dy[:, j, :, None], dx[:, j, None, :], out=value)
        for i in range(nearest):  # insert into the sorted minima and pass the larger value on
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
