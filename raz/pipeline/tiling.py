"""Images that are too large for the networks in one piece: which they are, and the tiles that they are computed by.

Tiles follow from the size of an image and from TILE_PIXELS alone, never from the memory that is free: so an image has
the same bits on every machine (I5), and studies and `predict` find the same on it. One tile is computed at a time.
Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raz.errors import RazError

# Larger images go by tiles of this many pixels. All three maps of one tile raise the peak memory by 2.7 GB at full
# width (preset paper), and by 0.4 GB at width 1/8 (tiny). Those of an image of 4000 x 6000 px take 0.2 GB themselves;
# computing them raises the peak by 1.1 GB at width 1/8.
TILE_PIXELS = 1 << 21
LARGE = 1 << 24  # px; larger images go by tiles of half the size, since their own maps take much memory already
CELL = 8  # px; raz.paper.networks.STRIDE, which imports torch
LEAST = 64  # px; least side of a tile without its margin


@dataclass(frozen=True)
class Tile:
    """A part of an image, px: rows [y0, y1) and columns [x0, x1). Its maps are cut out of those of the larger part with
    rows [top, bottom) and columns [left, right). All are multiples of CELL, and may reach into the padding."""

    y0: int
    x0: int
    y1: int
    x1: int
    top: int
    left: int
    bottom: int
    right: int

    @property
    def pixels(self) -> int:
        return (self.y1 - self.y0) * (self.x1 - self.x0)

    def inner(self, step: int = 1) -> tuple[slice, slice]:
        """Rows and columns of the tile in a map of the larger part, with one cell for `step` px."""
        return (
            slice((self.y0 - self.top) // step, (self.y1 - self.top) // step),
            slice((self.x0 - self.left) // step, (self.x1 - self.left) // step),
        )

    def place(self, step: int = 1) -> tuple[slice, slice]:
        """Rows and columns of the tile in a map of the whole image."""
        return slice(self.y0 // step, self.y1 // step), slice(self.x0 // step, self.x1 // step)


def halved(height: int, width: int) -> bool:
    """Whether an image of this size goes by tiles of half the size."""
    return height * width > LARGE


def tile_pixels(height: int, width: int) -> int:
    """Pixels up to which an image of this size, or a zoomed region of it, is computed in one piece."""
    return TILE_PIXELS // 2 if halved(height, width) else TILE_PIXELS


def round_up_to_stride(n: int) -> int:
    """The smallest multiple of the features' stride that is at least n."""
    return -(-n // CELL) * CELL


def fits(height: int, width: int, limit: int | None = None) -> bool:
    """Whether an image is computed in one piece. limit: px, by default that of its size."""
    return round_up_to_stride(height) * round_up_to_stride(width) <= (
        tile_pixels(height, width) if limit is None else limit
    )


def tiles(
    height: int, width: int, margin: Callable[[], int | None], align: int = CELL, limit: int | None = None
) -> list[Tile]:
    """The tiles of an image, row after row; one, of the whole padded image, where it fits.

    margin: how far an output sees, px, a multiple of `align`; None where it sees the whole image. Asked for only where
    tiles are needed. align: px; a part whose corner is a multiple of it is computed as in the whole image.
    limit: px of a tile with its margins, by default that of the image's size.

    Raises RazError where tiles are needed and the margin is None.
    """
    rows, cols = round_up_to_stride(height), round_up_to_stride(width)
    limit = tile_pixels(height, width) if limit is None else limit
    if fits(height, width, limit):
        return [Tile(0, 0, rows, cols, 0, 0, rows, cols)]
    reach = margin()
    if reach is None:
        raise RazError(
            "backbone.name", f"an image of {width} x {height} px, but every output of this network depends on "
            f"the whole image, so it cannot be predicted by tiles of {limit:,} px",
            "set a smaller input.scale or input.max_side, or take a network without global attention",
        )  # fmt: skip
    side = max(LEAST, (int(limit**0.5) - 2 * reach) // align * align)
    return [
        Tile(
            y0, x0, min(y0 + side, rows), min(x0 + side, cols),
            max(0, y0 - reach), max(0, x0 - reach), min(y0 + side + reach, rows), min(x0 + side + reach, cols),
        )
        for y0 in range(0, height, side) for x0 in range(0, width, side)
    ]  # fmt: skip


def by_size(parts: Sequence[Tile]) -> list[Tile]:
    """The tiles, those first that are computed from the most pixels: the memory that they leave serves the others,
    while a heap grows by freed blocks that are too small for the next. Measured in benchmarks/bench_memory.py."""
    return sorted(parts, key=lambda tile: (tile.bottom - tile.top) * (tile.right - tile.left), reverse=True)
