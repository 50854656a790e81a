"""Figures of a filled table: each has rows of data, and a plotly specification that draws them.

A specification is plain JSON (`data`, `layout`): the page draws it, and `raz.report.figures.export` writes image files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from raz.config import parameters
from raz.errors import RazError
from raz.report.comparisons import differences_to_base
from raz.report.figures.density_quartiles import quartile_figures
from raz.report.figures.style import figure
from raz.report.fill import FilledTable, TableCell
from raz.report.layout import Figure, Record, metric_title
from raz.report.per_image import Floats, PerImage
from raz.report.statistics import LEVEL, Over, summarize
from raz.utils.json_types import Json

MAX_POINTS = 3000  # of a scatter plot; more would hide each other
BINS = 8


def table_figures(filled: FilledTable, over: Over | None = None) -> tuple[Figure, ...]:
    """All figures for which the table's cells hold data."""
    out: list[Figure] = []
    for dataset in filled.profile.datasets:
        out += _by_parameter(filled, dataset)
        out += _differences(filled, dataset, over)
        out += quartile_figures(filled, dataset)
        cell = deepest_cell(filled, dataset)
        if cell is None:
            continue
        try:
            seed, images = _first_seed(cell, filled.table.splits[-1])
        except RazError:  # a damaged or incomplete score: its figures are left out
            continue
        title = f"{filled.title(dataset)}, row {cell.row}, seed {seed}"
        out += [_cell_counts(images, title), _crowd_size(images, title), _local_density(images, title)]
        out += _precision_recall(filled, dataset)
    return tuple(figure for figure in out if figure.rows)


# ------------------------------------------------------------------------------------ rows of the table


@dataclass(frozen=True)
class ParameterPoint:
    """The mean of a metric at one value of a parameter, with half its 95 % interval over n seeds."""

    family: str  # the other settings; points of one family are a line
    value: int | float
    mean: float
    half: float | None
    n: int
    row: str


def _by_parameter(filled: FilledTable, dataset: str) -> Iterator[Figure]:
    """Metrics against each numeric parameter that the rows vary (depth, output stride, gamma …)."""
    table = filled.table
    settings_of = {row.name: parameters(cell.config) for row in table.run_rows
                   if (cell := filled.cells[row.name, dataset]).config is not None}  # fmt: skip
    changed = {name for row in table.run_rows for name in row.set}
    for name in sorted(changed):
        values = [settings[name] for settings in settings_of.values()]
        distinct = len({value for value in values if _is_number(value)})
        if distinct <= 2 and not (name == "counting.output_stride" and distinct > 1):
            continue
        for metric in table.metrics_of(dataset)[:2]:
            points = []
            for row, settings in settings_of.items():
                summary = summarize(filled.cells[row, dataset].values(metric).values())
                value = settings[name]
                if summary.mean is None or not _is_number(value):
                    continue
                family = ", ".join(f"{k.rpartition('.')[2]} {settings[k]}" for k in sorted(changed - {name}))
                half = _half_width(summary.n, summary.sd)
                points.append(ParameterPoint(family or metric, value, summary.mean, half, summary.n, row))
            if len(points) > 1:
                yield _parameter_figure(
                    f"{metric_title(metric)} by {name}, {filled.title(dataset)}", points, name, metric
                )


def _is_number(value: Json) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _half_width(n: int, sd: float | None) -> float | None:
    """Half the 95 % interval of a mean over n seeds."""
    if sd is None:
        return None
    from scipy.stats import t

    return float(t.ppf((1 + LEVEL) / 2, n - 1)) * sd / math.sqrt(n)


def _parameter_figure(title: str, points: Sequence[ParameterPoint], parameter: str, metric: str) -> Figure:
    rows: list[Record] = [
        {"family": p.family, parameter: p.value, "mean": p.mean, "half": p.half, "n": p.n, "row": p.row} for p in points
    ]
    traces: list[Record] = []
    for family in dict.fromkeys(point.family for point in points):
        line = sorted((point for point in points if point.family == family), key=lambda point: float(point.value))
        traces.append({
            "type": "scatter", "mode": "lines+markers", "name": family, "x": [point.value for point in line],
            "y": [point.mean for point in line],
            "error_y": {"type": "data", "array": [point.half or 0 for point in line], "visible": True},
        })  # fmt: skip
    note = "Mean over seeds; bars are its 95 % interval."
    return figure(title, rows, traces, parameter, metric_title(metric), note)


