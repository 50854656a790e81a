"""Differences among the cells of a filled table, paired by seed or by image, and what a table's claims come to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raz.errors import RazError
from raz.report.fill import Cell, FilledTable
from raz.report.resample import (
    LOCALIZATION_RESAMPLES,
    Resamples,
    make_resamples,
    per_image_error,
    resampled,
    standard_errors,
)
from raz.report.statistics import Effect, Over, average_by_prefix, holm, image_effect, seed_effect, summarize
from raz.spec.ablation import Claim

Floats = NDArray[np.float64]
Terms = Mapping[tuple[str, str], float]  # (row, metric) -> weight


@dataclass(frozen=True)
class JudgedClaim:
    """A claim on one data set: its sum in the paper's own numbers, and in ours."""

    claim: Claim
    metrics: tuple[str, ...]
    printed: float | None
    effect: Effect | None

    def says(self, value: float | None, sure: bool) -> str:
        if value is None or not sure:
            return "" if value is None else "cannot tell"
        return "holds" if (value < 0) == (self.claim.expect == "less") else "does not"

    @property
    def paper(self) -> str:
        """What the paper's own table shows of it."""
        return "" if self.printed is None else self.says(self.printed, sure=self.printed != 0)

    @property
    def ours(self) -> str:
        """`holds` or `does not` where the interval leaves out 0, else `cannot tell`; nothing without runs.

        Each claim is its own question, asked before the runs, so it is judged by its own interval, uncorrected.
        """
        effect = self.effect
        if effect is None:
            return ""
        sure = effect.low is not None and effect.high is not None and not effect.low <= 0 <= effect.high
        return self.says(effect.value, sure)


class EffectEstimator:
    """Differences on one data set of a filled table, `over` seeds or images; None: seeds where two are paired."""

    def __init__(self, filled: FilledTable, dataset: str, over: Over | None = None) -> None:
        self.filled, self.dataset, self.over = filled, dataset, over
        self.troubles: list[str] = []
        self._kept: dict[tuple[str, int, str], dict[str, NDArray[Any]] | None] = {}
        self._values: dict[tuple[str, int, str, str], Floats | None] = {}

    def cell(self, row: str) -> Cell:
        return self.filled.cells[row, self.dataset]

    def effect(self, terms: Terms) -> Effect | None:
        """The weighted sum of cells; None where no seed has all of them."""
        per_cell = [self.cell(row).values(metric) for row, metric in terms]
        seeds = [seed for seed in self.filled.table.seeds if all(seed in values for values in per_cell)]
        if not seeds:
            return None
        sums = [sum(w * v[seed] for w, v in zip(terms.values(), per_cell, strict=True)) for seed in seeds]
        paired = seed_effect(
            average_by_prefix((self._prefix(terms, seed), s) for seed, s in zip(seeds, sums, strict=True))
        )
        if self.over == "seeds" or (self.over is None and paired.n > 1):
            return paired
        return self._over_images(terms, seeds, float(np.mean(sums))) or paired

    def _prefix(self, terms: Terms, seed: int) -> tuple[Any, ...]:
        """What the first trained stage of a trial was seeded with; equal ones are one run."""
        row = next(iter(terms))[0]
        config = self.cell(row).config
        return (seed,) if config is None else (config.dataset, seed)

    # -------------------------------------------------------------- over images

    def _over_images(self, terms: Terms, seeds: list[int], value: float) -> Effect | None:
        splits = {metric.partition(".")[0] for _, metric in terms}
        kept = {(row, seed, split): self._arrays(row, seed, split) for row, _ in terms for seed in seeds
                for split in splits}  # fmt: skip
        ids = {tuple(arrays["ids"].tolist()) if arrays is not None else None for arrays in kept.values()}
        if len(splits) != 1 or len(ids) != 1 or None in ids:
            return None  # different images cannot be paired
        (images,) = ids
        assert images is not None
        d = make_resamples(images)
        cheap = all("@" not in metric or metric.partition("@")[2][:1].isalpha() for _, metric in terms)
        boot = self._sum(terms, seeds, "boot" if cheap else "few", d)
        if boot is None:
            return None
        spread = self._standard_errors(terms, seeds, d) if cheap else None
        return image_effect(value, boot, len(images), spread, self._permutation_null(terms, seeds, d, value))

    def _arrays(self, row: str, seed: int, split: str) -> dict[str, NDArray[Any]] | None:
        key = (row, seed, split)
        if key not in self._kept:
            try:
                self._kept[key] = self.cell(row).found[seed].per_image(split)
            except RazError as error:
                self.troubles.append(str(error))
                self._kept[key] = None
        return self._kept[key]

    def _standard_errors(self, terms: Terms, seeds: list[int], d: Resamples) -> tuple[float, Floats] | None:
        """The standard error of the weighted sum, meant over seeds, and those on every resample."""
        parts = []
        for (row, metric), weight in terms.items():
            split, _, name = metric.partition(".")
            for seed in seeds:
                arrays = self._arrays(row, seed, split)
                if arrays is None:
                    return None
                parts.append((name, arrays, weight / len(seeds)))
        once = standard_errors(parts, np.ones((1, d.boot.shape[1])))
        every = standard_errors(parts, d.boot)
        return None if once is None or every is None else (float(once[0]), every)

    def _sum(self, terms: Terms, seeds: list[int], which: str, d: Resamples) -> Floats | None:
        """The weighted sum on every resample, meant over seeds."""
        total: Floats | None = None
        for (row, metric), weight in terms.items():
            for seed in seeds:
                one = self._resampled(row, seed, metric, which, d)
                if one is None:
                    return None
                part = one * (weight / len(seeds))
                total = part if total is None else total + part
        return total

    def _resampled(self, row: str, seed: int, metric: str, which: str, d: Resamples) -> Floats | None:
        key = (row, seed, metric, which)
        if key not in self._values:
            split, _, name = metric.partition(".")
            config = self.cell(row).config
            arrays = self._arrays(row, seed, split)
            pooled = config is None or config.metrics.pool == "dataset" or "@" not in name
            weights = d.boot[:LOCALIZATION_RESAMPLES] if which == "few" else getattr(d, which)
            self._values[key] = resampled(name, arrays, weights) if arrays is not None and pooled else None
        return self._values[key]

    def _permutation_null(self, terms: Terms, seeds: list[int], d: Resamples, value: float) -> Floats | None:
        """The difference with both sides swapped in random images: of two rows, in a mean over images."""
        if len(terms) != 2 or len({m for _, m in terms}) != 1 or sorted(terms.values()) != [-1.0, 1.0]:
            return None
        metric = next(iter(terms))[1]
        split, _, name = metric.partition(".")
        error: Floats | float = 0.0
        for (row, _), weight in terms.items():
            for seed in seeds:
                arrays = self._arrays(row, seed, split)
                one = per_image_error(name, arrays) if arrays is not None else None
                if one is None:
                    return None
                error = error + one * (weight / len(seeds))
        error = np.asarray(error)
        observed = float(error.mean())
        if observed == 0:
            return None
        # of squared errors the swap decides as of their root, so the ratio to what was observed is what counts
        out: Floats = (d.signs @ error) / len(error) * (value / observed)
        return out


