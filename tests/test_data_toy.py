"""The toy crowd: the same everywhere, as it was described, and no easier than that."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import convolve
from scipy.spatial import cKDTree

from raz.config import TrialConfig
from raz.data import open_dataset, toy
from raz.data.contract import SPLITS, Split
from raz.data.show import compute

TEST_IMAGES = toy.SIZES["test"]
GOLDEN: dict[tuple[Split, int], str] = {  # sha256 of pixels and heads
    ("train", 0): "87e3c36c89290cf47dffb7c6cdf389bb553f02aa6034b148a73fff0418023691",
    ("val", 3): "5c02270723ce4ba047351bac526766403e78457698975d497071256b15a45bed",
    ("test", 14): "c3bb2d373f093760f00a0209f8c5284ac3b1c373c264b96e1ae3f29e76c3a493",
}


def sha(split: Split, index: int) -> str:
    pixels, heads = toy.generate(split, index)
    return hashlib.sha256(pixels.tobytes() + heads.tobytes()).hexdigest()


def counts(split: Split) -> NDArray[np.int64]:
    return np.array([len(toy.generate(split, i)[1]) for i in range(toy.SIZES[split])])


@pytest.mark.parametrize(("split", "index"), list(GOLDEN))
def test_images_are_the_same_on_every_machine(split: Split, index: int) -> None:
    # A change here changes what every stored stage was trained on: raise toy.VERSION with it.
    assert toy.VERSION == 1
    assert sha(split, index) == GOLDEN[split, index]


def test_an_image_does_not_depend_on_what_was_drawn_before() -> None:
    code = (
        "import hashlib; from raz.data import toy; p, h = toy.generate('test', 7);"
        "print(hashlib.sha256(p.tobytes() + h.tobytes()).hexdigest())"
    )
    toy.generate("test", 6)
    alone = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert alone == sha("test", 7)


def test_splits_are_of_the_promised_sizes_and_all_different() -> None:
    dataset = open_dataset("toy")
    assert {split: len(dataset.items[split]) for split in SPLITS} == {"train": 60, "val": 16, "test": 40}
    images = {sha(split, i) for split in SPLITS for i in range(toy.SIZES[split])}
    assert len(images) == 116


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_holds_empty_sparse_and_dense_scenes(split: Split) -> None:
    n = counts(split)
    assert n.min() == 0
    assert 180 <= n.max() <= 260
    assert ((n > 0) & (n <= 22)).mean() >= 0.1
    assert (n >= 90).mean() >= 0.3
    sizes = {toy.generate(split, i)[0].shape[:2] for i in range(toy.SIZES[split])}
    assert len(sizes) >= 12
    assert any(height % 8 and width % 8 for height, width in sizes)


def test_crowds_thicken_with_distance() -> None:
    # in a packed scene, the nearest neighbour of the far half of the heads is nearer than that of the near half
    nearer = 0
    packed = [i for i in range(TEST_IMAGES) if len(toy.generate("test", i)[1]) >= 90]
    for i in packed:
        heads = toy.generate("test", i)[1]
        spacing = np.asarray(cKDTree(heads).query(heads, k=[2])[0])[:, 0]
        far = heads[:, 1] <= np.median(heads[:, 1])
        nearer += int(np.median(spacing[far]) < np.median(spacing[~far]))
    assert nearer >= 0.9 * len(packed)


def test_at_least_half_of_the_test_images_have_a_region_to_zoom() -> None:
    config = TrialConfig()
    zoom = config.zooming
    assert (config.attention.sigma_z, zoom.theta_z, zoom.anchors, zoom.samples) == (3.0, 0.01, "paper", 200)
    regions = [len(compute(item, config).regions) for item in open_dataset("toy").items["test"]]
    assert sum(r > 0 for r in regions) >= TEST_IMAGES / 2
    assert sum(r == 0 for r in regions) >= 5  # and some have none: both ways occur


@pytest.mark.parametrize(("x", "y", "w"), [(30.5, 20.5, 9.0), (31.2, 22.9, 5.0), (28.75, 25.25, 13.0)])
def test_a_head_is_drawn_where_it_is_annotated(x: float, y: float, w: float) -> None:
    # (27): the mean of the centres of a head's pixels is the annotated point
    canvas, owner = np.zeros((60, 60, 3), np.float32), np.zeros((60, 60), np.int32)
    drawn = toy._draw_person(canvas, owner, 1, x, y, w, toy._Random("test"), None)
    rows, cols = np.nonzero(owner == 1)
    assert drawn == len(rows) == pytest.approx(np.pi * 0.5 * w * 0.6 * w, rel=0.2)
    assert (cols.mean() + 0.5, rows.mean() + 0.5) == pytest.approx((x, y), abs=0.3)


def test_a_hidden_head_is_not_annotated() -> None:
    canvas = np.zeros((90, 90, 3), np.float32)
    view = toy._View(90, 90, skyline=-1000.0, far=8.0, near=8.0)
    rng = toy._Random("no clutter")
    rng.integer = lambda low, high: low if high != 26 else 0  # type: ignore[method-assign]
    behind, aside, before = [40.0, 40.0, 8.0], [70.0, 40.0, 8.0], [40.0, 41.0, 9.0]
    heads = toy._draw_scene(canvas, rng, view, np.array([behind, aside, before]))
    assert heads.tolist() == [[70.0, 40.0], [40.0, 41.0]]


def _edges(pixels: NDArray[np.uint8]) -> list[float]:
    """What can be said of an image without looking for heads: how much of it is edge, and how strong."""
    grey = pixels.astype(np.float64).mean(axis=2)
    dx, dy = np.gradient(grey, axis=1), np.gradient(grey, axis=0)
    strength = np.hypot(dx, dy)
    corners = convolve(grey, np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]]))
    tops = [float((strength > t).sum()) for t in (5, 10, 20, 40)]
    return [1.0, *tops, float(strength.sum()), float(np.abs(corners).sum()), float((np.abs(corners) > 60).sum())]


def test_edges_alone_do_not_count_it() -> None:
    # Ridge regression of the count on edge statistics, its strength chosen in the baseline's favour, on test.
    def features(split: Split) -> NDArray[np.float64]:
        return np.array([_edges(toy.generate(split, i)[0]) for i in range(toy.SIZES[split])])

    fit, held = features("train"), features("test")
    middle, spread = fit.mean(axis=0), fit.std(axis=0) + 1e-9
    a, b = (fit - middle) / spread, (held - middle) / spread
    a[:, 0] = b[:, 0] = 1
    errors = []
    for strength in (0.01, 0.1, 1.0, 10.0, 100.0):
        weights = np.linalg.solve(a.T @ a + strength * np.eye(a.shape[1]), a.T @ counts("train"))
        errors.append(float(np.abs(b @ weights - counts("test")).mean()))
    best = min(errors)
    guess = float(np.abs(counts("test") - counts("train").mean()).mean())
    assert best > 0.6 * guess  # a narrow network reaches less than half of the guess
