"""Regions of zoom passes: drawn by the picture's content wherever it lies, and nested up to the image's very edge."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from raz.config import ZoomingConfig
from raz.data import DATASETS
from raz.data.contract import SPLITS, Reader, Sample, ScannedSample, ScanResult
from raz.data.frames import Frames
from raz.data.images import content_digest
from raz.pipeline import regions as regions_module
from raz.pipeline import tiling
from raz.pipeline.assembly import TrainedStage
from raz.pipeline.context import network_context
from raz.pipeline.graph import TRAINED, Node, declared_inputs
from raz.pipeline.inference import FeatureLru
from raz.pipeline.model import Model
from raz.pipeline.regions import boxes_in_image, region_images
from raz.pipeline.scoring import FittedThresholds
from raz.pipeline.stage_context import TrialState
from raz.pipeline.trial import _threads
from tests.golden import given
from tests.golden.outputs import arrays_of, task_of

PICTURE = ("test", 2)  # of `given`; it lies under other names, among other images, in all three splits
PLACES = {"train": 1, "val": 0, "test": 2}  # its index there


# ------------------------------------------------------------------ one picture under many names


def _scan(_: Path | None) -> ScanResult:
    """Three images a split, of which one is the picture."""

    def sample(split: str, n: int) -> ScannedSample:
        source = PICTURE if PLACES[split] == n else (split, n)
        name = f"{split}/folder {n}/IMG_{n}"
        pixels, heads = partial(given.pixels_of, *source), partial(given.heads_of, *source)
        return ScannedSample(Sample(name, name, pixels, heads, name), name)

    return ScanResult({split: tuple(sample(split, n) for n in range(3)) for split in SPLITS})


@pytest.fixture
def twins() -> Iterator[str]:
    DATASETS["twins"] = Reader("Twins", _scan, "nothing")
    yield "twins"
    del DATASETS["twins"]


def planted(folder: Path, dataset: str, **settings: Any) -> tuple[TrialState, dict[str, Any]]:
    """A trial with given weights in every trained stage, and these weights."""
    first = given.CONFIGS["first"] | {"depth": 4, "dataset": dataset} | settings
    at = given.trial(folder, given.configured(first))
    weights = {}
    for stage in TRAINED:
        task, _ = task_of(at, stage)
        weights[stage] = given.weights(stage, task.modules.state_dict())
        given.plant_weights(at, stage, weights[stage])
    return at, weights


def of_picture(arrays: dict[str, Any], split: str, names: tuple[str, ...], ends: str) -> list[NDArray[Any]]:
    return [np.split(arrays[name], arrays[ends][:-1])[PLACES[split]] for name in names]


@pytest.mark.parametrize("scale", [1.0, 0.75])
def test_a_picture_has_the_same_points_wherever_it_lies(scale: float, twins: str, tmp_path: Path) -> None:
    with _threads(1):  # on which the last bits depend; `predict` sets the configured number itself
        _same_points_everywhere(*planted(tmp_path, twins, **{"input.scale": scale, "threads": 1}))


def test_a_large_picture_goes_by_the_same_tiles_in_studies_as_in_predict(
    twins: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its zoomed regions too, whose tiles have the size of the picture's."""
    asked: list[tuple[int, int, int]] = []

    def watched(height: int, width: int, margin: Any, align: int, limit: int | None) -> list[tiling.Tile]:
        asked.append((height, width, limit if limit is not None else tiling.tile_pixels(height, width)))
        return tiling.tiles(height, width, margin, align, limit)

    monkeypatch.setattr("raz.pipeline.inference.tiles", watched)
    monkeypatch.setattr(tiling, "TILE_PIXELS", 1 << 12)
    monkeypatch.setattr(tiling, "LEAST", 16)
    height, width = given.size_of(*PICTURE)
    monkeypatch.setattr(tiling, "LARGE", height * width - 1)
    monkeypatch.setattr("raz.pipeline.predict_stages.MEMO", FeatureLru(0))
    with _threads(1):
        at, weights = planted(tmp_path, twins, threads=1)
        asked.clear()
        _same_points_everywhere(at, weights)
    studied, predicted = set(asked[:-1]), set()
    for each in reversed(asked):  # `predict` came last, its picture first
        predicted.add(each)
        if each[:2] == (height, width):
            break
    assert predicted <= studied
    assert len(predicted) > 3
    assert all(limit == 1 << 11 for _, _, limit in predicted)


