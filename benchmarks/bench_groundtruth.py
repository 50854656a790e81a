"""Ground truth: density against a Gaussian per head, labels against a convolution, attention against a k-d tree.

The k-nearest-neighbour distances of the density are given to both sides.
"""

from __future__ import annotations

import sys

import numpy as np
from _alt import Bench
from _crowd import Crowd, crowd, hard_cases
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from raz.paper import attention as att
from raz.paper import groundtruth as gt

Floats = NDArray[np.float64]
PLUS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)


def sigma_of(of: Crowd) -> Floats:
    return np.maximum(0.1 * of.distances, gt.SIGMA_FLOOR)


def exact_density(of: Crowd, stride: int, rows: int) -> Floats:
    """The first `rows` pixel rows in float64: the kernel is separable, so the sum over heads is a matrix product."""
    out = np.zeros((rows // stride, -(-of.width // stride)))
    padded = [-(-size // stride) * stride for size in (of.height, of.width)]
    for i in range(0, len(of.heads), 500):
        a, s = of.heads[i : i + 500], sigma_of(of)[i : i + 500, None]
        factors = []
        for axis, size, full in ((1, of.height, padded[0]), (0, of.width, padded[1])):
            pixel = np.arange(full) + 0.5
            g = np.exp(-(((pixel - a[:, axis, None]) / s) ** 2)) * (pixel < size)
            factors.append((g / g.sum(axis=1, keepdims=True)).reshape(len(a), -1, stride).sum(axis=2))
        out += factors[0][:, : len(out)].T @ factors[1]
    return out


def filter_per_head(of: Crowd, which: NDArray[np.int64]) -> NDArray[np.float32]:
    """The usual way: for each head an image of one 1, Gaussian-filtered, added up."""
    out = np.zeros((of.height, of.width), np.float32)
    for (x, y), sigma in zip(of.heads[which], sigma_of(of)[which], strict=True):
        one = np.zeros((of.height, of.width), np.float32)
        one[int(y), int(x)] = 1.0
        out += ndimage.gaussian_filter(one, sigma / np.sqrt(2.0), mode="constant")
    return out


def slice_per_head(of: Crowd) -> NDArray[np.float32]:
    """A careful loop: each head's window only, normalised, added to a slice."""
    out = np.zeros((of.height, of.width), np.float32)
    for (a, b), s in zip(of.heads.tolist(), sigma_of(of).tolist(), strict=True):
        x0, x1 = max(int(a - 4 * s), 0), min(int(a + 4 * s) + 1, of.width)
        y0, y1 = max(int(b - 4 * s), 0), min(int(b + 4 * s) + 1, of.height)
        gx = np.exp(-(((np.arange(x0, x1) + 0.5 - a) / s) ** 2))
        gy = np.exp(-(((np.arange(y0, y1) + 0.5 - b) / s) ** 2))
        out[y0:y1, x0:x1] += np.outer(gy / gy.sum(), gx / gx.sum())
    return out


def pooled(full: NDArray[np.float32]) -> NDArray[np.float32]:
    padded = np.pad(full, [(0, -size % 8) for size in full.shape])
    cells = padded.reshape(padded.shape[0] // 8, 8, padded.shape[1] // 8, 8)
    return np.asarray(cells.sum(axis=(1, 3)), dtype=np.float32)


def attention_by_tree(of: Crowd) -> Floats:
    """Every pixel asks the tree for its three nearest heads."""
    y, x = np.mgrid[: of.height, : of.width] + 0.5
    k = min(3, len(of.heads))
    if k == 0:
        return np.zeros((of.height, of.width))
    pixels = np.stack([x.ravel(), y.ravel()], axis=1)
    distance, _ = cKDTree(of.heads).query(pixels, k=np.arange(1, k + 1))
    mean = np.asarray(distance).mean(axis=1)
    return np.asarray(np.exp(-(mean**2) / 18.0).reshape(of.height, of.width))


def labels_by_convolution(of: Crowd) -> NDArray[np.uint8]:
    dots = np.zeros((of.height, of.width), np.uint8)
    dots[of.heads[:, 1].astype(int), of.heads[:, 0].astype(int)] = 1
    return np.asarray(ndimage.convolve(dots, PLUS, mode="constant") > 0, dtype=np.uint8)


def prove(bench: Bench, of: Crowd, *, tree: bool = True) -> None:
    for stride in (1, 8):
        rows = min(of.height, 512) // stride * stride if stride == 1 else -(-of.height // stride) * stride
        got = gt.density_map(of.heads, of.height, of.width, stride=stride, distances=of.distances)
        expected = exact_density(of, stride, rows)
        bench.exact(f"density 1/{stride} {of.name}", np.abs(got[: len(expected)] - expected).max(), 1e-6)
        total = got.sum(dtype=np.float64)
        bench.exact(f"count 1/{stride} {of.name}", abs(total - len(of.heads)) / max(len(of.heads), 1), 1e-6)
    labels = gt.head_labels(of.heads, of.height, of.width)
    bench.exact(f"labels {of.name}", float((labels != labels_by_convolution(of)).sum()), 0)
    if tree:
        attention = att.attention_map(of.heads, of.height, of.width)
        bench.exact(f"attention {of.name}", np.abs(attention - attention_by_tree(of)).max(), 1e-6)


def main() -> int:
    bench = Bench("ground truth: density, labels, attention")
    crowds = {name: crowd(name) for name in ("SHA", "Q", "Q12k")}
    for of in crowds.values():
        print(f"  {of}")
    for of in [*hard_cases(), *crowds.values()]:
        prove(bench, of)

    density = {  # (stride, size): targets against the filter per head, and against slices
        (1, "SHA"): (500, 2.5),
        (1, "Q"): (None, None),
        (8, "SHA"): (800, 4),
        (8, "Q12k"): (30_000, 12),
    }
    for (stride, name), (filter_target, slice_target) in density.items():
        of = crowds[name]
        many = 24 if name == "SHA" else 6
        # Heads at the quantiles of their distance, since the filter's cost grows with sigma.
        ranked = np.argsort(of.distances, kind="stable")
        sample = ranked[np.linspace(0, len(ranked) - 1, many).astype(np.int64)]
        shape = (-(-of.height // stride), -(-of.width // stride))

        def ours(of: Crowd = of, stride: int = stride) -> object:
            return gt.density_map(of.heads, of.height, of.width, stride=stride, distances=of.distances)

        def slices(of: Crowd = of, stride: int = stride) -> object:
            return slice_per_head(of) if stride == 1 else pooled(slice_per_head(of))

        def fill(shape: tuple[int, int] = shape) -> object:
            return np.full(shape, 0, np.float32)

        bench.compare(
            f"density 1/{stride} {name}", ours, lambda of=of, sample=sample: filter_per_head(of, sample),  # type: ignore[misc]
            against="filter per head", scale=len(of.heads) / many, target=filter_target, reps=3, floor=fill,
            work=f"{shape[0] * shape[1] * 4 / 1e6:.2f} MB",
        )  # fmt: skip
        bench.compare(f"density 1/{stride} {name}", ours, slices, against="slices", target=slice_target)

    for name, of in crowds.items():
        bench.compare(
            f"labels {name}",
            lambda of=of: gt.head_labels(of.heads, of.height, of.width),  # type: ignore[misc]
            lambda of=of: labels_by_convolution(of),  # type: ignore[misc]
            against="convolution",
            target=40,
            floor=lambda of=of: np.full((of.height, of.width), 0, np.uint8),  # type: ignore[misc]
        )
    for (name, of), target in zip(crowds.items(), (12, 60, 10), strict=True):
        bench.compare(
            f"attention {name}",
            lambda of=of: att.attention_map(of.heads, of.height, of.width),  # type: ignore[misc]
            lambda of=of: attention_by_tree(of),  # type: ignore[misc]
            against="tree at all pixels",
            target=target,
            reps=5 if name == "SHA" else 3,
            floor=lambda of=of: np.full((of.height, of.width), 0, np.float32),  # type: ignore[misc]
        )
    for name, of in crowds.items():
        # As in a study over sigma_z: kept for the largest, wanted at another.
        kept = att.attention_distances(of.heads, of.height, of.width, 3.0)
        replayed = att.attention_from_distances(kept, 2.0, 0, 0, of.height, of.width)
        fresh = att.attention_map(of.heads, of.height, of.width, 2.0)
        bench.exact(f"another sigma_z {name}", np.abs(replayed - fresh).max(), 0)
        bench.compare(
            f"another sigma_z {name}",
            lambda of=of, kept=kept: att.attention_from_distances(kept, 3.0, 0, 0, of.height, of.width),  # type: ignore[misc]
            lambda of=of: att.attention_map(of.heads, of.height, of.width, 3.0),  # type: ignore[misc]
            against="from the heads",
            target=8,
            floor=lambda of=of: np.full((of.height, of.width), 0, np.float32),  # type: ignore[misc]
            work=f"{kept.nbytes / 1e6:.1f} MB kept",
        )
    of = crowds["SHA"]
    whole = (of.heads, of.height, of.width)
    box = (304, 160, 256, 256)
    bench.compare(
        "density 1/8 of a 256 px crop SHA",
        lambda: gt.density_window(of.heads, of.distances, of.height, of.width, *box),
        lambda: gt.density_map(*whole, distances=of.distances)[20:52, 38:70],
        against="the whole map",
    )
    bench.compare(
        "labels of a 256 px crop SHA",
        lambda: gt.label_window(*whole, *box),
        lambda: gt.head_labels(*whole)[160:416, 304:560],
        against="the whole map",
    )
    bench.compare(
        "attention of a 256 px crop SHA",
        lambda: att.attention_window(*whole, *box),
        lambda: att.attention_map(*whole)[160:416, 304:560],
        against="the whole map",
    )
    return bench.done()


if __name__ == "__main__":
    sys.exit(main())
