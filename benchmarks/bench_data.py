"""A training crop out of the packed frames, against decoding the photograph and cutting it."""

from __future__ import annotations

import io
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from _alt import Bench
from numpy.typing import NDArray
from PIL import Image

from raz.data.contract import Pixels, Sample
from raz.data.frames import Frames
from raz.data.images import decode

CROP = 256
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
SCALE = (1 / (255 * STD)).astype(np.float32)[:, None, None]
SHIFT = (MEAN / STD).astype(np.float32)[:, None, None]
CASES = {"SHA": (589, 868, 8), "Q": (2013, 2902, 200)}  # H, W px and the ratio to reach


def photograph(height: int, width: int, seed: int) -> bytes:
    """A JPEG of smooth shapes and some noise: about as dear to decode as a photograph of its size."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
    fine = Image.fromarray(rng.integers(0, 256, (height // 3, width // 3, 3), dtype=np.uint8))
    size = (width, height)
    mixed = Image.blend(
        coarse.resize(size, Image.Resampling.BICUBIC), fine.resize(size, Image.Resampling.BICUBIC), 0.15
    )
    out = io.BytesIO()
    mixed.save(out, format="JPEG", quality=88)
    return out.getvalue()


def no_heads() -> NDArray[np.float64]:
    return np.zeros((0, 2))


def tensor(pixels: Pixels) -> NDArray[np.float32]:
    """(3, h, w) float32, normalised as torchvision's weights want it."""
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32)
    planes *= SCALE
    planes -= SHIFT
    return planes


def from_jpeg(data: bytes, y: int, x: int) -> NDArray[np.float32]:
    """As most training code has it: decode, make it a tensor, cut."""
    return tensor(decode(data, "benchmark"))[:, y : y + CROP, x : x + CROP].copy()


def from_jpeg_cut_first(data: bytes, y: int, x: int) -> NDArray[np.float32]:
    return tensor(decode(data, "benchmark")[y : y + CROP, x : x + CROP])


def from_frames(frames: Frames, y: int, x: int) -> NDArray[np.float32]:
    return tensor(frames.pixels(0)[y : y + CROP, x : x + CROP])


def main() -> int:
    bench = Bench("data: a 256 x 256 crop, normalised")
    with tempfile.TemporaryDirectory() as folder:
        for name, (height, width, target) in CASES.items():
            data = photograph(height, width, seed=height)
            item = Sample(f"train/{name}", name, partial(decode, data, name), no_heads, name)
            frames = Frames([item], pack=Path(folder))
            y, x = height // 3, width // 3
            ours, jpeg = from_frames(frames, y, x), from_jpeg(data, y, x)
            bench.exact(f"crop {name}, {len(data) / 1e6:.2f} MB as JPEG", float(np.abs(ours - jpeg).max()), 0)
            cut = from_jpeg_cut_first(data, y, x)
            bench.exact(f"crop {name}, cut first", float(np.abs(ours - cut).max()), 0)
            crop = partial(from_frames, frames, y, x)
            work = f"{ours.nbytes / 1e6:.2f} MB written"
            bench.compare(
                f"crop {name}", crop, partial(from_jpeg, data, y, x), against="decode, normalise, cut", target=target,
                floor=ours.copy, work=work,
            )  # fmt: skip
            bench.compare(
                f"crop {name}, cut first", crop, partial(from_jpeg_cut_first, data, y, x),
                against="decode, cut, normalise",
            )  # fmt: skip
    return bench.done()


if __name__ == "__main__":
    sys.exit(main())
