"""Peaks against brute force, the label's own ceiling, and thresholds against trying every one (13, 14)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from raz.errors import RazError
from raz.paper import peaks
from raz.paper.groundtruth import head_labels
from raz.paper.peaks import find_peaks, fit_threshold


def brute_mean(response: NDArray[np.float32]) -> NDArray[np.float64]:
    """The mean over the pixels of the 3x3 neighbourhood that lie inside the image."""
    height, width = response.shape
    out = np.zeros((height, width))
    for r, c in itertools.product(range(height), range(width)):
        part = response[max(r - 1, 0) : r + 2, max(c - 1, 0) : c + 2].astype(np.float64)
        # Times nine: exact for dyadic responses at 9, 6, 4, 3 and 1 pixels, so equals stay equal.
        out[r, c] = part.sum() * (9 / part.size)
    return out


def brute_peaks(response: NDArray[np.float32], floor: float) -> list[tuple[float, float, float]]:
    """Pixels that no neighbour exceeds, touching ones flooded together, one of each flood."""
    mean = brute_mean(response)
    height, width = mean.shape
    pixels = {
        (r, c)
        for r, c in itertools.product(range(height), range(width))
        if mean[r, c] >= mean[max(r - 1, 0) : r + 2, max(c - 1, 0) : c + 2].max()
        and mean[r, c] / 9 >= floor
        and mean[r, c] > 0
    }
    out = []
    while pixels:
        flood, edge = set(), {min(pixels)}
        while edge:
            r, c = edge.pop()
            flood.add((r, c))
            around = {(r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1)}
            edge |= (around & pixels) - flood
        pixels -= flood
        middle = np.mean(list(flood), axis=0)
        r, c = min(flood, key=lambda p: ((p[0] - middle[0]) ** 2 + (p[1] - middle[1]) ** 2, p))
        out.append((c + 0.5, r + 0.5, mean[r, c] / 9))
    return sorted(out, key=lambda p: (-np.float32(p[2]), p[1], p[0]))


def as_tuples(found: tuple[NDArray[np.float64], NDArray[np.float32]]) -> list[tuple[float, float, float]]:
    return [(x, y, float(s)) for (x, y), s in zip(found[0].tolist(), found[1], strict=True)]


# ------------------------------------------------------------------------------------------------- peaks


@pytest.mark.parametrize("block", [1, 2, 3, 7, 96])
def test_peaks_equal_brute_force_on_maps_full_of_ties(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(peaks, "BLOCK", block)
    rng = np.random.default_rng(block)
    touching = 0
    for _ in range(60):
        height, width = rng.integers(1, 16, 2)
        # Dyadic values: their sums are exact in any order, so a tie is a tie on both sides.
        response = (rng.integers(0, 4, (height, width)) / 4).astype(np.float32)
        expected = brute_peaks(response, 0.3)
        got = as_tuples(find_peaks(response, 0.3))
        assert [p[:2] for p in got] == [p[:2] for p in expected]
        np.testing.assert_allclose([p[2] for p in got], [p[2] for p in expected], rtol=1e-6)
        touching += len(expected)
    assert touching > 60


def test_a_plus_gives_five_ninths_at_its_head() -> None:
    points, scores = find_peaks(head_labels(np.array([[7.3, 9.8]]), 20, 20).astype(np.float32), 0.5)
    assert points.tolist() == [[7.5, 9.5]]
    assert scores.tolist() == [np.float32(5 / 9)]
    assert points.dtype == np.float64
    assert scores.dtype == np.float32


def test_the_border_averages_over_the_pixels_inside() -> None:
    response = np.zeros((9, 9), np.float32)
    response[0, 4] = 1.0  # 1 of 6 pixels
    response[8, 8] = 1.0  # 1 of 4
    points, scores = find_peaks(response, 0.05)
    assert points.tolist() == [[8.5, 8.5], [4.5, 0.5]]
    np.testing.assert_allclose(scores, [1 / 4, 1 / 6], rtol=1e-6)


@pytest.mark.parametrize("edge", [(0.2, 10.4), (19.9, 10.4), (10.4, 0.0), (10.4, 19.5)])
def test_a_head_on_the_border_peaks_on_its_own_pixel(edge: tuple[float, float]) -> None:
    points, scores = find_peaks(head_labels(np.array([edge]), 20, 20).astype(np.float32), 0.5)
    assert points.tolist() == [[int(edge[0]) + 0.5, int(edge[1]) + 0.5]]
    assert scores[0] == pytest.approx(4 / 6)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_true_labels_give_back_every_head_of_a_sparse_crowd(seed: int) -> None:
    """Heads at least 4 px apart and 2 px from the border: nothing is lost by the encoding."""
    rng = np.random.default_rng(seed)
    heads: list[NDArray[np.float64]] = []
    for candidate in rng.random((150, 2)) * [66, 46] + 2:
        pixel = np.floor(candidate)
        if all(max(abs(pixel - np.floor(other))) >= 4 for other in heads):
            heads.append(candidate)
    points, _ = find_peaks(head_labels(np.array(heads), 50, 70).astype(np.float32), 0.5)
    expected = sorted((float(np.floor(x)) + 0.5, float(np.floor(y)) + 0.5) for x, y in heads)
    assert sorted(map(tuple, points.tolist())) == expected


def test_the_encoding_has_a_ceiling() -> None:
    """Two heads on one pixel, or side by side, are one peak; four pixels apart they are two."""
    for apart, found in [(0, 1), (1, 1), (4, 2)]:
        labels = head_labels(np.array([[10.5, 10.5], [10.5 + apart, 10.5]]), 20, 30).astype(np.float32)
        assert len(find_peaks(labels, 0.5)[0]) == found


def test_plateaus_are_one_peak_each() -> None:
    points, scores = find_peaks(np.full((32, 32), 0.5, np.float32), 0.1)
    assert points.tolist() == [[15.5, 15.5]]
    assert scores.tolist() == [0.5]
    ring = np.zeros((40, 40), np.float32)
    ring[5:35, 5:35] = 1
    ring[10:30, 10:30] = 0  # a connected plateau with a hole: two tops in reading order are still one
    assert len(find_peaks(ring, 0.9)[0]) == 1
    two = np.zeros((20, 41), np.float32)
    two[5:15, 3:15] = two[5:15, 25:38] = 1.0
    assert len(find_peaks(two, 0.9)[0]) == 2
    wrapped = np.zeros((6, 10), np.float32)
    wrapped[2, 9] = wrapped[3, 0] = 1.0  # neighbours in memory, not in the image
    assert len(find_peaks(wrapped, 0.1)[0]) == 2


def test_order_floor_and_empty() -> None:
    rng = np.random.default_rng(0)
    response = rng.random((50, 60), dtype=np.float32)
    points, scores = find_peaks(response, 0.0)
    keys = [(-s, y, x) for (x, y), s in zip(points.tolist(), scores.tolist(), strict=True)]
    assert keys == sorted(keys)
    some, high = find_peaks(response, 0.7)
    assert len(high) == (scores >= np.float32(0.7)).sum() > 0
    assert np.array_equal(some, points[: len(some)])
    nothing, no_scores = find_peaks(np.zeros((8, 9), np.float32), 0.0)
    assert nothing.shape == (0, 2)
    assert no_scores.shape == (0,)


def test_bad_responses_are_named() -> None:
    with pytest.raises(RazError, match="nan"):
        find_peaks(np.full((4, 4), np.nan, np.float32), 0.1)
    with pytest.raises(RazError, match=r"expected \(H, W\)"):
        find_peaks(np.zeros((1, 4, 4), np.float32), 0.1)


# --------------------------------------------------------------------------------------------- threshold


def error(scores: list[NDArray[np.float32]], counts: list[int], t: float) -> int:
    return sum(abs(int((s >= t).sum()) - c) for s, c in zip(scores, counts, strict=True))


@settings(max_examples=200, deadline=None)
@given(
    images=st.lists(
        st.tuples(st.lists(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9999999, 1.0, 0.25]), max_size=8), st.integers(0, 9)),
        max_size=5,
    )
)
def test_no_threshold_is_better_than_the_fitted_one(images: list[tuple[list[float], int]]) -> None:
    scores = [np.array(s, np.float32) for s, _ in images]
    counts = [c for _, c in images]
    t = fit_threshold(scores, counts)
    assert 0 < t < 1
    # Every score inside (0, 1) as a threshold, both ends, and just above every score: all there is to try.
    values = np.unique(np.concatenate([*scores, np.zeros(0, np.float32)]))
    tries = [1e-30, float(np.nextafter(np.float32(1), np.float32(0)))]
    tries += [float(v) for v in values if 0 < v < 1]
    tries += [float(u) for u in np.nextafter(values, np.float32(2)) if 0 < u < 1]
    assert error(scores, counts, t) == min(error(scores, counts, u) for u in tries)


def test_the_threshold_lies_in_the_middle_of_the_gap() -> None:
    scores = [np.array([0.9, 0.8, 0.2], np.float32), np.array([0.7, 0.1], np.float32)]
    assert fit_threshold(scores, [2, 1]) == pytest.approx(0.45)
    assert fit_threshold([], []) == pytest.approx(0.5)
    assert fit_threshold([np.array([1.0, 1.0], np.float32)], [0]) < 1  # saturated points cannot be left out
    close = np.float32(0.5), np.nextafter(np.float32(0.5), np.float32(1))
    t = fit_threshold([np.array(close, np.float32)], [1])
    assert close[0] < t <= close[1]


def test_bad_scores_are_named() -> None:
    with pytest.raises(RazError, match="1 images with scores but 2 counts"):
        fit_threshold([np.zeros(1)], [1, 2])
    with pytest.raises(RazError, match="count of -1"):
        fit_threshold([np.zeros(1)], [-1])
    with pytest.raises(RazError, match="image 0"):
        fit_threshold([np.array([np.nan])], [1])
