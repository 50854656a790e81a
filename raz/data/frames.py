"""Images at the network's input size, decoded once and stored in a pack.

A pack is a file of raw RGB bytes, image after image, with an index at the end. Reading a 256-pixel crop from the
memory-mapped file is 10 to 400 times as fast as decoding a JPEG file, so training decodes each image once. A pack is
written to a temporary file and renamed, is named by a digest of what determines its bytes, and is rebuilt if damaged.
One process builds it, under a lease, while others that want it wait.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raz.data.contract import Heads, Pixels, Sample
from raz.data.images import content_digest, rgb_array
from raz.errors import RazError, raise_all
from raz.store.late_view import refresh
from raz.store.lease import acquire
from raz.utils.atomic import atomic_write

_VERSION = 1  # raise it when the bytes of a pack change for the same samples
_MAGIC = b"RAZPACK1"
_FOOTER_BYTES = 8 + 32 + len(_MAGIC)  # index length, sha256 of the index, magic


def input_size(height: int, width: int, scale: float, max_side: int) -> tuple[int, int]:
    """(H, W) px of the network's input (26): scaled by `scale`, or less so that no side exceeds `max_side` (0: any)."""
    factor = scale
    if max_side and max(height, width) * factor > max_side:
        factor = max_side / max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def zoomed_size(box: Sequence[float], zoom: float) -> tuple[int, int]:
    """(h, w) px of the region x0, y0, x1, y1 at `zoom` zoomed pixels per pixel (17)."""
    x0, y0, x1, y1 = box
    return max(1, round((y1 - y0) * zoom)), max(1, round((x1 - x0) * zoom))