def _same_points_everywhere(at: TrialState, weights: Mapping[str, Any]) -> None:
    found: dict[str, list[NDArray[Any]]] = {}
    regions: dict[str, list[NDArray[Any]]] = {}
    for split in SPLITS:
        for node in (Node("points", split), *(Node("zoom", split, number) for number in (2, 3, 4))):
            arrays = arrays_of(at, node)
            given.plant_arrays(at, node, arrays)
            if node.zoom_pass:
                regions.setdefault(split, []).extend(of_picture(arrays, split, ("regions",), "region_ends"))
        found[split] = of_picture(arrays, split, ("xy", "score", "network", "depth"), "ends")
    assert all(len(boxes) for boxes in regions["val"])
    assert (found["val"][2] == 1).any()  # RAZ-Net found some
    for split in ("train", "test"):
        assert all(np.array_equal(a, b) for a, b in zip(found[split], found["val"], strict=True))
        assert all(np.array_equal(a, b) for a, b in zip(regions[split], regions["val"], strict=True))

    stages = {s: TrainedStage(at.keys[Node(s)].key, declared_inputs(at.config, s), w) for s, w in weights.items()}
    model = Model(at.config, stages, FittedThresholds(0.0, 0.0, np.zeros(4)), {})
    model.__dict__["device"] = at.device
    predicted = model.predict(given.pixels_of(*PICTURE))
    per_px = np.array(at.context(Node("zoom", "val", 2)).frames("val").scale(PLACES["val"]))
    assert predicted.points == pytest.approx(found["val"][0] / per_px, rel=1e-12)
    assert np.array_equal(predicted.scores, found["val"][1])
    assert np.array_equal(predicted.passes, found["val"][3])
    for got, boxes in zip(predicted.regions, regions["val"], strict=True):
        assert got == pytest.approx(boxes / np.tile(per_px, 2), rel=1e-12)


def test_raz_net_learns_from_the_same_regions_wherever_the_picture_lies(twins: str, tmp_path: Path) -> None:
    at, _ = planted(tmp_path, twins)
    context = network_context(at, Node("raz"))
    crops = {}
    for split in ("train", "val"):
        config = at.config.zooming
        frames = context.frames(split)
        images = region_images(frames, config, context.candidates(context.main_net("attention"), split, config))
        name = f"{frames.ids[PLACES[split]]}#"
        crops[split] = [images.pixels(i) for i in range(len(images)) if images.ids[i].startswith(name)]
    assert crops["val"]
    assert all(np.array_equal(a, b) for a, b in zip(crops["train"], crops["val"], strict=True))


def test_the_content_is_that_of_the_input(tmp_path: Path) -> None:
    """Shape and pixels at input size, from memory or from a pack; the name and the heads are not in it."""
    pixels = given.pixels_of("val", 0)
    samples = [Sample(name, name, lambda: pixels, lambda: np.zeros((0, 2)), name) for name in ("a", "b")]
    whole, half = Frames(samples, pack=tmp_path), Frames(samples, scale=0.5)
    assert whole.content(0) == whole.content(1) == content_digest(pixels) == Frames(samples).content(1)
    assert half.content(0) == half.content(1) == content_digest(half.pixels(0)) != whole.content(0)
    flat = np.zeros((2, 6, 3), np.uint8)
    digests = {content_digest(flat), content_digest(flat.reshape(6, 2, 3)), content_digest(flat + np.uint8(1))}
    assert len(digests) == 3
    assert content_digest(np.asfortranarray(flat)) == content_digest(flat)