def _differences(filled: FilledTable, dataset: str, over: Over | None) -> Iterator[Figure]:
    """A forest plot of the differences to the base row for each of the first two metrics."""
    effects = differences_to_base(filled, dataset, over)
    for metric in filled.table.metrics_of(dataset)[:2]:
        shown = [
            (row, effect, effect.low, effect.high)
            for (row, name), effect in reversed(effects.items())
            if name == metric and effect.low is not None and effect.high is not None
        ]
        if not shown:
            continue
        rows: list[Record] = [
            {"row": row, "value": effect.value, "low": low, "high": high, "over": effect.over, "n": effect.n}
            for row, effect, low, high in shown
        ]
        trace: Record = {
            "type": "scatter", "mode": "markers", "x": [effect.value for _, effect, _, _ in shown],
            "y": [row for row, _, _, _ in shown],
            "error_x": {
                "type": "data", "symmetric": False, "array": [high - effect.value for _, effect, _, high in shown],
                "arrayminus": [effect.value - low for _, effect, low, _ in shown],
            },
        }  # fmt: skip
        zero: Record = {"type": "line", "x0": 0, "x1": 0, "y0": 0, "y1": 1, "yref": "paper",
                        "line": {"dash": "dot", "width": 1, "color": "#888"}}  # fmt: skip
        first = shown[0][1]
        yield figure(
            f"{metric_title(metric)}: differences to {filled.table.base_row}, {filled.title(dataset)}", rows, [trace],
            f"difference of {metric_title(metric)}", "", f"95 % intervals, over {first.n} {first.over}.",
            height=120 + 28 * len(rows), shapes=[zero],
        )  # fmt: skip


# ------------------------------------------------------------------------------------ images of one cell


def deepest_cell(filled: FilledTable, dataset: str) -> TableCell | None:
    """The filled cell with the most passes, of rows with grid fusion where there is one; it stands for the method."""
    cells = [filled.cells[row.name, dataset] for row in filled.table.run_rows]
    run = [cell for cell in cells if cell.scores and cell.config is not None]
    fused = [cell for cell in run if cell.config is not None and cell.config.fusion.rule == "grid"]
    return max(fused or run, key=lambda cell: cell.config.depth if cell.config else 0, default=None)


def _first_seed(cell: TableCell, split: str) -> tuple[int, PerImage]:
    """The first seed of a filled cell and its per-image numbers. Raises RazError where they cannot be read."""
    seed = min(cell.scores)
    return seed, cell.scores[seed].per_image(split)


def _sample(n: int) -> NDArray[np.int64]:
    """At most MAX_POINTS of the indices below n, ascending; the same on every call."""
    if n <= MAX_POINTS:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).choice(n, MAX_POINTS, replace=False))


def _cell_counts(images: PerImage, title: str) -> Figure:
    """Figure 3 of the paper: true counts of grid cells against those of each branch."""
    truth = images.cell_counts("truth")
    sample = _sample(len(truth))
    rows: list[Record] = []
    traces: list[Record] = []
    top = float(truth[sample].max(initial=1))
    for k, branch in enumerate(("density", "localization")):
        predicted = images.cell_counts(branch)[sample]
        rows += [{"branch": branch, "predicted": p, "true": t}
                 for p, t in zip(predicted.tolist(), truth[sample].tolist(), strict=True)]  # fmt: skip
        shown = predicted.round(2).tolist()
        top = max(top, *(shown or [1.0]))
        traces.append({
            "type": "scattergl" if len(sample) > 1000 else "scatter", "mode": "markers", "name": branch,
            "x": shown, "y": truth[sample].tolist(), "marker": {"size": 4, "opacity": 0.5},
            "xaxis": f"x{k + 1 if k else ''}", "yaxis": "y",
        })  # fmt: skip
    dotted: Record = {"dash": "dot", "width": 1, "color": "#888"}
    diagonals: list[Record] = [
        {"type": "line", "x0": 0, "y0": 0, "x1": top, "y1": top, "xref": axis, "line": dotted} for axis in ("x", "x2")
    ]
    return figure(
        f"True against predicted counts per cell (the paper's Figure 3), {title}", rows, traces, "density",
        "true count of a cell", xaxis={"domain": [0, 0.48]}, shapes=diagonals,
        xaxis2={"domain": [0.52, 1], "title": {"text": "localization"}, "anchor": "y"},
    )  # fmt: skip


