"""Cross-fitting of validation scores: each fold is scored with what the other folds gave (18, 28)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from raz.config import FusionConfig, MetricsConfig, PeaksConfig
from raz.errors import FailureReason, TrialFailure
from raz.paper.fusion import KINDS, RULES, assign_folds, fit_theta, grid_points
from raz.paper.zoom import Points
from raz.pipeline.passes import PassResult
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
        passes.append(PassResult(Points(xy, np.ones(len(xy), np.float32), zeros, zeros + 1)))
    n = len(den)
    return SplitPredictions(
        tuple(f"IMG_{i}" for i in range(n)), [np.repeat(CENTRES, row.astype(int), axis=0) for row in truth],
        [(16, 16)] * n, [(1.0, 1.0)] * n, [row.reshape(2, 2).astype(np.float32) for row in den], 8, [passes],
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


def test_what_a_validation_score_tells_as_fitted_is_fitted_on_all() -> None:
    """Main-Net's threshold by trying every one, theta_f by the fit that is tested elsewhere; no fold's own values."""
    den, loc, truth = counts(6, 17)
    rng = np.random.default_rng(6)
    plain = split_of(den, loc, truth)
    passes = [
        replace(found.points, score=rng.integers(1, 90, len(found.points)).astype(np.float32) / 100)
        for found in plain.passes[0]
    ]
    split = replace(plain, passes=[[PassResult(points) for points in passes]])
    got = score_split("val", split, split, None, 1, PeaksConfig("fitted"), FUSION, MetricsConfig())
    main, theta = got.metrics["threshold_main"], [got.metrics[f"theta_f_{cell}"] for cell in range(4)]

    def error(threshold: float) -> float:
        counted = [int((p.score >= threshold).sum()) for p in passes]
        return float(np.abs(np.array(counted) - truth.sum(axis=1)).sum())

    assert error(main) == min(error(k / 200) for k in range(200))
    loc = np.stack([grid_points(p.xy[p.score >= main], 16, 16, 2) for p in passes])
    assert theta == fit_theta(den, loc, truth, "cell").tolist()
    assert (main, theta) == (got.fitted.main, got.fitted.theta_f.tolist())


def one_image(name: str, threshold: float | str, fusion: FusionConfig) -> Scores:
    split, three = split_of(*counts(3, 1)), split_of(*counts(4, 3))
    train = three if fusion.fit_on == "train" else None
    scored = split if name == "val" else three
    peaks = PeaksConfig(threshold)  # type: ignore[arg-type]
    return score_split(name, scored, split, train, 1, peaks, fusion, MetricsConfig())


@pytest.mark.parametrize(
    ("threshold", "fusion", "named"),
    [
        ("fitted", FUSION, "peaks.threshold and fusion.theta_f"),
        ("fitted", replace(FUSION, rule="density"), "peaks.threshold"),
        ("fitted", replace(FUSION, fit_on="train"), "peaks.threshold"),
        (0.5, FUSION, "fusion.theta_f"),
    ],
)
def test_a_single_validation_image_is_not_scored_by_its_own_fit(
    threshold: float | str, fusion: FusionConfig, named: str
) -> None:
    with pytest.raises(TrialFailure, match="the only validation image") as caught:
        one_image("val", threshold, fusion)
    assert caught.value.reason == FailureReason.INVALID
    assert str(caught.value).startswith(f"stage score: {named} would be fitted")
    assert one_image("test", threshold, fusion).metrics["images"] == 3  # none of which was fitted on


@pytest.mark.parametrize("fusion", [replace(FUSION, theta_f=4.0), replace(FUSION, fit_on="train")])
def test_a_single_validation_image_is_scored_where_nothing_is_fitted_on_it(fusion: FusionConfig) -> None:
    den, loc, truth = counts(3, 1)
    theta = fit_theta(*counts(4, 3), "cell") if fusion.fit_on == "train" else np.full(4, 4.0)
    got = one_image("val", 0.5, fusion)
    assert got.per_image["fused"].tolist() == RULES["grid"](den, loc, theta).sum(axis=1).tolist()
    assert got.metrics["mae"] == abs(got.per_image["fused"].sum() - truth.sum())


@pytest.mark.parametrize("rule", sorted(RULES))
def test_rules_without_anything_to_fit(rule: str) -> None:
    den, loc, truth = counts(5, 6)
    fusion = replace(FUSION, rule=rule, theta_f=4.0)
    expected = RULES[rule](den, loc, np.full(4, 4.0)).sum(axis=1)
    assert scores(split_of(den, loc, truth), fusion).per_image["fused"].tolist() == expected.tolist()