# ------------------------------------------------------------------ regions as images


def test_regions_are_cut_when_they_are_read_and_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """240 regions of 115 MB: beside the few that were read last, none is in memory."""
    monkeypatch.setattr(regions_module, "CUT_BYTES", 1 << 21)
    rng = np.random.default_rng(8)
    pictures = [rng.integers(0, 256, (300, 420, 3), dtype=np.uint8) for _ in range(4)]
    heads = [rng.uniform(0, [420, 300], (90, 2)) for _ in pictures]
    samples = [
        Sample(f"{n}", f"{n}", picture.copy, of_picture.copy, f"{n}")
        for n, (picture, of_picture) in enumerate(zip(pictures, heads, strict=True))
    ]
    frames = Frames(samples, pack=tmp_path)
    for i in range(len(frames)):
        frames.pixels(i)  # checked once
    corners = rng.integers(0, [220, 100], (60, 2))
    boxes = np.concatenate([corners, corners + 200], axis=1)
    config = ZoomingConfig(k_z=60, iou=1.0, theta_z=0.0)
    tracemalloc.start()
    try:
        images = region_images(frames, config, [(boxes, rng.random(60)) for _ in pictures])
        total = 0
        for index in [*range(len(images)), *rng.permutation(len(images)).tolist()]:
            pixels = images.pixels(index)
            image, box = images.places[index]
            assert pixels.shape == (*images.size(index), 3)
            assert np.array_equal(pixels, frames.zoomed(image, box, 2.0))
            total += pixels.nbytes
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(images) == 240
    assert total == 2 * 240 * 400 * 400 * 3
    assert peak < 10e6
    assert images.heads(0).shape[0] > 0
    inside = heads[0][((heads[0] >= images.places[0][1][:2]) & (heads[0] < images.places[0][1][2:])).all(axis=1)]
    np.testing.assert_allclose(images.heads(0), (inside - images.places[0][1][:2]) * 2)


# ------------------------------------------------------------------ the image's own edge


@pytest.mark.parametrize("factor", [2, 3, 5, 7])
def test_nested_regions_on_the_images_edge_stay_there(factor: int) -> None:
    """Chains of regions, each of whole pixels of the last one's crop, as exact fractions beside.

    A region a rounding off the edge of the image would have an inner border along it (17). Factors that are no power
    of two give coordinates that no float holds.
    """
    rng = np.random.default_rng(factor)
    touched = 0
    for _ in range(2500):
        ends = rng.integers(4, 1200, 2)  # width, height
        first = rng.integers(0, ends - 3)
        region = np.array([*first, *ends], np.float64)
        exact = [Fraction(int(v)) for v in region]
        for zoom_pass in (3, 4, 5):
            crop = [max(1, round(float(region[a + 2] - region[a]) * factor ** (zoom_pass - 2))) for a in (0, 1)]
            low = np.array([int(rng.integers(0, side)) for side in crop])
            high = np.array([side if rng.random() < 0.7 else rng.integers(at + 1, side + 1) for side, at in zip(
                crop, low, strict=True
            )])  # fmt: skip
            low[rng.random(2) < 0.3] = 0
            box = np.array([[*low, *high]], np.float64)
            inner = boxes_in_image(box, region, crop[1], crop[0])[0]
            wanted = [
                exact[k % 2] + Fraction(int(box[0, k])) * (exact[k % 2 + 2] - exact[k % 2]) / crop[k % 2]
                for k in range(4)
            ]
            assert inner.tolist() == pytest.approx([float(v) for v in wanted], rel=1e-12, abs=1e-9)
            for k in range(4):
                for edge in (0, int(ends[k % 2])):
                    assert (inner[k] == edge) == (wanted[k] == edge)
                    touched += wanted[k] == edge
            assert (region[:2] <= inner[:2]).all()
            assert (inner[2:] <= region[2:]).all()
            region, exact = inner, wanted
    assert touched > 5000
