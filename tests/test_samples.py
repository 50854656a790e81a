"""What a training stage sees: crops, and images at several sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from raz.data import open_dataset
from raz.data.frames import Frames
from raz.paper.groundtruth import Kernel, density_map, density_window, mean_neighbour_distance
from raz.paper.networks import IMAGENET, VggBackbone, network_input
from raz.pipeline.feature_cache import FeatureCache, MultiScaleFeatures
from raz.pipeline.samples import (
    GroundTruth,
    MultiScaleImages,
    Window,
    crop_pixels,
    draw_windows,
    extents,
    load_crops,
    mirrored_heads,
    normalised_crops,
)


def test_crops_of_images_at_two_sizes() -> None:
    """Each crop draws its size; a head of a smaller image lies where the larger one's does, scaled."""

    @dataclass(frozen=True)
    class Scaled:
        side: int
        ids: tuple[str, ...] = ("a", "b")

        def __len__(self) -> int:
            return 2

        def size(self, index: int) -> tuple[int, int]:
            return self.side, self.side

        def pixels(self, index: int) -> np.ndarray:
            return np.full((self.side, self.side, 3), index, np.uint8)

        def heads(self, index: int) -> np.ndarray:
            return np.array([[self.side / 2, self.side / 4]])

    images = MultiScaleImages((Scaled(64), Scaled(32)))
    assert len(images) == 4
    assert [images.pixels(i).shape[0] for i in range(4)] == [64, 64, 32, 32]
    assert images.heads(3).tolist() == [[16, 8]]
    drawn = [
        w
        for epoch in range(1, 201)
        for w in draw_windows(images, seed=0, stage="counting", epoch=epoch, crop=24, crops=1, flip=True)
    ]
    assert len(drawn) == 400  # one crop an image and epoch, at one of the sizes
    assert 0.4 < np.mean([w.index >= 2 for w in drawn]) < 0.6
    for w in drawn:
        side = images.pixels(w.index).shape[0]
        assert 0 <= w.x0 <= side - 24
        assert 0 <= w.y0 <= side - 24
    assert {w.x0 for w in drawn if w.index < 2} == set(range(0, 48, 8))  # crops of large images start anywhere
    one = draw_windows(MultiScaleImages((Scaled(64),)), seed=0, stage="s", epoch=1, crop=24, crops=3, flip=True)
    assert one == draw_windows(Scaled(64), seed=0, stage="s", epoch=1, crop=24, crops=3, flip=True)


def test_features_of_each_size_are_its_own(tmp_path: Path) -> None:
    dataset = open_dataset("toy")
    items = dataset.items["train"][:2]
    frames = tuple(Frames(items, scale=scale) for scale in (0.5, 0.25))
    backbone = VggBackbone(0.125).eval()
    caches = tuple(FeatureCache(tmp_path / str(i), backbone, f, torch.device("cpu")) for i, f in enumerate(frames))
    both = MultiScaleFeatures(caches)
    with torch.inference_mode():
        plain = backbone(network_input(frames[1].pixels(1)))
    window = Window(3, False, 0, 0, 8 * plain.shape[2], 8 * plain.shape[3])
    assert torch.allclose(both.load([window]).float(), plain, atol=2e-3, rtol=2e-3)  # half precision on disk


# ------------------------------------------------------------------ what is computed once an image


