"""A metric of a split on resampled images, from what its score keeps of each image.

Weights say how often each image is drawn: (B, images). All metrics, rows and seeds of one split are evaluated on the
same weights, so that any difference or contrast of them is paired by image.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raz.paper.metrics import THRESHOLDS

RESAMPLES = 1999
LOCALIZATION_RESAMPLES = 399  # a precision-recall curve each, so dearer
FLIPS = 1999

Floats = NDArray[np.float64]
PerImage = Mapping[str, NDArray[Any]]  # `raz.pipeline.scoring.Scores.per_image`


@dataclass(frozen=True)
class Resamples:
    """The weights of one split: resamples, and signs to swap two sides by."""

    boot: Floats  # (RESAMPLES, images)
    signs: Floats  # (FLIPS, images) of 1 and -1


@lru_cache(maxsize=4)
def make_resamples(ids: tuple[str, ...]) -> Resamples:
    """The same for the same images whoever asks, in whatever order."""
    seed = int.from_bytes(hashlib.sha256("\n".join(ids).encode()).digest()[:8], "little")
    rng, n = np.random.default_rng(seed), len(ids)
    boot = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64)
    signs = rng.choice(np.array([-1.0, 1.0]), size=(FLIPS, n))
    return Resamples(boot, signs)


_COLUMNS = {"": "fused", "density": "density", "localization": "localization", "ceiling": "ceiling"}


def per_image_error(name: str, kept: PerImage) -> Floats | None:
    """What of each image the metric averages, (images,): |error| for `mae*`, error² for `rmse*`, error for `bias`.

    None for a metric that is no mean over images. `name` is without its split, `mae_density`.
    """
    stem, _, branch = name.partition("_")
    if stem in ("mae", "rmse") and branch in _COLUMNS:
        error: Floats = kept[_COLUMNS[branch]] - kept["truth"]
        return np.abs(error) if stem == "mae" else np.square(error)
    if name == "bias":
        return np.asarray(kept["fused"] - kept["truth"], dtype=np.float64)
    zoomed: Floats = kept["regions"].sum(axis=1).astype(np.float64)
    if name == "regions_per_image":
        return zoomed
    return (zoomed > 0).astype(np.float64) if name == "images_zoomed" else None


def resampled(name: str, kept: PerImage, weights: Floats) -> Floats | None:
    """The metric on each row of `weights`, (B,); None for one that cannot be had from single images.

    A data set whose protocol scores parts by themselves (`parts`, of each image) has the mean of its parts.
    """
    stem, _, after = name.partition("@")
    error = per_image_error(stem, kept)
    if error is None:
        return _localization(stem, after, kept, weights) if after else None
    means = []
    with np.errstate(invalid="ignore"):  # a resample without any image of a part
        for inside in _parts(kept, after):
            mean = (weights[:, inside] @ error[inside]) / weights[:, inside].sum(axis=1)
            means.append(np.sqrt(mean) if stem.startswith("rmse") else mean)
    out: Floats = np.nanmean(np.stack(means), axis=0)
    return out


def _parts(kept: PerImage, only: str) -> list[NDArray[np.bool_]]:
    """Which images each part of the split has, (images,); one part of all where the protocol has none."""
    images = len(kept["truth"])
    part = kept["parts"] if len(kept.get("parts", ())) else np.full(images, "")
    return [part == one for one in ([only] if only else dict.fromkeys(part.tolist()))]


def standard_errors(terms: Sequence[tuple[str, PerImage, float]], weights: Floats) -> Floats | None:
    """The standard error of a weighted sum of metrics on each row of `weights`, (B,), by the delta method.

    `terms` are (metric without its split, what is kept of the images, weight); all of the same images. The sum's
    first-order change with image i is u_i = sum over terms of weight · g'(mean) · error_i with g the root for RMSE and
    the identity else, so its variance is that of u's mean; parts of a split add up. None where a term is no mean over
    images, or terms are of different parts.
    """
    columns, roots, scale, parts = [], [], [], set()
    for name, kept, weight in terms:
        stem, _, part = name.partition("@")
        error = per_image_error(stem, kept)
        if error is None:
            return None
        columns.append(error)
        roots.append(stem.startswith("rmse"))
        scale.append(weight)
        parts.add(part)
    if len(parts) != 1:
        return None
    errors, root, factors = np.stack(columns), np.array(roots), np.array(scale)
    insides = _parts(terms[0][1], parts.pop())
    variance = np.zeros(len(weights))
    with np.errstate(invalid="ignore", divide="ignore"):
        for inside in insides:
            drawn, of = weights[:, inside], errors[:, inside]
            images = drawn.sum(axis=1)
            means = (drawn @ of.T) / images[:, None]
            slope = np.where(root, factors / (2 * np.sqrt(means)), factors)  # (B, terms)
            change = slope @ of  # (B, images)
            centre = (slope * means).sum(axis=1)
            spread = (drawn * change**2).sum(axis=1) / images - centre**2
            variance += np.maximum(spread, 0.0) / (images - 1) / len(insides) ** 2
    return np.asarray(np.sqrt(variance))


def _localization(stem: str, sigma: str, kept: PerImage, weights: Floats) -> Floats | None:
    """AP or AR of all images' points pooled and ranked, as Table 3; see `raz.paper.metrics.localization_scores`."""
    kind, shown = (stem[1:3], "") if stem in ("map", "mar") else (stem[:2], stem[2:])
    if kind not in ("ap", "ar") or not (shown.isdigit() or stem in ("map", "mar")):
        return None
    thresholds = THRESHOLDS if not shown else (int(shown) / 100,)
    heads = weights @ kept["truth"]
    order = np.argsort(-kept["match_score"], kind="stable")
    distance, before = kept["match_distance"][order], kept["match_before"][order]
    owner = np.repeat(np.arange(len(kept["truth"])), np.diff(kept["match_ends"], prepend=0))[order]
    radii = [float(sigma) * math.sqrt(-2 * math.log(t)) for t in thresholds]
    hits = [np.flatnonzero((distance < r) & (r <= before)) for r in radii]
    out = np.zeros((len(radii), len(weights)))
    levels = np.arange(101) / 100
    for b, row in enumerate(weights):
        drawn = row[owner]
        ranked = np.cumsum(drawn) if kind == "ap" else None
        for k, at in enumerate(hits):
            if not len(at) or not heads[b]:
                continue
            found = np.cumsum(drawn[at])
            if ranked is None:
                out[k, b] = found[-1] / heads[b]
                continue
            precision = found / np.maximum(ranked[at], 1.0)
            envelope = np.maximum.accumulate(precision[::-1])[::-1]
            first = np.searchsorted(found, np.maximum(levels * heads[b] - 1e-6, 1e-6))
            out[k, b] = envelope[first[first < len(at)]].sum() / 101
    mean: Floats = out.mean(axis=0)
    return mean
