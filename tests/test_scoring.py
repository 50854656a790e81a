"""Cross-fitting of validation scores: each fold is scored with what the other folds gave (18, 28)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from raz.config import FusionConfig, MetricsConfig, PeaksConfig
from raz.paper.fusion import KINDS, RULES, assign_folds, fit_theta
from raz.paper.zoom import Points
from raz.pipeline.scoring import Scores, SplitPredictions, score_split

Floats = NDArray[np.float64]
CENTRES = np.array([[4.0, 4.0], [12.0, 4.0], [4.0, 12.0], [12.0, 12.0]])  # of 2 x 2 cells of 8 px


def counts(seed: int, n: int) -> tuple[Floats, Floats, Floats]:
    """Counts by density, by points and in truth, (n, 4); the density counts are whole quarters."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 6, (n, 4)).astype(float)
    return truth + rng.integers(-3, 9, (n, 4)) / 4, np.maximum(truth - rng.integers(0, 4, (n, 4)), 0.0), truth


def split_of(den: Floats, loc: Floats, truth: Floats) -> SplitPredictions:
    """Images of 16 x 16 px, a density bin in each cell, points and heads in the centres of the cells."""
    passes = []
    for row in loc:
        xy = np.repeat(CENTRES, row.astype(int), axis=0)
        zeros = np.zeros(len(xy), np.int8)
        passes.append(Points(xy, np.ones(len(xy), np.float32), zeros, zeros + 1))
    n = len(den)
    return SplitPredictions(
        tuple(f"IMG_{i}" for i in range(n)), [np.repeat(CENTRES, row.astype(int), axis=0) for row in truth],
        [(16, 16)] * n, [(1.0, 1.0)] * n, [row.reshape(2, 2).astype(np.float32) for row in den], 8, [passes], [],
        np.zeros(n, np.int64),
    )  # fmt: skip


def scores(split: SplitPredictions, fusion: FusionConfig) -> Scores:
    return score_split("val", split, split, None, 1, PeaksConfig(0.5), fusion, MetricsConfig())


FUSION = FusionConfig(cells=2, fit_on="val")


@pytest.mark.parametrize("kind", KINDS)
def test_a_validation_score_uses_other_folds_only(kind: str) -> None:
    den, loc, truth = counts(1, 17)
    split = split_of(den, loc, truth)
    fusion = replace(FUSION, theta_f=kind)  # type: ignore[arg-type]
    fused = scores(split, fusion).per_image["fused"]
    fold = assign_folds(split.ids, fusion.folds)
    for i in range(17):
        others = fold != fold[i]
        theta = fit_theta(den[others], loc[others], truth[others], kind)
        assert fused[i] == RULES["grid"](den[i : i + 1], loc[i : i + 1], theta).sum()
    # So the truth of a fold cannot reach its own prediction.
    changed = truth.copy()
    changed[fold == 2] = np.roll(truth[fold == 2], 1, axis=1) + 4
    again = scores(split_of(den, loc, changed), fusion).per_image["fused"]
    assert np.array_equal(again[fold == 2], fused[fold == 2])
    assert not np.array_equal(again, fused)


def test_what_other_images_are_predicted_with_is_fitted_on_all() -> None:
    den, loc, truth = counts(4, 17)
    fitted = scores(split_of(den, loc, truth), FUSION).fitted
    assert np.array_equal(fitted.theta_f, fit_theta(den, loc, truth, "cell"))


def test_fewer_images_than_folds_leave_one_out() -> None:
    den, loc, truth = counts(2, 3)
    fused = scores(split_of(den, loc, truth), FUSION).per_image["fused"]
    theta = fit_theta(den[1:], loc[1:], truth[1:], "cell")
    assert fused[0] == RULES["grid"](den[:1], loc[:1], theta).sum()


def test_a_single_image_is_fitted_on_itself() -> None:
    den, loc, truth = counts(3, 1)
    theta = fit_theta(den, loc, truth, "cell")
    fused = scores(split_of(den, loc, truth), FUSION).per_image["fused"]
    assert fused.tolist() == RULES["grid"](den, loc, theta).sum(axis=1).tolist()


@pytest.mark.parametrize("rule", sorted(RULES))
def test_rules_without_anything_to_fit(rule: str) -> None:
    den, loc, truth = counts(5, 6)
    fusion = replace(FUSION, rule=rule, theta_f=4.0)
    expected = RULES[rule](den, loc, np.full(4, 4.0)).sum(axis=1)
    assert scores(split_of(den, loc, truth), fusion).per_image["fused"].tolist() == expected.tolist()
