"""Regions of interest and scored parts: geometry against other ways to tell, and what a score makes of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from raz.config import FusionConfig, MetricsConfig
from raz.data.region import OUTSIDE_COLOUR, Polygon, cell_coverage, in_polygon, mask, polygon_area
from raz.paper.networks import IMAGENET
from raz.paper.zoom import Points
from raz.pipeline.passes import PassResult
from raz.pipeline.scoring import FittedThresholds, SplitPredictions, clip_to_roi, score

STAR: Polygon = ((3.2, 1.1), (30.4, 9.7), (47.9, 2.3), (41.0, 33.6), (25.5, 20.2), (7.7, 36.4))  # dented, simple


def winding(polygon: Polygon, x: float, y: float) -> float:
    """The angle under which the corners are seen one after another: 2 pi inside a simple polygon, 0 outside."""
    total = 0.0
    for (x0, y0), (x1, y1) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        turn = math.atan2(y1 - y, x1 - x) - math.atan2(y0 - y, x0 - x)
        total += (turn + math.pi) % (2 * math.pi) - math.pi
    return abs(total)


def test_inside_is_where_the_outline_winds_around() -> None:
    points = np.random.default_rng(0).random((3000, 2)) * (52, 40)
    told = in_polygon(STAR, points)
    assert [winding(STAR, x, y) > 3 for x, y in points] == told.tolist()
    assert 0.2 < told.mean() < 0.8
    assert in_polygon((), points).all()
    assert in_polygon(STAR, np.zeros((0, 2))).shape == (0,)


def test_neighbours_share_no_point_and_leave_none_out() -> None:
    left: Polygon = ((0, 0), (4, 0), (4, 6), (0, 6))
    right: Polygon = ((4, 0), (9, 0), (9, 6), (4, 6))
    grid = np.array([(x / 2, y / 2) for x in range(18) for y in range(12)])  # many of them on edges
    assert (in_polygon(left, grid) ^ in_polygon(right, grid)).all()


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 0.5), (1.3, 0.7)])
def test_a_mask_holds_the_pixels_whose_centre_is_inside(scale: tuple[float, float]) -> None:
    height, width = round(40 * scale[1]), round(52 * scale[0])
    drawn = mask(STAR, height, width, scale)
    y, x = np.mgrid[:height, :width] + 0.5
    centres = np.stack([x.ravel(), y.ravel()], axis=1) / scale
    assert np.array_equal(drawn.ravel(), in_polygon(STAR, centres))
    assert drawn.sum() == pytest.approx(polygon_area(STAR) * scale[0] * scale[1], rel=0.03)


def test_shares_of_cells_sum_to_the_mask() -> None:
    drawn = mask(STAR, 37, 50)
    part = cell_coverage(STAR, 37, 50, 8, (1.0, 1.0))
    assert part.shape == (5, 7)
    for row in range(5):
        for column in range(7):
            cell = drawn[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]  # cut at the image's edge
            assert part[row, column] == pytest.approx(cell.mean())
    assert (cell_coverage((), 37, 50, 8, (1.0, 1.0)) == 1).all()


def test_area_is_the_shoelace_formula() -> None:
    assert polygon_area(((0, 0), (4, 0), (4, 3))) == 6
    assert polygon_area(((1, 1), (2, 2), (3, 3))) == 0
    assert polygon_area(()) == 0


def test_what_is_painted_over_is_the_mean_colour() -> None:
    assert tuple(round(255 * m) for m in IMAGENET.mean) == OUTSIDE_COLOUR


# ------------------------------------------------------------------ scores


def points(xy: list[tuple[float, float]]) -> Points:
    n = len(xy)
    return Points(
        np.array(xy, dtype=np.float64).reshape(-1, 2), np.full(n, 0.9, np.float32), np.zeros(n, np.int8),
        np.ones(n, np.int8),
    )  # fmt: skip


def predicted(
    density: list[NDArray[np.float32]], found: list[list[tuple[float, float]]], heads: list[int], parts: tuple[str, ...]
) -> SplitPredictions:
    return SplitPredictions(
        tuple(f"i{n}" for n in range(len(heads))), [np.full((n, 2), 5.5) for n in heads], [(16, 32)] * len(heads),
        [(2.0, 2.0)] * len(heads), density, 8, [[PassResult(points(xy)) for xy in found]], np.array(heads), parts,
    )  # fmt: skip


def test_density_and_points_outside_the_region_do_not_count() -> None:
    half: Polygon = ((0, 0), (40, 0), (40, 32), (0, 32))  # of 64 x 32 original px: 2.5 of 4 columns of cells
    flat = np.ones((2, 4), np.float32)
    whole = predicted([flat, flat], [[(19.9, 3), (20.1, 3)], [(19.9, 3), (20.1, 3)]], [0, 0], ())
    cut = clip_to_roi(whole, [half, ()])
    assert cut.density[0].tolist() == [[1, 1, 0.5, 0]] * 2
    assert cut.density[1] is flat
    assert cut.passes[0][0].points.xy.tolist() == [[19.9, 3]]  # input px, half as long as original ones
    assert len(cut.passes[0][1].points) == 2
    assert (flat == 1).all()
    assert len(whole.passes[0][0].points) == 2


def test_parts_are_scored_by_themselves_and_the_split_is_their_mean() -> None:
    sums, heads, parts = [3, 5, 9, 20], [1, 5, 5, 10], ("scene1", "scene2", "scene1", "scene1")
    maps = [np.full((2, 4), s / 8, np.float32) for s in sums]
    metrics = MetricsConfig(sigmas=(40.0,))
    thresholds = FittedThresholds(0.5, 0.5, np.zeros(16))
    fitted = [(range(4), thresholds)]
    split = predicted(maps, [[]] * 4, heads, parts)
    out = score(split, fitted, thresholds, 1, FusionConfig(rule="density"), metrics).metrics
    errors = {"scene1": [2, 4, 10], "scene2": [0]}
    for part, each in errors.items():
        assert out[f"mae@{part}"] == pytest.approx(np.mean(each), abs=1e-5)
        assert out[f"rmse@{part}"] == pytest.approx(np.sqrt(np.mean(np.square(each))), abs=1e-5)
        assert out[f"mae_localization@{part}"] == np.mean([h for h, p in zip(heads, parts, strict=True) if p == part])
    assert out["mae"] == pytest.approx((np.mean(errors["scene1"]) + 0) / 2, abs=1e-5)  # not the mean of the four
    assert out["rmse"] == pytest.approx(np.sqrt(40) / 2, abs=1e-5)
    whole = predicted(maps, [[]] * 4, heads, ("",) * 4)
    plain = score(whole, fitted, thresholds, 1, FusionConfig(rule="density"), metrics).metrics
    assert plain["mae"] == pytest.approx(4, abs=1e-5)
    assert not any("@scene" in name for name in plain)
