"""Small crowds on disk in ShanghaiTech's native layout, for tests that train."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tests.conftest import write_mat


def write_crowd(root: Path, train: int = 24, test: int = 4, side: int = 72, seed: int = 0) -> Path:
    """Part A's layout with bright discs as heads; returns the folder to give as the data root."""
    rng = np.random.default_rng(seed)
    for split, number in (("train_data", train), ("test_data", test)):
        (root / "part_A" / split / "images").mkdir(parents=True)
        (root / "part_A" / split / "ground-truth").mkdir()
        for n in range(1, number + 1):
            height, width = side + int(rng.integers(0, 9)), side + int(rng.integers(0, 17))
            heads = rng.uniform(2, [width - 2, height - 2], size=(int(rng.integers(6, 40)), 2))
            image = Image.fromarray(rng.integers(60, 110, (height, width, 3), dtype=np.uint8))
            draw = ImageDraw.Draw(image)
            for x, y in heads:
                draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=(230, 220, 200))
            image.save(root / "part_A" / split / "images" / f"IMG_{n}.jpg", quality=95)
            write_mat(root / "part_A" / split / "ground-truth" / f"GT_IMG_{n}.mat", heads)
    return root
