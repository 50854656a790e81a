"""Intervals of counts hold what they promise: coverage by its exact distribution, in simulations."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from raz.config import FusionConfig, MetricsConfig, PeaksConfig
from raz.pipeline.conformal import Conformal, error_scale, quantile_rank
from raz.pipeline.scoring import FittedThresholds, score_split
from tests.test_scoring import counts, split_of

Floats = NDArray[np.float64]
UNLIKELY = 1e-3  # in either tail


def log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def covered_bounds(images: int, calibration: int, rank: int) -> tuple[int, int]:
    """How many of `images` new images may lie within the `rank`-th smallest of `calibration` errors, one validation
    set for all of them: a beta-binomial number, whatever the errors' distribution is."""
    a, b = rank, calibration + 1 - rank
    chances = np.exp([
        math.lgamma(images + 1) - math.lgamma(k + 1) - math.lgamma(images - k + 1)
        + log_beta(k + a, images - k + b) - log_beta(a, b)
        for k in range(images + 1)
    ])  # fmt: skip
    assert chances.sum() == pytest.approx(1)
    low = int(np.searchsorted(np.cumsum(chances), UNLIKELY))
    return low, images - int(np.searchsorted(np.cumsum(chances[::-1]), UNLIKELY))


def crowd(rng: np.random.Generator, n: int) -> tuple[Floats, Floats]:
    """Predicted and true counts of n images: errors grow with the count and are skewed, some images are empty."""
    truth = np.floor(np.exp(rng.normal(4, 1.5, n))) * (rng.random(n) > 0.1)
    return np.maximum(truth * np.exp(rng.normal(-0.1, 0.4, n)) + rng.exponential(3, n) - 1, 0.0), truth


def test_the_rank_is_that_of_the_formula_in_whole_numbers() -> None:
    for n in range(1000):
        assert quantile_rank(n) == math.ceil((n + 1) * Fraction(9, 10))


def test_the_interval_is_the_count_and_the_quantile_of_scaled_errors() -> None:
    predicted, truth = [0.0, 0.5, 16, 81, 256, 625, 16, 81, 256, 625], [3, 1, 16, 54, 320, 500, 17, 80, 250, 640]
    errors = [3 / 1, 0.5 / 1, 0, 27 / 27, 64 / 64, 125 / 125, 1 / 8, 1 / 27, 6 / 64, 15 / 125]
    of = Conformal.of(predicted, [float(t) for t in truth])
    assert of.values == pytest.approx(sorted(errors))
    assert of.quantile == 3.0  # rank ceil(9.9) = 10 of 10
    assert of.interval(16.0) == (0.0, 40.0)
    nine = Conformal(of.values[:9])
    assert nine.quantile == 1.0  # rank 9 of 9
    assert nine.interval(10000.0) == (9000.0, 11000.0)
    assert nine.interval(0.25) == (0.0, 1.25)  # less than a person is scaled as one
    assert nine.describe().endswith("from the errors of 9 validation images (100 ± 32, 1000 ± 178)")


@pytest.mark.parametrize("n", [0, 1, 8])
def test_too_few_images_give_no_interval_and_say_so(n: int) -> None:
    of = Conformal.of([10.0] * n, [11.0] * n)
    assert of.quantile is None
    assert of.interval(10.0) is None
    image = "1 validation image," if n == 1 else f"{n} validation images,"
    assert of.describe() == f"no intervals: errors of {image} 90 % takes at least 9"


