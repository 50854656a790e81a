"""Ground truth against brute force in float64, written from the formulas of the paper (7, 8, 9, 11)."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from raz.errors import RazError, RazErrorGroup
from raz.paper import attention as att
from raz.paper import groundtruth as gt

Floats = NDArray[np.float64]


def brute_distances(heads: Floats, k: int, height: int, width: int) -> Floats:
    """Mean distance to the k nearest others from the full distance matrix."""
    n = len(heads)
    if n == 1:
        return np.array([(height + width) / 4])
    out = np.zeros(n)
    for i in range(n):
        others = np.sort([math.dist(heads[i], heads[j]) for j in range(n) if j != i])
        out[i] = others[:k].mean()
    return out


def brute_density(heads: Floats, sigma: Floats, height: int, width: int, stride: int) -> Floats:
    """Every Gaussian on every pixel of the image, each normalised, then summed over the cells."""
    y, x = np.mgrid[:height, :width] + 0.5
    total = np.zeros((-(-height // stride) * stride, -(-width // stride) * stride))
    for (a, b), s in zip(heads, sigma, strict=True):
        value = np.exp(-((x - a) ** 2 + (y - b) ** 2) / s**2)
        total[:height, :width] += value / value.sum()
    cells = total.reshape(total.shape[0] // stride, stride, total.shape[1] // stride, stride)
    return np.asarray(cells.sum(axis=(1, 3)))


def brute_labels(heads: Floats, height: int, width: int) -> NDArray[np.uint8]:
    """Eq. 2: a pixel is 1 when its plus-shaped neighbourhood holds a head."""
    out = np.zeros((height, width), np.uint8)
    for x, y in heads:
        i, j = math.floor(x), math.floor(y)
        for r in range(height):
            for c in range(width):
                if abs(r - j) + abs(c - i) <= 1:
                    out[r, c] = 1
    return out


def brute_attention(heads: Floats, height: int, width: int, sigma_z: float) -> Floats:
    """All distances of all pixels, sorted."""
    if len(heads) == 0:
        return np.zeros((height, width))
    y, x = np.mgrid[:height, :width] + 0.5
    distance = np.sort(np.hypot(x[..., None] - heads[:, 0], y[..., None] - heads[:, 1]), axis=-1)
    mean = distance[..., :3].mean(axis=-1)
    return np.asarray(np.exp(-(mean**2) / (2 * sigma_z**2)))


def crowd(seed: int, n: int, height: int, width: int) -> Floats:
    """A clustered crowd with twins, heads on corners and on the far edges, in random order."""
    rng = np.random.default_rng(seed)
    centre = rng.random((4, 2)) * [width, height]
    points = centre[rng.integers(0, 4, n)] + rng.normal(size=(n, 2)) * rng.choice([1.0, 8.0, 40.0], (n, 1))
    points = np.clip(points, 0, np.nextafter([width, height], 0.0))
    special = np.array([[0.0, 0.0], np.nextafter([width, height], 0.0), [width / 2, 0.0], [0.0, height - 1e-9]])
    points[: min(n, 4)] = special[: min(n, 4)]
    if n > 8:
        points[5] = points[6] = points[7]
    return np.asarray(rng.permutation(points), dtype=np.float64)


SIZES = [(61, 83), (64, 96), (17, 150), (9, 5), (1, 1)]


# ------------------------------------------------------------------------------------------------- heads


def test_inside_keeps_exactly_the_half_open_rectangle() -> None:
    heads = np.array([[0, 0], [9.999, 4.999], [10, 2], [3, 5], [-1e-9, 2], [3, -0.1], [np.nan, 1], [np.inf, 1]])
    kept, dropped = gt.heads_inside(heads, height=5, width=10)
    assert kept.tolist() == [[0, 0], [9.999, 4.999]]
    assert dropped == 6
    none, dropped = gt.heads_inside(np.zeros((0, 2)), 5, 10)
    assert none.shape == (0, 2)
    assert dropped == 0


@pytest.mark.parametrize("k", [1, 3, 4, 9])
@pytest.mark.parametrize("n", [0, 1, 2, 4, 30])
def test_mean_neighbour_distance_equals_the_distance_matrix(n: int, k: int) -> None:
    heads = crowd(n, n, 40, 60)
    np.testing.assert_allclose(gt.mean_neighbour_distance(heads, k, 40, 60), brute_distances(heads, k, 40, 60))


def test_twins_count_as_neighbours() -> None:
    heads = np.array([[5.0, 5.0], [5.0, 5.0], [8.0, 9.0]])
    # A head's twin is 0 away, the third 5; the third has both at 5.
    assert gt.mean_neighbour_distance(heads, 2, 20, 20).tolist() == [2.5, 2.5, 5.0]
    assert gt.mean_neighbour_distance(heads[:1], 4, 30, 50).tolist() == [20.0]


# ----------------------------------------------------------------------------------------------- density


@pytest.mark.parametrize("kernel", ["raz", "csrnet"])
@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 40])
def test_density_equals_brute_force_and_sums_to_n(
    n: int, size: tuple[int, int], stride: int, kernel: Literal["raz", "csrnet"]
) -> None:
    height, width = size
    heads = crowd(n + stride, n, height, width)
    got = gt.density_map(heads, height, width, stride=stride, kernel=kernel)
    if kernel == "raz":
        sigma = 0.1 * brute_distances(heads, 4, height, width)
    else:  # standard deviation 0.3 x the mean of three; exp(-d^2 / (2 std^2))
        sigma = math.sqrt(2) * 0.3 * brute_distances(heads, 3, height, width)
    expected = brute_density(heads, np.maximum(sigma, 0.3), height, width, stride)
    assert got.dtype == np.float32
    assert got.shape == (-(-height // stride), -(-width // stride))
    np.testing.assert_allclose(got, expected, atol=1e-6, rtol=1e-6)
    assert got.sum(dtype=np.float64) == pytest.approx(n, rel=1e-6, abs=0)


@settings(max_examples=60, deadline=None)
@given(
    heads=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)), max_size=12),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    stride=st.sampled_from([1, 2, 3, 4, 8]),
    beta=st.floats(0.01, 3.0),
)
def test_mass_is_kept_wherever_the_heads_are(
    heads: list[tuple[float, float]], height: int, width: int, stride: int, beta: float
) -> None:
    points = np.array(heads).reshape(-1, 2) * [width, height]
    points = np.minimum(points, np.nextafter([width, height], 0.0))
    got = gt.density_map(points, height, width, stride=stride, beta=beta)
    assert got.sum(dtype=np.float64) == pytest.approx(len(points), rel=1e-6, abs=0)
    assert got.min(initial=0) >= 0


def test_the_coarse_map_is_the_fine_map_summed() -> None:
    heads = crowd(3, 60, 80, 120)
    fine = gt.density_map(heads, 80, 120, stride=1).astype(np.float64)
    for stride in (2, 4, 8):
        pooled = fine.reshape(80 // stride, stride, 120 // stride, stride).sum(axis=(1, 3))
        np.testing.assert_allclose(gt.density_map(heads, 80, 120, stride=stride), pooled, atol=2e-6)


def test_given_distances_replace_the_search() -> None:
    heads = crowd(5, 30, 50, 70)
    distances = gt.mean_neighbour_distance(heads, 4, 50, 70)
    assert np.array_equal(gt.density_map(heads, 50, 70, distances=distances), gt.density_map(heads, 50, 70))
    assert gt.neighbour_count("raz", 4) == 4
    three = gt.mean_neighbour_distance(heads, gt.neighbour_count("csrnet", 4), 50, 70)
    direct = gt.density_map(heads, 50, 70, kernel="csrnet")
    assert np.array_equal(gt.density_map(heads, 50, 70, kernel="csrnet", distances=three), direct)
    wider = gt.density_map(heads, 50, 70, stride=1, distances=3 * distances)
    assert wider.max() < gt.density_map(heads, 50, 70, stride=1).max()


@pytest.mark.parametrize("stride", [1, 2, 8])
@pytest.mark.parametrize("kernel", ["raz", "csrnet"])
@pytest.mark.parametrize("n", [1, 5, 80])
def test_density_window_is_the_slice(n: int, kernel: Literal["raz", "csrnet"], stride: int) -> None:
    height, width = 117, 203  # not multiples of 8: the last cells reach beyond the image
    heads = crowd(n, n, height, width)
    distances = gt.mean_neighbour_distance(heads, gt.neighbour_count(kernel, 4), height, width)
    whole = gt.density_map(heads, height, width, stride=stride, kernel=kernel)
    # A border of zeros, so that windows beyond the image can be sliced too.
    framed = np.pad(whole, 128 // stride)
    for x0, y0, h, w in [(0, 0, 64, 64), (48, 24, 64, 128), (144, 64, 48, 56), (-16, -8, 64, 96), (160, 80, 96, 96)]:
        got = gt.density_window(heads, distances, height, width, x0, y0, h, w, stride=stride, kernel=kernel)
        r, c = (y0 + 128) // stride, (x0 + 128) // stride
        expected = framed[r : r + h // stride, c : c + w // stride]
        full = np.zeros((h // stride, w // stride), np.float32)
        full[: expected.shape[0], : expected.shape[1]] = expected
        assert np.array_equal(got, full)
        assert got.flags.c_contiguous


# ------------------------------------------------------------------------------------------------ labels


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n", [0, 1, 3, 40])
def test_labels_equal_equation_2(n: int, size: tuple[int, int]) -> None:
    heads = crowd(n, n, *size)
    got = gt.head_labels(heads, *size)
    assert got.dtype == np.uint8
    assert np.array_equal(got, brute_labels(heads, *size))


def test_a_lonely_head_marks_five_pixels_and_three_in_a_corner() -> None:
    assert gt.head_labels(np.array([[5.9, 7.1]]), 20, 20).sum() == 5
    corner = gt.head_labels(np.array([[0.0, 0.0]]), 20, 20)
    assert corner.sum() == 3
    assert corner[0, 0] == corner[0, 1] == corner[1, 0] == 1


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), x0=st.integers(-20, 60), y0=st.integers(-20, 60), h=st.integers(1, 40))
def test_label_window_is_the_slice(seed: int, x0: int, y0: int, h: int) -> None:
    heads = crowd(seed, 40, 41, 53)
    framed = np.pad(gt.head_labels(heads, 41, 53), 100)
    got = gt.label_window(heads, 41, 53, x0, y0, h, h + 3)
    assert np.array_equal(got, framed[y0 + 100 : y0 + 100 + h, x0 + 100 : x0 + 103 + h])


# --------------------------------------------------------------------------------------------- attention


@pytest.mark.long
@pytest.mark.parametrize("sigma_z", [0.5, 3.0, 25.0])
@pytest.mark.parametrize("size", [*SIZES, (150, 170)])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 60, 500])
def test_attention_equals_brute_force(n: int, size: tuple[int, int], sigma_z: float) -> None:
    heads = crowd(n, n, *size)
    got = att.attention_map(heads, *size, sigma_z)
    assert got.dtype == np.float32
    assert np.abs(got - brute_attention(heads, *size, sigma_z)).max() <= 1e-6


def test_attention_far_from_the_origin_is_as_exact() -> None:
    heads = crowd(11, 90, 60, 60)
    near = brute_attention(heads, 60, 60, 3.0)
    far = att.attention_window(heads + np.array([5008, 4000]), 4070, 5078, 5008, 4000, 60, 60, 3.0)
    assert np.abs(far - near).max() <= 1e-6


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.sampled_from([0, 1, 2, 3, 10, 80]),
    x0=st.integers(-50, 320),
    y0=st.integers(-50, 220),
    h=st.integers(1, 130),
    sigma_z=st.sampled_from([1.0, 3.0, 9.0]),
)
def test_attention_window_is_the_slice(seed: int, n: int, x0: int, y0: int, h: int, sigma_z: float) -> None:
    height, width = 203, 311
    heads = crowd(seed, n, height, width)
    framed = np.pad(att.attention_map(heads, height, width, sigma_z), 200)
    got = att.attention_window(heads, height, width, x0, y0, h, h + 5, sigma_z)
    assert np.array_equal(got, framed[y0 + 200 : y0 + 200 + h, x0 + 200 : x0 + 205 + h])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.sampled_from([0, 1, 2, 3, 10, 80]),
    x0=st.integers(-50, 320),
    y0=st.integers(-50, 220),
    h=st.integers(1, 130),
    sigma_z=st.sampled_from([0.7, 1.0, 3.0, 9.0]),
)
def test_attention_of_kept_distances_has_the_same_bits(
    seed: int, n: int, x0: int, y0: int, h: int, sigma_z: float
) -> None:
    height, width = 203, 311
    heads = crowd(seed, n, height, width)
    kept = att.attention_distances(heads, height, width, 9.0)
    got = att.attention_from_distances(kept, sigma_z, x0, y0, h, h + 5)
    assert np.array_equal(got, att.attention_window(heads, height, width, x0, y0, h, h + 5, sigma_z))


def test_attention_below_the_floor_is_zero() -> None:
    """So that no value depends on which tiles a larger sigma_z, or a window, happened to look at."""
    got = att.attention_map(np.array([[8.0, 4.0]]), 8, 64, 3.0)
    true = brute_attention(np.array([[8.0, 4.0]]), 8, 64, 3.0)
    assert (got[true < 0.99e-7] == 0).all()
    assert (got[true > 1.01e-7] > 0).all()
    assert ((true > 0) & (true < 0.99e-7)).any()


# ------------------------------------------------------------------------------------------------ faults


def test_bad_input_is_named() -> None:
    good = np.array([[3.0, 3.0]])
    calls: list[tuple[Any, str]] = [
        (lambda: gt.density_map(np.array([[3.0, 10.0], [1.0, 1.0]]), 10, 20), "1 of 2 outside"),
        (lambda: gt.head_labels(np.array([[20.0, 3.0]]), 10, 20), "outside"),
        (lambda: att.attention_map(np.array([[-0.1, 3.0]]), 10, 20), "outside"),
        (lambda: att.attention_map(np.array([[np.nan, 3.0]]), 10, 20), "outside"),
        (lambda: gt.heads_inside(np.zeros((3, 3)), 10, 20), r"\(n, 2\)"),
        (lambda: att.attention_map(good, 10, 20, 0.0), "sigma_z"),
        (
            lambda: att.attention_from_distances(att.attention_distances(good, 10, 20, 2.0), 2.5, 0, 0, 4, 4),
            "serve up to 2.0",
        ),
        (lambda: gt.mean_neighbour_distance(good, 0, 10, 20), "k is 0"),
        (lambda: gt.head_labels(good, 0, 20), "0 x 20"),
        (lambda: gt.label_window(good, 10, 20, 0, 0, 0, 4), "expected at least 1 x 1"),
        (lambda: gt.density_map(good, 10, 20, stride=0), "stride"),
        (lambda: gt.density_map(good, 10, 20, kernel="box"), "legal are raz, csrnet"),  # type: ignore[arg-type]
        (lambda: gt.density_map(good, 10, 20, distances=np.array([-1.0])), "negative"),
        (lambda: gt.density_window(good, np.ones(1), 10, 20, 4, 0, 8, 8), "multiples of 8"),
    ]
    for call, words in calls:
        with pytest.raises(RazError, match=words):
            call()


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(RazErrorGroup) as caught:
        gt.density_window(np.array([[3.0, 3.0]]), np.ones(2), 10, 20, 1, 0, 8, 8, beta=-1.0)
    assert len(caught.value.faults) == 3