def _crowd_size(images: PerImage, title: str) -> Figure:
    """The error of each count against the true count of the image."""
    sample = _sample(len(images.truth))
    truth = images.truth[sample]
    rows: list[Record] = []
    traces: list[Record] = []
    names = [str(images.ids[i]) for i in sample]
    for count in ("density", "localization", "fused"):
        error = images.counts[count][sample] - truth
        rows += [{"count": count, "image": name, "true": float(t), "error": float(e)}
                 for name, t, e in zip(names, truth, error, strict=True)]  # fmt: skip
        traces.append({
            "type": "scatter", "mode": "markers", "name": count, "x": truth.tolist(), "y": error.round(2).tolist(),
            "text": names, "marker": {"size": 5, "opacity": 0.6},
        })  # fmt: skip
    return figure(f"Error against crowd size, {title}", rows, traces, "true count", "predicted − true")


def _local_density(images: PerImage, title: str) -> Figure:
    """The mean error of each branch against the true count of a grid cell, in bins of equal numbers of cells.

    The paper's motivation: one branch fails where the crowd is dense, the other where it is sparse.
    """
    truth = images.cell_counts("truth")
    edges = np.unique(np.quantile(truth, np.linspace(0, 1, BINS + 1)))
    bins = np.clip(np.searchsorted(edges, truth, side="right") - 1, 0, max(len(edges) - 2, 0))
    rows: list[Record] = []
    traces: list[Record] = []
    for branch in ("density", "localization"):
        error = images.cell_counts(branch) - truth
        x, y, halves = [], [], []
        for b in range(max(len(edges) - 1, 1)):
            inside = bins == b
            if inside.sum() < 2:
                continue
            x.append(float(truth[inside].mean()))
            y.append(float(error[inside].mean()))
            halves.append(1.96 * float(error[inside].std(ddof=1)) / math.sqrt(int(inside.sum())))
            rows.append({"branch": branch, "true": x[-1], "cells": int(inside.sum()), "bias": y[-1],
                         "half": halves[-1]})  # fmt: skip
        traces.append({
            "type": "scatter", "mode": "lines+markers", "name": branch, "x": x, "y": y,
            "error_y": {"type": "data", "array": halves},
        })  # fmt: skip
    note = "Mean of predicted − true over cells with similar true counts; bars are 95 % intervals over cells."
    return figure(f"Error against local density, {title}", rows, traces, "true heads of a cell", "mean error", note)


def _precision_recall(filled: FilledTable, dataset: str) -> Iterator[Figure]:
    """Curves at affinity 0.50, one figure for each sigma, of the rows whose points differ: fusion does not move
    points."""
    table = filled.table
    visited: set[tuple[str, ...]] = set()
    by_row: list[tuple[str, PerImage]] = []
    for row in table.run_rows:
        cell = filled.cells[row.name, dataset]
        if not cell.scores or cell.config is None:
            continue
        settings = [f"{name}={value}" for name, value in sorted(row.set.items()) if not name.startswith("fusion")]
        identity = (str(cell.config.depth), *settings)
        if identity in visited:
            continue
        visited.add(identity)
        try:
            by_row.append((row.name, _first_seed(cell, table.splits[-1])[1]))
        except RazError:
            continue
    for sigma in (40, 20, 5):
        rows: list[Record] = []
        traces: list[Record] = []
        for name, images in by_row:
            recall, precision = precision_recall(images, sigma * math.sqrt(-2 * math.log(0.5)))
            at = np.unique(np.linspace(0, len(recall) - 1, 200).astype(int)) if len(recall) else np.zeros(0, int)
            rows += [{"row": name, "recall": float(recall[i]), "precision": float(precision[i])} for i in at]
            traces.append({"type": "scatter", "mode": "lines", "name": name, "x": recall[at].round(4).tolist(),
                           "y": precision[at].round(4).tolist()})  # fmt: skip
        yield figure(
            f"Precision and recall at sigma {sigma}, affinity 0.50, {filled.title(dataset)}", rows, traces, "recall",
            "precision", "Counted points of all images, ranked together.", xaxis={"range": [0, 1]},
            yaxis={"range": [0, 1]},
        )  # fmt: skip


def precision_recall(images: PerImage, radius: float) -> tuple[Floats, Floats]:
    """(recall, precision) after each ranked point, (points,) each. A hit lies within `radius` px of a free head."""
    if images.points is None:
        return np.zeros(0), np.zeros(0)
    order = images.points.order()
    distance, before = images.points.distance[order], images.points.best_before[order]
    hits = np.cumsum((distance < radius) & (radius <= before))
    return hits / max(float(images.truth.sum()), 1.0), hits / np.arange(1, len(hits) + 1)
