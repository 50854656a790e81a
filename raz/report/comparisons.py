"""Paired differences between the cells of a filled table, and the verdicts on the table's claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from raz.errors import RazError
from raz.report.fill import FilledTable, TableCell
from raz.report.per_image import Floats, PerImage
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
from raz.spec.metric_names import LOCALIZATION_METRICS, ONE_TO_ONE_METRICS

Terms = Mapping[tuple[str, str], float]  # (row, metric) -> weight of a weighted sum of cells


class ClaimVerdict(StrEnum):
    """Whether numbers support a claim."""

    HOLDS = "holds"
    DOES_NOT = "does not"
    CANNOT_TELL = "cannot tell"
    MISSING = ""  # a number of the claim is missing


@dataclass(frozen=True)
class JudgedClaim:
    """A claim on one data set: its weighted sum of the printed numbers, and of ours; None where a number is missing."""

    claim: Claim
    metrics: tuple[str, ...]
    printed: float | None
    effect: Effect | None

    def _judge(self, value: float | None, decided: bool) -> ClaimVerdict:
        if value is None:
            return ClaimVerdict.MISSING
        if not decided:
            return ClaimVerdict.CANNOT_TELL
        return ClaimVerdict.HOLDS if (value < 0) == (self.claim.expect == "less") else ClaimVerdict.DOES_NOT

    @property
    def paper(self) -> ClaimVerdict:
        """The verdict of the printed numbers."""
        return self._judge(self.printed, decided=self.printed != 0)

    @property
    def ours(self) -> ClaimVerdict:
        """The verdict of our runs: decided where the 95 % interval excludes 0.

        Each claim is stated before the runs, so its interval is not corrected for the other claims.
        """
        effect = self.effect
        if effect is None:
            return ClaimVerdict.MISSING
        decided = effect.low is not None and effect.high is not None and not effect.low <= 0 <= effect.high
        return self._judge(effect.value, decided)


class EffectEstimator:
    """Estimates weighted sums of the cells of one data set, with intervals over seeds or images (`over`).

    With None, intervals are over seeds where at least two are paired, else over images. Per-image arrays and resampled
    metrics are cached, since many sums share them.
    """

    def __init__(self, filled: FilledTable, dataset: str, over: Over | None = None) -> None:
        self.filled, self.dataset, self.over = filled, dataset, over
        self._images: dict[tuple[str, int, str], PerImage | None] = {}  # by (row, seed, split)
        self._resampled_metrics: dict[tuple[str, int, str, bool], Floats | None] = {}

    def cell(self, row: str) -> TableCell:
        """The table's cell of a row on this data set."""
        return self.filled.cells[row, self.dataset]

    def effect(self, terms: Terms) -> Effect | None:
        """The weighted sum with its interval; None where no seed has all cells."""
        per_cell = [self.cell(row).values(metric) for row, metric in terms]
        seeds = [seed for seed in self.filled.profile.seeds if all(seed in values for values in per_cell)]
        if not seeds:
            return None
        sums = [sum(w * v[seed] for w, v in zip(terms.values(), per_cell, strict=True)) for seed in seeds]
        paired = seed_effect(
            average_by_prefix((self._prefix(terms, seed), s) for seed, s in zip(seeds, sums, strict=True))
        )
        if self.over == "seeds" or (self.over is None and paired.n > 1):
            return paired
        return self._over_images(terms, seeds, float(np.mean(sums))) or paired

    def _prefix(self, terms: Terms, seed: int) -> tuple[str, int] | tuple[int]:
        """(data set, seed) of the first trained stage: trials that share it are one independent run."""
        row = next(iter(terms))[0]
        config = self.cell(row).config
        return (seed,) if config is None else (config.dataset, seed)

    # -------------------------------------------------------------- over images

    def _over_images(self, terms: Terms, seeds: Sequence[int], value: float) -> Effect | None:
        """The bootstrap over images; None where the cells have no per-image numbers of the same images."""
        splits = {metric.partition(".")[0] for _, metric in terms}
        per_cell = [self._load(row, seed, split) for row, _ in terms for seed in seeds for split in splits]
        ids = {tuple(images.ids.tolist()) if images is not None else None for images in per_cell}
        if len(splits) != 1 or len(ids) != 1 or None in ids:
            return None  # different images cannot be paired
        (images,) = ids
        assert images is not None
        resamples = make_resamples(images)
        ranked = any(_is_ranked(metric) for _, metric in terms)  # each resample takes a curve
        boot = self._resampled_sum(terms, seeds, resamples, few=ranked)
        if boot is None:
            return None
        errors = self._standard_errors(terms, seeds, resamples) if not ranked else None
        null = self._permutation_null(terms, seeds, resamples, value)
        return image_effect(value, boot, len(images), errors, null)

    def _load(self, row: str, seed: int, split: str) -> PerImage | None:
        """The per-image numbers of a trial; None where its artifact cannot be read."""
        key = (row, seed, split)
        if key not in self._images:
            try:
                self._images[key] = self.cell(row).scores[seed].per_image(split)
            except RazError:  # the difference is then taken over seeds, which the table shows
                self._images[key] = None
        return self._images[key]

    def _standard_errors(self, terms: Terms, seeds: Sequence[int], resamples: Resamples) -> tuple[float, Floats] | None:
        """The standard error of the weighted sum, averaged over seeds, and (B,) that on every resample."""
        parts = []
        for (row, metric), weight in terms.items():
            split, _, name = metric.partition(".")
            for seed in seeds:
                images = self._load(row, seed, split)
                if images is None:
                    return None
                parts.append((name, images, weight / len(seeds)))
        observed = standard_errors(parts, np.ones((1, resamples.boot.shape[1])))
        resampled_errors = standard_errors(parts, resamples.boot)
        if observed is None or resampled_errors is None:
            return None
        return float(observed[0]), resampled_errors

    def _resampled_sum(self, terms: Terms, seeds: Sequence[int], resamples: Resamples, few: bool) -> Floats | None:
        """(B,) the weighted sum on every resample, averaged over seeds; `few` takes LOCALIZATION_RESAMPLES of them."""
        total: Floats | None = None
        for (row, metric), weight in terms.items():
            for seed in seeds:
                values = self._resampled(row, seed, metric, resamples, few)
                if values is None:
                    return None
                part = values * (weight / len(seeds))
                total = part if total is None else total + part
        return total

    def _resampled(self, row: str, seed: int, metric: str, resamples: Resamples, few: bool) -> Floats | None:
        key = (row, seed, metric, few)
        if key not in self._resampled_metrics:
            split, _, name = metric.partition(".")
            config = self.cell(row).config
            images = self._load(row, seed, split)
            pooled = config is None or config.metrics.pool == "dataset" or not _is_ranked(metric)
            weights = resamples.boot[:LOCALIZATION_RESAMPLES] if few else resamples.boot
            self._resampled_metrics[key] = resampled(name, images, weights) if images is not None and pooled else None
        return self._resampled_metrics[key]

    def _permutation_null(
        self, terms: Terms, seeds: Sequence[int], resamples: Resamples, value: float
    ) -> Floats | None:
        """(F,) the difference with both sides swapped in random images.

        None unless the sum is the difference of two rows in one metric that is a mean over images.
        """
        if len(terms) != 2 or len({m for _, m in terms}) != 1 or sorted(terms.values()) != [-1.0, 1.0]:
            return None
        metric = next(iter(terms))[1]
        split, _, name = metric.partition(".")
        error: Floats | float = 0.0
        for (row, _), weight in terms.items():
            for seed in seeds:
                images = self._load(row, seed, split)
                per_image = per_image_error(name, images) if images is not None else None
                if per_image is None:
                    return None
                error = error + per_image * (weight / len(seeds))
        error = np.asarray(error)
        observed = float(error.mean())
        if observed == 0:
            return None
        # RMSE's test swaps squared errors and not their root, so results are scaled to the observed difference
        out: Floats = (resamples.signs @ error) / len(error) * (value / observed)
        return out


