"""Training samples: crops of images, with the ground truth of the same window.

A crop is drawn from (seed, stage, epoch, image, number), not from a running generator. So an epoch is the same after a
crash, in another order and on another worker. Crops are aligned to the backbone's stride.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from raz.paper.attention import AttentionDistances, attention_distances, attention_from_distances, attention_window
from raz.paper.groundtruth import Kernel, density_map, density_window, label_window, mean_neighbour_distance
from raz.paper.networks import IMAGENET, STRIDE, ColourStatistics, normalise
from raz.pipeline.tiling import round_up_to_stride

DENSITY_BYTES = 1 << 27  # most bytes of kept density maps: 4,000 images of ShanghaiTech A
DISTANCE_BYTES = 1 << 28  # most bytes of memoised distances to heads: about 300 images of ShanghaiTech A


class Images(Protocol):
    """Images at the network's input size with their heads: `raz.data.frames.Frames`, or zoomed regions."""

    @property
    def ids(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def size(self, index: int) -> tuple[int, int]: ...  # (H, W), without reading pixels

    def pixels(self, index: int) -> NDArray[np.uint8]: ...  # (H, W, 3)

    def heads(self, index: int) -> NDArray[np.float64]: ...  # (n, 2) x, y px


@dataclass(frozen=True)
class MultiScaleImages:
    """The same n images at several sizes, one after the other: index `size · n + image`."""

    images: tuple[Images, ...]  # each n long

    def __len__(self) -> int:
        return sum(map(len, self.images))

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(name for images in self.images for name in images.ids)

    def size(self, index: int) -> tuple[int, int]:
        images, own = self.locate(index)
        return images.size(own)

    def pixels(self, index: int) -> NDArray[np.uint8]:
        images, own = self.locate(index)
        return images.pixels(own)

    def heads(self, index: int) -> NDArray[np.float64]:
        images, own = self.locate(index)
        return images.heads(own)

    def locate(self, index: int) -> tuple[Images, int]:
        """The images of one size, and the index among them."""
        size, own = divmod(index, len(self.images[0]))
        return self.images[size], own


@dataclass(frozen=True)
class Window:
    """A crop: image, whether mirrored, upper left corner in pixels of the (mirrored) image, height and width, whether
    it loses its colours, and the side of the image's square that is resized to it (0: as large as the crop)."""

    index: int
    mirrored: bool
    x0: int
    y0: int
    height: int
    width: int
    grey: bool = False
    side: int = 0


def seed_of(size: int, *parts: object) -> int:
    """An unsigned integer of `size` bytes that depends on the parts alone."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:size], "big")


def generator(*parts: object) -> np.random.Generator:
    """A random generator that depends on the parts alone."""
    return np.random.Generator(np.random.PCG64(seed_of(16, *parts)))


def mirrored_heads(heads: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Heads of the mirrored image; a head at x = 0 stays inside (27)."""
    out = heads.copy()
    out[:, 0] = np.minimum(width - heads[:, 0], np.nextafter(width, 0))
    return out


@dataclass
class DistanceMemo:
    """Distances to the nearest heads of whole images. With them an attention map costs one exp per pixel.

    Bounded: beyond `limit` bytes distances are computed for each window, with the same bits.
    """

    limit: int = DISTANCE_BYTES
    _entries: dict[tuple[str, int], AttentionDistances] = field(default_factory=dict)
    _bytes: int = 0

    def evict_except(self, *images: str) -> None:
        """If the memo is full, drop the distances of all but these images. A task calls it once, at its start: within a
        task every entry is used again in the next epoch."""
        if self._bytes >= self.limit:
            for key in [key for key in self._entries if key[0] not in images]:
                self._bytes -= self._entries.pop(key).nbytes

    def get(
        self, images: str, index: int, sigma_z: float, compute: Callable[[], AttentionDistances]
    ) -> AttentionDistances | None:
        """Distances of one image that suffice for `sigma_z`: from the memo, or computed. None if the memo is full."""
        cached = self._entries.get((images, index))
        if cached is not None and cached.sigma_z >= sigma_z:
            return cached
        if self._bytes >= self.limit:
            return None
        value = compute()
        self._bytes += value.nbytes - (cached.nbytes if cached is not None else 0)
        self._entries[images, index] = value
        return value


DISTANCES = DistanceMemo()
DensityKey = tuple[int, bool, int, float, Kernel]  # image, mirrored, stride, beta, kernel


class GroundTruth:
    """Ground truth of windows. Heads, distances and density maps of a whole image are computed once; density maps
    beyond DENSITY_BYTES for each window, with the same bits.

    name: id of the images in the memo that all tasks of a process share; empty: a memo of its own.
    """

    def __init__(self, images: Images, k: int = 4, *, name: str = "", memo: DistanceMemo | None = None) -> None:
        self.images = images
        self.k = k
        self.name = name
        self.memo = memo or (DISTANCES if name else DistanceMemo())
        self.of_image = lru_cache(maxsize=None)(self._of_image)
        self._maps: dict[DensityKey, NDArray[np.float32]] = {}
        self._map_bytes = 0

    def _of_image(self, index: int) -> tuple[NDArray[np.float64], NDArray[np.float64], int, int]:
        """Heads (n, 2), their mean neighbour distances (n,) px, height and width of an image."""
        height, width = self.images.size(index)
        heads = self.images.heads(index)
        return heads, mean_neighbour_distance(heads, self.k, height, width), height, width

    def _clipped(self, w: Window) -> tuple[NDArray[np.float64], NDArray[np.float64], int, int, int, int]:
        """Of the window's (mirrored) image: heads (n, 2), their neighbour distances (n,) px, height and width; then the
        height and width of the window's part inside the image."""
        heads, distances, height, width = self.of_image(w.index)
        if w.mirrored:
            heads = mirrored_heads(heads, width)
        return heads, distances, height, width, min(w.height, height - w.y0), min(w.width, width - w.x0)

    def _resized(self, w: Window, margin: int) -> tuple[NDArray[np.float64], NDArray[np.float64], int, int, int, int]:
        """Of a resized window's image, at the window's scale: heads (n, 2), their neighbour distances (n,) px, height
        and width, and the window's corner x0, y0 in it.

        The image is enlarged above and on the left, so that the corner is a multiple of `margin` px: for a density map
        the border of the image then lies up to one cell outside.
        """
        heads, distances, height, width = self.of_image(w.index)
        if w.mirrored:
            heads = mirrored_heads(heads, width)
        scale, corner = w.width / w.side, np.array([w.x0, w.y0])
        at = np.ceil(corner * scale / margin).astype(np.int64) * margin
        size = np.ceil(([width, height] - corner) * scale).astype(np.int64) + at
        heads = np.minimum((heads - corner) * scale + at, np.nextafter(size.astype(np.float64), 0))
        return heads, distances * scale, int(size[1]), int(size[0]), int(at[0]), int(at[1])

    def density(self, w: Window, stride: int, beta: float, kernel: Kernel) -> NDArray[np.float32]:
        """The density map of a window, (h/stride, w/stride) persons per cell; zero beyond the image."""
        if w.side:
            heads, distances, height, width, x0, y0 = self._resized(w, stride)
            return density_window(
                heads, distances, height, width, x0, y0, w.height, w.width, stride=stride, beta=beta, kernel=kernel
            )
        heads, distances, height, width, h, wd = self._clipped(w)
        rows, cols = -(-h // stride), -(-wd // stride)
        whole = self._density_map(w, stride, beta, kernel)
        if whole is not None:
            y, x = w.y0 // stride, w.x0 // stride
            part = whole[y : y + rows, x : x + cols]
        else:
            part = density_window(
                heads, distances, height, width, w.x0, w.y0, rows * stride, cols * stride,
                stride=stride, beta=beta, kernel=kernel,
            )  # fmt: skip
        return _padded(part, w.height // stride, w.width // stride)

    def _density_map(self, w: Window, stride: int, beta: float, kernel: Kernel) -> NDArray[np.float32] | None:
        """The density map of the window's whole (mirrored) image; None where it is not kept."""
        key = (w.index, w.mirrored, stride, beta, kernel)
        kept = self._maps.get(key)
        if kept is not None:
            return kept
        heads, distances, height, width = self.of_image(w.index)
        size = 4 * -(-height // stride) * -(-width // stride)
        if w.x0 % stride or w.y0 % stride or self._map_bytes + size > DENSITY_BYTES:
            return None
        if w.mirrored:
            heads = mirrored_heads(heads, width)
        self._map_bytes += size
        whole = density_map(heads, height, width, stride=stride, beta=beta, kernel=kernel, distances=distances)
        self._maps[key] = whole
        return whole

    def labels(self, w: Window) -> NDArray[np.float32]:
        """The label map of a window, (h, w) 0 or 1; zero beyond the image."""
        if w.side:
            heads, _, height, width, x0, y0 = self._resized(w, 1)
            return label_window(heads, height, width, x0, y0, w.height, w.width).astype(np.float32)
        heads, _, height, width, h, wd = self._clipped(w)
        part = label_window(heads, height, width, w.x0, w.y0, h, wd)
        return _padded(part.astype(np.float32), w.height, w.width)

    def attention(self, w: Window, sigma_z: float) -> NDArray[np.float32]:
        """The attention map of a window, (h, w); zero beyond the image. For a mirrored window the mirrored map."""
        heads, _, height, width = self.of_image(w.index)
        h, wd = min(w.height, height - w.y0), min(w.width, width - w.x0)
        x0 = width - w.x0 - wd if w.mirrored else w.x0

        def compute() -> AttentionDistances:
            return attention_distances(heads, height, width, sigma_z)

        distances = self.memo.get(self.name, w.index, sigma_z, compute)
        if distances is None:
            part = attention_window(heads, height, width, x0, w.y0, h, wd, sigma_z)
        else:
            part = attention_from_distances(distances, sigma_z, x0, w.y0, h, wd)
        return _padded(np.ascontiguousarray(part[:, ::-1]) if w.mirrored else part, w.height, w.width)


def _padded(part: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """The map with zeros below and right of it, (height, width)."""
    if part.shape == (height, width):
        return part
    out = np.zeros((height, width), np.float32)
    out[: part.shape[0], : part.shape[1]] = part
    return out


def draw_windows(
    images: Images,
    *,
    seed: int,
    stage: str,
    epoch: int,
    crop: int,
    crops: int,
    flip: bool,
    grey: float = 0.0,
    scales: tuple[float, ...] = (),
) -> list[Window]:
    """The windows of one epoch, in training order.

    crop: side in px, 0 = whole images; crops: number of crops per image; flip: whether half of them are mirrored; grey:
    share of them that lose their colours; scales: lowest and highest scale of a resized crop. A scale is raised where
    the crop would not fit into the image.
    If the images have several sizes (`MultiScaleImages`), each crop draws its size.
    """
    windows = []
    sizes = len(images.images) if isinstance(images, MultiScaleImages) else 1
    count = len(images) // sizes
    for image in range(count):
        for number in range(1 if crop == 0 else crops):
            rng = generator(seed, stage, epoch, images.ids[image], number)
            index = image + count * int(rng.integers(sizes)) if sizes > 1 else image
            height, width = images.size(index)
            mirrored = bool(rng.random() < 0.5) and flip
            x0, y0, rows, cols = 0, 0, round_up_to_stride(height), round_up_to_stride(width)
            side = 0
            if scales:
                low, high = np.log(scales)
                scale = max(float(np.exp(rng.uniform(low, high))), crop / min(height, width))
                side = min(round(crop / scale), height, width)
                y0, x0 = int(rng.integers(0, height - side + 1)), int(rng.integers(0, width - side + 1))
                rows = cols = crop
            elif crop:
                y0 = STRIDE * int(rng.integers(0, max(0, rows - crop) // STRIDE + 1))
                x0 = STRIDE * int(rng.integers(0, max(0, cols - crop) // STRIDE + 1))
                rows = cols = crop
            # drawn last, so that the other draws do not depend on the share
            windows.append(Window(index, mirrored, x0, y0, rows, cols, grey > 0 and bool(rng.random() < grey), side))
    order = generator(seed, stage, epoch, "order").permutation(len(windows))
    return [windows[i] for i in order]


def crop_pixels(images: Images, w: Window, device: torch.device, colours: ColourStatistics = IMAGENET) -> Tensor:
    """The normalised pixels of a window, (1, 3, h, w) float32; the mean colour beyond the image. A grey window has the
    mean of its three colours in each of them, rounded."""
    return normalised_crops(load_crops(images, [w]).to(device), extents(images, [w]), colours)


def load_crops(images: Images, windows: Sequence[Window]) -> Tensor:
    """The pixels of windows of one size, (B, 3, h, w) uint8 on the CPU; 0 beyond the image.

    Plane after plane, which is the layout in which the networks get them, and quicker to normalise.
    """
    out = np.empty((len(windows), 3, windows[0].height, windows[0].width), np.uint8)
    for row, w in zip(out, windows, strict=True):
        part = _window_pixels(images, w)
        if w.grey:
            part = np.repeat(np.rint(part.mean(axis=2, keepdims=True)).astype(np.uint8), 3, axis=2)
        row[:, : part.shape[0], : part.shape[1]] = part.transpose(2, 0, 1)
        row[:, part.shape[0] :] = 0
        row[:, :, part.shape[1] :] = 0
    return torch.from_numpy(out)


def extents(images: Images, windows: Sequence[Window]) -> list[tuple[int, int]]:
    """Height and width of each window's part inside its image."""
    out = []
    for w in windows:
        height, width = images.size(w.index)
        out.append((w.height, w.width) if w.side else (min(w.height, height - w.y0), min(w.width, width - w.x0)))
    return out


def normalised_crops(pixels: Tensor, inside: Sequence[tuple[int, int]], colours: ColourStatistics = IMAGENET) -> Tensor:
    """Crops (B, 3, h, w) uint8 -> float32, normalised; 0, the mean colour, outside of `inside`."""
    x = normalise(pixels, colours)
    for row, (height, width) in zip(x, inside, strict=True):
        if (height, width) != tuple(x.shape[2:]):
            row[:, height:] = 0.0
            row[:, :, width:] = 0.0
    return x


def _window_pixels(images: Images, w: Window) -> NDArray[np.uint8]:
    """A window's part inside the image, (rows, columns, 3); of a resized one all of it."""
    pixels = images.pixels(w.index)
    if w.mirrored:
        pixels = pixels[:, ::-1]
    if not w.side:
        return pixels[w.y0 : w.y0 + w.height, w.x0 : w.x0 + w.width]
    square = np.ascontiguousarray(pixels[w.y0 : w.y0 + w.side, w.x0 : w.x0 + w.side])
    return np.asarray(Image.fromarray(square).resize((w.width, w.height), Image.Resampling.BILINEAR))
