"""Ground truth from head positions: density maps (7, 8) and labels (9, Eq. 2). Attention is in raz.paper.attention.

Heads are (n, 2) float64 x, y in pixels of an image of `height` x `width` pixels (27). Each map has a `*_window` variant
that computes a crop only and equals that slice of the whole map, so the cost of a training crop depends on its size.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from raz.errors import RazError, raise_all

Heads = NDArray[np.float64]
Map = NDArray[np.float32]

Kernel = Literal["raz", "csrnet", "cell"]
KERNELS = get_args(Kernel)
CSRNET_NEIGHBOURS = 3  # k of CSRNet's kernel; its standard deviation is 0.3 times the mean distance
CSRNET_BETA = 0.3 * math.sqrt(2.0)  # std s as sigma of exp(-d^2 / sigma^2): sigma = sqrt(2) s
SIGMA_FLOOR = 0.3  # px; a narrower Gaussian could fall between pixel centres
CUTOFF = 4.0  # in sigmas; beyond it the kernel is below exp(-16) = 1.1e-7 of its peak
BUCKET_RATIO = 1.6  # heads whose kernel radii differ by less than this factor are computed together


# ------------------------------------------------------------------------------------------------- heads


def heads_inside(heads: Heads, height: int, width: int) -> tuple[Heads, int]:
    """The heads with 0 <= x < width and 0 <= y < height (27), and the number of heads dropped.

    NaN positions count as outside. Raises RazError if `heads` is not (n, 2).
    """
    points = _as_heads(heads)
    keep = _inside_mask(points, height, width)
    return points[keep], int(len(points) - keep.sum())


def mean_neighbour_distance(heads: Heads, k: int, height: int, width: int) -> NDArray[np.float64]:
    """Mean distance of each head to its k nearest other heads, (n,) float64 px (7).

    With fewer than k other heads, the mean over all of them; for a single head, (height + width) / 4. Coincident heads
    are at distance 0 of each other and all count. Raises RazError for k < 1 or heads outside the image.
    """
    points = checked_heads(heads, height, width)
    if k < 1:
        raise RazError("mean_neighbour_distance", f"k is {k}, expected 1 or more")
    n = len(points)
    if n == 0:
        return np.zeros(0)
    if n == 1:
        return np.array([(height + width) / 4.0])
    # Column 0 is the head itself or a coincident head: distance 0 either way.
    distances, _ = nearest_neighbours(cKDTree(points), points, min(k + 1, n))
    mean: NDArray[np.float64] = distances[:, 1:].mean(axis=1)
    return mean


def nearest_neighbours(
    tree: cKDTree, at: NDArray[np.floating], k: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Distances (px) and indices of the k nearest points of the tree, each (n, k), nearest first; (n, 1) for k = 1."""
    distances, which = tree.query(at, k=np.arange(1, k + 1))
    return np.asarray(distances, dtype=np.float64), np.asarray(which, dtype=np.int64)


def neighbour_count(kernel: str, k: int) -> int:
    """Number of neighbours that set a kernel's width: `k` for \"raz\", always 3 for \"csrnet\" (7)."""
    return CSRNET_NEIGHBOURS if kernel == "csrnet" else k


# ----------------------------------------------------------------------------------------------- density


