"""Intervals of counts by split-conformal inference (Vovk et al. 2005; Lei et al. 2018). No torch.

The nonconformity of a validation image is |truth - count| / s(count), its count being predicted with thresholds and
theta_f of the other folds, and s(c) = max(c, 1)^(3/4) persons. With n such values, q is the ceil((n + 1) · 0.9)-th
smallest, and the interval of a new count c is c ± q · s(c), not below 0. If a new image and the validation images are
exchangeable (drawn from one source, in no order), it holds the true count with a probability of at least 90 %, and of
at most 90 % + 1 / (n + 1) where no two values are equal. The probability is over validation images and new image
together: it says nothing of crowds of one size, nor of images from elsewhere.

Two things are not as the theorem asks. The validation images also chose the epoch of each network, and in a study the
trial, so their errors are a little smaller than those of new images. And a new image is predicted with the values
fitted on all folds, not on all but one.

The scale only shares out the width; any that does not look at the truth keeps the promise. Errors grow with the count,
but slower: on 200 further images of the generated crowd (preset `tiny`, depth 1, fused by the average) as its power
0.75. There intervals of 90 % held 96, 85 and 89 % of the sparsest, middle and densest third, at a mean width of 100
persons; with the power 1 it was 79, 93, 98 % and 132 persons, with 0 100, 91, 79 % and 109. The predicted count stands
in the scale, since a new image has no other; below one person a relative error means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

PERCENT = 90  # of new images whose true count lies in the interval
LEAST_IMAGES = -(-PERCENT // (100 - PERCENT))  # fewer values have no quantile of that rank
POWER = 0.75  # of the count, in the scale


def error_scale(count: ArrayLike) -> NDArray[np.float64]:
    """s(count): what the errors of predicted counts are divided by; at least 1."""
    return np.maximum(np.asarray(count, dtype=np.float64), 1.0) ** POWER


def quantile_rank(n: int) -> int:
    """ceil((n + 1) · 0.9): the rank, from 1, of the nonconformity that bounds the interval; above n where n < 9."""
    return -(-(n + 1) * PERCENT // 100)  # whole numbers: 0.9 is no binary fraction


@dataclass(frozen=True)
class Conformal:
    """The nonconformity values of the validation images, ascending."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, counts: Sequence[float], truth: Sequence[float]) -> Conformal:
        """From the counts of validation images that were predicted without these images, and the true ones."""
        predicted, true = np.array(counts, dtype=np.float64), np.array(truth, dtype=np.float64)
        values = np.abs(true - predicted) / error_scale(predicted)
        return cls(tuple(np.sort(values).tolist()))

    @property
    def quantile(self) -> float | None:
        """q: the half width of an interval over s(count); None for fewer than 9 images."""
        rank = quantile_rank(len(self.values))
        return self.values[rank - 1] if rank <= len(self.values) else None

    def interval(self, count: float) -> tuple[float, float] | None:
        """The interval of a predicted count, in persons, at least 0; None for fewer than 9 images."""
        q = self.quantile
        if q is None:
            return None
        half = q * float(error_scale(count))
        return max(count - half, 0.0), max(count + half, 0.0)

    def describe(self) -> str:
        """One line for people: what an interval is, or why there is none."""
        n, q = len(self.values), self.quantile
        if q is None:
            images = "image" if n == 1 else "images"
            return f"no intervals: errors of {n} validation {images}, {PERCENT} % takes at least {LEAST_IMAGES}"
        width = ", ".join(f"{c} ± {q * float(error_scale(c)):.0f}" for c in (100, 1000))
        return f"intervals: {PERCENT} %, split-conformal, from the errors of {n} validation images ({width})"
