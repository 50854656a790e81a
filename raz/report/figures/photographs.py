"""The paper's Figures 1 and 5 of single images. They hold the images themselves, so they are made when asked for."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raz.report.figures.image_results import AFFINITY, RADIUS, SIGMA, ImageResult
from raz.report.figures.style import figure
from raz.report.layout import Figure

LONG_SIDE = 1000  # px of an image in a figure
CELLS = 160  # columns or rows of a map in a figure; more are added up
FOUND, MISSED, WRONG = "#2da44e", "#ff4d4f", "#ff9f1a"
PASSES = ("#ffe628", "#40e0ff", "#ff78dc", "#8cff78")  # of what pass 1, 2, … found
# Dark to bright. A density's peaks stand far above the rest: the places are squares, so that colours go by its root.
_HEAT = ("#000004", "#420a68", "#932667", "#dd513a", "#fca50a", "#fcffa4")
SCALE = [[(k / (len(_HEAT) - 1)) ** 2, colour] for k, colour in enumerate(_HEAT)]


def photograph_figures(seen: Sequence[ImageResult], trial: str) -> tuple[Figure, ...]:
    """Both figures of each image; `trial` says whose they are."""
    return tuple(drawn for one in seen for drawn in (figure_1(one, trial), figure_5(one, trial)))


# ------------------------------------------------------------------------------------ Figure 1


def figure_1(one: ImageResult, trial: str) -> Figure:
    """Figure 1 of the paper: the image, the true and the estimated density, the locations."""
    truth, factor = downsample(one.truth)
    density, _ = downsample(one.density)
    top = max(float(truth.max(initial=0)), float(density.max(initial=0)), 1e-6)
    rows: list[Mapping[str, Any]] = [
        {"row": y, "column": x, "true": float(truth[y, x]), "estimated": float(density[y, x])}
        for y, x in np.ndindex(truth.shape)
    ]
    step = (one.cell[0] * factor, one.cell[1] * factor)
    traces: list[dict[str, Any]] = []
    for name, values, axes in (("true", truth, ("x2", "y2")), ("estimated", density, ("x3", "y3"))):
        traces.append({
            "type": "heatmap", "name": name, "z": values.round(4).tolist(), "x0": step[0] / 2, "dx": step[0],
            "y0": step[1] / 2, "dy": step[1], "zmin": 0, "zmax": top, "colorscale": SCALE, "showscale": False,
            "xaxis": axes[0], "yaxis": axes[1], "hovertemplate": "%{z:.3f} heads<extra></extra>",
        })  # fmt: skip
    traces.append(_dots(one.points, "points", PASSES[0], axes=("x4", "y4")))
    titles = (
        f"{len(one.heads)} heads", f"true density, sums to {one.truth.sum(dtype=np.float64):.1f}",
        f"estimated density, sums to {one.density.sum(dtype=np.float64):.1f}", f"{len(one.points)} locations",
    )  # fmt: skip
    panels = [(0.0, 0.485, 0.53, 1.0), (0.515, 1.0, 0.53, 1.0), (0.0, 0.485, 0.0, 0.47), (0.515, 1.0, 0.0, 0.47)]
    height, width = one.pixels.shape[:2]
    source = jpeg(one.pixels)
    layout = _panels(panels, titles, [(0.0, 0.0, width, height)] * 4)
    layout["images"] = [_image(source, (0, 0, width, height), k) for k in (1, 4)]
    return figure(
        f"Density and locations (the paper's Figure 1), {trial}, image {one.id}", rows, traces, "", "",
        f"The trial counts {one.fused:.1f}. Colours go by the square root of heads a cell, the same in both maps.",
        showlegend=False, height=_height(one, 2, 2), **layout,
    )  # fmt: skip


def downsample(values: NDArray[np.float32]) -> tuple[NDArray[np.float64], int]:
    """A map of counts with at most CELLS cells a side, and how many cells went into one a side; sums stay."""
    factor = max(1, -(-max(values.shape) // CELLS))
    height, width = (-(-side // factor) * factor for side in values.shape)
    padded = np.zeros((height, width))
    padded[: values.shape[0], : values.shape[1]] = values
    blocks = padded.reshape(height // factor, factor, width // factor, factor)
    return np.asarray(blocks.sum(axis=(1, 3))), factor


# ------------------------------------------------------------------------------------ Figure 5


def figure_5(one: ImageResult, trial: str) -> Figure:
    """Figure 5 of the paper: true heads and points, the regions that were zoomed, and the first of them enlarged."""
    rows: list[Mapping[str, Any]] = [
        {"kind": "head", "x": float(x), "y": float(y), "found": bool(ok)}
        for (x, y), ok in zip(one.heads, one.found, strict=True)
    ]
    rows += [
        {"kind": "point", "x": float(x), "y": float(y), "pass": int(number), "right": bool(ok)}
        for (x, y), number, ok in zip(one.points, one.passes, one.right, strict=True)
    ]
    rows += [
        {"kind": "region", "x": float(x0), "y": float(y0), "x1": float(x1), "y1": float(y1), "pass": number}
        for number, regions in enumerate(one.regions, 2)
        for x0, y0, x1, y1 in regions
    ]
    height, width = one.pixels.shape[:2]
    zoomed = next((regions[0] for regions in reversed(one.regions) if len(regions)), None)
    views = [(0.0, 0.0, float(width), float(height))]
    panels, titles = [(0.0, 1.0, 0.0, 1.0)], [f"{one.right.sum()} of {len(one.points)} points are right"]
    source = [(jpeg(one.pixels), views[0])]
    if zoomed is not None:
        x0, y0, x1, y1 = (float(v) for v in zoomed)
        views.append((x0, y0, x1, y1))
        panels = [(0.0, 0.485, 0.0, 1.0), (0.515, 1.0, 0.0, 1.0)]
        titles.append("the region with the most attention")
        crop = (int(x0), int(y0), min(width, int(np.ceil(x1))), min(height, int(np.ceil(y1))))
        source.append((jpeg(one.pixels[crop[1] : crop[3], crop[0] : crop[2]]), tuple(map(float, crop))))  # type: ignore[arg-type]
    layout = _panels(panels, titles, views)
    layout["images"] = [_image(*given, k) for k, given in enumerate(source, 1)]
    traces = [trace for k in range(1, len(views) + 1) for trace in _located(one, k)]
    note = (
        f"A point is right when it lies nearer than {RADIUS:.1f} px to a head that no surer one has (affinity"
        f" {AFFINITY:.2f} at sigma {SIGMA:g}). {one.found.sum()} of {len(one.heads)} heads are found."
    )
    return figure(
        f"Predicted and true heads (the paper's Figure 5), {trial}, image {one.id}", rows, traces, "", "", note,
        height=_height(one, len(views), 1) + 60, legend={"y": -0.02, "yanchor": "top"}, **layout,
    )  # fmt: skip


def _located(one: ImageResult, k: int) -> list[dict[str, Any]]:
    """The traces of one panel; the legend names those of the first."""
    axes = _axes(k)
    ring = {"symbol": "circle-open", "size": 10, "line": {"width": 1.5}}
    out = [
        _dots(one.heads[one.found], "heads found", FOUND, axes, ring),
        _dots(one.heads[~one.found], "heads missed", MISSED, axes, ring),
    ]
    for number in sorted(set(one.passes.tolist())):
        colour = PASSES[min(number, len(PASSES)) - 1]
        out.append(_dots(one.points[one.right & (one.passes == number)], f"right, pass {number}", colour, axes))
    out.append(_dots(one.points[~one.right], "wrong", WRONG, axes, {"symbol": "x", "size": 6}))
    for number, regions in enumerate(one.regions, 2):
        if not len(regions) or k > 1:  # enlarged, their many edges would only hide the heads
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
        trace["showlegend"] = k == 1 and bool(len(trace["x"]))
    return out


# ------------------------------------------------------------------------------------ panels of images


def _axes(k: int) -> tuple[str, str]:
    return (f"x{k if k > 1 else ''}", f"y{k if k > 1 else ''}")


def _dots(
    xy: NDArray[np.float64], name: str, colour: str, axes: tuple[str, str], marker: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "markers", "name": name, "x": xy[:, 0].round(1).tolist(),
        "y": xy[:, 1].round(1).tolist(), "xaxis": axes[0], "yaxis": axes[1],
        "marker": {"color": colour, "size": 5, **(marker or {})},
    }  # fmt: skip


def _panels(
    places: Sequence[tuple[float, float, float, float]],
    titles: Sequence[str],
    views: Sequence[tuple[float, float, float, float]],
) -> dict[str, Any]:
    """Axes of panels at `places` (x from, to, y from, to; shares of the whole), each showing its view (x0, y0, x1, y1;
    px, y downwards), under its title."""
    out: dict[str, Any] = {"annotations": [], "margin": {"l": 20, "r": 20, "t": 50, "b": 20}}
    for k, (place, title, view) in enumerate(zip(places, titles, views, strict=True), 1):
        x, y = _axes(k)
        plain = {"showgrid": False, "zeroline": False, "showticklabels": False, "ticks": "", "title": {"text": ""}}
        out[f"{x[0]}axis{x[1:]}"] = {
            **plain, "domain": place[:2], "range": [view[0], view[2]], "anchor": y, "constrain": "domain",
        }  # fmt: skip
        out[f"{y[0]}axis{y[1:]}"] = {
            **plain, "domain": place[2:], "range": [view[3], view[1]], "anchor": x, "scaleanchor": x,
            "constrain": "domain",
        }  # fmt: skip
        out["annotations"].append({
            "text": title, "x": 0.5, "y": 1, "xref": f"{x} domain", "yref": f"{y} domain",
            "xanchor": "center", "yanchor": "bottom", "showarrow": False,
        })  # fmt: skip
    return out


def _image(source: str, box: tuple[float, float, float, float], k: int) -> dict[str, Any]:
    x0, y0, x1, y1 = box
    x, y = _axes(k)
    return {
        "source": source, "x": x0, "y": y0, "sizex": x1 - x0, "sizey": y1 - y0, "xref": x, "yref": y,
        "xanchor": "left", "yanchor": "top", "sizing": "stretch", "layer": "below",
    }  # fmt: skip


def _height(one: ImageResult, columns: int, rows: int) -> int:
    """Of a figure some 900 px wide whose panels all have the image's shape."""
    height, width = one.pixels.shape[:2]
    return int(min(1000, rows * (840 / columns * height / width + 30) + 90))


def jpeg(pixels: NDArray[np.uint8]) -> str:
    """A data URI of the image, shrunk to LONG_SIDE."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    factor = min(1.0, LONG_SIDE / max(picture.size))
    if factor < 1:
        size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
        picture = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
