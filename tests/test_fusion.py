"""Grids, Eq. 4 and its thresholds, against brute force (§3.1, reading row 18)."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from raz.errors import RazError
from raz.paper.fusion import (
    KINDS,
    RULES,
    FusionInputs,
    _overlaps,
    assign_folds,
    fit_theta,
    grid_density,
    grid_points,
)

Floats = NDArray[np.float64]


def counts(seed: int, n: int, g: int, quarters: bool) -> tuple[Floats, Floats, Floats]:
    """Random counts. In quarters of a person all sums are exact in floats, and ties abound."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 12, (n, g)).astype(float)
    den = truth + rng.integers(-6, 13, (n, g)) / 4 if quarters else truth * rng.normal(1.1, 0.3, (n, g))
    loc = np.maximum(truth - rng.integers(0, 5, (n, g)), 0.0)
    if seed % 4 == 0:  # cells where both agree: no threshold changes them
        loc[0] = den[0]
    return den, loc, truth


# --- brute force: every threshold that can matter, Eq. 4 written out as loops ------------------------------------


def eq4(den: float, loc: float, theta: float) -> float:
    return den if (den + loc) / 2 >= theta else (loc + den) / 2


def candidates(means: list[float]) -> list[float]:
    """One threshold for every set of cells that a threshold can choose, ascending."""
    distinct = sorted(set(means))
    return [-1e9, *((a + b) / 2 for a, b in itertools.pairwise(distinct)), 1e9]


def cell_loss(den: Floats, loc: Floats, truth: Floats, cell: int, theta: float) -> float:
    return math.fsum(
        abs(eq4(float(den[i, cell]), float(loc[i, cell]), theta) - float(truth[i, cell])) for i in range(len(den))
    )


def image_loss(den: Floats, loc: Floats, truth: Floats, theta: Floats) -> float:
    total = []
    for i in range(len(den)):
        fused = [eq4(float(d), float(p), float(t)) for d, p, t in zip(den[i], loc[i], theta, strict=True)]
        total.append(abs(math.fsum(fused) - math.fsum(truth[i].tolist())))
    return math.fsum(total)


def lowest_best(thetas: list[float], losses: list[float]) -> float:
    least = min(losses)
    return next(theta for theta, loss in zip(thetas, losses, strict=True) if loss <= least * (1 + 1e-12) + 1e-12)


@pytest.mark.parametrize("quarters", [True, False])
@pytest.mark.parametrize("seed", range(25))
def test_cell_equals_exhaustive_search(seed: int, quarters: bool) -> None:
    den, loc, truth = counts(seed, n=2 + seed, g=4, quarters=quarters)
    theta = fit_theta(den, loc, truth, "cell")
    for cell in range(4):
        thetas = candidates(((den + loc) / 2)[:, cell].tolist())
        losses = [cell_loss(den, loc, truth, cell, t) for t in thetas]
        assert theta[cell] == pytest.approx(lowest_best(thetas, losses), rel=1e-15)
        assert cell_loss(den, loc, truth, cell, theta[cell]) == min(losses)


@pytest.mark.parametrize("quarters", [True, False])
@pytest.mark.parametrize("seed", range(25))
def test_shared_equals_exhaustive_search(seed: int, quarters: bool) -> None:
    den, loc, truth = counts(seed, n=2 + seed % 9, g=5, quarters=quarters)
    theta = fit_theta(den, loc, truth, "shared")
    assert len(set(theta.tolist())) == 1
    thetas = candidates(((den + loc) / 2).ravel().tolist())
    losses = [image_loss(den, loc, truth, np.full(5, t)) for t in thetas]
    assert theta[0] == pytest.approx(lowest_best(thetas, losses), rel=1e-15)
    assert image_loss(den, loc, truth, theta) == min(losses)


