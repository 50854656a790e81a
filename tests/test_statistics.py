"""Statistics against truth: coverage on simulated studies, false alarms, scipy on known cases, cases by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from raz.paper.metrics import localization_scores, match
from raz.paper.one_to_one import Tally
from raz.pipeline.quartile_scores import QuartileScores, quartile_scores
from raz.report.per_image import PerImage
from raz.report.resample import make_resamples, per_image_error, resampled, standard_errors
from raz.report.statistics import Effect, average_by_prefix, holm, image_effect, seed_effect, summarize, verdict

SIMULATED = 2 * np.sqrt(0.05 * 0.95 / 400)  # what 400 simulated studies of exactly 5 % may show by chance

# ------------------------------------------------------------------------------------ over seeds


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_interval_over_seeds_covers_what_training_again_would_give(seeds: int) -> None:
    """Studies whose rows share what a seed decides (data order, initialisation), and differ by 0.8 in truth."""
    rng = np.random.default_rng(seeds)
    studies, inside = 1000, 0
    for _ in range(studies):
        shared = rng.normal(0, 5, seeds)
        base = 70 + shared + rng.normal(0, 1, seeds)
        row = 70.8 + shared + rng.normal(0, 1, seeds)
        effect = seed_effect((row - base).tolist())
        assert effect.low is not None
        assert effect.high is not None
        inside += effect.low <= 0.8 <= effect.high
    assert 0.93 <= inside / studies <= 0.97


@pytest.mark.long
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_identical_variants_are_rarely_called_different(seeds: int) -> None:
    """Five rows of one truth: in at most 5 % of studies is any of them called different from the base."""
    rng = np.random.default_rng(100 + seeds)
    studies, alarms = 400, 0
    for _ in range(studies):
        base = rng.normal(70, 3, seeds)
        rows = {i: seed_effect((rng.normal(70, 3, seeds) - base).tolist()) for i in range(5)}
        alarms += any(effect.differs for effect in holm(rows).values())
    assert alarms / studies <= 0.05 + SIMULATED


def test_scipy_agrees_over_seeds() -> None:
    """R's `sleep` data, a paired test in its manual: t = -4.0621, df = 9, p = 0.002833, interval -2.4599 to -0.7001."""
    one = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    two = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    effect = seed_effect([a - b for a, b in zip(one, two, strict=True)])
    assert (effect.over, effect.n, effect.value) == ("seeds", 10, pytest.approx(-1.58))
    assert (effect.low, effect.high) == (pytest.approx(-2.4598858, abs=1e-6), pytest.approx(-0.7001142, abs=1e-6))
    assert effect.p == pytest.approx(0.002832890, abs=1e-8)
    assert effect.p == pytest.approx(stats.ttest_rel(one, two).pvalue)


def test_intervals_from_two_seeds_and_p_from_six() -> None:
    assert seed_effect([1.0]) == Effect("seeds", 1, 1.0)
    two = seed_effect([1.0, 2.0])
    assert two.low == pytest.approx(1.5 - 12.7062 * 0.5, abs=1e-3)  # t(0.975, 1) from tables, sd / sqrt 2 = 0.5
    five, six = (holm({0: seed_effect([1.0, 1.2, 0.9, 1.1, 1.05, 0.95][:n])})[0] for n in (5, 6))
    assert five.shown_p is None
    assert five.differs
    assert six.shown_p is not None
    assert holm({0: seed_effect([1.0])})[0].shown_p is None


def test_no_spread_is_no_division_by_zero() -> None:
    same = seed_effect([0.0, 0.0, 0.0])
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    assert seed_effect([2.0, 2.0]).p == 0
    with pytest.raises(ValueError, match="no differences"):
        seed_effect([])


def test_trials_of_one_trained_prefix_are_one_run() -> None:
    values = average_by_prefix([("a", 1.0), ("a", 3.0), ("b", 5.0), ("a", 2.0)])
    assert values == [2.0, 5.0]
    assert summarize(values).n == 2