def test_intervals_hold_their_count_begin_at_0_and_grow_with_count_and_errors() -> None:
    rng = np.random.default_rng(1)
    grid = np.concatenate([np.linspace(0, 3, 31), np.geomspace(3, 3000, 40)])
    for n in (9, 30, 200):
        predicted, truth = crowd(rng, n)
        of = Conformal.of(predicted.tolist(), truth.tolist())
        worse = Conformal(tuple(1.5 * v for v in of.values))
        ends = np.array([of.interval(c) for c in grid])
        assert (ends[:, 0] >= 0).all()
        assert (ends[:, 0] <= grid).all()
        assert (ends[:, 1] >= grid).all()
        assert (np.diff(ends, axis=0) >= 0).all()
        wider = np.array([worse.interval(c) for c in grid])
        assert (wider[:, 0] <= ends[:, 0]).all()
        assert (wider[:, 1] > ends[:, 1]).all()
    assert of.interval(-0.5) is not None  # a density map's sum may be negative
    low, high = Conformal((0.0,) * 9).interval(-0.5) or (None, None)
    assert (low, high) == (0.0, 0.0)


@pytest.mark.parametrize("n", [9, 16, 30, 99])
def test_coverage_of_exchangeable_images_is_exactly_rank_over_n_and_1(n: int) -> None:
    """A validation set and a new image, drawn anew each time: covered with probability rank / (n + 1)."""
    rng = np.random.default_rng(n)
    rounds, covered = 4000, 0
    for _ in range(rounds):
        predicted, truth = crowd(rng, n + 1)
        truth = truth + rng.random(n + 1)  # without ties the probability is exact
        low, high = Conformal.of(predicted[:n].tolist(), truth[:n].tolist()).interval(float(predicted[n])) or (0, 0)
        covered += low <= truth[n] <= high
    chance = quantile_rank(n) / (n + 1)
    assert 0.9 <= chance <= 0.9 + 1 / (n + 1)
    assert abs(covered - rounds * chance) < 4.5 * math.sqrt(rounds * chance * (1 - chance))


@pytest.mark.parametrize("seed", range(4))
def test_a_held_out_split_is_covered_as_often_as_promised(seed: int) -> None:
    """Thresholds and theta_f fitted by the pipeline on 200 validation images, 400 test images of the same source."""
    fusion = FusionConfig(cells=2, fit_on="val")
    val, test = split_of(*counts(10 + seed, 200)), split_of(*counts(20 + seed, 400))
    scores = score_split("test", test, val, None, 1, PeaksConfig(0.5), fusion, MetricsConfig())
    of = scores.fitted.conformal
    assert of is not None
    assert len(of.values) == 200
    fused, truth = scores.per_image["fused"], scores.per_image["truth"]
    ends = np.array([of.interval(float(c)) for c in fused])
    covered = int(((ends[:, 0] <= truth) & (truth <= ends[:, 1])).sum())
    low, high = covered_bounds(400, 200, quantile_rank(200))
    assert 320 < low < high < 390  # bounds that can be missed
    assert low <= covered <= high, covered


def test_the_errors_are_those_of_values_fitted_on_other_folds() -> None:
    fusion = FusionConfig(cells=2, fit_on="val")
    val = split_of(*counts(3, 17))
    per_image = score_split("val", val, val, None, 1, PeaksConfig(0.5), fusion, MetricsConfig()).per_image
    expected = np.abs(per_image["truth"] - per_image["fused"]) / error_scale(per_image["fused"])
    for name, split in (("val", val), ("test", split_of(*counts(4, 5)))):
        fitted = score_split(name, split, val, None, 1, PeaksConfig(0.5), fusion, MetricsConfig()).fitted
        assert fitted.conformal is not None
        assert fitted.conformal.values == tuple(np.sort(expected))


def test_stored_values_come_back_and_files_without_them_are_read() -> None:
    fitted = FittedThresholds(0.5, 0.25, np.array([1.0, np.inf]), Conformal((0.0, 0.125, 1 / 3)))
    document = fitted.as_json()
    again = FittedThresholds.from_json(document)
    assert again.conformal == fitted.conformal
    assert again.as_json() == document
    del document["conformal"]
    assert FittedThresholds.from_json(document).conformal is None
    with pytest.raises(ValueError, match="conformal"):
        FittedThresholds.from_json({**document, "conformal": ["a"]})
