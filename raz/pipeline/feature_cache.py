"""Disk caches of what frozen networks compute: backbone features, last feature maps of branches, candidate regions.

Files are below `features/` of the store, one per image, in folders named by a digest of their inputs. Each is written
to a temporary file and renamed. So a stage that was killed finds whole files, and a resumed run reads the same bits as
an uninterrupted one. Maps are stored in half precision, rounded by at most one part in 2048. Those of large images are
stitched from tiles (`raz.pipeline.tiling`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, groupby
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raz.paper.networks import (
    STRIDE,
    Backbone,
    CountingBranch,
    LocalizationBranch,
    network_input,
    receptive_field_radius,
)
from raz.pipeline.inference import margin
from raz.pipeline.samples import Images, Window
from raz.pipeline.tiling import Tile, by_size, round_up_to_stride, tiles
from raz.store.late_view import refresh
from raz.utils.atomic import atomic_write

RICH_BYTES = 1 << 32  # bytes on disk up to which the rich maps of a split are cached


@dataclass
class FeatureCache:
    """A frozen backbone's features of whole images and of their mirror images.

    A crop of these features depends on pixels beyond its edge, unlike the features of a cropped image.
    """

    folder: Path
    backbone: Backbone
    images: Images
    device: torch.device
    _open: dict[tuple[int, bool], Tensor] = field(default_factory=dict)

    def get(self, index: int, mirrored: bool = False) -> Tensor:
        """(C, H/8, W/8) float16, mapped from the file."""
        cached = self._open.get((index, mirrored))
        if cached is None:
            height, width = self.images.size(index)
            rows, cols = round_up_to_stride(height) // STRIDE, round_up_to_stride(width) // STRIDE
            shape = (self.backbone.channels, rows, cols)

            def compute() -> Iterator[Tensor]:
                pixels = self.images.pixels(index)
                image = pixels[:, ::-1] if mirrored else pixels
                parts = tiles(height, width, lambda: margin(self.backbone), self.backbone.alignment)
                yield self._whole(image) if len(parts) == 1 else self._stitched(image, parts, shape)

            cached = _load_or_compute(_file(self.folder, index, mirrored), shape, compute)
            self._open[index, mirrored] = cached
        return cached

    def _whole(self, image: NDArray[np.uint8]) -> Tensor:
        """The features of an image (H, W, 3), or of a part of it: (C, H/8, W/8)."""
        features: Tensor = self.backbone(
            network_input(np.ascontiguousarray(image), self.device, self.backbone.colours)
        )[0]
        return features

    def _stitched(self, image: NDArray[np.uint8], parts: Sequence[Tile], shape: tuple[int, int, int]) -> Tensor:
        """The features of a large image, from those of its tiles: half precision."""
        out = torch.empty(shape, dtype=torch.float16)
        for tile in by_size(parts):
            features = self._whole(image[tile.top : tile.bottom, tile.left : tile.right])
            out[:, *tile.place(STRIDE)] = features[:, *tile.inner(STRIDE)]
        return out

    def whole(self, index: int, mirrored: bool = False) -> Tensor:
        """(1, C, H/8, W/8) float32 on the device."""
        return self.get(index, mirrored).float().to(self.device)[None]

    def crop(self, w: Window) -> Tensor:
        """(1, C, h/8, w/8) float32; zero beyond the image."""
        return self.load([w]).to(self.device).float()

    def load(self, windows: Sequence[Window]) -> Tensor:
        """The crops of windows of one size, (B, C, h/8, w/8) float16 on the CPU; zero beyond the image."""
        h, wd = windows[0].height // STRIDE, windows[0].width // STRIDE
        out = torch.empty((len(windows), self.backbone.channels, h, wd), dtype=torch.float16)
        for row, w in zip(out, windows, strict=True):
            self.load_into(row, w)
        return out

    def load_into(self, out: Tensor, w: Window) -> None:
        """Fill (C, h/8, w/8) float16 with a window's crop."""
        y, x = w.y0 // STRIDE, w.x0 // STRIDE
        part = self.get(w.index, w.mirrored)[:, y : y + out.shape[1], x : x + out.shape[2]]
        out[:, : part.shape[1], : part.shape[2]] = part
        out[:, part.shape[1] :] = 0.0
        out[:, :, part.shape[2] :] = 0.0

    def ensure(self, windows: Sequence[Window]) -> None:
        """Compute what `load` of these windows would have to compute."""
        for w in windows:
            self.get(w.index, w.mirrored)