def test_image_is_a_coordinatewise_optimum_and_often_the_global_one() -> None:
    globally = 0
    for seed in range(20):
        den, loc, truth = counts(seed, n=4, g=3, quarters=True)
        theta = fit_theta(den, loc, truth, "image")
        reached = image_loss(den, loc, truth, theta)
        per_cell = [candidates(((den + loc) / 2)[:, cell].tolist()) for cell in range(3)]
        for cell, thetas in enumerate(per_cell):
            for t in thetas:
                moved = theta.copy()
                moved[cell] = t
                assert image_loss(den, loc, truth, moved) >= reached
        best = min(image_loss(den, loc, truth, np.array(joint)) for joint in itertools.product(*per_cell))
        assert reached >= best
        globally += reached == best
        for start in ("cell", "shared"):
            assert reached <= image_loss(den, loc, truth, fit_theta(den, loc, truth, start))
    assert globally >= 10  # measured; a descent that stops early would not get there


@pytest.mark.parametrize("seed", range(5))
def test_image_is_a_coordinatewise_optimum_at_full_size(seed: int) -> None:
    den, loc, truth = counts(seed, n=40, g=16, quarters=True)
    theta = fit_theta(den, loc, truth, "image")
    inputs = FusionInputs.of(den, loc, truth)
    reached = inputs.mae(theta)
    for cell in range(16):
        for t in candidates(((den + loc) / 2)[:, cell].tolist()):
            moved = theta.copy()
            moved[cell] = t
            assert inputs.mae(moved) >= reached


@pytest.mark.parametrize("seed", range(8))
def test_with_one_cell_all_kinds_are_one(seed: int) -> None:
    den, loc, truth = counts(seed, n=9, g=1, quarters=True)
    assert len({float(fit_theta(den, loc, truth, kind)[0]) for kind in KINDS}) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_images_does_not_matter(seed: int, kind: str) -> None:
    den, loc, truth = counts(seed, n=30, g=4, quarters=seed % 2 == 0)
    order = np.random.default_rng(seed).permutation(30)
    first = fit_theta(den, loc, truth, kind)
    assert np.array_equal(first, fit_theta(den, loc, truth, kind))
    assert np.array_equal(first, fit_theta(den[order], loc[order], truth[order], kind))


@pytest.mark.parametrize("kind", KINDS)
def test_ends_are_finite_and_hold_on_unseen_counts(kind: str) -> None:
    truth = np.array([[4.0, 9.0], [7.0, 2.0]])
    always = fit_theta(truth, truth - 2, truth, kind)  # density is right everywhere
    never = fit_theta(truth + 2, truth - 2, truth, kind)  # the mean is
    assert json.loads(json.dumps([*always, *never])) == [-1e9, -1e9, 1e9, 1e9]
    assert RULES["grid"](np.array([[-0.5, 90.0]]), np.array([[0.0, 10.0]]), always).tolist() == [[-0.5, 90.0]]
    assert RULES["grid"](np.array([[-0.5, 90.0]]), np.array([[0.0, 10.0]]), never).tolist() == [[-0.25, 50.0]]


def test_neighbouring_floats_are_told_apart() -> None:
    """No float lies between the two means, so the threshold is the upper one itself."""
    low = 8.0
    high = math.nextafter(low, 9.0)
    den, loc = np.array([[low], [high]]), np.array([[low], [high]])
    loc[0, 0], den[0, 0] = low + 2, low - 2  # mean still low; truth says: take the mean there
    den[1, 0], loc[1, 0] = high + 4, high - 4  # and density here
    truth = np.array([[8.0], [12.0]])
    means = (den + loc) / 2
    assert means[0, 0] < means[1, 0] == math.nextafter(means[0, 0], 9.0)
    for kind in KINDS:
        assert fit_theta(den, loc, truth, kind).tolist() == [means[1, 0]]


def test_equal_means_are_never_split() -> None:
    """Only density for one and the mean for the other would be perfect, but both have one mean."""
    den, loc, truth = np.array([[6.0], [6.0]]), np.array([[2.0], [2.0]]), np.array([[6.0], [4.0]])
    for kind in KINDS:
        assert abs(float(fit_theta(den, loc, truth, kind)[0])) == 1e9