def test_holms_correction_by_hand() -> None:
    """p of .01, .04, .03 times 3, 1, 2 in their order, never falling: .03, .06, .06."""
    effects = {name: Effect("seeds", 6, 1.0, p=p) for name, p in {"a": 0.01, "b": 0.04, "c": 0.03}.items()}
    effects["d"] = Effect("seeds", 1, 1.0)
    adjusted = {name: effect.adjusted for name, effect in holm(effects).items()}
    assert adjusted == {"a": pytest.approx(0.03), "b": pytest.approx(0.06), "c": pytest.approx(0.06), "d": None}


def test_the_verdict_needs_runs() -> None:
    assert verdict(summarize([68.0, 70.0, 72.0]), 79.9) == "agrees"  # prediction interval 60.06 to 79.94
    assert verdict(summarize([68.0, 70.0, 72.0]), 80.0) == "differs"
    assert verdict(summarize([68.0, 70.0]), 70.0) == "too few runs"
    assert verdict(summarize([68.0, 70.0]), 500.0) == "differs"
    assert verdict(summarize([68.0]), 68.0) == "too few runs"
    assert verdict(summarize([]), 68.0) == verdict(summarize([1.0, 2.0]), None) == ""


# ------------------------------------------------------------------------------------ over images


def per_image(arrays: dict[str, NDArray[np.float64]]) -> PerImage:
    return PerImage.from_arrays({"ids": np.arange(len(arrays["truth"])).astype(str), **arrays})


def crowd(rng: np.random.Generator, images: int, noise: float) -> dict[str, NDArray[np.float64]]:
    truth = np.round(rng.lognormal(5.5, 0.5, images))
    return {"truth": truth, "fused": truth * rng.lognormal(0, noise, images), "regions": np.zeros((images, 0))}


def effect_of(name: str, a_arrays: dict[str, NDArray[np.float64]], b_arrays: dict[str, NDArray[np.float64]]) -> Effect:
    a, b = per_image(a_arrays), per_image(b_arrays)
    d = make_resamples(tuple(map(str, range(len(a.truth)))))
    one = np.ones((1, len(a.truth)))

    def diff(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        left, right = resampled(name, a, weights), resampled(name, b, weights)
        assert left is not None
        assert right is not None
        return left - right

    x, y = per_image_error(name, a), per_image_error(name, b)
    assert x is not None
    assert y is not None
    flips = d.signs @ (x - y) / len(x)
    terms = [(name, a, 1.0), (name, b, -1.0)]
    once, every = standard_errors(terms, one), standard_errors(terms, d.boot)
    assert once is not None
    assert every is not None
    return image_effect(float(diff(one)[0]), diff(d.boot), len(x), (float(once[0]), every), flips)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "images", "least"),
    [
        ("mae", 20, 0.93),
        ("mae", 182, 0.93),
        ("rmse", 182, 0.89),
        pytest.param("rmse", 60, 0.86, marks=pytest.mark.slow),
        pytest.param("rmse", 334, 0.89, marks=pytest.mark.slow),
    ],
)
def test_the_interval_over_images_covers_what_other_images_would_give(name: str, images: int, least: float) -> None:
    """Errors skewed, as many images as test splits have (182: Part A, 334: UCF-QNRF); truth from 300,000 images.

    The few largest errors decide RMSE, so its interval holds about 91 % here, and reports say so.
    """
    rng = np.random.default_rng(5)

    def pair(n: int) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
        a = crowd(rng, n, 0.2)
        return a, a | {"fused": a["truth"] + 0.8 * (a["fused"] - a["truth"]) + rng.normal(0, 10, n)}

    a, b = pair(300_000)
    whole = {k: np.sqrt(np.mean((v["fused"] - v["truth"]) ** 2)) for k, v in (("a", a), ("b", b))}
    mean = {k: np.mean(np.abs(v["fused"] - v["truth"])) for k, v in (("a", a), ("b", b))}
    true = whole["a"] - whole["b"] if name == "rmse" else mean["a"] - mean["b"]
    inside, studies = 0, 300
    for _ in range(studies):
        effect = effect_of(name, *pair(images))
        assert effect.low is not None
        assert effect.high is not None
        inside += effect.low <= true <= effect.high
    assert least <= inside / studies <= 0.98


