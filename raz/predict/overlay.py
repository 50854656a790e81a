"""Draw a prediction: the photograph with points and zoomed regions, next to it the density."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from raz.data.show import apply_colours, resize_density, scale_to_panel
from raz.pipeline.model import Prediction

_LONG_SIDE = (560, 1200)  # minimum and maximum of a panel's longer side, px
_BAND, _GAP = 24, 8
_PASS_COLOURS = ((255, 230, 40), (64, 224, 255), (255, 120, 220), (140, 255, 120))  # of points found in pass 1, 2, …


@dataclass(frozen=True)
class Overlay:
    """The content of the picture; coordinates in px of a panel."""

    size: tuple[int, int]  # width, height of a panel
    captions: tuple[str, str]
    points: NDArray[np.float64]  # (n, 2)
    passes: NDArray[np.int8]  # (n,) the pass that found each point, from 1
    regions: tuple[NDArray[np.float64], ...]  # of pass 2, 3, …: (r, 4) x0, y0, x1, y1
    # (H, W) in [0, 1]: square root of the density, which makes small and large values visible
    heat: NDArray[np.float32]


def compute(name: str, prediction: Prediction) -> Overlay:
    """The prediction scaled to the size of a panel."""
    height, width = prediction.size
    _, size = scale_to_panel(height, width, *_LONG_SIDE)
    per_px = np.array([size[0] / width, size[1] / height])
    heat = resize_density(np.maximum(prediction.density_map, 0), size)
    peak = float(heat.max(initial=0.0))
    captions = (
        f"{name}: {prediction.count:.1f} heads, {prediction.localization} points",
        f"density, sums to {prediction.density:.1f}",
    )
    return Overlay(
        size, captions, prediction.points * per_px, prediction.passes,
        tuple(r * np.tile(per_px, 2) for r in prediction.regions),
        np.sqrt(heat / peak) if peak > 0 else heat,
    )  # fmt: skip


def draw(overlay: Overlay, pixels: NDArray[np.uint8]) -> Image.Image:
    """Two panels: the photograph with points and regions, and with the density blended over it."""
    photo = Image.fromarray(pixels).resize(overlay.size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    marked = photo.copy()
    pen = ImageDraw.Draw(marked)
    for i, regions in enumerate(overlay.regions):
        shade = _PASS_COLOURS[min(i + 1, len(_PASS_COLOURS) - 1)]
        for x0, y0, x1, y1 in regions.tolist():
            pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=shade, width=2)
    for (x, y), number in zip(overlay.points.tolist(), overlay.passes.tolist(), strict=True):
        shade = _PASS_COLOURS[min(max(number, 1), len(_PASS_COLOURS)) - 1]
        pen.ellipse((x - 2.5, y - 2.5, x + 2.5, y + 2.5), fill=shade, outline=(0, 0, 0))
    grey = photo.convert("L").convert("RGB")
    hot = np.asarray(Image.fromarray(apply_colours(overlay.heat)), dtype=np.float32)
    share = (0.25 + 0.65 * overlay.heat)[:, :, None]
    mixed = np.asarray(grey, dtype=np.float32) * (1 - share) + hot * share
    panels = (marked, Image.fromarray(np.rint(mixed).astype(np.uint8)))
    width, height = overlay.size
    sheet = Image.new("RGB", (2 * width + 3 * _GAP, height + _BAND + 2 * _GAP), (250, 250, 248))
    pen = ImageDraw.Draw(sheet)
    for i, (caption, panel) in enumerate(zip(overlay.captions, panels, strict=True)):
        x = _GAP + i * (width + _GAP)
        pen.text((x, _GAP), caption, fill=(20, 20, 24), font=ImageFont.load_default(size=14))
        sheet.paste(panel, (x, _BAND + _GAP))
    return sheet
