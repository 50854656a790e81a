"""Peaks of a response map against scipy's filters, which return every member of a plateau."""

from __future__ import annotations

import sys

import numpy as np
from _alt import Bench
from _crowd import crowd, hard_cases, response
from numpy.typing import NDArray
from scipy import ndimage

from raz.paper.peaks import find_peaks, fit_threshold

FLOOR = 0.05


def by_filters(image: NDArray[np.float32]) -> NDArray[np.int64]:
    """Rows and columns of the local maxima of the 3x3 mean, by two filters."""
    mean = ndimage.uniform_filter(image, 3, mode="constant")
    count = np.full(image.shape, 9.0, np.float32)
    count[[0, -1]] /= 1.5
    count[:, [0, -1]] /= 1.5
    mean *= 9 / count
    return np.argwhere((mean == ndimage.maximum_filter(mean, 3, mode="nearest")) & (mean >= FLOOR))


def in_float64(image: NDArray[np.float32]) -> set[tuple[int, int]]:
    """The same set from exact means."""
    padded, ones = np.pad(image.astype(np.float64), 1), np.pad(np.ones(image.shape), 1)
    height, width = image.shape
    windows = [(i, j) for i in range(3) for j in range(3)]
    total, count = np.zeros(image.shape), np.zeros(image.shape)
    for i, j in windows:
        total += padded[i : i + height, j : j + width]
        count += ones[i : i + height, j : j + width]
    mean = np.pad(total / count, 1, constant_values=-1.0)
    inner = mean[1:-1, 1:-1]
    best = np.maximum.reduce([mean[i : i + height, j : j + width] for i, j in windows])
    return {(int(r), int(c)) for r, c in np.argwhere((inner == best) & (inner >= FLOOR))}


def threshold_by_trying(scores: list[NDArray[np.float32]], counts: list[int]) -> float:
    """Every score tried as a threshold: the least error."""
    tries = np.unique(np.concatenate(scores))
    return min(sum(abs(int((s >= t).sum()) - c) for s, c in zip(scores, counts, strict=True)) for t in tries[tries < 1])


def main() -> int:
    bench = Bench("peaks: 3x3 mean, 3x3 maximum, plateaus merged")
    for name, target in (("SHA", 4), ("Q", 10), ("Q12k", None)):
        of = crowd(name)
        print(f"  {of}")
        image = response(of)
        points, _ = find_peaks(image, FLOOR)
        got = {(int(y), int(x)) for x, y in points.tolist()}
        # The random noise leaves no ties, so the sets must be equal.
        bench.exact(f"peaks {name} ({len(got)})", float(len(got ^ in_float64(image))), 0)
        bench.compare(
            f"peaks {name}",
            lambda image=image: find_peaks(image, FLOOR),  # type: ignore[misc]
            lambda image=image: by_filters(image),  # type: ignore[misc]
            against="scipy filters",
            target=target,
            floor=lambda image=image: image.copy(),  # type: ignore[misc]
            work=f"{image.nbytes / 1e6:.1f} MB read",
        )
    for of in hard_cases():
        if len(of.heads):
            image = response(of)
            got = {(int(y), int(x)) for x, y in find_peaks(image, FLOOR)[0].tolist()}
            bench.exact(f"peaks {of.name}", float(len(got ^ in_float64(image))), 0)
    rng = np.random.default_rng(3)
    counts = rng.integers(5, 60, 20).tolist()
    scores = [rng.random(c + 20).astype(np.float32) for c in counts]
    t = fit_threshold(scores, counts)
    error = sum(abs(int((s >= t).sum()) - c) for s, c in zip(scores, counts, strict=True))
    bench.exact("fitted threshold against trying all", error - threshold_by_trying(scores, counts), 0)
    bench.compare(
        f"fitted threshold, {sum(map(len, scores))} scores",
        lambda: fit_threshold(scores, counts),
        lambda: threshold_by_trying(scores, counts),
        against="trying every score",
        target=10,
        reps=5,
    )
    return bench.done()


if __name__ == "__main__":
    sys.exit(main())