def test_identical_models_are_rarely_called_different_over_images() -> None:
    rng = np.random.default_rng(11)
    studies, alarms = 400, 0
    for _ in range(studies):
        a = crowd(rng, 60, 0.2)
        b = a | {"fused": a["truth"] * rng.lognormal(0, 0.2, 60)}
        alarms += holm({0: effect_of("mae", a, b)})[0].differs
    assert alarms / studies <= 0.05 + SIMULATED
    assert effect_of("mae", a, a).p == 1.0


@pytest.mark.long
def test_scipy_agrees_over_images() -> None:
    rng = np.random.default_rng(2)
    a = crowd(rng, 80, 0.3)
    b = a | {"fused": a["truth"] * rng.lognormal(0.1, 0.2, 80)}
    effect = effect_of("mae", a, b)
    d = np.abs(a["fused"] - a["truth"]) - np.abs(b["fused"] - b["truth"])
    assert effect.value == pytest.approx(d.mean())
    drawn = [np.repeat(d, row.astype(int)) for row in make_resamples(tuple(map(str, range(80)))).boot]
    ratios = [abs(sample.mean() - d.mean()) / stats.sem(sample) for sample in drawn]
    half = np.quantile(ratios, 0.95) * stats.sem(d)
    assert (effect.low, effect.high) == (pytest.approx(d.mean() - half), pytest.approx(d.mean() + half))
    theirs = stats.bootstrap((d,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(0))
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert 2 * half == pytest.approx(width, rel=0.15)  # another kind of interval: near it, not the same
    test = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=20_000, rng=1)
    assert effect.p == pytest.approx(test.pvalue, abs=0.03)


def test_the_standard_error_is_what_leaving_images_out_gives() -> None:
    """Against the jackknife, on a contrast of three models in RMSE, whole and by parts of a split."""
    rng = np.random.default_rng(4)
    n = 400
    truth = np.round(rng.lognormal(5, 0.3, n))
    base = {"truth": truth, "regions": np.zeros((n, 0)), "parts": np.full(n, "")}
    for parts in (np.full(n, ""), np.array(["scene1", "scene2"])[rng.integers(0, 2, n)]):
        models = [base | {"fused": truth + rng.normal(k, 20, n), "parts": parts} for k in range(3)]
        terms = [("rmse", per_image(arrays), weight) for arrays, weight in zip(models, (1.0, 1.0, -2.0), strict=True)]
        got = standard_errors(terms, np.ones((1, n)))
        assert got is not None
        left_out = np.zeros(n)
        for name, images, weight in terms:
            values = resampled(name, images, 1.0 - np.eye(n))
            assert values is not None
            left_out += weight * values
        jackknife = np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
        assert got[0] == pytest.approx(jackknife, rel=0.01)
    once, model = np.ones((1, n)), per_image(models[0])
    assert standard_errors([("map@5", model, 1.0)], once) is None
    assert standard_errors([("mae@scene1", model, 1.0), ("mae@scene2", per_image(models[1]), 1.0)], once) is None


