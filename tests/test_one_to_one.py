"""One-to-one matching, local density and its quartiles, and the scores that follow from them."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from raz.paper.one_to_one import (
    Tally,
    density_edges,
    local_density,
    maximum_matching,
    one_to_one_scores,
    pairs_within,
    quartile_of,
    stack,
    tally,
)
from raz.pipeline.quartile_scores import quartile_scores

NONE = np.zeros((0, 2))


def distances(points: np.ndarray, heads: np.ndarray) -> np.ndarray:
    return np.hypot(*(points[:, None] - heads[None]).transpose(2, 0, 1))


def brute_force(near: np.ndarray) -> int:
    """The most pairs of a point (row) and a head (column) that are near, each used once: every choice is tried."""
    if not len(near):
        return 0
    best = brute_force(near[1:])
    for head in np.flatnonzero(near[0]):
        best = max(best, 1 + brute_force(np.delete(near[1:], head, axis=1)))
    return best


def scene(rng: np.random.Generator, most: int, side: float, whole: bool) -> tuple[np.ndarray, np.ndarray]:
    """Points and heads, some of them coincident; whole px put distances exactly on the radius."""
    points, heads = (rng.uniform(0, side, (int(rng.integers(0, most + 1)), 2)) for _ in range(2))
    return (np.floor(points), np.floor(heads)) if whole else (points, heads)


# ------------------------------------------------------------------------------------ matching


@pytest.mark.parametrize("seed", range(60))
def test_the_matching_is_as_large_as_any(seed: int) -> None:
    """Against every choice, on sets of up to six; the matching itself uses each point and head once, within reach."""
    rng = np.random.default_rng(seed)
    points, heads = scene(rng, 6, 20, whole=seed % 2 == 0)
    for radius in (4.0, 8.0):
        head = maximum_matching(pairs_within(points, heads, np.full(len(heads), radius)))
        near = distances(points, heads) <= radius
        used = np.flatnonzero(head >= 0)
        assert len(used) == brute_force(near)
        assert len(set(head[used].tolist())) == len(used)
        assert all(near[point, head[point]] for point in used)


@pytest.mark.parametrize("seed", range(8))
def test_it_agrees_with_an_assignment_of_least_cost(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    points, heads = rng.uniform(0, 150, (220, 2)), rng.uniform(0, 150, (180, 2))
    near = distances(points, heads) <= 8
    rows, columns = linear_sum_assignment(~near)
    got = tally(points, heads, np.zeros(len(heads), np.int64), (8.0, 4.0))
    assert got.found[:, 0].sum() == got.correct[:, 0].sum() == near[rows, columns].sum()
    assert got.found[:, 1].sum() <= got.found[:, 0].sum()


def test_where_a_nearest_first_rule_would_miss_one() -> None:
    """The point between takes the far head, so that the other point can have the only one in its reach."""
    heads = np.array([[0.0, 0.0], [7.0, 0.0]])
    points = np.array([[1.0, 0.0], [-3.0, 0.0]])
    got = tally(points, heads, np.zeros(2, np.int64), (8.0, 4.0))
    assert got.found[0].tolist() == [2, 1]


def test_a_pair_on_the_radius_counts() -> None:
    heads, points = np.array([[10.0, 10.0]]), np.array([[13.0, 14.0]])  # 5 px apart
    got = tally(points, heads, np.zeros(1, np.int64), (5.0, np.nextafter(5.0, 0)))
    assert got.found[0].tolist() == [1, 0]


@pytest.mark.parametrize("seed", range(10))
def test_the_order_of_points_and_heads_does_not_matter(seed: int) -> None:
    """Not even where several maximum matchings would give the quartiles other pairs."""
    rng = np.random.default_rng(seed)
    points, heads = np.floor(rng.uniform(0, 30, (40, 2))), np.floor(rng.uniform(0, 30, (40, 2)))
    quartile = rng.integers(0, 4, 40)
    a = tally(points, heads, quartile, (8.0, 4.0))
    p, h = rng.permutation(40), rng.permutation(40)
    b = tally(points[p], heads[h], quartile[h], (8.0, 4.0))
    for name in Tally.__dataclass_fields__:
        assert (getattr(a, name) == getattr(b, name)).all()


# ------------------------------------------------------------------------------------ local density


def test_a_square_lattice_has_its_own_density() -> None:
    x, y = np.meshgrid(np.arange(9) * 5.0, np.arange(7) * 5.0)
    density = local_density(np.column_stack([x.ravel(), y.ravel()])).reshape(7, 9)
    assert density[1:-1, 1:-1] == pytest.approx(1 / 25)
    assert density[0, 0] == pytest.approx(1 / np.mean([5, 5, 5 * math.sqrt(2), 10]) ** 2)  # a corner


def test_few_heads_take_the_neighbours_they_have() -> None:
    assert local_density(NONE).tolist() == []
    assert local_density(np.array([[3.0, 4.0]])).tolist() == [0.0]  # a lone head
    assert local_density(np.array([[0.0, 0.0], [3.0, 4.0]])) == pytest.approx([1 / 25, 1 / 25])
    three = local_density(np.array([[0.0, 0.0], [4.0, 0.0], [10.0, 0.0]]))
    assert three == pytest.approx([1 / 7**2, 1 / 5**2, 1 / 8**2])
    assert local_density(np.zeros((5, 2))).tolist() == [math.inf] * 5  # coincident heads


def test_quartiles_by_hand() -> None:
    edges = density_edges([np.array([4.0, 1.0]), np.array([3.0, 2.0])])
    assert edges.tolist() == [1.0, 2.0, 3.0]
    assert quartile_of(np.array([1.0, 2.0, 3.0, 4.0]), edges).tolist() == [0, 1, 2, 3]
    of_eight = np.array([0.0, 0.0, 1.0, 2.0, 3.0, 4.0, math.inf, math.inf])  # lone and coincident heads
    assert quartile_of(of_eight, density_edges([of_eight])).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert np.isnan(density_edges([])).all()


# ------------------------------------------------------------------------------------ scores


def test_scores_by_hand() -> None:
    """Two images: four heads in a row at growing gaps and a lone one, which is the sparsest; five points."""
    a = np.array([[0.0, 0.0], [10.0, 0.0], [30.0, 0.0], [70.0, 0.0]])
    b = np.array([[50.0, 50.0]])
    # mean distances in a: (10 + 30 + 70) / 3, (10 + 20 + 60) / 3, (30 + 20 + 40) / 3, (70 + 60 + 40) / 3
    assert local_density(a) == pytest.approx([9 / 110**2, 1 / 900, 1 / 900, 9 / 170**2])
    # of five heads the edges are the 2nd, 3rd and 4th: b and a[3] are quartile 1, a[0] 2, a[1] and a[2] 3, none 4
    found_a = np.array([[0.0, 3.0], [1.0, 6.0], [10.0, 7.0], [36.0, 0.0]])
    found_b = np.array([[90.0, 90.0]])
    got = quartile_scores([a, b], [found_a, found_b], (8.0, 4.0))
    assert got.images.heads.tolist() == [[1, 1, 2, 0], [1, 0, 0, 0]]
    assert got.images.points.tolist() == [[0, 2, 2, 0], [1, 0, 0, 0]]
    metrics = got.metrics
    # at 8 px three of four points have a head of their own: both points near a[0] cannot share it; at 4 px one
    assert metrics["precision@8"] == 3 / 5
    assert metrics["recall@8"] == 3 / 5
    assert metrics["f1@8"] == 3 / 5
    assert metrics["f1@4"] == pytest.approx(2 * 1 / 10)
    assert metrics["recall_q1@8"] == 0.0
    assert metrics["recall_q2@8"] == 1.0
    assert metrics["recall_q3@8"] == 1.0
    assert metrics["f1_q2@8"] == pytest.approx(2 * 0.5 * 1 / 1.5)
    assert metrics["f1_q1@8"] == 0.0
    assert math.isnan(metrics["f1_q4@8"])  # no head and no point
    assert [metrics[f"bias_points_q{q}"] for q in (1, 2, 3, 4)] == [-0.5, 0.5, 0.0, 0.0]
    points, heads = got.counts["_points_q2"]
    assert (points.tolist(), heads.tolist()) == ([2.0, 0.0], [1.0, 0.0])


def test_images_without_heads_or_points() -> None:
    got = quartile_scores([NONE, NONE], [np.array([[1.0, 2.0]]), NONE], (8.0,)).metrics
    assert got["f1@8"] == got["precision@8"] == 0.0  # a point too many
    assert math.isnan(got["recall@8"])
    only_heads = quartile_scores([np.array([[1.0, 2.0]])], [NONE], (8.0,)).metrics
    assert (only_heads["f1@8"], only_heads["recall@8"], only_heads["f1_q1@8"]) == (0.0, 0.0, 0.0)
    assert math.isnan(only_heads["precision@8"])
    assert all(math.isnan(value) for value in one_to_one_scores(stack([], 1), (8.0,)).values())


@pytest.mark.parametrize("seed", range(5))
def test_the_quartiles_add_up(seed: int) -> None:
    """Every head and, where there are heads, every point is in one quartile; a quarter of the heads in each."""
    rng = np.random.default_rng(seed)
    heads = [rng.uniform(0, 300, (int(n), 2)) for n in (100, 1, 0, 59)]
    points = [rng.uniform(0, 300, (int(n), 2)) for n in rng.integers(0, 120, 4)]
    got = quartile_scores(heads, points, (8.0, 4.0))
    assert got.images.heads.sum(axis=0).tolist() == [40, 40, 40, 40]
    assert got.images.points.sum(axis=1).tolist() == [len(points[0]), len(points[1]), 0, len(points[3])]
    assert got.images.all_points.tolist() == [len(image) for image in points]
    assert (got.images.found.sum(axis=1) == got.images.correct.sum(axis=1)).all()
    assert (got.images.found <= got.images.heads[..., None]).all()
    assert (got.images.correct <= got.images.points[..., None]).all()
    nearest = Counter(
        int(quartile_of(local_density(image), got.edges)[distances(found, image).argmin(axis=1)[k]])
        for image, found in zip(heads, points, strict=True) if len(image)
        for k in range(len(found))
    )  # fmt: skip
    assert got.images.points.sum(axis=0).tolist() == [nearest[q] for q in range(4)]
