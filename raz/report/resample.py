"""Metrics of a split on resampled images, computed from the per-image part of a score.

Weights say how often each image is drawn: (B, images). All metrics, rows and seeds of one split use the same weights,
so every difference or weighted sum of them is paired by image.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from raz.paper.metrics import THRESHOLDS
from raz.paper.one_to_one import QUARTILES
from raz.report.per_image import Floats, PerImage
from raz.spec.metric_names import ONE_TO_ONE_METRICS

RESAMPLES = 1999
LOCALIZATION_RESAMPLES = 399  # each needs a precision-recall curve, so they are slower
PERMUTATIONS = 1999


@dataclass(frozen=True)
class Resamples:
    """Random weights of a split's images.

    boot: (RESAMPLES, images) how often each is drawn. signs: (PERMUTATIONS, images) of 1 and -1, for the permutation
    test.
    """

    boot: Floats
    signs: Floats


@lru_cache(maxsize=4)
def make_resamples(ids: tuple[str, ...]) -> Resamples:
    """The resamples of these images. They depend on the ids alone: the generator is seeded with their hash."""
    seed = int.from_bytes(hashlib.sha256("\n".join(ids).encode()).digest()[:8], "little")
    rng, n = np.random.default_rng(seed), len(ids)
    boot = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64)
    signs = rng.choice(np.array([-1.0, 1.0]), size=(PERMUTATIONS, n))
    return Resamples(boot, signs)


_COUNT_OF_BRANCH = {"": "fused", "density": "density", "localization": "localization", "ceiling": "ceiling"}


def per_image_error(name: str, images: PerImage) -> Floats | None:
    """The number of each image that the metric averages, (images,): |error| for `mae*`, error² for `rmse*`, error for
    `bias`.

    name: the metric without its split, `mae_density` or `bias_points_q1`. Returns None for a metric that is no mean
    over images. Raises KeyError for a count that the score lacks.
    """
    stem, _, branch = name.partition("_")
    if branch.startswith("points_q") and images.one_to_one is not None:
        quartile = int(branch.removeprefix("points_q")) - 1
        error = (images.one_to_one.points - images.one_to_one.heads)[:, quartile].astype(np.float64)
        return {"mae": np.abs(error), "rmse": np.square(error), "bias": error}.get(stem)
    if stem in ("mae", "rmse") and branch in _COUNT_OF_BRANCH:
        error = images.counts[_COUNT_OF_BRANCH[branch]] - images.truth
        return np.abs(error) if stem == "mae" else np.square(error)
    if name == "gflops_per_image":
        return images.gflop
    if name == "bias":
        return np.asarray(images.counts["fused"] - images.truth, dtype=np.float64)
    zoomed: Floats = images.regions.sum(axis=1).astype(np.float64)
    if name == "regions_per_image":
        return zoomed
    return (zoomed > 0).astype(np.float64) if name == "images_zoomed" else None


def resampled(name: str, images: PerImage, weights: Floats) -> Floats | None:
    """The metric on each row of `weights`, (B,); None for one that cannot be computed from single images.

    Where the data set's protocol scores parts of a split, it is the mean over the parts.
    """
    stem, _, suffix = name.partition("@")
    error = per_image_error(stem, images)
    if error is None:
        if stem in ONE_TO_ONE_METRICS:
            return _one_to_one(stem, suffix, images, weights)
        return _localization(stem, suffix, images, weights) if suffix else None
    means = []
    with np.errstate(invalid="ignore"):  # a resample may hold no image of a part
        for inside in _parts(images, suffix):
            mean = (weights[:, inside] @ error[inside]) / weights[:, inside].sum(axis=1)
            means.append(np.sqrt(mean) if stem.startswith("rmse") else mean)
    out: Floats = np.nanmean(np.stack(means), axis=0)
    return out


def _parts(images: PerImage, only: str) -> list[NDArray[np.bool_]]:
    """A mask (images,) of each part of the split, or of the part `only`; one mask of all where there are no parts."""
    part = images.parts if images.parts is not None and len(images.parts) else np.full(len(images.truth), "")
    return [part == name for name in ([only] if only else dict.fromkeys(part.tolist()))]


def standard_errors(terms: Sequence[tuple[str, PerImage, float]], weights: Floats) -> Floats | None:
    """The standard error of a weighted sum of metrics on each row of `weights`, (B,), by the delta method.

    terms: (metric without its split, its images, weight); all of the same images. The sum's first-order change with
    image i is u_i = sum over terms of weight · g'(mean) · error_i, with g the root for RMSE and the identity else; its
    variance is that of u's mean. Variances of the parts of a split add up. Returns None where a term is no mean over
    images, or where terms are of different parts.
    """
    columns, roots, scale, parts = [], [], [], set()
    for name, images, weight in terms:
        stem, _, part = name.partition("@")
        error = per_image_error(stem, images)
        if error is None:
            return None
        columns.append(error)
        roots.append(stem.startswith("rmse"))
        scale.append(weight)
        parts.add(part)
    if len(parts) != 1:
        return None
    errors, root, factors = np.stack(columns), np.array(roots), np.array(scale)
    masks = _parts(terms[0][1], parts.pop())
    variance = np.zeros(len(weights))
    with np.errstate(invalid="ignore", divide="ignore"):
        for inside in masks:
            drawn, part_errors = weights[:, inside], errors[:, inside]
            n = drawn.sum(axis=1)
            means = (drawn @ part_errors.T) / n[:, None]
            slope = np.where(root, factors / (2 * np.sqrt(means)), factors)  # (B, terms)
            change = slope @ part_errors  # (B, images)
            centre = (slope * means).sum(axis=1)
            spread = (drawn * change**2).sum(axis=1) / n - centre**2
            variance += np.maximum(spread, 0.0) / (n - 1) / len(masks) ** 2
    return np.asarray(np.sqrt(variance))


def _one_to_one(stem: str, radius: str, images: PerImage, weights: Floats) -> Floats | None:
    """F1, precision or recall on each row of `weights`, (B,), of all images or of a quartile (`f1_q4`), as in
    `raz.paper.one_to_one.one_to_one_scores`; nan where 0/0. None for a radius that the score does not have."""
    counts = images.one_to_one
    at = counts.at(radius) if counts is not None else None
    if counts is None or at is None:
        return None
    kind, _, quartile = stem.partition("_q")
    chosen = [int(quartile) - 1] if quartile else list(range(QUARTILES))
    found, correct = (weights @ pairs[:, chosen, at].sum(axis=1) for pairs in (counts.found, counts.correct))
    heads = weights @ counts.heads[:, chosen].sum(axis=1)
    points = weights @ (counts.points[:, chosen].sum(axis=1) if quartile else counts.all_points)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = correct / points, found / heads
        f1 = 2 * precision * recall / (precision + recall)
    f1 = np.where((found + correct == 0) & (heads + points > 0), 0.0, f1)
    out: Floats = {"f1": f1, "precision": precision, "recall": recall}[kind]
    return out


def _localization(stem: str, sigma: str, images: PerImage, weights: Floats) -> Floats | None:
    """AP or AR on each row of `weights`, (B,): all images' points pooled and ranked (Table 3), see
    `raz.paper.metrics.localization_scores`. None for another metric, or without points."""
    kind, threshold = (stem[1:3], "") if stem in ("map", "mar") else (stem[:2], stem[2:])
    if kind not in ("ap", "ar") or not (threshold.isdigit() or stem in ("map", "mar")) or images.points is None:
        return None
    thresholds = THRESHOLDS if not threshold else (int(threshold) / 100,)
    heads = weights @ images.truth
    points, order = images.points, images.points.order()
    distance, before = points.distance[order], points.best_before[order]
    owner = np.repeat(np.arange(len(images.truth)), np.diff(points.ends, prepend=0))[order]
    radii = [float(sigma) * math.sqrt(-2 * math.log(t)) for t in thresholds]
    hits = [np.flatnonzero((distance < r) & (r <= before)) for r in radii]
    out = np.zeros((len(radii), len(weights)))
    levels = np.arange(101) / 100
    for b, row in enumerate(weights):
        drawn = row[owner]
        ranked = np.cumsum(drawn) if kind == "ap" else None
        for k, hit in enumerate(hits):
            if not len(hit) or not heads[b]:
                continue
            matched = np.cumsum(drawn[hit])
            if ranked is None:
                out[k, b] = matched[-1] / heads[b]
                continue
            precision = matched / np.maximum(ranked[hit], 1.0)
            envelope = np.maximum.accumulate(precision[::-1])[::-1]
            first = np.searchsorted(matched, np.maximum(levels * heads[b] - 1e-6, 1e-6))
            out[k, b] = envelope[first[first < len(hit)]].sum() / 101
    mean: Floats = out.mean(axis=0)
    return mean
