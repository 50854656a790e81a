"""AP and AR at 30 settings from one matching, against matching once a setting."""

from __future__ import annotations

import math
import sys

import numpy as np
from _alt import Bench
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from raz.paper.metrics import SIGMAS, THRESHOLDS, localization_scores, match

Floats = NDArray[np.float64]
Image = tuple[Floats, Floats, Floats]  # points (n, 2), scores (n,), heads (m, 2)

IMAGES, HEADS, SIDE = 100, 1000, 1000
LOOPED, NAIVE = 10, 4  # images of the slow baselines' samples
RADII = [(sigma, t, sigma * math.sqrt(-2 * math.log(t))) for sigma in SIGMAS for t in THRESHOLDS]


def images() -> list[Image]:
    """85 % of each crowd found, some px off, a quarter false positives, twins; 5 % of the scores tie at 1."""
    rng = np.random.default_rng(0)
    out = []
    for _ in range(IMAGES):
        heads = rng.integers(0, SIDE * 4, (HEADS, 2)) / 4
        heads[:2] = heads[2:4]
        found = heads[rng.random(HEADS) < 0.85]
        points = np.concatenate([found + rng.normal(0, 4, found.shape), rng.random((HEADS // 4, 2)) * SIDE])
        scores = np.minimum(rng.random(len(points), dtype=np.float32) * 1.05, 1.0).astype(np.float64)
        order = np.lexsort((points[:, 0], points[:, 1], -scores))
        out.append((points[order], scores[order], heads))
    return out


def average_precision(ranked: NDArray[np.bool_], heads: int) -> tuple[float, float]:
    """101-point interpolated AP and the final recall, as COCO's evaluation writes it."""
    hits = np.cumsum(ranked)
    precision = np.maximum.accumulate((hits / np.arange(1, len(ranked) + 1))[::-1])[::-1]
    at = np.searchsorted(hits * 100, np.arange(101) * heads)
    return math.fsum(precision[at[at < len(precision)]]) / 101, int(hits[-1]) / heads


def pooled(listed: list[NDArray[np.bool_]], sample: list[Image]) -> tuple[float, float]:
    """AP and AR of the images' lists ranked together (positions differ between images here)."""
    points = np.concatenate([image[0] for image in sample])
    order = np.lexsort((points[:, 0], points[:, 1], -np.concatenate([image[1] for image in sample])))
    return average_precision(np.concatenate(listed)[order], sum(len(image[2]) for image in sample))


def naive(sample: list[Image], radii: list[tuple[float, float, float]]) -> list[tuple[float, float]]:
    """Each setting anew: every point's distances to all heads, and whether its nearest is taken."""
    results = []
    for _, _, radius in radii:
        listed = []
        for points, _, heads in sample:
            taken = np.zeros(len(heads), dtype=np.bool_)
            hits = np.zeros(len(points), dtype=np.bool_)
            for i, point in enumerate(points):
                distance = np.linalg.norm(heads - point, axis=1)
                nearest = np.flatnonzero(distance == distance.min())
                free = nearest[~taken[nearest]]
                if len(free) and distance[free[0]] < radius:
                    taken[free[0]] = hits[i] = True
            listed.append(hits)
        results.append(pooled(listed, sample))
    return results


def looped(sample: list[Image]) -> list[tuple[float, float]]:
    """The nearest heads once, by a k-d tree; then a loop over the points for each setting (twins as one head)."""
    nearest = []
    for points, _, heads in sample:
        distance, at = cKDTree(heads).query(points)
        nearest.append((np.asarray(distance).tolist(), np.asarray(at).tolist()))
    results = []
    for _, _, radius in RADII:
        listed = []
        for (distance, at), (points, _, heads) in zip(nearest, sample, strict=True):
            taken = [False] * len(heads)
            hits = np.zeros(len(points), dtype=np.bool_)
            for i, (d, head) in enumerate(zip(distance, at, strict=True)):
                if d < radius and not taken[head]:
                    taken[head] = hits[i] = True
            listed.append(hits)
        results.append(pooled(listed, sample))
    return results


def ours(sample: list[Image]) -> dict[str, float]:
    return localization_scores([match(*image) for image in sample])


def nearest_only(sample: list[Image]) -> None:
    for points, _, heads in sample:
        cKDTree(heads).query(points)


def main() -> int:
    bench = Bench("localization metric: AP and AR at 3 sigmas x 10 thresholds")
    data = images()
    points = sum(len(image[0]) for image in data)
    print(f"  {IMAGES} images, {IMAGES * HEADS} heads, {points} points")
    sample = data[:2]
    matches = [match(*image) for image in sample]
    error = 0.0
    for (sigma, threshold, _), (ap, ar) in zip(RADII, naive(sample, RADII), strict=True):
        scores = localization_scores(matches, (sigma,), (threshold,))
        error = max(error, abs(scores[f"map@{sigma:g}"] - ap), abs(scores[f"mar@{sigma:g}"] - ar))
    bench.exact("30 settings against the protocol, 2 images with twins and tied scores", error, 0.0)

    work = f"{points * 5 * 8 / 1e6:.1f} MB of matches"
    bench.compare(
        "metric, k-d tree",
        lambda: ours(data),
        lambda: nearest_only(data),
        against="the nearest heads alone",
        target=0.4,  # at most 2.5 times as long
        reps=5,
        work=work,
    )
    bench.compare(
        "metric, loop",
        lambda: ours(data),
        lambda: looped(data[:LOOPED]),
        against="k-d tree once, a loop each setting",
        target=8,
        scale=IMAGES / LOOPED,
        reps=5,
    )
    bench.compare(
        "metric, naive",
        lambda: ours(data),
        lambda: naive(data[:NAIVE], RADII[:1]),
        against="all distances each setting",
        target=500,
        scale=IMAGES / NAIVE * len(RADII),
        reps=5,
    )
    cached = [match(*image) for image in data]
    bench.compare(
        "30 settings of cached matches",
        lambda: localization_scores(cached),
        lambda: ours(data),
        against="matching anew",
    )
    return bench.done()


if __name__ == "__main__":
    sys.exit(main())