def differences_to_base(filled: FilledTable, dataset: str, over: Over | None = None) -> dict[tuple[str, str], Effect]:
    """(row, metric) -> its difference to the base row, Holm-corrected over all of them."""
    table = filled.table
    estimator = EffectEstimator(filled, dataset, over)
    out: dict[tuple[str, str], Effect] = {}
    for metric in table.metrics_of(dataset):
        for row in table.run_rows:
            if row.name != table.base_row:
                effect = estimator.effect({(row.name, metric): 1.0, (table.base_row, metric): -1.0})
                if effect is not None:
                    out[row.name, metric] = effect
    return holm(out)


def judge_claims(
    filled: FilledTable, dataset: str, over: Over | None = None, printed: str | None = None
) -> tuple[JudgedClaim, ...]:
    """Every claim of the table on one data set. `printed` is the data set of the printed numbers, by default the
    same."""
    table = filled.table
    estimator = EffectEstimator(filled, dataset, over)
    columns = table.metrics_of(dataset)
    out = []
    for claim in table.claims:
        for metrics, terms in claim.sums():
            if all(metric in columns for metric in metrics):
                out.append(
                    JudgedClaim(
                        claim, metrics, _printed_sum(filled, printed or dataset, terms), estimator.effect(terms)
                    )
                )
    return tuple(out)


def _printed_sum(filled: FilledTable, dataset: str, terms: Terms) -> float | None:
    """The weighted sum of the printed numbers; None where one is not printed, or marked as a misprint."""
    table, total = filled.table, 0.0
    for (row, metric), weight in terms.items():
        value = table.row(row).paper.get(dataset, {}).get(metric)
        if value is None or table.misprint(row, dataset, metric) is not None:
            return None
        total += weight * value
    return round(total, 6)


def best_rows(filled: FilledTable, dataset: str, over: Over | None = None) -> dict[str, str]:
    """Metric -> the best row, where it differs from every other row that has runs (Holm-corrected)."""
    table, out = filled.table, {}
    estimator = EffectEstimator(filled, dataset, over)
    for metric in table.metrics_of(dataset):
        lower = lower_is_better(metric)
        summaries = {row.name: summarize(filled.cells[row.name, dataset].values(metric).values())
                     for row in table.run_rows}  # fmt: skip
        means = {row: summary.mean for row, summary in summaries.items() if summary.mean is not None}
        if lower is None or len(means) < 2:
            continue
        best = (min if lower else max)(means, key=lambda row: means[row])
        effects = {row: estimator.effect({(best, metric): 1.0, (row, metric): -1.0}) for row in means if row != best}
        corrected = holm({row: effect for row, effect in effects.items() if effect is not None})
        if len(corrected) == len(effects) and all(effect.differs for effect in corrected.values()):
            out[metric] = best
    return out


def _is_ranked(metric: str) -> bool:
    """Whether a metric is of points ranked by their scores: AP and AR."""
    return metric.partition(".")[2].partition("@")[0] in LOCALIZATION_METRICS


def lower_is_better(metric: str) -> bool | None:
    """True of errors, False of AP, AR, F1, precision and recall, None of metrics without a better direction."""
    stem = metric.partition(".")[2].partition("@")[0]
    if stem.startswith(("mae", "rmse")):
        return True
    of_points = stem in ("map", "mar") or stem[:2] in ("ap", "ar") or stem in ONE_TO_ONE_METRICS
    return False if of_points else None