def resize(pixels: Pixels, height: int, width: int) -> Pixels:
    """(H, W, 3) -> (height, width, 3): bilinear, with antialiasing when shrinking."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return rgb_array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


@dataclass(frozen=True)
class _PackEntry:
    """Index entry of an image in a pack; offset in bytes, sizes in px."""

    offset: int
    height: int
    width: int
    original_height: int
    original_width: int
    crc: int

    @property
    def nbytes(self) -> int:
        """Size of the pixels in bytes."""
        return self.height * self.width * 3


class Frames:
    """Images and heads of samples in pixels of the network's input, by index in `items`.

    With a folder `pack`, pixels are in a memory-mapped file there, which processes share; without, in memory.
    Raises RazError naming every image that cannot be decoded.
    """

    def __init__(
        self, items: Sequence[Sample], *, scale: float = 1.0, max_side: int = 0, pack: Path | None = None
    ) -> None:
        self._items = tuple(items)
        self._scale, self._max_side, self._pack = scale, max_side, pack
        self._heads = tuple(item.load_heads() for item in self._items)
        for heads in self._heads:
            heads.flags.writeable = False
        self._checked: set[int] = set()
        self._contents: dict[int, str] = {}
        self._originals: Frames | None = None
        self._last_original: tuple[int, Pixels] | None = None
        self._buffer, self._entries = self._open()

    # ---------------------------------------------------------------- content

    def __len__(self) -> int:
        return len(self._items)

    @property
    def items(self) -> tuple[Sample, ...]:
        """The samples, in the order of the indices."""
        return self._items

    @property
    def ids(self) -> tuple[str, ...]:
        """The id of each sample."""
        return tuple(item.id for item in self._items)

    def pixels(self, i: int) -> Pixels:
        """(H, W, 3) uint8 RGB at input size, read-only."""
        entry = self._entries[i]
        flat = self._buffer[entry.offset : entry.offset + entry.nbytes]
        if self._pack is not None and i not in self._checked:  # once per process: about a millisecond per megapixel
            if zlib.crc32(flat.data) != entry.crc:
                self._buffer, self._entries = self._build()
                entry = self._entries[i]
                flat = self._buffer[entry.offset : entry.offset + entry.nbytes]
            self._checked.add(i)
        return flat.reshape(entry.height, entry.width, 3)

    def content(self, i: int) -> str:
        """Digest of the pixels at input size, computed once: it seeds the sampling of the image's regions (15)."""
        if i not in self._contents:
            self._contents[i] = content_digest(self.pixels(i))
        return self._contents[i]

    def heads(self, i: int) -> Heads:
        """(n, 2) float64 x, y in input px, inside the input."""
        entry = self._entries[i]
        scaled = self._heads[i] * np.array(self.scale(i))
        # a head at the far edge could be rounded onto the border, which is outside (27)
        return np.asarray(np.minimum(scaled, np.nextafter([entry.width, entry.height], 0.0)), dtype=np.float64)

    def size(self, i: int) -> tuple[int, int]:
        """(H, W) of the input."""
        return self._entries[i].height, self._entries[i].width

    def original_size(self, i: int) -> tuple[int, int]:
        """(H0, W0) of the original image."""
        return self._entries[i].original_height, self._entries[i].original_width

    def original_heads(self, i: int) -> Heads:
        """(n, 2) x, y in original px, read-only."""
        return self._heads[i]

    def scale(self, i: int) -> tuple[float, float]:
        """(sx, sy): input pixels per original pixel. They differ slightly, since sides are whole pixels."""
        entry = self._entries[i]
        return entry.width / entry.original_width, entry.height / entry.original_height

    def zoomed(self, i: int, box: tuple[float, float, float, float], zoom: float) -> Pixels:
        """The region `box` (x0, y0, x1, y1 in input px) at `zoom` zoomed pixels per input pixel (17).

        (h, w, 3) uint8 with h = round((y1 - y0)·zoom), interpolated bilinearly from the *original* pixels. Pixels
        outside the box contribute at its edges, so the result equals a crop of the zoomed image. Raises ValueError
        unless the box is non-empty and inside the input.
        """
        entry = self._entries[i]
        x0, y0, x1, y1 = (float(v) for v in box)
        slack = 1e-6
        if not (-slack <= x0 < x1 <= entry.width + slack and -slack <= y0 < y1 <= entry.height + slack):
            raise ValueError(f"box {box} of {self.ids[i]}, expected it inside {entry.width} x {entry.height} px")
        out_h, out_w = zoomed_size((x0, y0, x1, y1), zoom)
        sx, sy = self.scale(i)
        source = self._original(i)
        height, width = source.shape[:2]
        left, top = max(0.0, x0 / sx), max(0.0, y0 / sy)
        right, bottom = min(float(width), x1 / sx), min(float(height), y1 / sy)
        # pass on only the pixels within the filter's reach: a whole photograph is 17 MB
        reach_x = 2 + math.ceil(max(1.0, (right - left) / out_w))
        reach_y = 2 + math.ceil(max(1.0, (bottom - top) / out_h))
        ax, ay = max(0, math.floor(left) - reach_x), max(0, math.floor(top) - reach_y)
        bx, by = min(width, math.ceil(right) + reach_x), min(height, math.ceil(bottom) + reach_y)
        part = Image.fromarray(np.ascontiguousarray(source[ay:by, ax:bx]))
        inner = (left - ax, top - ay, right - ax, bottom - ay)
        return rgb_array(part.resize((out_w, out_h), Image.Resampling.BILINEAR, box=inner))

    # ---------------------------------------------------------------- packs

    def _original(self, i: int) -> Pixels:
        """(H0, W0, 3) uint8: from this pack if its scale is 1, else from a pack of the originals."""
        if self.scale(i) == (1.0, 1.0):
            return self.pixels(i)
        if self._pack is not None:
            if self._originals is None:
                self._originals = Frames(self._items, pack=self._pack)
            return self._originals.pixels(i)
        # kept, since the regions of one image are requested one after the other
        if self._last_original is None or self._last_original[0] != i:
            self._last_original = (i, self._items[i].load_pixels())
        return self._last_original[1]

    @cached_property
    def packs(self) -> tuple[str, ...]:
        """Names of the pack files that are read: at input size, and at original size for zooming."""
        if self._pack is None:
            return ()
        originals = Frames._name(self._items, 1.0, 0)
        return tuple(dict.fromkeys((self._path.name, originals)))

    @property
    def _path(self) -> Path:
        """The pack's file."""
        assert self._pack is not None
        return self._pack / self._name(self._items, self._scale, self._max_side)

    @staticmethod
    def _name(items: Sequence[Sample], scale: float, max_side: int) -> str:
        """File name of a pack: a digest of everything that determines its bytes."""
        content = [_VERSION, scale, max_side, [(item.id, item.digest) for item in items]]
        return f"{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]}.rgb"

    def _open(self) -> tuple[NDArray[np.uint8], tuple[_PackEntry, ...]]:
        if self._pack is None:
            return self._in_memory()
        pack = _read(self._path, len(self._items))
        if pack is None and refresh(self._path.parent):  # another machine may have built it just now
            pack = _read(self._path, len(self._items))
        if pack is not None:
            return pack
        with acquire(self._pack, self._path.stem):  # the stages that start together decode the images once
            refresh(self._pack)
            return _read(self._path, len(self._items)) or self._build()

    def _build(self) -> tuple[NDArray[np.uint8], tuple[_PackEntry, ...]]:
        with atomic_write(self._path) as temporary, open(temporary, "xb") as file:
            entries = []
            for entry, pixels in self._decode_all():
                file.write(pixels.data)
                entries.append(entry)
            _write_index(file, entries)
            file.flush()
            os.fsync(file.fileno())
        self._checked.clear()
        pack = _read(self._path, len(self._items))
        if pack is None:
            raise RazError(str(self._path), "is damaged right after it was written", "check the disk")
        return pack

    def _in_memory(self) -> tuple[NDArray[np.uint8], tuple[_PackEntry, ...]]:
        entries, parts = [], []
        for entry, pixels in self._decode_all():
            entries.append(entry)
            parts.append(pixels.reshape(-1))
        # a single image, which may be large, is not copied
        buffer = parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, np.uint8), *parts])
        buffer.flags.writeable = False
        return buffer, tuple(entries)

    def _decode_all(self) -> Iterator[tuple[_PackEntry, Pixels]]:
        """Each image at input size with its entry. After the last one, raises RazError naming all that failed."""
        offset = 0
        faults: list[RazError] = []
        for item, heads in zip(self._items, self._heads, strict=True):
            try:
                original = item.load_pixels()
            except RazError as error:
                faults.append(error)
                continue
            h0, w0 = original.shape[:2]
            if len(heads) and not (heads >= 0).all() & (heads < (w0, h0)).all():
                faults.append(RazError(item.id, f"has heads outside its {w0} x {h0} px", "check the data set"))
                continue
            pixels = np.ascontiguousarray(resize(original, *input_size(h0, w0, self._scale, self._max_side)))
            entry = _PackEntry(offset, pixels.shape[0], pixels.shape[1], h0, w0, zlib.crc32(pixels.data))
            offset += entry.nbytes
            if not faults:
                yield entry, pixels
        raise_all(faults)


def _write_index(file: IO[bytes], entries: Sequence[_PackEntry]) -> None:
    index = json.dumps([asdict(entry) for entry in entries]).encode()
    file.write(index + len(index).to_bytes(8, "little") + hashlib.sha256(index).digest() + _MAGIC)


def _read(path: Path, images: int) -> tuple[NDArray[np.uint8], tuple[_PackEntry, ...]] | None:
    """The memory-mapped bytes and the index of a pack; None if it is missing or damaged.

    The index is verified here, the pixels of an image when they are first used.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            file.seek(max(0, size - _FOOTER_BYTES))
            tail = file.read()
            length = int.from_bytes(tail[:8], "little")
            if len(tail) != _FOOTER_BYTES or tail[40:] != _MAGIC or length > size - _FOOTER_BYTES:
                return None
            file.seek(size - _FOOTER_BYTES - length)
            index = file.read(length)
    except OSError:
        return None
    if hashlib.sha256(index).digest() != tail[8:40]:
        return None
    entries = tuple(_PackEntry(**fields) for fields in json.loads(index))
    if len(entries) != images or sum(entry.nbytes for entry in entries) != size - _FOOTER_BYTES - length:
        return None
    return np.asarray(np.memmap(path, np.uint8, "r")), entries
