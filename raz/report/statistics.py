"""Numbers over seeds: mean, standard deviation, how many, and the difference from what is printed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Over n seeds; `mean` is None for none, `sd` (of the sample, n - 1) for fewer than two."""

    n: int
    mean: float | None
    sd: float | None


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


def difference(summary: Summary, printed: float | None) -> float | None:
    """mean - printed, where both are there."""
    return None if summary.mean is None or printed is None else summary.mean - printed


def prediction_interval(summary: Summary, level: float = 0.95) -> tuple[float, float] | None:
    """Where one more run would fall: mean ± t(n - 1) * sd * sqrt(1 + 1/n); None for fewer than two runs.

    The printed number is one run, so this, not the interval of the mean, is what it is held to.
    """
    if summary.mean is None or summary.sd is None:
        return None
    from scipy.stats import t

    half = float(t.ppf((1 + level) / 2, summary.n - 1)) * summary.sd * math.sqrt(1 + 1 / summary.n)
    return summary.mean - half, summary.mean + half


def verdict(summary: Summary, printed: float | None) -> str:
    """`agrees` when the printed number lies in the prediction interval, `differs` when not, else nothing."""
    interval = prediction_interval(summary)
    if interval is None or printed is None:
        return ""
    return "agrees" if interval[0] <= printed <= interval[1] else "differs"