def differences_to_base(filled: FilledTable, dataset: str, over: Over | None = None) -> dict[tuple[str, str], Effect]:
    """(row, metric) -> its difference to the base row, corrected over the whole sheet."""
    table = filled.table
    found = EffectEstimator(filled, dataset, over)
    out = {}
    for metric in table.metrics_of(dataset):
        for row in table.run_rows:
            if row.name != table.base_row:
                effect = found.effect({(row.name, metric): 1.0, (table.base_row, metric): -1.0})
                if effect is not None:
                    out[row.name, metric] = effect
    return {key: effect for key, effect in holm(dict(out.items())).items() if isinstance(key, tuple)}


def judge_claims(
    filled: FilledTable, dataset: str, over: Over | None = None, printed: str | None = None
) -> tuple[JudgedClaim, ...]:
    """Every claim of the table on one data set, beside the numbers printed of `printed` (the same, unless told)."""
    table = filled.table
    differences = EffectEstimator(filled, dataset, over)
    found: list[tuple[Claim, tuple[str, ...], float | None]] = []
    effects: dict[int, Effect] = {}
    columns = table.metrics_of(dataset)
    for claim in table.claims:
        for metrics, terms in claim.sums():
            if any(metric not in columns for metric in metrics):
                continue
            effect = differences.effect(terms)
            if effect is not None:
                effects[len(found)] = effect
            found.append((claim, metrics, _printed(filled, printed or dataset, terms)))
    return tuple(JudgedClaim(*one, effects.get(i)) for i, one in enumerate(found))


def _printed(filled: FilledTable, dataset: str, terms: Terms) -> float | None:
    """The sum of the printed numbers; None where one is not printed, or marked as a misprint."""
    table, total = filled.table, 0.0
    for (row, metric), weight in terms.items():
        value = table.row(row).paper.get(dataset, {}).get(metric)
        if value is None or table.misprint(row, dataset, metric) is not None:
            return None
        total += weight * value
    return round(total, 6)


def best_rows(filled: FilledTable, dataset: str, over: Over | None = None) -> dict[str, str]:
    """metric -> the row that is told apart from every other row that has runs, where there is such a row."""
    table, out = filled.table, {}
    differences = EffectEstimator(filled, dataset, over)
    for metric in table.metrics_of(dataset):
        lower = lower_is_better(metric)
        means = {row.name: summarize(filled.cells[row.name, dataset].values(metric).values()).mean
                 for row in table.run_rows}  # fmt: skip
        there = {row: mean for row, mean in means.items() if mean is not None}
        if lower is None or len(there) < 2:
            continue
        best = (min if lower else max)(there, key=lambda row: there[row])
        effects = {row: differences.effect({(best, metric): 1.0, (row, metric): -1.0}) for row in there if row != best}
        told = holm({row: effect for row, effect in effects.items() if effect is not None})
        if len(told) == len(effects) and all(effect.differs for effect in told.values()):
            out[metric] = best
    return out


def lower_is_better(metric: str) -> bool | None:
    """True of errors, False of AP and AR, None of what is neither good nor bad."""
    stem = metric.partition(".")[2].partition("@")[0]
    if stem.startswith(("mae", "rmse")):
        return True
    return False if stem in ("map", "mar") or stem[:2] in ("ap", "ar") else None
