"""Statistics of a table: means over seeds, paired differences with intervals, tests, comparison with printed numbers.

Two populations, never mixed. *Over seeds*: what training again would give; Student t on differences paired by seed.
*Over images*: what these trained models would give on other images of the same kind; a bootstrap on differences paired
by image. Every interval names its population. Each interval has 95 % coverage by itself; `differs` is decided after
Holm's correction over everything that is compared together.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal, TypeVar

import numpy as np

from raz.report.per_image import Floats

LEVEL = 0.95
MIN_SEEDS_FOR_P = 6  # seeds from which on a p-value is shown
MIN_RUNS_TO_AGREE = 3  # the prediction interval of two runs is so wide that nearly every number lies in it

Over = Literal["seeds", "images"]
Key = TypeVar("Key", bound=Hashable)


class Verdict(StrEnum):
    """How the printed number compares with our runs."""

    AGREES = "agrees"
    DIFFERS = "differs"
    TOO_FEW_RUNS = "too few runs"
    MISSING = ""  # no runs, or no printed number


class EffectVerdict(StrEnum):
    """What a paired difference shows after Holm's correction."""

    ONE_RUN = "one run"
    SAME = "the same"  # every pair has the difference 0
    DIFFERS = "differs"
    CANNOT_TELL = "cannot tell"


@dataclass(frozen=True)
class Summary:
    """Of n independent runs: `mean` is None for n = 0, `sd` (sample standard deviation, n - 1) for n < 2."""

    n: int
    mean: float | None
    sd: float | None


@dataclass(frozen=True)
class Effect:
    """A paired difference with its 95 % interval; `p` tests that it is 0, before correction."""

    over: Over
    n: int  # seeds or images
    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    adjusted: float | None = None  # p after `holm`

    @property
    def differs(self) -> bool:
        """Whether the difference is not 0 at 5 %, after the correction."""
        return self.adjusted is not None and self.adjusted < 1 - LEVEL

    @property
    def same(self) -> bool:
        """Whether all seeds, or all images, have the difference 0: two rows that share what the metric measures."""
        return self.value == self.low == self.high == 0

    @property
    def verdict(self) -> EffectVerdict:
        """The verdict at 5 %, after the correction; ONE_RUN where there is no p."""
        if self.p is None:
            return EffectVerdict.ONE_RUN
        if self.same:
            return EffectVerdict.SAME
        return EffectVerdict.DIFFERS if self.differs else EffectVerdict.CANNOT_TELL

    @property
    def shown_p(self) -> float | None:
        """The corrected p over images, or over at least MIN_SEEDS_FOR_P seeds; None otherwise."""
        return self.adjusted if self.over == "images" or self.n >= MIN_SEEDS_FOR_P else None


# ------------------------------------------------------------------------------------ one cell


def summarize(values: Iterable[float]) -> Summary:
    """Mean and sample standard deviation. Raises ValueError for a value that is not finite."""
    numbers = [float(value) for value in values]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"values are {numbers}, expected finite numbers")
    n = len(numbers)
    if not n:
        return Summary(0, None, None)
    mean = math.fsum(numbers) / n
    if n == 1:
        return Summary(1, mean, None)
    return Summary(n, mean, math.sqrt(math.fsum((x - mean) ** 2 for x in numbers) / (n - 1)))


def average_by_prefix(values: Iterable[tuple[Hashable, float]]) -> list[float]:
    """The mean of each trained prefix: trials that share their first trained stage count as one independent run.

    values: (prefix, value). Returns one mean a prefix, in the order in which the prefixes first appear.
    """
    groups: dict[Hashable, list[float]] = {}
    for prefix, value in values:
        groups.setdefault(prefix, []).append(value)
    return [math.fsum(group) / len(group) for group in groups.values()]


# ------------------------------------------------------------------------------------ the printed number


def difference(summary: Summary, printed: float | None) -> float | None:
    """mean - printed; None where one of them is missing."""
    return None if summary.mean is None or printed is None else summary.mean - printed


def prediction_interval(summary: Summary, level: float = LEVEL) -> tuple[float, float] | None:
    """The interval of one more run: mean ± t(n - 1) * sd * sqrt(1 + 1/n); None for fewer than two runs.

    The printed number is a single run, so it is compared with this interval and not with that of the mean.
    """
    if summary.mean is None or summary.sd is None:
        return None
    from scipy.stats import t

    half = float(t.ppf((1 + level) / 2, summary.n - 1)) * summary.sd * math.sqrt(1 + 1 / summary.n)
    return summary.mean - half, summary.mean + half


