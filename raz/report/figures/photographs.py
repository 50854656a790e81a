"""The paper's Figures 1 and 5 for single images. They hold the images themselves, so they are drawn only on request."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raz.report.figures.image_results import AFFINITY, RADIUS, SIGMA, ImageResult
from raz.report.figures.style import Trace, figure
from raz.report.layout import Figure, Record
from raz.utils.json_types import JsonLike

LONG_SIDE = 1000  # px of the longer side of an image in a figure
MAX_CELLS = 160  # columns or rows of a map in a figure; larger maps are downsampled
FOUND, MISSED, WRONG = "#2da44e", "#ff4d4f", "#ff9f1a"  # colours
PASSES = ("#ffe628", "#40e0ff", "#ff78dc", "#8cff78")  # colours of pass 1, 2, …
# Dark to bright. The positions are squares, so colours follow the root of a density: its peaks are far above the rest.
_HEAT = ("#000004", "#420a68", "#932667", "#dd513a", "#fca50a", "#fcffa4")
SCALE: list[tuple[float, str]] = [((k / (len(_HEAT) - 1)) ** 2, colour) for k, colour in enumerate(_HEAT)]

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in px, y downwards


def photograph_figures(results: Sequence[ImageResult], trial: str) -> tuple[Figure, ...]:
    """Both figures of each image; `trial` names the trial in their titles."""
    return tuple(draw(result, trial) for result in results for draw in (figure_1, figure_5))


# ------------------------------------------------------------------------------------ Figure 1


def figure_1(result: ImageResult, trial: str) -> Figure:
    """Figure 1 of the paper: the image, the true and the estimated density, the located points."""
    truth, factor = downsample(result.truth)
    density, _ = downsample(result.density)
    top = max(float(truth.max(initial=0)), float(density.max(initial=0)), 1e-6)
    rows: list[Record] = [
        {"row": y, "column": x, "true": float(truth[y, x]), "estimated": float(density[y, x])}
        for y, x in np.ndindex(truth.shape)
    ]
    step = (result.cell[0] * factor, result.cell[1] * factor)
    traces: list[Trace] = []
    for name, values, axes in (("true", truth, ("x2", "y2")), ("estimated", density, ("x3", "y3"))):
        traces.append({
            "type": "heatmap", "name": name, "z": values.round(4).tolist(), "x0": step[0] / 2, "dx": step[0],
            "y0": step[1] / 2, "dy": step[1], "zmin": 0, "zmax": top, "colorscale": SCALE, "showscale": False,
            "xaxis": axes[0], "yaxis": axes[1], "hovertemplate": "%{z:.3f} heads<extra></extra>",
        })  # fmt: skip
    traces.append(_dots(result.points, "points", PASSES[0], axes=("x4", "y4")))
    titles = (
        f"{len(result.heads)} heads", f"true density, sums to {result.truth.sum(dtype=np.float64):.1f}",
        f"estimated density, sums to {result.density.sum(dtype=np.float64):.1f}", f"{len(result.points)} locations",
    )  # fmt: skip
    panels = [(0.0, 0.485, 0.53, 1.0), (0.515, 1.0, 0.53, 1.0), (0.0, 0.485, 0.0, 0.47), (0.515, 1.0, 0.0, 0.47)]
    height, width = result.pixels.shape[:2]
    source = jpeg(result.pixels)
    layout = _panels(panels, titles, [(0.0, 0.0, width, height)] * 4)
    layout["images"] = [_image(source, (0, 0, width, height), k) for k in (1, 4)]
    return figure(
        f"Density and locations (the paper's Figure 1), {trial}, image {result.id}", rows, traces, "", "",
        f"The trial counts {result.fused:.1f}. Colours follow the root of heads per cell, on one scale for both maps.",
        showlegend=False, height=_height(result, 2, 2), **layout,
    )  # fmt: skip


def downsample(values: NDArray[np.float32]) -> tuple[NDArray[np.float64], int]:
    """A map of counts with at most MAX_CELLS cells a side, and the factor: each cell is the sum of factor² cells."""
    factor = max(1, -(-max(values.shape) // MAX_CELLS))
    height, width = (-(-side // factor) * factor for side in values.shape)
    padded = np.zeros((height, width))
    padded[: values.shape[0], : values.shape[1]] = values
    blocks = padded.reshape(height // factor, factor, width // factor, factor)
    return np.asarray(blocks.sum(axis=(1, 3))), factor


# ------------------------------------------------------------------------------------ Figure 5


def figure_5(result: ImageResult, trial: str) -> Figure:
    """Figure 5 of the paper: true heads and points, the zoomed regions, and one of them enlarged: the first of the last
    pass that has any."""
    rows: list[Record] = [
        {"kind": "head", "x": float(x), "y": float(y), "found": bool(ok)}
        for (x, y), ok in zip(result.heads, result.head_found, strict=True)
    ]
    rows += [
        {"kind": "point", "x": float(x), "y": float(y), "pass": int(number), "right": bool(ok)}
        for (x, y), number, ok in zip(result.points, result.passes, result.correct, strict=True)
    ]
    rows += [
        {"kind": "region", "x": float(x0), "y": float(y0), "x1": float(x1), "y1": float(y1), "pass": number}
        for number, regions in enumerate(result.regions, 2)
        for x0, y0, x1, y1 in regions
    ]
    height, width = result.pixels.shape[:2]
    zoomed = next((regions[0] for regions in reversed(result.regions) if len(regions)), None)
    views: list[Box] = [(0.0, 0.0, float(width), float(height))]
    panels, titles = [(0.0, 1.0, 0.0, 1.0)], [f"{result.correct.sum()} of {len(result.points)} points are correct"]
    photos = [(jpeg(result.pixels), views[0])]
    if zoomed is not None:
        x0, y0, x1, y1 = zoomed.tolist()
        views.append((x0, y0, x1, y1))
        panels = [(0.0, 0.485, 0.0, 1.0), (0.515, 1.0, 0.0, 1.0)]
        titles.append("the region with the most attention")
        left, top, right, bottom = int(x0), int(y0), min(width, int(np.ceil(x1))), min(height, int(np.ceil(y1)))
        box = (float(left), float(top), float(right), float(bottom))
        photos.append((jpeg(result.pixels[top:bottom, left:right]), box))
    layout = _panels(panels, titles, views)
    layout["images"] = [_image(source, box, k) for k, (source, box) in enumerate(photos, 1)]
    traces = [trace for k in range(1, len(views) + 1) for trace in _panel_traces(result, k)]
    note = (
        f"A point is correct when it lies within {RADIUS:.1f} px of a head that no better-ranked point claims (affinity"
        f" {AFFINITY:.2f} at sigma {SIGMA:g}). {result.head_found.sum()} of {len(result.heads)} heads are found."
    )
    return figure(
        f"Predicted and true heads (the paper's Figure 5), {trial}, image {result.id}", rows, traces, "", "", note,
        height=_height(result, len(views), 1) + 60, legend={"y": -0.02, "yanchor": "top"}, **layout,
    )  # fmt: skip


def _panel_traces(result: ImageResult, k: int) -> list[Trace]:
    """The traces of panel k (from 1); the legend names those of the first."""
    axes = _axes(k)
    ring: Record = {"symbol": "circle-open", "size": 10, "line": {"width": 1.5}}
    out: list[Trace] = [
        _dots(result.heads[result.head_found], "heads found", FOUND, axes, ring),
        _dots(result.heads[~result.head_found], "heads missed", MISSED, axes, ring),
    ]
    for number in sorted(set(result.passes.tolist())):
        colour = PASSES[min(number, len(PASSES)) - 1]
        out.append(
            _dots(result.points[result.correct & (result.passes == number)], f"correct, pass {number}", colour, axes)
        )
    out.append(_dots(result.points[~result.correct], "wrong", WRONG, axes, {"symbol": "x", "size": 6}))
    for number, regions in enumerate(result.regions, 2):
        if not len(regions) or k > 1:  # in the enlarged panel their edges would hide the heads
            continue
        x: list[float | None] = []
        y: list[float | None] = []
        for x0, y0, x1, y1 in regions.tolist():
            x += [x0, x1, x1, x0, x0, None]
            y += [y0, y0, y1, y1, y0, None]
        out.append({
            "type": "scatter", "mode": "lines", "name": f"zoomed in pass {number}", "x": x, "y": y,
            "line": {"color": PASSES[min(number, len(PASSES)) - 1], "width": 2}, "xaxis": axes[0], "yaxis": axes[1],
            "hoverinfo": "skip",
        })  # fmt: skip
    for trace in out:
        trace["legendgroup"] = trace["name"]
        trace["showlegend"] = k == 1 and bool(trace["x"])
    return out


# ------------------------------------------------------------------------------------ panels of images


def _axes(k: int) -> tuple[str, str]:
    return (f"x{k if k > 1 else ''}", f"y{k if k > 1 else ''}")


def _dots(
    xy: NDArray[np.float64], name: str, colour: str, axes: tuple[str, str], marker: Record | None = None
) -> Trace:
    return {
        "type": "scatter", "mode": "markers", "name": name, "x": xy[:, 0].round(1).tolist(),
        "y": xy[:, 1].round(1).tolist(), "xaxis": axes[0], "yaxis": axes[1],
        "marker": {"color": colour, "size": 5, **(marker or {})},
    }  # fmt: skip


def _panels(
    domains: Sequence[tuple[float, float, float, float]], titles: Sequence[str], views: Sequence[Box]
) -> dict[str, JsonLike]:
    """A plotly layout of panels with titles.

    domains: x from, x to, y from, y to of each panel as shares of the figure. views: the part of the image in it.
    """
    out: dict[str, JsonLike] = {"margin": {"l": 20, "r": 20, "t": 50, "b": 20}}
    annotations: list[Record] = []
    for k, (domain, title, view) in enumerate(zip(domains, titles, views, strict=True), 1):
        x, y = _axes(k)
        plain: Record = {
            "showgrid": False,
            "zeroline": False,
            "showticklabels": False,
            "ticks": "",
            "title": {"text": ""},
        }
        out[f"{x[0]}axis{x[1:]}"] = {
            **plain, "domain": domain[:2], "range": [view[0], view[2]], "anchor": y, "constrain": "domain",
        }  # fmt: skip
        out[f"{y[0]}axis{y[1:]}"] = {
            **plain, "domain": domain[2:], "range": [view[3], view[1]], "anchor": x, "scaleanchor": x,
            "constrain": "domain",
        }  # fmt: skip
        annotations.append({
            "text": title, "x": 0.5, "y": 1, "xref": f"{x} domain", "yref": f"{y} domain",
            "xanchor": "center", "yanchor": "bottom", "showarrow": False,
        })  # fmt: skip
    out["annotations"] = annotations
    return out


def _image(source: str, box: Box, k: int) -> Record:
    """An image (data URI) that covers `box` of panel k."""
    x0, y0, x1, y1 = box
    x, y = _axes(k)
    return {
        "source": source, "x": x0, "y": y0, "sizex": x1 - x0, "sizey": y1 - y0, "xref": x, "yref": y,
        "xanchor": "left", "yanchor": "top", "sizing": "stretch", "layer": "below",
    }  # fmt: skip


def _height(result: ImageResult, columns: int, rows: int) -> int:
    """The height in px of a figure about 900 px wide whose panels have the shape of the image."""
    height, width = result.pixels.shape[:2]
    return int(min(1000, rows * (840 / columns * height / width + 30) + 90))


def jpeg(pixels: NDArray[np.uint8]) -> str:
    """A data URI of the image (H, W, 3) as JPEG, its longer side at most LONG_SIDE px."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    factor = min(1.0, LONG_SIDE / max(picture.size))
    if factor < 1:
        size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
        picture = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