def density_map(
    heads: Heads,
    height: int,
    width: int,
    *,
    stride: int = 8,
    beta: float = 0.1,
    k: int = 4,
    kernel: Kernel = "raz",
    distances: NDArray[np.float64] | None = None,
) -> Map:
    """Persons per cell of `stride` x `stride` pixels, (ceil(height/stride), ceil(width/stride)) float32 (7, 8).

    The map sums to n: each head contributes a mass of exactly 1 inside the image, weighted by exp(-d^2/sigma^2) at the
    pixel centres. `raz`: sigma = beta x mean distance to the k nearest other heads. `csrnet`: standard deviation 0.3 x
    mean distance to the 3 nearest; beta and k are ignored. sigma is at least 0.3 px. `distances` (n,) px are computed
    unless given; they are `mean_neighbour_distance` with `neighbour_count(kernel, k)`. Raises RazError for bad input.
    """
    if distances is None:
        distances = mean_neighbour_distance(heads, neighbour_count(kernel, k), height, width)
    rows, columns = -(-height // max(stride, 1)), -(-width // max(stride, 1))
    return density_window(
        heads, distances, height, width, 0, 0, rows * stride, columns * stride, stride=stride, beta=beta, kernel=kernel
    )


def density_window(
    heads: Heads,
    distances: NDArray[np.float64],
    height: int,
    width: int,
    x0: int,
    y0: int,
    h: int,
    w: int,
    *,
    stride: int = 8,
    beta: float = 0.1,
    kernel: Kernel = "raz",
) -> Map:
    """Window of `density_map` over rows [y0, y0 + h) and columns [x0, x0 + w) px, (h/stride, w/stride) float32.

    Each head's mass is normalised over the whole image, so the window equals that slice of the whole map; outside the
    image it is 0. `distances` (n,) px are those of all heads of the image. Raises RazError for bad input, and if
    x0, y0, h or w is no multiple of `stride`.
    """
    points = checked_heads(heads, height, width)
    _check_density(points, distances, (x0, y0, h, w), stride, beta, kernel)
    if kernel == "cell":
        return _heads_per_cell(points, x0, y0, h // stride, w // stride, stride)
    # The kernel, its sum over a cell and its normalisation are separable: each head adds an outer product of two
    # short vectors, and the full-resolution map is never allocated.
    sigma = np.maximum(np.asarray(distances) * (CSRNET_BETA if kernel == "csrnet" else beta), SIGMA_FLOOR)
    # At stride 1 few heads add to the same pixel, so float32 is precise enough and halves the memory.
    out = np.zeros((h // stride, w // stride), dtype=np.float64 if stride > 1 else np.float32)
    # A head's radius is rounded up to a power of BUCKET_RATIO, not to the largest radius in its bucket. So it does not
    # depend on the other heads, and a window adds exactly the same numbers as the whole map.
    bucket = np.ceil(np.log(CUTOFF * sigma) / math.log(BUCKET_RATIO)).astype(np.int64)
    for b in np.unique(bucket):
        of_bucket = np.flatnonzero(bucket == b)
        radius = BUCKET_RATIO ** float(b)
        first_y, cells_y = _cell_spans(points[of_bucket, 1], radius, stride, height)
        first_x, cells_x = _cell_spans(points[of_bucket, 0], radius, stride, width)
        first_y -= y0 // stride
        first_x -= x0 // stride
        hit = (first_y < out.shape[0]) & (first_y > -cells_y) & (first_x < out.shape[1]) & (first_x > -cells_x)
        if not hit.all():
            of_bucket, first_y, first_x = of_bucket[hit], first_y[hit], first_x[hit]
        if len(of_bucket):
            a, s = points[of_bucket], sigma[of_bucket]
            mass_y = _axis_masses(a[:, 1], s, first_y + y0 // stride, cells_y, stride, height)
            mass_x = _axis_masses(a[:, 0], s, first_x + x0 // stride, cells_x, stride, width)
            _add_products(out, first_y, first_x, mass_y, mass_x)
    return out.astype(np.float32, copy=False)


def _heads_per_cell(points: Heads, x0: int, y0: int, rows: int, cols: int, stride: int) -> Map:
    """The number of heads in each cell of a window, (rows, cols) float32: the whole mass of a head is in its cell."""
    out = np.zeros((rows, cols), np.float32)
    col, row = np.floor((points - [x0, y0]) / stride).astype(np.int64).T
    inside = (row >= 0) & (row < rows) & (col >= 0) & (col < cols)
    np.add.at(out, (row[inside], col[inside]), 1)
    return out


def _cell_spans(centre: NDArray[np.float64], radius: float, stride: int, size: int) -> tuple[NDArray[np.int64], int]:
    """First cell of each head's window along one axis (n,), and the number of cells common to all windows.

    A window contains every pixel of the image within `radius` px of its head.
    """
    total = -(-size // stride)
    cells = min(math.ceil(2 * radius / stride) + 1, total)
    first = np.floor((centre - radius) / stride).astype(np.int64)
    np.maximum(first, 0, out=first)
    return np.minimum(first, total - cells, out=first), cells


def _axis_masses(
    centre: NDArray[np.float64],
    sigma: NDArray[np.float64],
    first: NDArray[np.int64],
    cells: int,
    stride: int,
    size: int,
) -> NDArray[np.float64]:
    """Kernel along one axis, summed over each cell and normalised to sum 1 over the image, (n, cells) float64."""
    pixel = (first * stride)[:, None] + np.arange(0.5, cells * stride)
    offset = pixel - centre[:, None]
    offset /= sigma[:, None]
    np.square(offset, out=offset)
    # The exponent is computed in float64; exp in float32 is several times faster and exact to 1e-7.
    value = np.exp(-offset.astype(np.float32))
    if size % stride:
        value[pixel > size] = 0.0  # the last cell extends beyond the image
    mass: NDArray[np.float64] = value.reshape(len(centre), cells, stride).sum(axis=2).astype(np.float64)
    mass /= mass.sum(axis=1, keepdims=True)
    return mass


def _add_products(
    out: NDArray[np.float32] | NDArray[np.float64],
    first_y: NDArray[np.int64],
    first_x: NDArray[np.int64],
    mass_y: NDArray[np.float64],
    mass_x: NDArray[np.float64],
) -> None:
    """Add each head's outer product to `out` at its first cell, clipped to `out`."""
    rows, columns = out.shape
    cells_y, cells_x = mass_y.shape[1], mass_x.shape[1]
    mass_y, mass_x = mass_y.astype(out.dtype, copy=False), mass_x.astype(out.dtype, copy=False)
    if cells_y * cells_x >= 400:  # from this size on, a slice per head is faster than an index per cell
        for y, x, my, mx in zip(first_y.tolist(), first_x.tolist(), mass_y, mass_x, strict=True):
            top, left = max(-y, 0), max(-x, 0)
            my, mx = my[top : rows - y], mx[left : columns - x]
            out[y + top : y + top + len(my), x + left : x + left + len(mx)] += my[:, None] * mx
        return
    index_y = first_y[:, None] + np.arange(cells_y)
    index_x = first_x[:, None] + np.arange(cells_x)
    if first_y.min() < 0 or first_x.min() < 0 or index_y.max() >= rows or index_x.max() >= columns:
        mass_y = np.where((index_y >= 0) & (index_y < rows), mass_y, 0)
        mass_x = np.where((index_x >= 0) & (index_x < columns), mass_x, 0)
        index_y = np.minimum(np.maximum(index_y, 0), rows - 1)
        index_x = np.minimum(np.maximum(index_x, 0), columns - 1)
    index_y *= columns
    flat = out.reshape(-1)
    step = max(1, (1 << 16) // (cells_y * cells_x))  # so that the products stay in the CPU's cache
    for i in range(0, len(mass_y), step):
        part = slice(i, i + step)
        where = (index_y[part, :, None] + index_x[part, None, :]).reshape(-1)
        np.add.at(flat, where, (mass_y[part, :, None] * mass_x[part, None, :]).reshape(-1))


# ------------------------------------------------------------------------------------------------ labels


def head_labels(heads: Heads, height: int, width: int) -> NDArray[np.uint8]:
    """Binary label map (height, width) uint8: 1 on each head's pixel and its four neighbours, else 0 (9, Eq. 2).

    Raises RazError for heads outside the image.
    """
    return label_window(heads, height, width, 0, 0, height, width)


def label_window(heads: Heads, height: int, width: int, x0: int, y0: int, h: int, w: int) -> NDArray[np.uint8]:
    """Window of `head_labels` over rows [y0, y0 + h) and columns [x0, x0 + w), (h, w) uint8; 0 outside the image.

    Raises RazError as `head_labels`, and for an empty window.
    """
    points = checked_heads(heads, height, width)
    check_window((x0, y0, h, w))
    out = np.zeros((h, w), dtype=np.uint8)
    pixel = points.astype(np.int64)  # truncation equals floor: coordinates are not negative
    column, row = pixel[:, 0] - x0, pixel[:, 1] - y0
    bottom, right = min(h, height - y0), min(w, width - x0)
    top, left = max(0, -y0), max(0, -x0)
    flat = out.reshape(-1)
    for dy, dx in ((0, 0), (0, -1), (0, 1), (-1, 0), (1, 0)):
        y, x = row + dy, column + dx
        keep = (y >= top) & (y < bottom) & (x >= left) & (x < right)
        flat[y[keep] * w + x[keep]] = 1
    return out


# ------------------------------------------------------------------------------------------------ checks


def _as_heads(heads: Heads) -> Heads:
    points = np.asarray(heads, dtype=np.float64)
    if points.size == 0:
        return points.reshape(0, 2)
    if points.ndim != 2 or points.shape[1] != 2:
        raise RazError("heads", f"an array of shape {points.shape}, expected (n, 2): x, y in pixels")
    return points


def _inside_mask(points: Heads, height: int, width: int) -> NDArray[np.bool_]:
    x, y = points[:, 0], points[:, 1]
    within: NDArray[np.bool_] = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return within


def checked_heads(heads: Heads, height: int, width: int) -> Heads:
    """The heads as (n, 2) float64. Raises RazError for another shape, an empty image, or heads outside it."""
    points = _as_heads(heads)
    if height < 1 or width < 1:
        raise RazError("image", f"{height} x {width} pixels, expected at least 1 x 1")
    keep = _inside_mask(points, height, width)
    if not keep.all():
        first = points[~keep][0].tolist()
        raise RazError(
            "heads",
            f"{int((~keep).sum())} of {len(points)} outside the image of {width} x {height} px, the first at {first}",
            "drop them with heads_inside(heads, height, width)",
        )
    return points


def check_window(window: tuple[int, int, int, int]) -> None:
    """Raise RazError if the window (x0, y0, h, w) is empty."""
    if window[2] < 1 or window[3] < 1:
        raise RazError("window", f"{window[2]} x {window[3]} pixels, expected at least 1 x 1")


def _check_density(
    points: Heads,
    distances: NDArray[np.float64],
    window: tuple[int, int, int, int],
    stride: int,
    beta: float,
    kernel: str,
) -> None:
    faults: list[RazError] = []
    if stride < 1:
        faults.append(RazError("density_map", f"stride is {stride}, expected 1 or more"))
    elif any(edge % stride for edge in window):
        faults.append(RazError("density_map", f"window {window} (x0, y0, h, w), expected multiples of {stride}"))
    if not (math.isfinite(beta) and beta > 0):
        faults.append(RazError("density_map", f"beta is {beta}, expected more than 0"))
    if kernel not in KERNELS:
        faults.append(RazError("density_map", f"kernel is {kernel!r}", "legal are " + ", ".join(KERNELS)))
    if np.shape(distances) != (len(points),):
        faults.append(RazError("density_map", f"distances of shape {np.shape(distances)}, expected ({len(points)},)"))
    elif len(points) and not (np.isfinite(distances).all() and np.min(distances) >= 0):
        faults.append(RazError("density_map", "distances with a negative or infinite value, expected px >= 0"))
    raise_all(faults)
    check_window(window)
