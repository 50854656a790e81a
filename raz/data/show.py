"""Draw one image with its ground truth: heads, density, attention and zoomed regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from raz.config import TrialConfig
from raz.data import open_dataset
from raz.data.contract import Heads, Pixels, Sample, Split
from raz.data.images import content_digest
from raz.errors import RazError
from raz.utils.atomic import atomic_write

# from dark to bright in even steps of lightness, so that it is readable in grey and by the colour-blind
_COLOURS = np.array([(8, 8, 24), (62, 18, 98), (150, 38, 104), (226, 86, 52), (250, 172, 40), (252, 250, 200)])
_LONG_SIDE = (560, 900)  # minimum and maximum of a panel's longer side, px
_BAND = 24  # px, height of a caption
_GAP = 8  # px between panels


@dataclass(frozen=True)
class Panels:
    """The content of the panels, in pixels of the original image."""

    title: str
    pixels: Pixels  # (H, W, 3)
    heads: Heads  # (n, 2)
    density: NDArray[np.float32]  # (H, W), sums to n
    attention: NDArray[np.float32]  # (H, W), 0 to 1
    regions: NDArray[np.int64]  # (r, 4) x0, y0, x1, y1, best first
    means: NDArray[np.float64]  # (r,) mean attention of each region


def compute(item: Sample, config: TrialConfig, title: str = "") -> Panels:
    """The ground truth of one image, and the regions proposed from its *true* attention map (7, 11, 15, 16)."""
    from raz.paper.attention import attention_map
    from raz.paper.groundtruth import density_map
    from raz.paper.zoom import candidate_regions, generator_for, select_regions

    pixels, heads = item.load_pixels(), item.load_heads()
    height, width = pixels.shape[:2]
    counting, zoom = config.counting, config.zooming
    density = density_map(
        heads, height, width, stride=1, beta=counting.beta, k=counting.k, kernel=counting.kernel
    )  # fmt: skip
    attention = attention_map(heads, height, width, config.attention.sigma_z)
    boxes, means = candidate_regions(
        attention, generator_for(config.seed, content_digest(pixels), 2),
        anchors=zoom.anchors, samples=zoom.samples, sampling=zoom.sampling,
    )  # fmt: skip
    chosen = select_regions(boxes, means, theta_z=zoom.theta_z, iou=zoom.iou, k_z=zoom.k_z)
    return Panels(title or item.id, pixels, heads, density, attention, boxes[chosen], means[chosen])


def apply_colours(values: NDArray[np.float32]) -> Pixels:
    """Values (H, W) in [0, 1] -> colours (H, W, 3) uint8, dark to bright."""
    position = np.clip(values, 0, 1).astype(np.float64) * (len(_COLOURS) - 1)
    low = np.minimum(position.astype(np.int64), len(_COLOURS) - 2)
    fraction = (position - low)[:, :, None]
    return np.asarray(np.rint(_COLOURS[low] * (1 - fraction) + _COLOURS[low + 1] * fraction), dtype=np.uint8)


def scale_to_panel(height: int, width: int, low: int, high: int) -> tuple[float, tuple[int, int]]:
    """(factor, (width, height) px of the panel): the image scaled so that its longer side is `low` to `high` px."""
    factor = float(np.clip(1.0, low / max(height, width), high / max(height, width)))
    return factor, (max(1, round(width * factor)), max(1, round(height * factor)))


def draw(panels: Panels) -> Image.Image:
    """The four panels in a 2 x 2 grid, each below its caption."""
    height, width = panels.pixels.shape[:2]
    factor, size = scale_to_panel(height, width, *_LONG_SIDE)
    photo = Image.fromarray(panels.pixels).resize(size, Image.Resampling.BICUBIC)
    dimmed = Image.blend(photo, Image.new("RGB", size, (16, 16, 20)), 0.35)
    n, r = len(panels.heads), len(panels.regions)
    # The peaks of a density are far above its other values; the square root makes both visible.
    density = resize_density(panels.density, size)
    peak = float(density.max())
    density = np.sqrt(density / peak) if peak > 0 else density
    attention = Image.fromarray(apply_colours(panels.attention)).resize(size, Image.Resampling.BILINEAR)
    return _sheet(
        size,
        [
            (
                f"{panels.title}: {n} head{'s' * (n != 1)}, {width} x {height} px",
                _with_heads(photo, panels.heads, factor),
            ),
            (f"density, sums to {panels.density.sum(dtype=np.float64):.1f}", Image.fromarray(apply_colours(density))),
            (f"attention, mean {panels.attention.mean(dtype=np.float64):.4f}", attention),
            (
                f"{r} region{'s' * (r != 1)} to zoom"
                + (f", mean attention {panels.means[-1]:.3f} to {panels.means[0]:.3f}" if r else ""),
                _with_regions(dimmed, panels.regions, factor),
            ),
        ],
    )


def show(
    name: str, root: Path | None, out: Path, *, split: Split = "test", index: int = 0, config: TrialConfig | None = None
) -> Panels:
    """Draw image `index` of a split to the PNG file `out`.

    Raises RazError if the data set cannot be opened or has no such image, or if `out` is not a .png file or cannot be
    written.
    """
    if out.suffix.lower() != ".png":  # do not overwrite a photograph
        raise RazError("--out", f"{out} ends with {out.suffix or 'nothing'}, expected .png", "--out show.png")
    dataset = open_dataset(name, root)
    if split not in dataset.items:
        raise RazError("--split", f"{split!r}, expected one of {', '.join(dataset.items)}")
    items = dataset.items[split]
    if not 0 <= index < len(items):
        raise RazError("--index", f"{index}, but {name} has {len(items)} {split} images", f"0 to {len(items) - 1}")
    panels = compute(items[index], config or TrialConfig(), f"{dataset.title}, {items[index].id}")
    try:
        with atomic_write(out) as temporary:
            draw(panels).save(temporary, format="PNG")
    except OSError as error:
        raise RazError(str(out), f"cannot be written ({error.strerror or error})", "choose another --out") from error
    return panels


def resize_density(density: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """The density resized to `size` (width, height); shrinking averages, so that no head is lost."""
    image = Image.fromarray(density)
    shrinks = size[0] < image.width
    return np.asarray(
        image.resize(size, Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR), dtype=np.float32
    )


def _with_heads(photo: Image.Image, heads: Heads, factor: float) -> Image.Image:
    picture = photo.copy()
    pen = ImageDraw.Draw(picture)
    for x, y in (heads * factor).tolist():
        pen.ellipse((x - 2.5, y - 2.5, x + 2.5, y + 2.5), fill=(255, 230, 40), outline=(0, 0, 0))
    return picture


def _with_regions(photo: Image.Image, regions: NDArray[np.int64], factor: float) -> Image.Image:
    picture = photo.copy()
    pen = ImageDraw.Draw(picture)
    for rank in reversed(range(len(regions))):  # the best is drawn last, on top
        x0, y0, x1, y1 = (regions[rank] * factor).tolist()
        shade = tuple(int(c) for c in _COLOURS[-1 - min(3, rank // 3)])
        pen.rectangle((x0, y0, x1 - 1, y1 - 1), outline=shade, width=2)
        pen.text((x0 + 4, y0 + 2), str(rank + 1), fill=shade, font=_font())
    return picture


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=14)


def _sheet(size: tuple[int, int], parts: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures with captions in two columns."""
    width, height = size
    rows = -(-len(parts) // 2)
    sheet = Image.new("RGB", (2 * width + 3 * _GAP, rows * (height + _BAND + _GAP) + _GAP), (250, 250, 248))
    pen = ImageDraw.Draw(sheet)
    for i, (caption, picture) in enumerate(parts):
        x, y = _GAP + (i % 2) * (width + _GAP), _GAP + (i // 2) * (height + _BAND + _GAP)
        pen.text((x, y + 2), caption, fill=(20, 20, 24), font=_font())
        sheet.paste(picture, (x, y + _BAND))
    return sheet