def verdict(summary: Summary, printed: float | None) -> Verdict:
    """DIFFERS where the printed number lies outside the prediction interval, AGREES where it lies inside that of at
    least MIN_RUNS_TO_AGREE runs, else TOO_FEW_RUNS; MISSING without runs or without a printed number."""
    if summary.mean is None or printed is None:
        return Verdict.MISSING
    interval = prediction_interval(summary)
    if interval is not None and not interval[0] <= printed <= interval[1]:
        return Verdict.DIFFERS
    return Verdict.AGREES if summary.n >= MIN_RUNS_TO_AGREE else Verdict.TOO_FEW_RUNS


# ------------------------------------------------------------------------------------ paired differences


def seed_effect(differences: Sequence[float]) -> Effect:
    """Student t on differences paired by seed; interval and p from two seeds on.

    Population: trainings with other seeds, same settings and same data; their differences are assumed normal.
    Raises ValueError for an empty sequence.
    """
    if not differences:
        raise ValueError("no differences, expected one or more")
    values = np.asarray(differences, dtype=np.float64)
    n, mean = len(values), float(values.mean())
    if n < 2:
        return Effect("seeds", n, mean)
    if float(np.ptp(values)) == 0.0:  # no variance: t is 0/0 or infinite
        return Effect("seeds", n, mean, mean, mean, 1.0 if mean == 0 else 0.0)
    from scipy.stats import ttest_1samp

    result = ttest_1samp(values, 0.0)
    interval = result.confidence_interval(LEVEL)
    return Effect("seeds", n, mean, float(interval.low), float(interval.high), float(result.pvalue))


def image_effect(
    value: float, resampled: Floats, images: int, errors: tuple[float, Floats] | None = None,
    permuted: Floats | None = None,
) -> Effect:  # fmt: skip
    """A bootstrap over images of a difference `value`.

    resampled: (B,) the difference on B resamples of the images. errors: the standard error of `value`, and (B,) those
    of the resampled differences. permuted: (F,) the difference with both sides swapped in random images.

    With `errors` the interval is the symmetric bootstrap-t: value ± q · error, q the 95 % quantile of
    |resampled - value| / its own error (Hall 1988); without, the percentile interval. p is that of the permutation
    test with `permuted`, else the bootstrap's. Population: images of the same kind, with the given models.
    In simulations with skewed errors, as crowds give them, the interval covered 94 to 97 % of MAE's differences from
    20 images on, and 90 to 98 % of RMSE's, which few large errors dominate, from 60 on (BCa: 88 to 94 %, and 87 to
    92 %).
    """
    if images < 2:
        return Effect("images", images, value)
    ratios = _ratios(value, resampled, errors) if errors is not None else np.zeros(0)
    resampled_finite = resampled[np.isfinite(resampled)]  # a resample may hold nothing that the metric is of
    if not len(resampled_finite):
        return Effect("images", images, value)
    low, high = _percentiles(resampled_finite, (1 - LEVEL) / 2, (1 + LEVEL) / 2)
    if errors is not None and len(ratios):
        half = float(np.quantile(ratios, LEVEL)) * errors[0]
        low, high = value - half, value + half
    if permuted is not None:
        extreme = int((np.abs(permuted) >= abs(value) * (1 - 1e-12)).sum())
        p = (extreme + 1) / (len(permuted) + 1)
    elif errors is not None and len(ratios):
        p = (int((ratios * errors[0] >= abs(value)).sum()) + 1) / (len(ratios) + 1)
    else:
        beyond = min(int((resampled_finite <= 0).sum()), int((resampled_finite >= 0).sum()))
        p = min(1.0, 2 * (beyond + 1) / (len(resampled_finite) + 1))
    return Effect("images", images, value, low, high, p)


def _ratios(value: float, resampled: Floats, errors: tuple[float, Floats]) -> Floats:
    """|resampled - value| / its own standard error, of the resamples where both are finite; (<= B,)."""
    error, resampled_errors = errors
    usable = np.isfinite(resampled) & np.isfinite(resampled_errors) & (resampled_errors > 0)
    if not np.isfinite(error) or error <= 0 or not usable.any():
        return np.zeros(0)
    return np.asarray(np.abs(resampled[usable] - value) / resampled_errors[usable])


def _percentiles(values: Floats, low: float, high: float) -> tuple[float, float]:
    a, b = np.quantile(values, [low, high])
    return float(a), float(b)


def holm(effects: Mapping[Key, Effect]) -> dict[Key, Effect]:
    """The same effects with `adjusted` set: Holm's step-down correction over those that have a p."""
    tested = sorted(
        ((effect.p, i, key) for i, (key, effect) in enumerate(effects.items()) if effect.p is not None),
        key=lambda each: each[:2],
    )
    out, running = dict(effects), 0.0
    for rank, (p, _, key) in enumerate(tested):
        running = max(running, min(1.0, (len(tested) - rank) * p))
        out[key] = replace(effects[key], adjusted=running)
    return out
