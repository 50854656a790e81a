"""What frozen parts give is computed once, read back as it was, and equals what it was computed from."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from raz.paper import attention as att
from raz.paper.networks import CountingBranch, LocalizationBranch, VggBackbone, initialise, network_input
from raz.pipeline import feature_cache
from raz.pipeline.feature_cache import BranchFeatureCache, FeatureCache, cached_candidates, rich_bytes
from raz.pipeline.samples import DistanceMemo, GroundTruth, Window, draw_windows, mirrored_heads

CPU = torch.device("cpu")


class Pictures:
    """Two images of sides that are no multiples of 8."""

    ids = ("a", "b")

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        self._pixels = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((61, 90), (75, 52))]
        self._heads = [rng.uniform(0, [w, h], (30, 2)) for h, w in ((61, 90), (75, 52))]
        self._heads[0][0] = [0.0, 7.5]  # on the edge, which mirroring must keep inside

    def __len__(self) -> int:
        return 2

    def size(self, index: int) -> tuple[int, int]:
        height, width, _ = self._pixels[index].shape
        return height, width

    def pixels(self, index: int) -> NDArray[np.uint8]:
        return self._pixels[index]

    def heads(self, index: int) -> NDArray[np.float64]:
        return self._heads[index]


@pytest.fixture
def parts() -> tuple[VggBackbone, LocalizationBranch, CountingBranch]:
    torch.manual_seed(0)
    backbone = VggBackbone(1 / 32)
    branches = LocalizationBranch(backbone.channels, [6], [5, 4, 3]), CountingBranch(backbone.channels, [6], 4)
    for module in (backbone, *branches):
        initialise(module, "kaiming")
        module.requires_grad_(False)
    return backbone, *branches


WINDOWS = [
    Window(0, False, 0, 0, 48, 48), Window(0, True, 40, 16, 48, 48), Window(1, True, 8, 24, 48, 48),
    Window(1, False, 32, 56, 48, 48),  # mostly beyond the image
]  # fmt: skip


def test_rich_maps_are_those_of_the_whole_image_rounded_to_half(
    tmp_path: Path, parts: tuple[VggBackbone, LocalizationBranch, CountingBranch]
) -> None:
    backbone, localization, counting = parts
    images = Pictures()
    features = FeatureCache(tmp_path / "f", backbone, images, CPU)
    for branch, stride in ((localization, 1), (counting, 4)):
        cache = BranchFeatureCache(tmp_path / str(stride), branch, branch.channels, stride, features)
        crops = cache.crops(WINDOWS)
        assert crops.dtype == torch.float32
        assert crops.is_contiguous(memory_format=torch.channels_last)
        for w, got in zip(WINDOWS, crops, strict=True):
            pixels = images.pixels(w.index)[:, ::-1] if w.mirrored else images.pixels(w.index)
            rounded = backbone(network_input(pixels)).half().float()  # as the features are kept
            whole = branch(rounded)[1][0]
            y, x, side = w.y0 // stride, w.x0 // stride, 48 // stride
            part = whole[:, y : y + side, x : x + side]
            expected = torch.zeros_like(got)
            expected[:, : part.shape[1], : part.shape[2]] = part
            assert float(expected.abs().max()) > 0
            assert float((got - expected).abs().max()) <= 2**-11 * float(whole.abs().max())


def test_a_second_process_reads_the_same_bits_and_damage_is_made_good(
    tmp_path: Path, parts: tuple[VggBackbone, LocalizationBranch, CountingBranch]
) -> None:
    backbone, localization, _ = parts
    images = Pictures()

    def crops() -> torch.Tensor:
        features = FeatureCache(tmp_path / "f", backbone, images, CPU)
        return BranchFeatureCache(tmp_path / "r", localization, localization.channels, 1, features).crops(WINDOWS)

    first = crops()
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert len(written) == 8
    assert torch.equal(crops(), first)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")} == written
    cut, emptied, other, *_ = sorted(written)
    cut.write_bytes(cut.read_bytes()[:-2])
    emptied.write_bytes(b"")
    np.save(other, np.zeros((2, 2), np.float16))
    assert torch.equal(crops(), first)
    assert len(list(tmp_path.rglob("*"))) == 2 + 8  # nothing left aside


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files")
def test_kept_maps_hold_no_file_open(
    tmp_path: Path, parts: tuple[VggBackbone, LocalizationBranch, CountingBranch]
) -> None:
    """There are two files an image, and often no more than 1024 may be open."""
    features = FeatureCache(tmp_path, parts[0], Pictures(), CPU)
    before = len(os.listdir("/proc/self/fd"))
    held = [features.get(i, mirrored) for i in (0, 1) for mirrored in (False, True)]
    assert len(held) == 4
    assert len(os.listdir("/proc/self/fd")) == before


def test_bytes_of_rich_maps_are_those_written(
    tmp_path: Path, parts: tuple[VggBackbone, LocalizationBranch, CountingBranch]
) -> None:
    backbone, localization, counting = parts
    features = FeatureCache(tmp_path / "f", backbone, Pictures(), CPU)
    sizes = []
    for branch, stride in ((localization, 1), (counting, 4)):
        cache = BranchFeatureCache(tmp_path / f"r{stride}", branch, branch.channels, stride, features)
        sizes += [2 * cache.get(i, m).numel() for i in (0, 1) for m in (False, True)]
    assert rich_bytes(Pictures(), [(3, 1), (counting.channels, 4)], True) == sum(sizes)


def test_candidates_are_kept_once_and_damage_is_made_good(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    some = [(rng.integers(0, 9, (n, 4)), rng.random(n)) for n in (3, 0, 5)]
    calls: list[int] = []

    def compute() -> list[feature_cache.Candidates]:
        calls.append(1)
        return some

    path = tmp_path / "deep" / "candidates.npz"
    for expected_calls in (1, 1):
        got = cached_candidates(path, 3, compute)
        assert len(calls) == expected_calls
        for (boxes, means), (boxes_before, means_before) in zip(got, some, strict=True):
            assert boxes.dtype == np.int64
            assert np.array_equal(boxes, boxes_before)
            assert np.array_equal(means, means_before)
    path.write_bytes(path.read_bytes()[:-40])
    assert len(cached_candidates(path, 3, compute)) == 3
    assert len(calls) == 2
    assert cached_candidates(tmp_path / "none.npz", 0, list) == []
    assert cached_candidates(tmp_path / "none.npz", 0, compute) == []
    assert len(calls) == 2


# ------------------------------------------------------------------ attention targets


def test_attention_of_windows_is_the_crop_of_the_whole_mirrored_or_not() -> None:
    images = Pictures()
    truth = GroundTruth(images)
    for w in WINDOWS + draw_windows(images, seed=0, stage="s", epoch=1, crop=32, crops=4, flip=True):
        height, width = images.pixels(w.index).shape[:2]
        heads = images.heads(w.index)
        whole = att.attention_map(mirrored_heads(heads, width) if w.mirrored else heads, height, width, 6.0)
        part = whole[w.y0 : w.y0 + w.height, w.x0 : w.x0 + w.width]
        got = truth.attention(w, 6.0)
        assert got.shape == (w.height, w.width)
        assert np.abs(got[: part.shape[0], : part.shape[1]] - part).max() <= 1e-6
        assert not got[part.shape[0] :].any()
        assert not got[:, part.shape[1] :].any()


def test_a_full_memo_changes_no_bit_and_makes_room_for_other_data() -> None:
    images = Pictures()
    full, roomy = DistanceMemo(limit=0), DistanceMemo()
    windows = draw_windows(images, seed=0, stage="s", epoch=1, crop=32, crops=4, flip=True)
    for sigma_z in (6.0, 2.0, 9.0, 3.0):  # larger ones are computed anew, smaller ones replayed
        for w in windows:
            plain = GroundTruth(images, memo=full).attention(w, sigma_z)
            assert np.array_equal(GroundTruth(images, name="x", memo=roomy).attention(w, sigma_z), plain)
    one = att.attention_distances(images.heads(0), 61, 90, 3.0)
    small = DistanceMemo(limit=one.nbytes)
    assert small.get("x", 0, 3.0, lambda: one) is one
    assert small.get("x", 1, 3.0, lambda: one) is None  # the same data's are not thrown out for each other
    assert small.get("x", 0, 2.0, lambda: pytest.fail("computed anew")) is one  # type: ignore[arg-type]
    assert small.get("y", 0, 3.0, lambda: one) is None
    small.evict_except("y", "z")
    assert small.get("y", 0, 3.0, lambda: one) is one
    assert small.get("x", 0, 3.0, lambda: one) is None
