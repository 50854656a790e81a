"""`toy`: a generated crowd data set, which needs no download.

Each image shows a ground plane with people in groups or in a packed crowd. Heads become smaller and crowds denser with
distance, nearer people occlude farther ones, and the light is uneven. Foliage, balls, signs and paving add edges and
head-like shapes without people. There are 60 training, 16 validation and 40 test images of about 160 x 224 px with 0 to
250 heads each.

The images are identical on every machine: the random numbers come from PCG64's raw stream, which numpy keeps stable,
and drawing uses only operations that IEEE 754 rounds exactly (no exp, no sin, no sums whose order may vary).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raz.data.contract import SPLITS, Heads, Pixels, Reader, Sample, ScannedSample, ScanResult, Split

VERSION = 1  # raise it when an image changes; it is part of the digests, so every stage is then computed again
SIZES: dict[Split, int] = {"train": 60, "val": 16, "test": 40}

CrowdKind = Literal["empty", "sparse", "groups", "packed"]
# The kind of each image, by its index; repeated for long splits.
_KINDS: tuple[CrowdKind, ...] = (
    "packed", "groups", "sparse", "packed", "groups", "packed", "sparse", "groups", "packed", "groups",
    "packed", "sparse", "groups", "packed", "empty", "groups", "packed", "sparse", "groups", "packed",
)  # fmt: skip
_VISIBLE = 0.45  # heads of which a smaller fraction is visible are not annotated

Array = NDArray[np.float32]
Colour = tuple[float, float, float]

_HAIR = ((0.10, 0.08, 0.07), (0.16, 0.11, 0.08), (0.28, 0.19, 0.11), (0.50, 0.38, 0.22), (0.42, 0.41, 0.40))
_SKIN = ((0.88, 0.69, 0.57), (0.78, 0.57, 0.44), (0.60, 0.42, 0.30), (0.40, 0.27, 0.19))
_GROUND = ((0.55, 0.53, 0.50), (0.42, 0.42, 0.43), (0.62, 0.55, 0.45), (0.36, 0.44, 0.27), (0.70, 0.69, 0.66))
_CLOTH = (
    (0.12, 0.12, 0.15), (0.20, 0.21, 0.27), (0.38, 0.38, 0.40), (0.82, 0.81, 0.78), (0.16, 0.22, 0.42),
    (0.30, 0.42, 0.60), (0.62, 0.16, 0.16), (0.50, 0.44, 0.34), (0.78, 0.66, 0.36), (0.24, 0.40, 0.28),
    (0.72, 0.50, 0.55), (0.45, 0.30, 0.42),
)  # fmt: skip
_LEAF = ((0.13, 0.19, 0.08), (0.20, 0.27, 0.10), (0.10, 0.13, 0.07), (0.27, 0.25, 0.11))


class _Random:
    """Random numbers from PCG64's raw stream, which numpy keeps stable, unlike its distributions."""

    def __init__(self, seed: str) -> None:
        key = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:16], "little")
        self._bits = np.random.PCG64(key)
        self._ahead: list[float] = []

    def units(self, n: int) -> NDArray[np.float64]:
        """(n,) float64, uniform in [0, 1)."""
        return np.asarray((self._bits.random_raw(n) >> np.uint64(11)) * 2.0**-53, dtype=np.float64)

    def grains(self, n: int) -> NDArray[np.uint8]:
        """(n,) uint8, uniform."""
        return self._bits.random_raw(-(-n // 8)).astype("<u8").view(np.uint8)[:n]

    def unit(self) -> float:
        """Uniform in [0, 1)."""
        if not self._ahead:  # drawn in blocks: a block costs as much as a single number
            self._ahead = self.units(256).tolist()
        return self._ahead.pop()

    def between(self, low: float, high: float) -> float:
        """Uniform between `low` and `high`."""
        return low + (high - low) * self.unit()

    def integer(self, low: int, high: int) -> int:
        """Uniform in `low` to `high`, both inclusive."""
        return low + int(self.unit() * (high - low + 1))

    def colour(self, palette: tuple[Colour, ...], spread: float) -> Array:
        """A random colour of the palette with a random deviation, (3,) float32."""
        r, g, b = palette[self.integer(0, len(palette) - 1)]
        off = self.between(-0.5, 0.5)  # common to all channels: changes brightness more than hue
        half = 0.35 * spread
        return np.array([c + spread * off + self.between(-half, half) for c in (r, g, b)], np.float32)


@dataclass(frozen=True)
class _View:
    """The perspective of an image; sizes in px."""

    height: int
    width: int
    skyline: float  # row where the ground begins
    far: float  # width of a head at the skyline
    near: float  # width of a head at the lowest row

    def head_width(self, y: float) -> float:
        """Width in px of a head at row y."""
        return self.far + (self.near - self.far) * max(0.0, y - self.skyline) / (self.height - self.skyline)


@cache
def generate(split: Split, index: int) -> tuple[Pixels, Heads]:
    """Image `index` of a split: pixels (H, W, 3) uint8 RGB and heads (n, 2) x, y px, both read-only."""
    rng = _random(split, index)
    kind = _KINDS[index % len(_KINDS)]
    height, width = _size(rng)
    packed = kind == "packed"
    view = _View(
        height, width,
        skyline=height * rng.between(0.06, 0.30),
        far=rng.between(3.0, 3.8) if packed else rng.between(3.4, 6.0),
        near=rng.between(6.5, 11.0) if packed else rng.between(9.0, 14.0),
    )  # fmt: skip
    canvas = _background(rng, view)
    positions = _positions(rng, view, kind)
    heads = _draw_scene(canvas, rng, view, positions)
    pixels = _expose(canvas, rng)
    pixels.flags.writeable = False
    heads.flags.writeable = False
    return pixels, heads


def _random(split: Split, index: int) -> _Random:
    return _Random(f"toy {VERSION} {split} {index}")


def _size(rng: _Random) -> tuple[int, int]:
    """(H, W) px of an image: what its generator gives first."""
    return rng.integer(144, 176), rng.integer(204, 244)


# ------------------------------------------------------------------ positions


def _positions(rng: _Random, view: _View, kind: CrowdKind) -> NDArray[np.float64]:
    """(n, 3) x, y of the head's centre and width of the head, in px, far ones first."""
    if kind == "empty":
        return np.zeros((0, 3))
    wanted = rng.integer(*{"sparse": (1, 22), "groups": (24, 95), "packed": (105, 260)}[kind])
    if kind == "packed":  # one or two dense crowds, the first far away
        masses = [(rng.between(0.2, 0.8), rng.between(0.02, 0.2), rng.between(0.22, 0.5), rng.between(0.1, 0.25))]
        if rng.between(0, 1) < 0.5:
            masses.append((rng.between(0, 1), rng.between(0.3, 0.8), rng.between(0.15, 0.4), rng.between(0.1, 0.2)))
        stray, gap = 0.08, rng.between(0.78, 1.05)
    else:  # small groups
        groups = max(1, wanted // rng.integer(5, 14))
        masses = [
            (
                rng.between(0, 1),
                rng.between(0, 1) * rng.between(0, 1),
                rng.between(0.03, 0.1),
                rng.between(0.02, 0.08),
            )
            for _ in range(groups)
        ]
        stray, gap = (0.6 if kind == "sparse" else 0.2), rng.between(0.85, 1.2)
    ground = view.height - view.skyline
    accepted = np.zeros((wanted, 3))
    n = 0
    darts = rng.units(6 * 12 * wanted).reshape(-1, 6)
    for pick, u, v, a, b, away in darts.tolist():
        if away < stray:
            x, y = u * view.width, view.skyline + v * v * ground
        else:
            cx, cy, rx, ry = masses[int(pick * len(masses))]
            # the difference of two uniform numbers: dense in the middle, bounded
            x = (cx + rx * 1.6 * (u - a)) * view.width
            y = view.skyline + (cy + ry * 1.6 * (v - b)) * ground
        if not (0 <= x < view.width and view.skyline - 1 <= y < view.height - 0.5):
            continue
        w = view.head_width(y) * (0.88 + 0.24 * pick)
        dx, dy = accepted[:n, 0] - x, accepted[:n, 1] - y
        reach = gap * 0.5 * (accepted[:n, 2] + w)
        # people keep more distance across the line of sight than along it
        if n and bool((dx * dx + 1.7 * dy * dy < reach * reach).any()):
            continue
        accepted[n] = x, y, w
        n += 1
        if n == wanted:
            break
    people = accepted[:n]
    return people[np.lexsort((people[:, 0], people[:, 1]))]


# ------------------------------------------------------------------ drawing


def _window(canvas: Array, x: float, y: float, rx: float, up: float, down: float) -> tuple[slice, slice, Array, Array]:
    """Rows and columns around (x, y), and the offsets dx, dy of their pixel centres from it (27)."""
    height, width = canvas.shape[:2]
    rows = slice(max(0, int(y - up)), max(0, min(height, int(y + down) + 2)))
    cols = slice(max(0, int(x - rx)), max(0, min(width, int(x + rx) + 2)))
    dy = (np.arange(rows.start, rows.stop, dtype=np.float64) + 0.5 - y).astype(np.float32)[:, None]
    dx = (np.arange(cols.start, cols.stop, dtype=np.float64) + 0.5 - x).astype(np.float32)[None, :]
    return rows, cols, dx, dy


def _ellipse(dx: Array, dy: Array, rx: float, ry: float) -> Array:
    """Coverage of each pixel by an ellipse, 0 to 1, with an edge about one pixel wide."""
    edge = 0.5 * min(rx, ry)
    cover = np.float32(edge + 0.5) - dy * dy * np.float32(edge / (ry * ry)) - dx * dx * np.float32(edge / (rx * rx))
    np.maximum(cover, np.float32(0), out=cover)
    return np.minimum(cover, np.float32(1), out=cover)


def _blend(patch: Array, alpha: Array, colour: Array) -> None:
    patch += alpha[:, :, None] * (colour - patch)


def _draw_person(
    canvas: Array, owner: NDArray[np.int32], number: int, x: float, y: float, w: float,
    rng: _Random, uniform: Array | None,
) -> int:  # fmt: skip
    """Draw a person with the head's centre at (x, y) px; `owner` (H, W) has the number of the head at each pixel.

    Returns the number of pixels of the head before any occlusion.
    """
    hair, skin, cloth = rng.colour(_HAIR, 0.08), rng.colour(_SKIN, 0.12), rng.colour(_CLOTH, 0.14)
    if uniform is not None:
        cloth = np.float32(0.75) * uniform + np.float32(0.25) * cloth
    body, lit, facing, turn = (
        w * rng.between(1.8, 3.0),
        rng.between(-0.2, 0.2),
        rng.unit(),
        rng.between(-0.25, 0.25),
    )

    rows, cols, dx, dy = _window(canvas, x, y, 1.2 * w, 0.0, body + 0.8 * w)
    low = dy - np.float32(0.5 * w + 0.5 * body)
    torso = _ellipse(dx, low, 0.92 * w, 0.55 * body)
    # lit from one side, darker towards the feet
    shade = (np.float32(1) + np.float32(lit / w) * dx) - np.float32(0.3 / body) * low
    _blend(canvas[rows, cols], torso, cloth * shade[:, :, None])
    owner[rows, cols][torso > 0.5] = 0

    rows, cols, dx, dy = _window(canvas, x, y, 0.5 * w + 1, 0.6 * w + 1, 0.6 * w + 1)
    head = _ellipse(dx, dy, 0.5 * w, 0.6 * w)
    colour = hair
    if facing < 0.7:  # from the front or the side: a face below the hair
        face = _ellipse(dx - np.float32(turn * w), dy - np.float32(0.16 * w), 0.38 * w, 0.42 * w)
        colour = hair + face[:, :, None] * (skin - hair)
    _blend(canvas[rows, cols], head, colour)
    mask = head > 0.5
    owner[rows, cols][mask] = number
    return int(np.count_nonzero(mask))


def _draw_clutter(canvas: Array, owner: NDArray[np.int32], rng: _Random, view: _View, y: float) -> None:
    """Draw an object that is not a person, standing at row y."""
    x, scale = rng.between(0, view.width), rng.between(0.6, 1.5)
    what = (0, 0, 1, 1, 1, 2, 3, 4, 4, 5)[rng.integer(0, 9)]
    w = view.head_width(y) * scale
    if what == 0:  # a ball or a balloon: round, one colour, a highlight
        rows, cols, dx, dy = _window(canvas, x, y, w, w, w)
        ball = _ellipse(dx, dy, 0.55 * w, 0.55 * w)
        _blend(canvas[rows, cols], ball, rng.colour(_SKIN + _HAIR + _CLOTH, 0.3))
        _blend(canvas[rows, cols], 0.6 * _ellipse(dx + 0.2 * w, dy + 0.2 * w, 0.2 * w, 0.2 * w), np.ones(3, np.float32))
        owner[rows, cols][ball > 0.5] = 0
    elif what == 1:  # a bush: dark round leaves side by side, as heads in a crowd are
        for _ in range(rng.integer(8, 26)):
            bx, by = x + rng.between(-3, 3) * w, y - rng.between(0, 2.5) * w
            r = 0.3 * w + rng.between(0.5, 1.5)
            rows, cols, dx, dy = _window(canvas, bx, by, r + 1, r + 1, r + 1)
            leaf = _ellipse(dx, dy, r, r)
            _blend(canvas[rows, cols], leaf, rng.colour(_LEAF, 0.12))
            owner[rows, cols][leaf > 0.5] = 0
    elif what == 2:  # a post with a lamp on it
        rows, cols, dx, dy = _window(canvas, x, y, 0.2 * w, 6 * w, 0)
        if rows.stop > rows.start and cols.stop > cols.start:
            canvas[rows, cols] = rng.colour(_GROUND, 0.3) * np.float32(0.5)
            owner[rows, cols] = 0
        rows, cols, dx, dy = _window(canvas, x, y - 6 * w, w, w, w)
        lamp = _ellipse(dx, dy, 0.5 * w, 0.6 * w)
        _blend(canvas[rows, cols], lamp, rng.colour(_SKIN, 0.3))
        owner[rows, cols][lamp > 0.5] = 0
    elif what == 3:  # an umbrella or a stall's roof
        rows, cols, dx, dy = _window(canvas, x, y - 2 * w, 2.2 * w, 1.2 * w, 0)
        roof = _ellipse(dx, dy, 2.0 * w, 1.1 * w) * (dy < 0)
        stripes = np.floor(dx / np.float32(0.6 * w)) % 2
        _blend(canvas[rows, cols], roof * stripes, rng.colour(_CLOTH, 0.3))
        _blend(canvas[rows, cols], roof * (1 - stripes), rng.colour(_CLOTH + _GROUND, 0.3))
        owner[rows, cols][roof > 0.5] = 0
    elif what == 4:  # a bag, a bin, a bollard: a body without a head
        rows, cols, dx, dy = _window(canvas, x, y, 1.0 * w, w, w)
        bin_ = _ellipse(dx, dy, 0.8 * w, rng.between(0.6, 1.0) * w)
        _blend(canvas[rows, cols], bin_, rng.colour(_GROUND + _HAIR, 0.5))
        owner[rows, cols][bin_ > 0.5] = 0
    else:  # a sign: a rectangle with dark marks in rows, like faces in a stand
        rows, cols, dx, dy = _window(canvas, x, y - w, 1.8 * w, 1.1 * w, 1.1 * w)
        marks = (np.floor(dx / np.float32(0.5 * w)) % 2) * (np.floor(dy / np.float32(0.6 * w)) % 2)
        canvas[rows, cols] = rng.colour(_SKIN + _GROUND, 0.4)
        _blend(canvas[rows, cols], np.float32(0.8) * marks, rng.colour(_HAIR, 0.3))
        owner[rows, cols] = 0


def _draw_scene(canvas: Array, rng: _Random, view: _View, positions: NDArray[np.float64]) -> Heads:
    """Draw people and other objects from far to near; returns the visible heads (n, 2)."""
    owner = np.zeros(canvas.shape[:2], np.int32)
    whole = np.zeros(len(positions) + 1, np.int64)
    ground = view.height - view.skyline
    clutter = sorted(view.skyline + u * u * ground for u in rng.units(rng.integer(6, 26)).tolist())
    # in some images all people are dressed alike
    uniform = rng.colour(_CLOTH, 0.3) if rng.between(0, 1) < 0.2 else None
    for number, (x, y, w) in enumerate(positions.tolist(), start=1):
        while clutter and clutter[0] <= y:
            _draw_clutter(canvas, owner, rng, view, clutter.pop(0))
        whole[number] = _draw_person(canvas, owner, number, x, y, w, rng, uniform)
    for y in clutter:
        _draw_clutter(canvas, owner, rng, view, y)
    visible = np.bincount(owner.reshape(-1), minlength=len(whole))[1:]
    return np.ascontiguousarray(positions[(whole[1:] > 0) & (visible >= _VISIBLE * whole[1:]), :2])


def _cloud(rng: _Random, height: int, width: int, cell: int) -> Array:
    """(height, width) smooth noise in [0, 1): random values every `cell` px, bilinear between."""
    rows, cols = height // cell + 2, width // cell + 2
    grid = rng.units(rows * cols).reshape(rows, cols).astype(np.float32)
    y, x = np.arange(height), np.arange(width)
    fy = ((y % cell) / np.float32(cell)).astype(np.float32)[:, None]
    fx = ((x % cell) / np.float32(cell)).astype(np.float32)[None, :]
    lines = grid[y // cell] * (1 - fy) + grid[y // cell + 1] * fy
    return np.asarray(lines[:, x // cell] * (1 - fx) + lines[:, x // cell + 1] * fx, dtype=np.float32)


def _background(rng: _Random, view: _View) -> Array:
    """(H, W, 3) float32: sky or a facade with windows, and the ground, in some images with paving."""
    height, width = view.height, view.width
    sky_rows = int(view.skyline)
    canvas = np.empty((height, width, 3), np.float32)
    y = np.arange(height, dtype=np.float32)[:, None]
    x = np.arange(width, dtype=np.float32)[None, :]
    canvas[:] = rng.colour(_GROUND, 0.2)
    texture = np.float32(rng.between(0.05, 0.3)) * (_cloud(rng, height, width, 3) - np.float32(0.5))
    texture += np.float32(rng.between(0.05, 0.25)) * (_cloud(rng, height, width, 17) - np.float32(0.5))
    if rng.between(0, 1) < 0.6:  # paving: lines that converge in the vanishing point
        depth = np.float32(height) / (y - np.float32(view.skyline) + np.float32(0.35 * height))
        tiles = rng.between(5, 14)
        across = (x - np.float32(width * rng.between(0.2, 0.8))) * depth * np.float32(tiles / width)
        along = depth * np.float32(tiles * 1.3)
        lines = (across - np.floor(across) < 0.12) | (along - np.floor(along) < 0.15)
        texture -= np.float32(rng.between(0.05, 0.25)) * lines
    canvas += texture[:, :, None]
    wall = rng.colour(_GROUND, 0.4) + np.float32(0.1)
    canvas[:sky_rows] = wall + np.float32(0.3) * texture[:sky_rows, :, None]
    if rng.between(0, 1) < 0.7:  # a facade
        pitch_x, pitch_y = rng.integer(5, 12), rng.integer(6, 11)
        windows = (x % pitch_x < 0.55 * pitch_x) & (y[:sky_rows] % pitch_y < 0.6 * pitch_y)
        shade = np.float32(rng.between(0.3, 0.8))
        canvas[:sky_rows] = np.where(windows[:, :, None], canvas[:sky_rows] * shade, canvas[:sky_rows])
    return canvas


def _expose(canvas: Array, rng: _Random) -> Pixels:
    """Simulate light, lens and sensor: (H, W, 3) uint8."""
    height, width = canvas.shape[:2]
    y = (np.arange(height, dtype=np.float32) / np.float32(height))[:, None]
    x = (np.arange(width, dtype=np.float32) / np.float32(width))[None, :]
    light = np.float32(rng.between(0.65, 1.15)) + np.float32(rng.between(-0.45, 0.45)) * (x - np.float32(0.5))
    light = light + np.float32(rng.between(-0.3, 0.3)) * (y - np.float32(0.5))
    for _ in range(rng.integer(0, 3)):  # shadows, and patches of sun
        u = (x - np.float32(rng.between(0, 1))) * np.float32(1 / rng.between(0.08, 0.35))
        v = (y - np.float32(rng.between(0, 1))) * np.float32(1 / rng.between(0.08, 0.35))
        near = u * u + v * v
        light = light * (1 + np.float32(rng.between(-0.6, 0.4)) / (1 + near * near))
    cast = np.array([rng.between(0.88, 1.12) for _ in range(3)], np.float32)
    image = canvas * light[:, :, None] * cast
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:-2] + padded[1:-1] + padded[1:-1] + padded[2:]
    soft = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 1:-1] + rows[:, 2:]) * np.float32(1 / 16)
    blur = np.float32(rng.between(0.0, 0.8))
    image = image + blur * (soft - image)
    grains = rng.grains(2 * image.size).reshape(2, *image.shape).astype(np.float32)
    image = image + np.float32(rng.between(0.01, 0.06) / 256) * (grains[0] - grains[1])
    return np.asarray(np.clip(image, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)  # rounds half up


# ------------------------------------------------------------------ as a data set


def _pixels(split: Split, index: int) -> Pixels:
    return generate(split, index)[0].copy()


def _heads(split: Split, index: int) -> Heads:
    return generate(split, index)[1].copy()


def scan(root: Path | None) -> ScanResult:
    """The three splits; images are drawn when they are loaded. `root` is not used."""
    samples: dict[Split, tuple[ScannedSample, ...]] = {}
    for split in SPLITS:
        each = []
        for index in range(SIZES[split]):
            digest = hashlib.sha256(f"toy {VERSION} {split} {index}".encode()).hexdigest()
            item = Sample(
                id=f"{split}/{index:03d}",
                scene=f"{split}/{index:03d}",
                load_pixels=partial(_pixels, split, index),
                load_heads=partial(_heads, split, index),
                digest=digest,
                size=_size(_random(split, index)),
            )
            each.append(ScannedSample(item, digest))
        samples[split] = tuple(each)
    return ScanResult(samples)


READER = Reader("Toy crowd", scan, layout="nothing: it is generated")