# --- Eq. 4 and the other rules ------------------------------------------------------------------------------------


def test_rules_by_hand() -> None:
    den, loc, theta = np.array([[4.0, 4.0, 1.0]]), np.array([[2.0, 2.0, 8.0]]), np.array([3.0, 3.5, 0.0])
    expected = {
        "grid": [4.0, 3.0, 1.0],  # reached (exactly), missed, reached
        "average": [3.0, 3.0, 4.5],
        "density": [4.0, 4.0, 1.0],
        "localization": [2.0, 2.0, 8.0],
    }
    assert {name: rule(den, loc, theta)[0].tolist() for name, rule in RULES.items()} == expected


def test_a_rule_returns_its_own_array() -> None:
    den, loc = np.ones((2, 4)), np.zeros((2, 4))
    for rule in RULES.values():
        rule(den, loc, np.zeros(4))[:] = 7.0
    assert (den == 1).all()
    assert (loc == 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_prepared_inputs_give_the_errors_of_the_rule(seed: int) -> None:
    den, loc, truth = counts(seed, n=20, g=16, quarters=True)
    inputs = FusionInputs.of(den, loc, truth)
    for theta in (
        np.full(16, 3.25),
        np.random.default_rng(seed).uniform(0, 10, 16),
        fit_theta(den, loc, truth, "cell"),
    ):
        fused = RULES["grid"](den, loc, theta)
        assert np.array_equal(inputs.errors(theta), fused.sum(axis=1) - truth.sum(axis=1))
        assert inputs.mae(theta) == image_loss(den, loc, truth, theta) / 20


# --- grids --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "cells"), [(64, 96, 4), (37, 53, 4), (101, 7, 3), (5, 5, 8), (9, 9, 1)])
def test_points_fall_into_the_cell_that_covers_them(height: int, width: int, cells: int) -> None:
    rng = np.random.default_rng(height)
    xy = rng.uniform(0, 1, (200, 2)) * (width, height)
    expected = np.zeros(cells * cells)
    for x, y in xy:
        column = max(k for k in range(cells) if k * width / cells <= x)
        row = max(k for k in range(cells) if k * height / cells <= y)
        expected[row * cells + column] += 1
    assert np.array_equal(grid_points(xy, height, width, cells), expected)


def test_points_on_or_beyond_the_border_stay_in_the_image() -> None:
    xy = [(0.0, 0.0), (16.0, 16.0), (17.0, 3.0), (-1.0, 20.0), (8.0, 8.0)]
    grid = grid_points(xy, 16, 16, 2)
    assert grid.tolist() == [1.0, 1.0, 1.0, 2.0]
    assert grid_points([], 16, 16, 2).tolist() == [0.0] * 4


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (37, 53), (589, 868), (7, 101), (31, 25), (9, 18), (1, 3)])
@pytest.mark.parametrize("cells", [1, 3, 4])
def test_density_is_shared_by_area_and_its_sum_kept(stride: int, height: int, width: int, cells: int) -> None:
    shape = (-(-height // stride), -(-width // stride))
    density = np.random.default_rng(0).random(shape)
    grid = grid_density(density.astype(np.float32), height, width, stride, cells)
    assert grid.sum() == pytest.approx(float(density.astype(np.float32).sum(dtype=np.float64)), rel=1e-12)
    if height * width > 10_000:
        return
    # Spread each bin evenly over its pixels inside the image, each pixel over cells² sub-pixels: every sub-pixel has
    # one cell.
    expected = np.zeros((cells, cells))
    for row, column in np.ndindex(*shape):
        bottom, right = min(height, (row + 1) * stride) * cells, min(width, (column + 1) * stride) * cells
        rows = np.arange(row * stride * cells, bottom) // height  # height sub-pixels make a cell
        columns = np.arange(column * stride * cells, right) // width
        mass = float(np.float32(density[row, column])) / (len(rows) * len(columns))
        np.add.at(expected, (rows[:, None], columns[None, :]), mass)
    assert grid == pytest.approx(expected.ravel(), rel=1e-9)


def test_both_grids_agree_where_bins_and_cells_align() -> None:
    rng = np.random.default_rng(3)
    xy = rng.uniform(0, 64, (50, 2))
    density = np.zeros((8, 8))
    for x, y in xy:
        density[int(y // 8), int(x // 8)] += 1
    assert np.array_equal(grid_density(density, 64, 64, 8, 4), grid_points(xy, 64, 64, 4))


def test_a_bin_over_the_border_is_in_its_part_inside() -> None:
    density = np.zeros((2, 2))  # 9 px at stride 8: the second bin is 1 px of image and 7 px of padding
    density[1, 1] = 5.0
    assert grid_density(density, 9, 9, 8, 3).tolist() == [0.0] * 8 + [5.0]
    # 12 px at stride 8 and 6 cells of 2 px: the second bin's 4 px inside are the last two cells
    assert grid_density([[0.0, 4.0]], 1, 12, 8, 6).reshape(6, 6).sum(axis=0).tolist() == [0.0, 0.0, 0.0, 0.0, 2.0, 2.0]
    # an image smaller than a bin is divided evenly
    assert grid_density([[8.0]], 4, 4, 8, 2).tolist() == [2.0] * 4


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize("cells", [1, 2, 3, 4, 5, 8])
def test_larger_images_have_the_bits_of_the_plain_rule(stride: int, cells: int) -> None:
    """Where the last bin lies in one cell, nothing is divided: padding and all, the rule is edges over stride."""
    for size in [*range(stride * cells, 8 * stride * cells), 589, 868, 1024, 4096]:
        edges = np.append(np.arange(cells) * (size / cells), np.inf)
        starts = np.arange(math.ceil(size / stride)) * float(stride)
        plain = np.diff(np.clip((edges[:, None] - starts) / stride, 0.0, 1.0), axis=0)
        assert np.array_equal(_overlaps(size, stride, cells), plain), size


# --- folds --------------------------------------------------------------------------------------------------------


def test_folds_depend_on_ids_alone_and_are_even() -> None:
    ids = [f"val/IMG_{i}" for i in range(23)]
    folds = assign_folds(ids, 5)
    assert sorted(np.bincount(folds).tolist()) == [4, 4, 5, 5, 5]
    assert not np.array_equal(folds, np.arange(23) % 5)
    back = assign_folds(ids[::-1], 5)
    assert np.array_equal(folds, back[::-1])


# --- faults -------------------------------------------------------------------------------------------------------


def test_faulty_counts_are_refused_all_at_once() -> None:
    good = np.ones((3, 4))
    bad = good.copy()
    bad[0, 0] = math.nan
    with pytest.raises(RazError) as caught:
        fit_theta(bad, good[:2], np.full((3, 4), 1e12), "cell")
    for part in ("shapes", "den are not finite", "truth holds"):
        assert part in str(caught.value)
    with pytest.raises(RazError, match="nothing to fit"):
        fit_theta(good[:0], good[:0], good[:0], "shared")
    with pytest.raises(RazError, match="cell, shared, image"):
        fit_theta(good, good, good, "cells")


def test_faulty_folds_are_refused_all_at_once() -> None:
    with pytest.raises(RazError) as caught:
        assign_folds(["a", "b", "a"], 1)
    for part in ("2 or more", "twice: a"):
        assert part in str(caught.value)


def test_faulty_grids_are_refused() -> None:
    with pytest.raises(RazError, match=r"expected \(2, 3\)"):
        grid_density(np.zeros((3, 2)), 16, 24, 8, 4)
    with pytest.raises(RazError, match="cells is 0"):
        grid_density(np.zeros((2, 3)), 16, 24, 8, 0)
    with pytest.raises(RazError, match="not finite"):
        grid_points([(math.nan, 1.0)], 8, 8, 4)
    with pytest.raises(RazError, match=r"expected \(n, 2\)"):
        grid_points([(1.0, 1.0, 1.0)], 8, 8, 4)
