"""Count error and F1 against local density, with and without each pass, from the stored scores of a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from raz.errors import RazError
from raz.report.figures.style import COLOURS, figure
from raz.report.fill import FilledTable, TableCell
from raz.report.layout import Figure, Record
from raz.report.per_image import Floats, OneToOne, PerImage
from raz.report.resample import LOCALIZATION_RESAMPLES, make_resamples, resampled
from raz.report.statistics import LEVEL, summarize
from raz.utils.json_types import JsonLike

QUARTILES = ("1", "2", "3", "4")


@dataclass(frozen=True)
class QuartilePoint:
    """A value of one quartile, the mean over n seeds, with its 95 % interval: over seeds where there are two, else over
    images."""

    value: float
    low: float
    high: float
    n: int


def quartile_figures(filled: FilledTable, dataset: str) -> Iterator[Figure]:
    """One figure of a table whose rows differ in depth: the count error and F1 of each quartile of local density.

    It has a line for each number of passes, and for each row whose points differ from theirs.
    """
    split = filled.table.splits[-1]
    lines: dict[str, list[PerImage]] = {}
    for name, cell in _distinct(filled, dataset).items():
        try:
            lines[name] = [cell.scores[seed].per_image(split) for seed in sorted(cell.scores)]
        except RazError:  # a damaged or incomplete score: its line is left out
            continue
    counts = [images.one_to_one for of_seeds in lines.values() for images in of_seeds]
    scored = [count for count in counts if count is not None]
    if len(scored) < len(counts) or len(lines) < 2:
        return
    radii = [
        f"{radius:g}" for radius in scored[0].radii if all(count.at(f"{radius:g}") is not None for count in scored)
    ]
    panels = {"count error, % of the heads": "", **{f"F1 at {radius} px": radius for radius in radii}}
    yield _figure(filled.title(dataset), lines, panels, scored[0])


def _distinct(filled: FilledTable, dataset: str) -> dict[str, TableCell]:
    """Name of a line -> the first row with these points, where the table has rows of two depths; fusion moves no
    points."""
    out: dict[str, TableCell] = {}
    depths: set[int] = set()
    for row in filled.table.run_rows:
        cell = filled.cells[row.name, dataset]
        if not cell.scores or cell.config is None:
            continue
        others = [name for name in row.set if name != "depth" and not name.startswith("fusion.")]
        depths.add(cell.config.depth)
        plural = "es" if cell.config.depth > 1 else ""
        out.setdefault(row.name if others else f"{cell.config.depth} pass{plural}", cell)
    return out if len(depths) > 1 else {}


def _figure(title: str, lines: dict[str, list[PerImage]], panels: dict[str, str], of: OneToOne) -> Figure:
    rows: list[Record] = []
    traces: list[dict[str, JsonLike]] = []
    layout: dict[str, JsonLike] = {}
    width = 1 / len(panels)
    for k, (panel, radius) in enumerate(panels.items()):
        number = "" if k == 0 else str(k + 1)
        for i, (name, of_seeds) in enumerate(lines.items()):
            colour = {"color": COLOURS[i % len(COLOURS)], **({"symbol": "diamond"} if i >= len(COLOURS) else {})}
            points = {q: point for q in QUARTILES if (point := _point(of_seeds, q, radius)) is not None}
            rows += [{"line": name, "of": panel, "quartile": int(q), "value": p.value, "low": p.low, "high": p.high,
                      "n": p.n} for q, p in points.items()]  # fmt: skip
            traces.append({
                "type": "scatter", "mode": "lines+markers", "name": name, "legendgroup": name, "showlegend": k == 0,
                "x": [f"Q{q}" for q in points], "y": [round(p.value, 4) for p in points.values()],
                "error_y": {"type": "data", "symmetric": False,
                            "array": [round(p.high - p.value, 4) for p in points.values()],
                            "arrayminus": [round(p.value - p.low, 4) for p in points.values()]},
                "xaxis": f"x{number}", "yaxis": f"y{number}", "marker": colour, "line": {"color": colour["color"]},
            })  # fmt: skip
        layout[f"xaxis{number}"] = {
            "domain": [k * width + (0.06 if k else 0), (k + 1) * width - 0.01], "anchor": f"y{number}",
            "title": {"text": "sparsest to densest heads"},
        }  # fmt: skip
        layout[f"yaxis{number}"] = {"title": {"text": panel}, "anchor": f"x{number}", "automargin": True}
    note = (
        "Quartiles of all heads by local density. "
        f"{_spacings(of)} Count error: counted points - heads of a quartile. A line is what is counted after that many"
        " passes, or a row. Bars are 95 % intervals, over seeds where there are two, else over images; lines share"
        " their images, so their differences are surer than the bars say."
    )
    return figure(
        f"Count error and F1 against local density, {title}", rows, traces, "sparsest to densest heads",
        next(iter(panels)), note, **layout,
    )  # fmt: skip


def _spacings(of: OneToOne) -> str:
    """What the edges mean: the mean distance to the four nearest heads."""
    with np.errstate(divide="ignore"):
        px = 1 / np.sqrt(of.edges)
    shown = ["far" if math.isinf(value) else f"{value:.0f} px" for value in px]
    return f"Mean distance to the four nearest heads: Q1 at least {shown[0]}, Q2 {shown[1]}, Q3 {shown[2]}, Q4 less."


def _point(of_seeds: Sequence[PerImage], quartile: str, radius: str) -> QuartilePoint | None:
    """A quartile's F1 at a radius, or its count error in per cent where `radius` is empty; None where undefined."""
    found = [_values(images, quartile, radius, np.ones((1, len(images.truth)))) for images in of_seeds]
    values = [float(value[0]) for value in found if np.isfinite(value).all()]
    if not values:
        return None
    summary = summarize(values)
    mean = math.fsum(values) / len(values)
    if summary.sd is not None:
        from scipy.stats import t

        half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * summary.sd / math.sqrt(len(values))
        return QuartilePoint(mean, mean - half, mean + half, len(values))
    images = of_seeds[0]
    boot = make_resamples(tuple(images.ids.tolist())).boot[:LOCALIZATION_RESAMPLES]
    drawn = _values(images, quartile, radius, boot)
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(drawn) else (mean, mean)
    return QuartilePoint(mean, float(low), float(high), len(values))


def _values(images: PerImage, quartile: str, radius: str, weights: Floats) -> Floats:
    """The value of a quartile on each row of `weights`, (B,); nan where it has no head."""
    counts = images.one_to_one
    assert counts is not None
    if radius:
        f1 = resampled(f"f1_q{quartile}@{radius}", images, weights)
        assert f1 is not None  # a radius that every score has
        return f1
    of = int(quartile) - 1
    with np.errstate(invalid="ignore", divide="ignore"):
        heads = weights @ counts.heads[:, of]
        return np.asarray(100 * (weights @ counts.points[:, of] - heads) / heads, dtype=np.float64)
