"""What a training stage sees: crops, and images at several sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from raz.data import open_dataset
from raz.data.frames import Frames
from raz.paper.networks import VggBackbone, network_input
from raz.pipeline.feature_cache import FeatureCache, MultiScaleFeatures
from raz.pipeline.samples import MultiScaleImages, draw_windows, full_window


def test_crops_of_images_at_two_sizes() -> None:
    """Each crop draws its size; a head of a smaller image lies where the larger one's does, scaled."""

    @dataclass(frozen=True)
    class Scaled:
        side: int
        ids: tuple[str, ...] = ("a", "b")

        def __len__(self) -> int:
            return 2

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
    window = full_window(MultiScaleImages(frames), 3)
    with torch.inference_mode():
        plain = backbone(network_input(frames[1].pixels(1)))
    assert torch.allclose(both.crop(window), plain, atol=2e-3, rtol=2e-3)  # half precision on disk