@dataclass(frozen=True)
class MultiScaleFeatures:
    """The caches of `MultiScaleImages`, one per size."""

    caches: tuple[FeatureCache, ...]

    def load(self, windows: Sequence[Window]) -> Tensor:
        """As `FeatureCache.load`."""
        first = windows[0]
        out = torch.empty(
            (len(windows), self.caches[0].backbone.channels, first.height // STRIDE, first.width // STRIDE),
            dtype=torch.float16,
        )
        for row, w in zip(out, windows, strict=True):
            cache, own = self._locate(w)
            cache.load_into(row, own)
        return out

    def ensure(self, windows: Sequence[Window]) -> None:
        """As `FeatureCache.ensure`."""
        for cache, own in map(self._locate, windows):
            cache.ensure([own])

    def _locate(self, w: Window) -> tuple[FeatureCache, Window]:
        """The cache of the window's size, and the window there."""
        size, own = divmod(w.index, len(self.caches[0].images))
        return self.caches[size], replace(w, index=own)


@dataclass
class BranchFeatureCache:
    """A frozen branch's last feature map ("rich map") of whole images and of their mirror images.

    The map has 8 / `stride` cells per cell of the features. In the file rows and columns come before channels, so that
    a crop is read in long pieces, in the memory layout that is fast for convolutions of few channels.
    """

    folder: Path
    branch: CountingBranch | LocalizationBranch
    channels: int
    stride: int
    features: FeatureCache
    _open: dict[tuple[int, bool], Tensor] = field(default_factory=dict)

    def get(self, index: int, mirrored: bool = False) -> Tensor:
        """(H/stride, W/stride, C) float16, mapped from the file."""
        cached = self._open.get((index, mirrored))
        if cached is None:
            height, width = self.features.images.size(index)
            shape = (round_up_to_stride(height) // self.stride, round_up_to_stride(width) // self.stride, self.channels)

            def compute() -> Iterator[Tensor]:
                parts = tiles(height, width, lambda: self._margin, self.features.backbone.alignment)
                if len(parts) == 1:
                    rich: Tensor = self.branch(self.features.whole(index, mirrored))[1][0]
                    yield rich.permute(1, 2, 0)
                    return
                for _, row in groupby(parts, key=lambda tile: tile.y0):
                    yield torch.cat([self._of_tile(tile, index, mirrored) for tile in row], dim=1)

            cached = _load_or_compute(_file(self.folder, index, mirrored), shape, compute)
            self._open[index, mirrored] = cached
        return cached

    @property
    def _margin(self) -> int | None:
        """How far the map sees in the features, px."""
        reach = STRIDE * receptive_field_radius(self.branch.body)
        return -(-reach // self.features.backbone.alignment) * self.features.backbone.alignment

    def _of_tile(self, tile: Tile, index: int, mirrored: bool) -> Tensor:
        """The map of a tile, (h/stride, w/stride, C) float16."""
        window = Window(index, mirrored, tile.left, tile.top, tile.bottom - tile.top, tile.right - tile.left)
        rich: Tensor = self.branch(self.features.crop(window))[1][0]
        return rich[:, *tile.inner(self.stride)].permute(1, 2, 0).half()

    def crops(self, windows: Sequence[Window]) -> Tensor:
        """(B, C, h/stride, w/stride) float32, channels last in memory, zero beyond the image. Windows have one size."""
        return self.load(windows).to(self.features.device).permute(0, 3, 1, 2)

    def load(self, windows: Sequence[Window]) -> Tensor:
        """As `crops`, (B, h/stride, w/stride, C) on the CPU."""
        h, wd = windows[0].height // self.stride, windows[0].width // self.stride
        out = torch.empty((len(windows), h, wd, self.channels))
        for row, w in zip(out, windows, strict=True):
            y, x = w.y0 // self.stride, w.x0 // self.stride
            part = self.get(w.index, w.mirrored)[y : y + h, x : x + wd]
            row[: part.shape[0], : part.shape[1]] = part
            row[part.shape[0] :] = 0.0
            row[:, part.shape[1] :] = 0.0
        return out

    def ensure(self, windows: Sequence[Window]) -> None:
        """Compute what `load` of these windows would have to compute."""
        for w in windows:
            self.get(w.index, w.mirrored)


def rich_bytes(images: Images, channels: Sequence[tuple[int, int]], mirrors: bool) -> int:
    """Bytes on disk of rich maps with these (channels, stride) for all images, and for their mirror images."""
    cells = sum(round_up_to_stride(h) * round_up_to_stride(w) for h, w in (images.size(i) for i in range(len(images))))
    return (2 if mirrors else 1) * 2 * sum(c * cells // s**2 for c, s in channels)


def _file(folder: Path, index: int, mirrored: bool) -> Path:
    return folder / f"{index}{'m' if mirrored else ''}.npy"


def _load_or_compute(path: Path, shape: tuple[int, ...], compute: Callable[[], Iterator[Tensor]]) -> Tensor:
    """The array in the file; computed and written where it is missing or damaged. `compute` gives it in pieces along
    the first axis, so that of a large map only one has to be in memory. Raises OSError if it cannot be written."""
    mapped = _mapped(path, shape)
    if mapped is None and refresh(path.parent):  # another machine may have computed it just now
        mapped = _mapped(path, shape)
    if mapped is not None:
        return mapped
    # In full precision, whoever asks first: the file serves trials with and without mixed precision.
    with torch.inference_mode(), torch.autocast("cuda", enabled=False):
        pieces = compute()
        first = next(pieces)  # before there is a file, which a killed process would leave
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
            for piece in chain([first], pieces):
                piece.half().cpu().contiguous().numpy().tofile(file)
    mapped = _mapped(path, shape)
    if mapped is None:
        raise OSError(f"{path} cannot be read back after writing")
    return mapped


def _mapped(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """The float16 array of an .npy file, memory-mapped; None where it is missing or of another shape.

    Mapped by torch: numpy's map would hold a file descriptor for each of the many files.
    """
    try:
        with path.open("rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                return None
            stored, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
            start, size = file.tell(), os.fstat(file.fileno()).st_size
    except (OSError, ValueError, EOFError):
        return None
    if stored != shape or fortran_order or dtype != np.float16 or size != start + 2 * int(np.prod(shape)):
        return None
    content = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    return content[start:].view(torch.float16).view(shape)


# ------------------------------------------------------------------ candidates of regions

Candidates = tuple[NDArray[np.int64], NDArray[np.float64]]  # boxes (m, 4) x0, y0, x1, y1; their mean attention (m,)


def cached_candidates(path: Path, count: int, compute: Callable[[], list[Candidates]]) -> list[Candidates]:
    """The candidates of `count` images in the file; computed and written where it is missing or damaged."""
    candidates = _read_candidates(path, count)
    if candidates is None and refresh(path.parent):
        candidates = _read_candidates(path, count)
    if candidates is None:
        candidates = compute()
        boxes = np.concatenate([np.zeros((0, 4), np.int64), *[b for b, _ in candidates]])
        means = np.concatenate([np.zeros(0), *[m for _, m in candidates]])
        ends = np.cumsum([len(m) for _, m in candidates], dtype=np.int64)
        with atomic_write(path) as temporary:
            np.savez(temporary, allow_pickle=False, boxes=boxes, means=means, ends=ends)
    return candidates


def _read_candidates(path: Path, count: int) -> list[Candidates] | None:
    """The candidates in the file; None where it is missing, damaged or of another number of images."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            boxes, means, ends = arrays["boxes"], arrays["means"], arrays["ends"]
    except (OSError, ValueError, EOFError, KeyError, BadZipFile):
        return None
    if boxes.shape != (len(means), 4) or ends.shape != (count,) or (count and ends[-1] != len(means)):
        return None
    if boxes.dtype != np.int64 or means.dtype != np.float64 or ends.dtype != np.int64:
        return None
    return [(boxes[a:b], means[a:b]) for a, b in zip([0, *ends[:-1]], ends, strict=True)] if count else []
