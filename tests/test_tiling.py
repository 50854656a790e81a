"""Large images by tiles: validation, features and stages give what whole images give, and the same as `predict`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import raz.data
from raz.config import PRESETS, BackboneConfig, TrainConfig, configure
from raz.data import DATASETS
from raz.data.contract import SPLITS, Reader, Sample, ScannedSample, ScanResult
from raz.errors import RazError
from raz.paper.networks import STRIDE, network_input
from raz.pipeline import keys, tasks, tiling
from raz.pipeline.feature_cache import BranchFeatureCache, FeatureCache
from raz.pipeline.graph import TILED, TRAINED, node_keys
from raz.pipeline.inference import Network
from raz.pipeline.keys import stage_keys
from raz.pipeline.samples import Images
from raz.pipeline.tasks import TilesOf, TrainingData, features_from, tiles_from, whole_image
from raz.pipeline.tiling import Tile, by_size, tile_pixels, tiles
from raz.pipeline.trial import _threads
from tests.golden import given
from tests.gpu.planted import Planted, configured, plan_of, planted
from tests.test_backbones import LITE, THREE, VGG, network

CPU = torch.device("cpu")
SMALL = 1 << 12  # px of a tile: 64 px without the margin


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Several wait for each other, busily, for most of the time that these small layers take."""
    with _threads(1):
        yield


class Noise:
    """Images of noise whose sides are no multiples of 8, with heads: one is longer than a tile with both margins."""

    ids = ("long", "square")
    sizes = ((13, 700), (139, 150))

    def __len__(self) -> int:
        return len(self.sizes)

    def size(self, index: int) -> tuple[int, int]:
        return self.sizes[index]

    def pixels(self, index: int) -> NDArray[np.uint8]:
        return np.random.default_rng(index).integers(0, 256, (*self.sizes[index], 3), dtype=np.uint8)

    def heads(self, index: int) -> NDArray[np.float64]:
        return np.random.default_rng([index, 1]).random((60, 2)) * self.sizes[index][::-1]


# ------------------------------------------------------------------ which tiles


