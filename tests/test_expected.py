"""Expected heads of response maps, against arithmetic, a fit by hand, and one loop over pixels."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from raz.errors import RazError
from raz.paper.expected import (
    BAND,
    CELL,
    LABEL_PIXELS,
    best_of_expected,
    expected_per_pixel,
    main_expected,
    merge_expected,
    region_expected,
)
from raz.paper.zoom import Points

Floats = NDArray[np.float64]


@pytest.mark.parametrize("gamma", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.9])
def test_the_weighted_loss_is_undone(gamma: float, share: float) -> None:
    """Of pixels that are labels with probability p, the response that minimises -γp·log r - (1-p)·log(1-r) gives p."""
    grid = np.linspace(1e-9, 1 - 1e-9, 2_000_001)
    with np.errstate(divide="ignore"):
        loss = -gamma * share * np.log(grid) - (1 - share) * np.log(1 - grid)
    best = grid[int(np.argmin(loss))]
    assert expected_per_pixel(np.array([[best]]), gamma)[0, 0] * LABEL_PIXELS == pytest.approx(share, abs=2e-4)


def test_true_labels_expect_the_true_heads() -> None:
    from raz.paper.groundtruth import head_labels

    heads = np.array([[20.5, 30.5], [60.2, 11.9], [40.0, 41.0]])  # whole labels, none at the edge
    labels = head_labels(heads, 50, 77).astype(np.float32)
    found = main_expected(labels, 100.0)
    assert found.shape == (2, 7, 10)
    assert found.sum() == pytest.approx(3)
    assert found[1].sum() == 0
    assert found[0, 30 // CELL, 20 // CELL] == pytest.approx(1)


def test_no_probabilities_are_refused() -> None:
    with pytest.raises(RazError, match="no probabilities"):
        expected_per_pixel(np.array([[1.5]]), 100.0)
    with pytest.raises(RazError, match="gamma"):
        expected_per_pixel(np.array([[0.5]]), 0.0)


def by_hand(
    before: Floats, regions: Floats, responses: list[Floats], gamma: float, height: int, width: int, zoom: float,
    border: float,
) -> Floats:  # fmt: skip
    """The same by one loop over the pixels of the image and of each crop."""

    def owner(x: float, y: float) -> int:
        for rank, (x0, y0, x1, y1) in enumerate(regions):
            left, top = (x0 + border / zoom if x0 > 0 else -1e9), (y0 + border / zoom if y0 > 0 else -1e9)
            right = x1 - border / zoom if x1 < width else 1e9
            bottom = y1 - border / zoom if y1 < height else 1e9
            if left <= x < right and top <= y < bottom:
                return rank
        return -1

    out = np.zeros_like(before)
    for row in range(before.shape[1]):
        for col in range(before.shape[2]):
            pixels = [
                (x, y)
                for y in range(row * CELL, min((row + 1) * CELL, height))
                for x in range(col * CELL, min((col + 1) * CELL, width))
            ]
            free = sum(owner(x + 0.5, y + 0.5) < 0 for x, y in pixels)
            out[:, row, col] = before[:, row, col] * free / len(pixels)
    for rank, (region, response) in enumerate(zip(regions, responses, strict=True)):
        x0, y0, x1, y1 = region
        rows, cols = response.shape
        for i in range(rows):
            for j in range(cols):
                x, y = x0 + (j + 0.5) * (x1 - x0) / cols, y0 + (i + 0.5) * (y1 - y0) / rows
                if owner(x, y) == rank:
                    r = response[i, j]
                    out[1, int(y // CELL), int(x // CELL)] += r / (r + gamma * (1 - r)) / 5
    return out


@pytest.mark.parametrize("seed", range(12))
def test_every_position_has_one_owner(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width, zoom = int(rng.integers(9, 60)), int(rng.integers(9, 60)), float(rng.choice([2, 3, 4]))
    regions = []
    for _ in range(int(rng.integers(0, 4))):
        x0, y0 = rng.integers(0, width - 4), rng.integers(0, height - 4)
        regions.append([x0, y0, rng.integers(x0 + 3, width + 1), rng.integers(y0 + 3, height + 1)])
    boxes = np.array(regions, dtype=np.float64).reshape(-1, 4)
    responses = [rng.random((round((y1 - y0) * zoom), round((x1 - x0) * zoom))) for x0, y0, x1, y1 in boxes]
    before = rng.random((2, -(-height // CELL), -(-width // CELL))).astype(np.float32)
    inside = [
        region_expected(response, 50.0, rank, boxes, height, width, zoom=zoom, border=2.0)
        for rank, response in enumerate(responses)
    ]
    merged = merge_expected(before, boxes, inside, height, width, zoom=zoom, border=2.0)
    wanted = by_hand(before.astype(np.float64), boxes, responses, 50.0, height, width, zoom, 2.0)
    assert np.allclose(merged, wanted, rtol=1e-5, atol=1e-6)


def test_as_many_points_count_as_are_expected_of_each_network() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5], np.float32)
    points = Points(np.zeros((5, 2)), scores, np.array([1, 0, 0, 1, 0], np.int8), np.ones(5, np.int8))
    expected = np.zeros((2, 3, 4), np.float32)
    expected[0, 1, 1], expected[1, 2, 3] = 1.7, 0.6
    assert best_of_expected(points, expected).tolist() == [True, True, True, False, False]
    expected[0] = 9  # more than there are
    assert best_of_expected(points, expected).tolist() == [True, True, True, False, True]


def test_large_maps_are_taken_in_bands_of_rows() -> None:
    """Beyond a band the sums are those of a loop over bins, and double precision never holds the whole map."""
    generator = np.random.default_rng(3)
    height, width = 2 * BAND + 13, 85
    response = generator.random((height, width), dtype=np.float32)
    per_pixel = expected_per_pixel(response, 100.0)
    found = main_expected(response, 100.0)[0]
    regions = np.array([[10.0, BAND - 100.0, 60.0, BAND + 99.0]])  # across the edge of a band
    nothing = [np.zeros_like(found)]
    merged = merge_expected(np.ones((2, *found.shape), np.float32), regions, nothing, height, width, zoom=2.0, border=0)
    owned = np.zeros((height, width))
    owned[BAND - 100 : BAND + 99, 10:60] = 1
    for row in range(found.shape[0]):
        for col in range(found.shape[1]):
            bin_of = np.s_[CELL * row : CELL * (row + 1), CELL * col : CELL * (col + 1)]
            assert found[row, col] == pytest.approx(per_pixel[bin_of].sum(), rel=1e-6)
            assert merged[0, row, col] == pytest.approx(1 - owned[bin_of].mean(), abs=1e-6)
    large = np.zeros((8 * BAND, 512), np.float32)
    tracemalloc.start()
    main_expected(large, 100.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < large.nbytes  # converted at once, it would take twice as much and more