def test_drawing_each_image_once_gives_the_metric_itself() -> None:
    """AP and AR from the per-image part of a score equal those of the paper's metric, sigma by sigma."""
    rng = np.random.default_rng(3)
    matches, truth = [], []
    for _ in range(12):
        heads = rng.uniform(0, 200, (int(rng.integers(1, 40)), 2))
        points = heads[: len(heads) * 2 // 3] + rng.normal(0, 6, (len(heads) * 2 // 3, 2))
        points = np.concatenate([points, rng.uniform(0, 200, (5, 2))])
        matches.append(match(points, rng.uniform(size=len(points)), heads))
        truth.append(float(len(heads)))
    images = per_image({
        "truth": np.array(truth), "regions": np.zeros((12, 1)),
        "match_ends": np.cumsum([len(m.score) for m in matches]),
        "match_score": np.concatenate([m.score for m in matches]),
        "match_distance": np.concatenate([m.distance for m in matches]),
        "match_before": np.concatenate([m.best_before for m in matches]),
    })  # fmt: skip
    for name, value in localization_scores(matches).items():
        got = resampled(name, images, np.ones((1, 12)))
        assert got is not None
        assert got[0] == pytest.approx(value, abs=1e-9), name
    # and an image drawn twice is that image there twice
    twice = resampled("map@20", images, np.array([[2.0] + [1.0] * 11]))
    assert twice is not None
    assert twice[0] == pytest.approx(localization_scores([matches[0], *matches])["map@20"], abs=2e-3)
    assert resampled("heads", images, np.ones((1, 12))) is None


def test_one_to_one_scores_of_drawn_images_are_those_of_images_there_as_often() -> None:
    rng = np.random.default_rng(4)
    heads = [rng.uniform(0, 120, (int(n), 2)) for n in (30, 1, 0, 25, 40)]
    points = [np.concatenate([h[: len(h) // 2] + rng.normal(0, 4, (len(h) // 2, 2)), rng.uniform(0, 120, (6, 2))])
              for h in heads]  # fmt: skip
    scored = quartile_scores(heads, points, (8.0, 4.0))
    base = {"truth": np.array([float(len(h)) for h in heads]), "regions": np.zeros((5, 0))}
    images = per_image({**base, **scored.per_image})
    drawn = np.array([2, 0, 1, 3, 1])
    again = np.repeat(np.arange(5), drawn)
    counts = {name: getattr(scored.images, name) for name in Tally.__dataclass_fields__}
    for weights, tally in (
        (np.ones(5), scored.images), (drawn, Tally(**{name: value[again] for name, value in counts.items()})),
    ):  # fmt: skip
        for name, value in QuartileScores(tally, scored.edges, scored.radii).metrics.items():
            got = resampled(name, images, np.stack([weights.astype(float)] * 2))
            assert got is not None
            assert got == pytest.approx([value, value], abs=1e-12), name
    for q, (found, true) in enumerate(scored.counts.values(), 1):
        got = resampled(f"rmse_points_q{q}", images, np.ones((1, 5)))
        assert got is not None
        assert got[0] == pytest.approx(np.sqrt(np.square(found - true).mean()))
    assert resampled("f1@3", images, np.ones((1, 5))) is None  # a radius that was not scored
    nothing = resampled("f1_q1@8", images, np.zeros((1, 5)))  # an empty draw
    assert nothing is not None
    assert np.isnan(nothing).all()


def test_resamples_without_a_value_are_left_out_of_the_interval() -> None:
    drawn = np.concatenate([np.linspace(0.1, 0.3, 400), np.full(50, np.nan)])
    got = image_effect(0.2, drawn, 20)
    assert (got.low, got.high) == (pytest.approx(np.quantile(drawn[:400], 0.025)), pytest.approx(0.295))
    assert image_effect(0.2, np.full(10, np.nan), 20).low is None


def test_parts_are_scored_by_themselves() -> None:
    images = per_image({
        "truth": np.array([10.0, 10.0, 10.0]), "fused": np.array([11.0, 13.0, 16.0]), "regions": np.zeros((3, 0)),
        "parts": np.array(["scene1", "scene1", "scene2"]),
    })  # fmt: skip
    one = np.ones((1, 3))
    values = {name: resampled(name, images, one) for name in ("mae", "mae@scene1", "rmse@scene1", "mae@scene2")}
    assert {name: float(v[0]) for name, v in values.items() if v is not None} == {
        "mae": 4.0, "mae@scene1": 2.0, "rmse@scene1": pytest.approx(np.sqrt(5)), "mae@scene2": 6.0,
    }  # fmt: skip


def test_resamples_depend_on_the_ids_alone() -> None:
    ids = tuple("abc")
    assert make_resamples(ids) is make_resamples(ids)
    assert (make_resamples(ids).boot.sum(axis=1) == 3).all()
    assert set(np.unique(make_resamples(("x", "y")).signs)) == {-1.0, 1.0}