@pytest.mark.parametrize("limit", [1 << 27, 4 * 12 * 9 + 1, 0], ids=["all", "one", "none"])
@pytest.mark.parametrize(("stride", "kernel"), [(8, "raz"), (8, "cell"), (8, "csrnet"), (1, "raz")])
def test_density_of_a_window_is_computed_alike_kept_or_not(
    limit: int, stride: int, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raz.pipeline.samples.DENSITY_BYTES", limit)
    crowd = Crowd(7)
    truth = GroundTruth(crowd)
    windows = draw_windows(crowd, seed=1, stage="s", epoch=1, crop=32, crops=12, flip=True)
    for w in windows:
        height, width = crowd.size(w.index)
        heads = mirrored_heads(crowd.heads(w.index), width) if w.mirrored else crowd.heads(w.index)
        distances = mean_neighbour_distance(crowd.heads(w.index), 4, height, width)
        wanted = density_window(
            heads, distances, height, width, w.x0, w.y0, w.height, w.width, stride=stride, beta=0.1, kernel=kernel
        )
        wanted[-(-(height - w.y0) // stride) :] = 0  # beyond the image
        assert truth.density(w, stride, 0.1, kernel).tobytes() == wanted.tobytes()
    assert truth._map_bytes <= limit
    assert (len(truth._maps) > 0) == (limit > 0 and (stride == 8 or limit > 1000))


def plain_crop(images: Crowd, w: Window) -> torch.Tensor:
    """`crop_pixels` of a window that is not resized, from the formula: (1, 3, h, w)."""
    image = images.pixels(w.index)[:, ::-1] if w.mirrored else images.pixels(w.index)
    part = image[w.y0 : w.y0 + w.height, w.x0 : w.x0 + w.width].copy()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))
    x = (torch.from_numpy(part).permute(2, 0, 1)[None].float() / 255.0 - mean) / std
    return torch.nn.functional.pad(x, (0, w.width - x.shape[3], 0, w.height - x.shape[2]))


def test_a_batch_of_crops_has_the_bits_and_the_layout_of_its_crops() -> None:
    """The layout decides how convolutions round."""
    crowd = Crowd(3)
    windows = draw_windows(crowd, seed=2, stage="s", epoch=1, crop=48, crops=4, flip=True)
    assert any(w.y0 + w.height > crowd.size(w.index)[0] for w in windows), "some reach beyond the image"
    for batch in ([w] for w in windows):
        got = normalised_crops(load_crops(crowd, batch), extents(crowd, batch))
        assert torch.equal(got, plain_crop(crowd, batch[0]))
    got, wanted = (
        normalised_crops(load_crops(crowd, windows), extents(crowd, windows)),
        [plain_crop(crowd, w) for w in windows],
    )
    assert torch.equal(got, torch.cat(wanted))
    assert got.stride() == torch.cat(wanted).stride()
    one = normalised_crops(load_crops(crowd, windows[:1]), extents(crowd, windows[:1]))
    assert one.stride() == torch.cat(wanted[:1]).stride()


# ------------------------------------------------------------------ resized crops


def resized(seed: int, flip: bool = True) -> tuple[Crowd, list[Window]]:
    crowd = Crowd(seed)
    return crowd, draw_windows(
        crowd, seed=seed, stage="counting", epoch=1, crop=32, crops=20, flip=flip, grey=0.3, scales=(0.5, 2.0)
    )


@dataclass(frozen=True)
class Crowd:
    """Three images of noise with heads, one of them smaller than a crop at the lowest scale."""

    seed: int
    ids: tuple[str, ...] = ("a", "b", "c")

    def __len__(self) -> int:
        return 3

    def size(self, index: int) -> tuple[int, int]:
        return ((70, 90), (40, 48), (64, 33))[index]

    def pixels(self, index: int) -> NDArray[np.uint8]:
        rng = np.random.default_rng([self.seed, index])
        return rng.integers(0, 256, (*self.size(index), 3), dtype=np.uint8)

    def heads(self, index: int) -> NDArray[np.float64]:
        height, width = self.pixels(index).shape[:2]
        return np.random.default_rng([self.seed, index, 1]).random((40, 2)) * [width, height]


@pytest.mark.parametrize("seed", range(3))
def test_heads_of_a_resized_crop_are_where_its_pixels_show_them(seed: int) -> None:
    """Against each head's position in the square, one after the other; an arm of a label may come from outside."""
    crowd, windows = resized(seed)
    truth = GroundTruth(crowd)
    sides = set()
    for w in windows:
        height, width = crowd.pixels(w.index).shape[:2]
        assert 0 <= w.x0 <= width - w.side
        assert 0 <= w.y0 <= height - w.side
        assert (w.height, w.width) == (32, 32)
        assert w.side <= 64  # the lowest scale
        sides.add(w.side)
        cells, labels = np.zeros((4, 4)), np.zeros((32, 32))
        for x, y in crowd.heads(w.index):
            x = width - x if w.mirrored else x
            i, j = (y - w.y0) * 32 / w.side, (x - w.x0) * 32 / w.side
            if 0 <= i < 32 and 0 <= j < 32:
                cells[int(i / 8), int(j / 8)] += 1
            for di, dj in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
                row, col = int(np.floor(i)) + di, int(np.floor(j)) + dj
                if 0 <= row < 32 and 0 <= col < 32:
                    labels[row, col] = 1
        assert truth.density(w, 8, 0.1, "cell").tolist() == cells.tolist()
        assert truth.labels(w).tolist() == labels.tolist()
    assert len(sides) > 10


def test_pixels_of_a_resized_crop_are_those_of_its_square() -> None:
    crowd, windows = resized(4)
    for w in [w for w in windows if w.side == 32][:4] + windows[:4]:
        image = crowd.pixels(w.index)[:, ::-1] if w.mirrored else crowd.pixels(w.index)
        square = image[w.y0 : w.y0 + w.side, w.x0 : w.x0 + w.side].astype(float)
        got = crop_pixels(crowd, w, torch.device("cpu"))[0].permute(1, 2, 0).numpy() * IMAGENET.std + IMAGENET.mean
        if w.grey:
            square = np.repeat(square.mean(axis=2, keepdims=True), 3, axis=2)
            assert np.ptp(got, axis=2).max() < 1e-5
        assert got.mean() * 255 == pytest.approx(square.mean(), abs=6)  # of noise, by a triangle filter
        if w.side == 32:
            assert np.abs(got * 255 - square).max() < (0.6 if w.grey else 1e-3)


def test_the_share_of_grey_crops_moves_nothing_else() -> None:
    crowd = Crowd(5)
    draws = [
        draw_windows(crowd, seed=5, stage="counting", epoch=2, crop=16, crops=300, flip=True, grey=grey, scales=scales)
        for scales in ((), (0.5, 2.0))
        for grey in (0.0, 0.25)
    ]
    for plain, grey in (draws[:2], draws[2:]):
        assert [replace(w, grey=False) for w in grey] == plain
        assert sum(w.grey for w in grey) / len(grey) == pytest.approx(0.25, abs=0.07)


def test_the_cell_kernel_keeps_all_of_a_head_in_its_cell() -> None:
    rng = np.random.default_rng(6)
    heads = rng.random((200, 2)) * [45, 37]
    whole = density_map(heads, 37, 45, stride=8, kernel="cell")
    assert whole.sum() == 200
    assert whole.shape == (5, 6)
    for row in range(5):
        for col in range(6):
            inside = (heads // 8 == [col, row]).all(axis=1)
            assert whole[row, col] == inside.sum()
    part = density_window(heads, np.ones(200), 37, 45, 8, 16, 16, 24, stride=8, kernel="cell")
    assert part.tolist() == whole[2:4, 1:4].tolist()
