"""The localization metric against the paper's protocol written out as plain loops (§4.2, rows 20 to 23, 28)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raz.errors import RazError
from raz.paper import metrics
from raz.paper.metrics import THRESHOLDS, localization_scores, mae, match, rmse

Image = tuple[list[tuple[float, float]], list[float], list[tuple[float, float]]]  # points, scores, heads


# --- the protocol, literally -------------------------------------------------------------------------------------


def classify(image: Image, sigma: float, threshold: float) -> list[tuple[tuple[float, float, float], bool]]:
    """[(rank key, is a true positive)] of one image, point by point in the order of the ranks."""
    points, scores, heads = image
    ranked = sorted(zip(points, scores, strict=True), key=lambda pair: (-pair[1], pair[0][1], pair[0][0]))
    matched = [False] * len(heads)
    listed = []
    for (x, y), score in ranked:
        hit = False
        if heads:
            distances = [math.sqrt((x - hx) ** 2 + (y - hy) ** 2) for hx, hy in heads]
            least = min(distances)
            nearest = [h for h in range(len(heads)) if distances[h] == least]
            free = [h for h in nearest if not matched[h]]
            affinity = math.exp(-(min(distances) ** 2) / (2 * sigma**2))
            if free and affinity > threshold:
                matched[free[0]] = hit = True
        listed.append(((-score, y, x), hit))
    return listed


def ap_ar(ranked: list[bool], heads: int) -> tuple[float, float]:
    """101-point interpolated AP and final recall of a ranked list; recalls are compared in whole numbers."""
    if heads == 0:
        return (0.0 if ranked else math.nan), math.nan
    curve = []
    hits = 0
    for seen, hit in enumerate(ranked, start=1):
        hits += hit
        curve.append((hits, hits / seen))
    # recall >= k/100, multiplied out
    best = [max((p for tp, p in curve if 100 * tp >= k * heads), default=0.0) for k in range(101)]
    return math.fsum(best) / 101, hits / heads


def literal(images: list[Image], pool: str) -> dict[str, float]:
    """All scores of Table 3, one setting after another."""
    scores = {}
    for sigma in (40.0, 20.0, 5.0):
        pairs = []
        for threshold in THRESHOLDS:
            lists = [(classify(image, sigma, threshold), len(image[2])) for image in images]
            if pool == "dataset":
                together = sorted((pair for listed, _ in lists for pair in listed), key=lambda pair: pair[0])
                pairs.append(ap_ar([hit for _, hit in together], sum(heads for _, heads in lists)))
            else:
                singles = [ap_ar([hit for _, hit in listed], heads) for listed, heads in lists]
                means = []
                for column in zip(*singles, strict=True):
                    defined = [value for value in column if not math.isnan(value)]
                    means.append(math.fsum(defined) / len(defined) if defined else math.nan)
                pairs.append((means[0], means[1]))
        for shown, k in ((50, 0), (75, 5)):
            scores[f"ap{shown}@{sigma:g}"], scores[f"ar{shown}@{sigma:g}"] = pairs[k]
        for name, column in zip(("map", "mar"), zip(*pairs, strict=True), strict=True):
            scores[f"{name}@{sigma:g}"] = math.fsum(column) / len(column)
    return scores


def scored(images: list[Image], pool: str = "dataset") -> dict[str, float]:
    return localization_scores([match(*image) for image in images], pool=pool)


def same(a: dict[str, float], b: dict[str, float]) -> bool:
    return a.keys() == b.keys() and all(a[k] == b[k] or (math.isnan(a[k]) and math.isnan(b[k])) for k in a)


def random_image(rng: np.random.Generator, side: int, step: float, levels: int, twins: bool) -> Image:
    """Coordinates are multiples of `step`, scores of 1/levels: coarse ones tie all the time.

    Points have x, y that no other image of a test shares, unless `step` is coarse: see the callers.
    """
    heads = rng.integers(0, int(side / step), (rng.integers(0, 25), 2)) * step
    points = rng.integers(0, int(side / step), (rng.integers(0, 40), 2)) * step
    if len(heads) and len(points):
        close = rng.random(len(points)) < 0.6
        points[close] = heads[rng.integers(0, len(heads), close.sum())] + rng.integers(-4, 5, (close.sum(), 2)) * step
    if twins and len(heads):
        heads = np.concatenate([heads, heads[rng.integers(0, len(heads), 6)], heads[:1], heads[:1]])
        heads = heads[rng.permutation(len(heads))]
    scores = (rng.integers(1, levels + 1, len(points)) / levels).tolist()
    return [tuple(p) for p in points.tolist()], scores, [tuple(h) for h in heads.tolist()]


EMPTY: Image = ([], [], [])
ONLY_HEADS: Image = ([], [], [(3.0, 4.0), (10.0, 1.0)])
ONLY_POINTS: Image = ([(3.0, 4.0), (9.0, 9.0)], [0.9, 0.4], [])


@pytest.mark.parametrize("pool", ["dataset", "image"])
@pytest.mark.parametrize("seed", range(18))
def test_one_pass_equals_the_literal_protocol(seed: int, pool: str) -> None:
    rng = np.random.default_rng(seed)
    step, levels = (1.0, 4) if seed % 3 == 0 else (0.5, 1000) if seed % 3 == 1 else (4.0, 2)
    images = [random_image(rng, 60, step, levels, twins=seed % 2 == 0) for _ in range(4)]
    # Two images may hold points of equal score and place: what settles that is tested by itself below. Here each
    # image's points stand on a lattice of their own, shifted by less than anything else is apart, heads along.
    shift = [k / 1024 for k in range(4)]
    images = [
        ([(x + s, y) for x, y in points], scores, [(x + s, y) for x, y in heads])
        for s, (points, scores, heads) in zip(shift, images, strict=True)
    ]
    images += [EMPTY, ONLY_HEADS, ([(x + 0.1, y) for x, y in ONLY_POINTS[0]], ONLY_POINTS[1], [])]
    assert same(scored(images, pool), literal(images, pool))


def test_the_random_cases_hold_what_they_are_meant_to_hold() -> None:
    rng = np.random.default_rng(0)
    points, scores, heads = random_image(rng, 60, 4.0, 2, twins=True)
    assert len(set(heads)) < len(heads)
    assert len(set(scores)) < len(scores)
    distances = [sorted(math.dist(p, h) for h in set(heads)) for p in points]
    assert any(d[0] == d[1] for d in distances), "no point halfway between two places"


lattice = st.tuples(st.integers(0, 6), st.integers(0, 6)).map(lambda p: (float(p[0]), float(p[1])))


@pytest.mark.long
@settings(max_examples=300, deadline=None)
@given(
    points=st.lists(st.tuples(lattice, st.sampled_from([0.25, 0.5, 1.0])), max_size=12),
    heads=st.lists(lattice, max_size=8),
)
def test_each_point_is_classified_as_the_protocol_does(points: list, heads: list) -> None:
    """On a small lattice nearly everything ties: chains of points halfway between twins."""
    image: Image = ([p for p, _ in points], [s for _, s in points], heads)
    matches = match(*image)
    for sigma, threshold in ((40.0, 0.5), (5.0, 0.95), (2.0, 0.75), (1.0, 0.5), (1.0, 0.25), (1.0, 0.1)):
        radius = sigma * math.sqrt(-2 * math.log(threshold))
        ours = ((matches.distance < radius) & (radius <= matches.best_before)).tolist()
        assert ours == [hit for _, hit in classify(image, sigma, threshold)]


# --- cases worked out by hand -------------------------------------------------------------------------------------


def hits(image: Image, radius: float) -> list[bool]:
    m = match(*image)
    return ((m.distance < radius) & (radius <= m.best_before)).tolist()


def test_exact_twins_are_two_heads() -> None:
    image: Image = ([(5, 5), (6, 5), (7, 5)], [0.9, 0.8, 0.7], [(5, 5), (5, 5)])
    assert hits(image, 10) == [True, True, False]
    assert hits(image, 1.5) == [True, True, False]
    assert hits(image, 0.5) == [True, False, False]


def test_a_point_halfway_takes_the_head_still_free() -> None:
    image: Image = ([(0, 0), (5, 0)], [0.9, 0.8], [(0, 0), (10, 0)])
    assert hits(image, 6) == [True, True]
    # the same with a third point that finds its only nearest head gone
    image = ([(0, 0), (5, 0), (10, 0)], [0.9, 0.8, 0.7], [(0, 0), (10, 0)])
    assert hits(image, 6) == [True, True, False]
    assert hits(image, 4) == [True, False, True]


def test_among_free_heads_the_lowest_index_goes_first() -> None:
    points, scores = [(5.0, 0.0), (0.0, 0.0)], [0.9, 0.8]
    assert hits((points, scores, [(0.0, 0.0), (10.0, 0.0)]), 6) == [True, False]
    assert hits((points, scores, [(10.0, 0.0), (0.0, 0.0)]), 6) == [True, True]


def test_no_second_choice() -> None:
    """A point whose nearest head is gone stays a false positive, though another head is near: stricter than COCO."""
    assert hits(([(0, 0), (1, 0)], [0.9, 0.8], [(0, 0), (3, 0)]), 10) == [True, False]


def test_a_better_ranked_point_too_far_off_leaves_the_head_free() -> None:
    assert hits(([(4, 0), (1, 0)], [0.9, 0.8], [(0, 0)]), 3) == [False, True]
    assert hits(([(4, 0), (1, 0)], [0.9, 0.8], [(0, 0)]), 5) == [True, False]


def test_radii_are_those_of_the_reading() -> None:
    """(22): a point just inside a radius counts and one just outside does not."""
    table = {40: (47.1, 30.3, 12.8), 20: (23.5, 15.2, 6.4), 5: (5.9, 3.8, 1.6)}
    for sigma, radii in table.items():
        for threshold, radius in zip((0.5, 0.75, 0.95), radii, strict=True):
            for offset, expected in ((-0.06, 1.0), (0.06, 0.0)):
                m = match([(radius + offset, 0.0)], [1.0], [(0.0, 0.0)])
                assert localization_scores([m], (sigma,), (threshold,))[f"mar@{sigma}"] == expected


def test_average_precision_by_hand() -> None:
    """Ranks hit, miss, hit of 2 heads: precision 1 up to recall .5, 2/3 beyond."""
    image: Image = ([(0, 0), (500, 500), (100, 0)], [0.9, 0.8, 0.7], [(0, 0), (100, 0)])
    result = scored([image])
    assert result["ap50@40"] == pytest.approx((51 * 1 + 50 * 2 / 3) / 101, rel=1e-15)
    assert result["ar50@40"] == 1.0


def test_pooling_by_image() -> None:
    """(28): 1 for the perfect image, 0 without heads but with points, the empty one left out; recall of 1 image."""
    perfect: Image = ([(0, 0)], [0.9], [(0, 0)])
    result = scored([perfect, EMPTY, ONLY_POINTS], pool="image")
    assert result["map@5"] == 0.5
    assert result["mar@5"] == 1.0
    assert scored([perfect, ONLY_HEADS], pool="image")["mar@5"] == 0.5
    # pooled, the false positives rank beside the true one
    assert scored([perfect, EMPTY, ONLY_POINTS])["map@5"] == 1.0
    assert scored([([(0, 0)], [0.5], [(0, 0)]), EMPTY, ONLY_POINTS])["map@5"] == 0.5


@pytest.mark.parametrize("pool", ["dataset", "image"])
def test_nothing_found_and_nothing_there(pool: str) -> None:
    assert set(scored([ONLY_HEADS], pool).values()) == {0.0}
    nothing = scored([ONLY_POINTS], pool)
    assert nothing["map@40"] == 0.0
    assert math.isnan(nothing["mar@40"])
    assert all(math.isnan(value) for value in scored([EMPTY], pool).values())
    assert all(math.isnan(value) for value in localization_scores([], pool=pool).values())


# --- what must not matter -----------------------------------------------------------------------------------------


def crowd(seed: int, step: float = 0.25, levels: int = 3) -> list[Image]:
    rng = np.random.default_rng(seed)
    return [random_image(rng, 50, step, levels, twins=True) for _ in range(5)] + [EMPTY, ONLY_HEADS, ONLY_POINTS]


@pytest.mark.parametrize("pool", ["dataset", "image"])
@pytest.mark.parametrize("seed", range(5))
def test_order_of_points_and_of_images_does_not_matter(seed: int, pool: str) -> None:
    """Even when images share points of equal score and place, which only their matches tell apart."""
    images = crowd(seed, step=4.0, levels=1)
    assert len({p for image in images for p in image[0]}) < sum(len(set(image[0])) for image in images)
    rng = np.random.default_rng(seed)
    shuffled = []
    for points, scores, heads in images:
        order = rng.permutation(len(points))
        shuffled.append(([points[i] for i in order], [scores[i] for i in order], heads))
    shuffled = [shuffled[i] for i in rng.permutation(len(shuffled))]
    assert same(scored(images, pool), scored(shuffled, pool))


def test_coinciding_points_of_one_image_keep_their_order() -> None:
    """The first of two equal points takes the head, so it also ranks first when images are pooled."""
    twice: Image = ([(8, 8), (8, 8)], [0.5, 0.5], [(8, 8)])
    assert scored([twice])["map@5"] == 1.0
    assert scored([twice, EMPTY])["map@5"] == 1.0
    assert scored([twice, ([(90, 90)], [0.9], [])])["map@5"] == 0.5


def test_equal_points_of_two_images_count_the_worse_first() -> None:
    there: Image = ([(8, 8)], [0.5], [(8, 8)])
    missed: Image = ([(8, 8)], [0.5], [(40, 40)])
    assert scored([there, missed], "dataset")["ap50@5"] == scored([missed, there], "dataset")["ap50@5"]
    assert scored([there, missed])["ap50@5"] == pytest.approx(51 * 0.5 / 101)


def test_translation_by_whole_pixels_does_not_matter() -> None:
    images = crowd(7, levels=1000)
    moved = [
        ([(x + 512, y + 256) for x, y in p], s, [(x + 512, y + 256) for x, y in h]) for p, s, h in images
    ]  # quarters of pixels: exact in floats
    assert same(scored(images), scored(moved))


def test_only_the_ranks_of_the_scores_matter() -> None:
    images = crowd(8, levels=1000)
    squeezed = [(p, [s**3 / 2 for s in scores], h) for p, scores, h in images]
    assert same(scored(images), scored(squeezed))


def test_scaling_image_and_sigma_together_does_not_matter() -> None:
    images = crowd(9)
    doubled = [([(2 * x, 2 * y) for x, y in p], s, [(2 * x, 2 * y) for x, y in h]) for p, s, h in images]
    small = localization_scores([match(*image) for image in images], (5,))
    large = localization_scores([match(*image) for image in doubled], (10,))
    assert list(small.values()) == list(large.values())


def test_a_single_image_scores_the_same_in_both_pools() -> None:
    image = crowd(10)[0]
    assert same(scored([image], "dataset"), scored([image], "image"))


# --- counting errors, and faults ----------------------------------------------------------------------------------


def test_mae_and_rmse_by_hand() -> None:
    assert mae([3, 5], [0, 1]) == 3.5
    assert rmse([3, 5], [0, 1]) == math.sqrt(12.5)
    assert mae([2.5], [2.5]) == rmse([2.5], [2.5]) == 0.0


@pytest.mark.parametrize("error", [mae, rmse])
@pytest.mark.parametrize(
    ("pred", "true", "told"),
    [([], [], "no images"), ([1.0], [1.0, 2.0], "shapes"), ([math.nan], [1.0], "pred"), ([[1.0]], [[1.0]], "shapes")],
)
def test_faulty_counts_are_refused(error, pred: list, true: list, told: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RazError, match=told):
        error(pred, true)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(RazError) as caught:
        match([(1.0, math.inf)], [0.5, 0.5], [(1.0, 2.0, 3.0)])
    for part in ("points", "scores", "heads"):
        assert part in str(caught.value)
    with pytest.raises(RazError) as caught:
        localization_scores([], sigmas=(), thresholds=(1.0,), pool="batch")
    for part in ("sigmas", "thresholds", "batch"):
        assert part in str(caught.value)


def test_twins_are_found_among_heads_that_share_their_sorting_key() -> None:
    """x + sqrt(2) y is the same float64 for both of these places; twins must still be seen as twins."""
    places = np.array([[1e9, 0.0], [1e9, 1e-9]])
    assert len(np.unique(places @ [1.0, math.sqrt(2.0)])) == 1
    for seed in range(20):
        heads = places[np.random.default_rng(seed).permutation(np.repeat([0, 1], [3, 2]))]
        order, fresh = metrics._group_twins(heads)
        assert sorted(order.tolist()) == list(range(5))
        assert fresh.sum() == 2
        runs = np.split(heads[order], np.flatnonzero(fresh)[1:])
        assert all((run == run[0]).all() for run in runs)
