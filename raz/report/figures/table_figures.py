"""Figures of a filled table: rows of data first, a plotly specification made of them second.

A specification is plain JSON (`data`, `layout`), so a page needs no drawing library of ours, and a picture file is
drawn of the same by `raz.report.figures.export`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raz.config import parameters
from raz.errors import RazError
from raz.report.comparisons import differences_to_base
from raz.report.figures.style import figure
from raz.report.fill import Cell, FilledTable
from raz.report.layout import Figure, metric_title
from raz.report.statistics import LEVEL, Over, summarize

MOST_POINTS = 3000  # of a scatter; more only hide each other
BINS = 8


def table_figures(filled: FilledTable, over: Over | None = None) -> tuple[Figure, ...]:
    """What the filled cells of a table can show; nothing of cells that are empty."""
    out: list[Figure] = []
    for dataset in filled.profile.datasets:
        out += _by_parameter(filled, dataset)
        out += _forest(filled, dataset, over)
        cell = deepest_cell(filled, dataset)
        if cell is None:
            continue
        try:
            seed, kept = _first(cell, filled.table.splits[-1])
        except RazError:  # told among the notes where it matters: the differences
            continue
        where = f"{filled.title(dataset)}, row {cell.row}, seed {seed}"
        out += [_cells(kept, where), _crowd_size(kept, where), _local_density(kept, where)]
        out += _precision_recall(filled, dataset)
    return tuple(figure for figure in out if figure.rows)


# ------------------------------------------------------------------------------------ rows of the table


def _by_parameter(filled: FilledTable, dataset: str) -> Iterator[Figure]:
    """Each metric against the parameter that rows vary in numbers (depth, output stride, gamma …), a line a family."""
    table = filled.table
    values = {row.name: parameters(cell.config) for row in table.run_rows
              if (cell := filled.cells[row.name, dataset]).config is not None}  # fmt: skip
    changed = {name for row in table.run_rows for name in row.set}
    numeric = [
        name for name in sorted(changed)
        if len({v[name] for v in values.values() if _number(v[name])}) > 2
        or (name == "counting.output_stride" and len({v[name] for v in values.values()}) > 1)
    ]  # fmt: skip
    for name in numeric:
        for metric in table.metrics_of(dataset)[:2]:
            rows = []
            for row, settings in values.items():
                summary = summarize(filled.cells[row, dataset].values(metric).values())
                if summary.mean is None or not _number(settings[name]):
                    continue
                family = ", ".join(f"{k.rpartition('.')[2]} {settings[k]}" for k in sorted(changed - {name}))
                rows.append({"family": family or metric, name: settings[name], "mean": summary.mean,
                             "half": _half(summary.n, summary.sd), "n": summary.n, "row": row})  # fmt: skip
            if len(rows) > 1:
                yield _lines(f"{metric_title(metric)} by {name}, {filled.title(dataset)}", rows, name, metric)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _half(n: int, sd: float | None) -> float | None:
    """Half the 95 % interval of a mean over seeds."""
    if sd is None:
        return None
    from scipy.stats import t

    return float(t.ppf((1 + LEVEL) / 2, n - 1)) * sd / math.sqrt(n)


def _lines(title: str, rows: list[dict[str, Any]], x: str, metric: str) -> Figure:
    traces = []
    for family in dict.fromkeys(row["family"] for row in rows):
        of = sorted((row for row in rows if row["family"] == family), key=lambda row: float(row[x]))
        traces.append({
            "type": "scatter", "mode": "lines+markers", "name": family, "x": [row[x] for row in of],
            "y": [row["mean"] for row in of],
            "error_y": {"type": "data", "array": [row["half"] or 0 for row in of], "visible": True},
        })  # fmt: skip
    return figure(title, rows, traces, x, metric_title(metric), "Mean over seeds; bars are its 95 % interval.")


def _forest(filled: FilledTable, dataset: str, over: Over | None) -> Iterator[Figure]:
    effects = differences_to_base(filled, dataset, over)
    for metric in filled.table.metrics_of(dataset)[:2]:
        rows: list[dict[str, Any]] = [
            {"row": row, "value": e.value, "low": e.low, "high": e.high, "over": e.over, "n": e.n}
            for (row, m), e in effects.items()
            if m == metric and e.low is not None
        ]
        if not rows:
            continue
        rows.reverse()
        trace = {
            "type": "scatter", "mode": "markers", "x": [row["value"] for row in rows],
            "y": [row["row"] for row in rows],
            "error_x": {
                "type": "data", "symmetric": False, "array": [row["high"] - row["value"] for row in rows],
                "arrayminus": [row["value"] - row["low"] for row in rows],
            },
        }  # fmt: skip
        yield figure(
            f"{metric_title(metric)}: differences to {filled.table.base_row}, {filled.title(dataset)}", rows, [trace],
            f"difference of {metric_title(metric)}", "", f"95 % intervals, over {rows[0]['n']} {rows[0]['over']}.",
            height=120 + 28 * len(rows), shapes=[_zero()],
        )  # fmt: skip


def _zero() -> dict[str, Any]:
    return {"type": "line", "x0": 0, "x1": 0, "y0": 0, "y1": 1, "yref": "paper",
            "line": {"dash": "dot", "width": 1, "color": "#888"}}  # fmt: skip


# ------------------------------------------------------------------------------------ images of one cell


def deepest_cell(filled: FilledTable, dataset: str) -> Cell | None:
    """The filled row with the most passes: what stands for the method."""
    cells = [filled.cells[row.name, dataset] for row in filled.table.run_rows]
    there = [cell for cell in cells if cell.found and cell.config is not None]
    fused = [cell for cell in there if cell.config is not None and cell.config.fusion.rule == "grid"]
    return max(fused or there, key=lambda cell: cell.config.depth if cell.config else 0, default=None)


def _first(cell: Cell, split: str) -> tuple[int, dict[str, NDArray[Any]]]:
    seed = min(cell.found)
    return seed, cell.found[seed].per_image(split)


def _sample(n: int) -> NDArray[np.int64]:
    """Indices of at most MOST_POINTS of n, the same every time."""
    if n <= MOST_POINTS:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).choice(n, MOST_POINTS, replace=False))


def _cells(kept: Mapping[str, NDArray[Any]], where: str) -> Figure:
    """Figure 3 of the paper: the true counts of grid cells against the predicted ones, branch by branch."""
    truth = kept["cells_truth"].ravel()
    at = _sample(len(truth))
    rows, traces = [], []
    for k, branch in enumerate(("density", "localization")):
        predicted = kept[f"cells_{branch}"].ravel()[at]
        rows += [{"branch": branch, "predicted": p, "true": t} for p, t in zip(predicted.tolist(), truth[at].tolist(),
                                                                            strict=True)]  # fmt: skip
        traces.append({
            "type": "scattergl" if len(at) > 1000 else "scatter", "mode": "markers", "name": branch,
            "x": predicted.round(2).tolist(), "y": truth[at].tolist(), "marker": {"size": 4, "opacity": 0.5},
            "xaxis": f"x{k + 1 if k else ''}", "yaxis": "y",
        })  # fmt: skip
    top = float(max(truth[at].max(initial=1), *(max(trace["x"], default=1) for trace in traces)))
    diagonal = [{"type": "line", "x0": 0, "y0": 0, "x1": top, "y1": top, "xref": ref,
                 "line": {"dash": "dot", "width": 1, "color": "#888"}} for ref in ("x", "x2")]  # fmt: skip
    return figure(
        f"True against predicted counts per cell (the paper's Figure 3), {where}", rows, traces, "density",
        "true count of a cell", xaxis={"domain": [0, 0.48]}, shapes=diagonal,
        xaxis2={"domain": [0.52, 1], "title": {"text": "localization"}, "anchor": "y"},
    )  # fmt: skip


def _crowd_size(kept: Mapping[str, NDArray[Any]], where: str) -> Figure:
    truth = kept["truth"]
    at = _sample(len(truth))
    rows, traces = [], []
    for branch in ("density", "localization", "fused"):
        error = (kept[branch] - truth)[at]
        rows += [{"count": branch, "image": str(kept["ids"][i]), "true": float(truth[i]), "error": float(e)}
                 for i, e in zip(at, error, strict=True)]  # fmt: skip
        traces.append({
            "type": "scatter", "mode": "markers", "name": branch, "x": truth[at].tolist(), "y": error.round(2).tolist(),
            "text": [str(kept["ids"][i]) for i in at], "marker": {"size": 5, "opacity": 0.6},
        })  # fmt: skip
    return figure(f"Error against crowd size, {where}", rows, traces, "true count", "predicted − true")


def _local_density(kept: Mapping[str, NDArray[Any]], where: str) -> Figure:
    """The paper's own motive: how each branch fails where the crowd is dense; cells in bins of equal numbers."""
    truth = kept["cells_truth"].ravel()
    edges = np.unique(np.quantile(truth, np.linspace(0, 1, BINS + 1)))
    which = np.clip(np.searchsorted(edges, truth, side="right") - 1, 0, max(len(edges) - 2, 0))
    rows, traces = [], []
    for branch in ("density", "localization"):
        bias = kept[f"cells_{branch}"].ravel() - truth
        mine = []
        for b in range(max(len(edges) - 1, 1)):
            inside = which == b
            if inside.sum() < 2:
                continue
            spread = 1.96 * float(bias[inside].std(ddof=1)) / math.sqrt(int(inside.sum()))
            mine.append({"branch": branch, "true": float(truth[inside].mean()), "cells": int(inside.sum()),
                         "bias": float(bias[inside].mean()), "half": spread})  # fmt: skip
        rows += mine
        traces.append({
            "type": "scatter", "mode": "lines+markers", "name": branch, "x": [row["true"] for row in mine],
            "y": [row["bias"] for row in mine], "error_y": {"type": "data", "array": [row["half"] for row in mine]},
        })  # fmt: skip
    note = "Mean of predicted − true over cells of like density, with 95 % intervals over cells."
    return figure(f"Error against local density, {where}", rows, traces, "true heads of a cell", "mean error", note)