@pytest.mark.parametrize(("height", "width"), [(300, 500), (1000, 13), (641, 1203), (64, 64), (1, 5000)])
@pytest.mark.parametrize(("margin", "align", "limit"), [(24, 8, 1 << 14), (48, 16, 1 << 15), (160, 16, 1 << 12)])
def test_tiles_cover_each_pixel_once_and_see_far_enough(
    height: int, width: int, margin: int, align: int, limit: int
) -> None:
    found = tiles(height, width, lambda: margin, align, limit)
    rows, cols = -(-height // 8) * 8, -(-width // 8) * 8
    covered = np.zeros((rows, cols), np.int64)
    for tile in found:
        covered[tile.place()] += 1
        assert tile.top % align == tile.left % align == 0  # as in the whole image
        for near, low, end in ((tile.top, tile.y0, tile.bottom - tile.y1), (tile.left, tile.x0, tile.right - tile.x1)):
            assert near in (0, low - margin)
            assert 0 <= end <= margin
        assert tile.bottom in (rows, tile.y1 + margin)
        assert tile.right in (cols, tile.x1 + margin)
        if min(rows, cols, limit**0.5 - 2 * margin) > tiling.LEAST and len(found) > 1:
            assert (tile.bottom - tile.top) * (tile.right - tile.left) <= limit
    assert (covered == 1).all()
    assert sum(tile.pixels for tile in found) == rows * cols
    assert (len(found) == 1) == (rows * cols <= limit)
    ordered = by_size(found)
    areas = [(tile.bottom - tile.top) * (tile.right - tile.left) for tile in ordered]
    assert areas == sorted(areas, reverse=True)
    assert Counter(ordered) == Counter(found)


def test_the_stride_is_that_of_the_networks() -> None:
    assert tiling.CELL == STRIDE


def test_photographs_of_the_usual_sizes_go_whole() -> None:
    """ShanghaiTech's largest, and the mean sizes of JHU-Crowd++; those of UCF-QNRF (2013 x 2902) do not."""

    def never() -> int:
        raise AssertionError("asked for a margin")

    for height, width in ((768, 1024), (910, 1430), (1448, 1448)):
        assert len(tiles(height, width, never)) == 1
    assert len(tiles(2013, 2902, lambda: 152)) > 1
    assert tile_pixels(4096, 4096) == tiling.TILE_PIXELS
    assert tile_pixels(4096, 4097) == tiling.TILE_PIXELS // 2


# ------------------------------------------------------------------ validation


def validation(net: Network, branch: str, tiles_of: TilesOf, cache: FeatureCache | None = None) -> float:
    """The validation value of a branch on images of noise."""
    images = Noise()
    data = TrainingData(images, images, 0, CPU)
    features = features_from(net.backbone, images, CPU, cache)
    assert net.counting is not None
    assert net.localization is not None
    assert net.attention is not None
    counting, localization = net.counting, net.localization
    if branch == "counting":
        task = tasks.counting_task(
            data, nn.ModuleDict(), counting, features, features, TrainConfig(), beta=0.1, kernel="raz", kind="rmse",
            tiles_of=tiles_of,
        )  # fmt: skip
    elif branch == "localization":
        task = tasks.localization_task(
            data, branch, nn.ModuleDict(), localization, features, features, TrainConfig(), gamma=100.0,
            tiles_of=tiles_of,
        )  # fmt: skip
    else:

        def rich(windows: tasks.Batch) -> tuple[Tensor, Tensor | None]:
            own = features(windows)
            return localization(own)[1], counting(own)[1]

        task = tasks.attention_task(
            data, branch, nn.ModuleDict(), net.attention, rich, rich, TrainConfig(), sigma_z=5.0, kind="mse",
            tiles_of=tiles_of,
        )  # fmt: skip
    with torch.inference_mode():
        return task.validate()


def parts_of(net: Network, branch: str) -> TilesOf:
    """The tiles that a stage takes for a branch."""
    used = {"counting": ("counting",), "localization": ("localization",)}.get(
        branch, ("counting", "localization", "attention")
    )
    return tiles_from(net.backbone, **{name: getattr(net, name) for name in used})


@pytest.mark.long
@THREE
@pytest.mark.parametrize("branch", ["counting", "localization", "attention"])
def test_validation_by_tiles_is_that_of_whole_images(
    config: BackboneConfig, branch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network(config)
    whole = validation(net, branch, whole_image)
    assert validation(net, branch, parts_of(net, branch)) == whole  # these images fit: the very same bits
    monkeypatch.setattr(tiling, "TILE_PIXELS", SMALL)
    assert [len(parts_of(net, branch)(*size)) for size in Noise.sizes] == [11, 9]
    by_tiles = validation(net, branch, parts_of(net, branch))
    assert whole > 1e-2
    assert by_tiles == pytest.approx(whole, rel=1e-5)


@pytest.mark.long
@THREE
@pytest.mark.parametrize("branch", ["counting", "localization", "attention"])
def test_it_is_the_margin_that_makes_them_equal(config: BackboneConfig, branch: str) -> None:
    net = network(config)
    whole = validation(net, branch, whole_image)

    def without(height: int, width: int) -> list[Tile]:
        return tiles(height, width, lambda: 0, net.backbone.alignment, SMALL)

    assert validation(net, branch, without) != pytest.approx(whole, rel=1e-4)


@pytest.mark.long
def test_a_network_that_sees_the_whole_image_is_refused_before_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "TILE_PIXELS", SMALL)
    images = Noise()
    data = TrainingData(images, images, 0, CPU)
    net = network(VGG)
    monkeypatch.setattr(type(net.backbone), "receptive_field", lambda self: None)
    assert net.localization is not None
    with pytest.raises(RazError, match="700 x 13 px") as told:
        tasks.localization_task(
            data, "localization", nn.ModuleDict(), net.localization, lambda w: torch.zeros(1), lambda w: torch.zeros(1),
            TrainConfig(), gamma=1.0, tiles_of=tiles_from(net.backbone, localization=net.localization),
        )  # fmt: skip
    assert "max_side" in told.value.hint
    with pytest.raises(RazError, match="700 x 13 px"):
        FeatureCache(Path("nowhere"), net.backbone, images, CPU).get(0)


# ------------------------------------------------------------------ features


@pytest.mark.long
@pytest.mark.parametrize("config", [VGG, LITE], ids=lambda config: config.name)
def test_kept_features_are_stitched(config: BackboneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = network(config)
    images = Noise()
    assert net.counting is not None
    assert net.localization is not None

    def computed(folder: str) -> tuple[FeatureCache, list[Tensor]]:
        """The features of each image and its mirror image, and the branches' last maps from the whole ones."""
        features = FeatureCache(tmp_path / folder, net.backbone, images, CPU)
        found = [features.get(i, mirrored) for i in range(2) for mirrored in (False, True)]
        return features, found

    def rich(folder: str, features: FeatureCache) -> list[Tensor]:
        caches = [
            BranchFeatureCache(tmp_path / folder / name, branch, branch.channels, stride, features)
            for name, branch, stride in (("c", net.counting, 8), ("l", net.localization, 1))
        ]  # fmt: skip
        return [cache.get(i, mirrored) for cache in caches for i in range(2) for mirrored in (False, True)]

    features, whole = computed("whole")
    whole_rich = rich("whole", features)
    monkeypatch.setattr(tiling, "TILE_PIXELS", SMALL)
    _, stitched = computed("tiled")
    by_tiles = rich("tiled", features)  # from the same features, so that only one rounding to half differs
    for a, b in zip([*whole, *whole_rich], [*stitched, *by_tiles], strict=True):
        assert a.shape == b.shape
        assert float(a.abs().max()) > 0.1
        level = float(a.abs().max())
        assert float((a.float() - b.float()).abs().max()) <= 2**-10 * level  # one unit of half precision
        assert float((a != b).float().mean()) < 0.02  # where rounding tips over, and nowhere else
    # By tiles from kept features, where no crop sees beyond the image.
    for branch in ("counting", "localization", "attention"):
        expected = validation(net, branch, whole_image, features)
        assert validation(net, branch, parts_of(net, branch), features) == pytest.approx(expected, rel=1e-5)


def test_files_of_whole_images_are_what_numpy_writes(tmp_path: Path) -> None:
    net = network(VGG)
    images = Noise()
    FeatureCache(tmp_path, net.backbone, images, CPU).get(1)
    with torch.inference_mode():
        plain = net.backbone(network_input(images.pixels(1)))[0].half().numpy()
    np.save(tmp_path / "expected", plain)
    assert (tmp_path / "1.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()


# ------------------------------------------------------------------ stages


@pytest.fixture(scope="module")
def given_images() -> Iterator[None]:
    with given.dataset():
        yield


def values(trial: Planted) -> list[float]:
    """The validation value of every trained stage at its planted weights."""
    out = []
    with trial.same_regions(), torch.inference_mode():
        for stage in TRAINED:
            task = plan_of(trial.state, stage).task
            assert task is not None
            task.modules.load_state_dict(trial.weights[stage])
            task.modules.eval()
            out.append(task.validate())
    return out


@pytest.mark.long
@pytest.mark.usefixtures("given_images")
@pytest.mark.parametrize("unfreeze", ["backbone", "none"])
def test_every_trained_stage_validates_by_tiles(unfreeze: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = planted(tmp_path, configured("tiny", counting__unfreeze=unfreeze, raz__unfreeze=unfreeze))
    whole = values(trial)
    cut: list[int] = []
    make = tasks._pieces

    def watched(images: Images, tiles_of: TilesOf) -> list[list[tasks._Piece]]:
        found = make(images, tiles_of)
        cut.append(min(len(pieces) for pieces in found))
        return found

    monkeypatch.setattr(tasks, "_pieces", watched)
    assert values(trial) == whole  # the same bits
    assert cut == [1] * len(TRAINED)
    monkeypatch.setattr(tiling, "TILE_PIXELS", 1 << 8)
    monkeypatch.setattr(tiling, "LEAST", 16)
    by_tiles = values(trial)
    assert all(pieces > 1 for pieces in cut[len(TRAINED) :])
    assert by_tiles == pytest.approx(whole, rel=1e-5)


# ------------------------------------------------------------------ keys


def sized(**splits: tuple[int, int]) -> Iterator[None]:
    """A data set of images of these sizes, which are known and never decoded."""

    def refuse() -> NDArray[np.uint8]:
        raise AssertionError("decoded for a key")

    def scan(_: Path | None) -> ScanResult:
        samples = {}
        for split in SPLITS:
            sizes = [(300, 400), splits.get(split, (300, 400))]
            samples[split] = tuple(
                ScannedSample(Sample(n, n, refuse, lambda: np.zeros((0, 2)), n, size=size), n)
                for size in sizes for n in [f"{split} {size}"]
            )  # fmt: skip
        return ScanResult(samples)

    DATASETS["sized"] = Reader("Sized", scan, "nothing")
    keys._any_image.cache_clear()
    keys.open_cached.cache_clear()
    raz.data._OPEN_DATASETS.clear()
    keys._fingerprint.cache_clear()
    yield
    del DATASETS["sized"]
    keys._any_image.cache_clear()
    keys.open_cached.cache_clear()
    raz.data._OPEN_DATASETS.clear()
    keys._fingerprint.cache_clear()


PHOTOGRAPH = (768, 1024)
WIDE = (600, 4000)  # by tiles, but not its regions, of 400 px at most at twice the size
SQUARE = (1400, 1400)  # whole, but not its regions, of 933 px
HUGE = (4000, 5000)  # by halved tiles


@pytest.mark.parametrize(
    ("splits", "settings", "expected"),
    [
        ({"train": PHOTOGRAPH, "val": PHOTOGRAPH, "test": PHOTOGRAPH}, {}, ""),
        ({"val": WIDE}, {}, "counting localization attention"),
        ({"train": WIDE}, {}, "localization attention"),  # features of Main-Net's frozen backbone are kept
        ({"train": WIDE}, {"localization.unfreeze": "backbone"}, "attention"),
        ({"train": WIDE}, {"counting.unfreeze": "none"}, "counting localization attention"),
        ({"train": WIDE, "val": WIDE}, {"input.scale": 0.9}, ""),
        ({"train": WIDE, "val": WIDE}, {"input.max_side": 3000}, ""),
        ({"train": PHOTOGRAPH}, {"localization.sizes": [1.0, 1.7]}, "localization"),
        ({"train": SQUARE}, {}, "raz_attention"),
        ({"train": SQUARE}, {"raz.unfreeze": "none"}, "raz raz_attention"),
        ({"val": SQUARE}, {}, "raz raz_attention"),
        ({"val": SQUARE}, {"raz.regions.anchors": "small"}, ""),
        ({"test": WIDE}, {}, ""),  # has always been predicted by these tiles
        ({"test": HUGE}, {}, "density@test points@test zoom2@test zoom3@test"),
        ({"test": HUGE}, {"predict.scale": 0.5}, ""),
        (
            {"val": HUGE}, {},
            "counting localization attention raz raz_attention density@val points@val zoom2@val zoom3@val",
        ),
    ],
)  # fmt: skip
def test_a_key_tells_of_tiles_only_where_they_change_bits(
    splits: dict[str, tuple[int, int]], settings: dict[str, object], expected: str
) -> None:
    config = configure(PRESETS["paper"], {"backbone.weights": "none", "dataset": "sized", "depth": 3, **settings})
    with contextmanager(sized)(**splits):
        found = stage_keys(config, splits=("val", "test"))
        fingerprints = {split: print_ for key in found.values() for split, print_ in key.data.items()}
    plain = node_keys(config, ("val", "test"), fingerprints.__getitem__, lambda backbone: "none")
    assert plain.keys() == found.keys()
    told = {str(node) for node, key in found.items() if TILED in key.inputs}
    assert told == set(expected.split())
    for node, key in found.items():
        own = {name: value for name, value in key.inputs.items() if name != TILED}
        assert own == plain[node].inputs
        if not told:
            assert key.key == plain[node].key  # every store keeps its worth
    assert {key.inputs[TILED] for key in found.values() if TILED in key.inputs} <= {1 << 21}


@pytest.mark.long
@pytest.mark.usefixtures("given_images")
@pytest.mark.parametrize("limit", [1 << 11, 3500, 1 << 12, 1 << 13])
def test_the_keys_know_every_stage_that_goes_by_tiles(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brute force: which stages cut an image or a region, against the keys, which know the images' sizes alone."""
    trial = planted(tmp_path, configured("tiny"))
    monkeypatch.setattr(tiling, "TILE_PIXELS", limit)
    monkeypatch.setattr(tiling, "LEAST", 16)
    cut: set[str] = set()
    at = [""]

    def watched(*arguments: Any) -> list[Tile]:
        found = tiles(*arguments)
        cut.update(at if len(found) > 1 else [])
        return found

    monkeypatch.setattr(tasks, "tiles", watched)
    monkeypatch.setattr("raz.pipeline.feature_cache.tiles", watched)
    with trial.same_regions(), torch.inference_mode():
        for stage in TRAINED:
            at[0] = stage
            task = plan_of(trial.state, stage).task
            assert task is not None
            task.modules.eval()
            task.validate()
            for batch in task.batches(1):
                task.loss(batch)
    told = {str(node) for node, key in stage_keys(trial.state.config).items() if TILED in key.inputs}
    assert cut <= told
    main = {"counting", "localization", "attention"}
    assert cut & main == told & main
    assert bool(told) == (limit < 1 << 13)