def _precision_recall(filled: FilledTable, dataset: str) -> Iterator[Figure]:
    """Curves at affinity 0.50 of the rows that differ in their points, each sigma by itself."""
    table, seen = filled.table, set()
    found: list[tuple[str, dict[str, NDArray[Any]]]] = []
    for row in table.run_rows:
        cell = filled.cells[row.name, dataset]
        if not cell.found or cell.config is None:
            continue
        points = (cell.config.depth, *(v for k, v in sorted(row.set.items()) if not k.startswith("fusion")))
        if points in seen:
            continue
        seen.add(points)
        try:
            found.append((row.name, _first(cell, table.splits[-1])[1]))
        except RazError:
            continue
    for sigma in (40, 20, 5):
        rows, traces = [], []
        for name, kept in found:
            recall, precision = precision_recall(kept, sigma * math.sqrt(-2 * math.log(0.5)))
            at = np.unique(np.linspace(0, len(recall) - 1, 200).astype(int)) if len(recall) else np.zeros(0, int)
            rows += [{"row": name, "recall": float(recall[i]), "precision": float(precision[i])} for i in at]
            traces.append({"type": "scatter", "mode": "lines", "name": name, "x": recall[at].round(4).tolist(),
                           "y": precision[at].round(4).tolist()})  # fmt: skip
        yield figure(
            f"Precision and recall at sigma {sigma}, affinity 0.50, {filled.title(dataset)}", rows, traces, "recall",
            "precision", "All test images' counted points, ranked together.", xaxis={"range": [0, 1]},
            yaxis={"range": [0, 1]},
        )  # fmt: skip


def precision_recall(kept: Mapping[str, NDArray[Any]], radius: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """(recall, precision) after each ranked point, (points,) each; a hit lies nearer than `radius` px."""
    order = np.argsort(-kept["match_score"], kind="stable")
    distance, before = kept["match_distance"][order], kept["match_before"][order]
    hits = np.cumsum((distance < radius) & (radius <= before))
    return hits / max(float(kept["truth"].sum()), 1.0), hits / np.arange(1, len(hits) + 1)
