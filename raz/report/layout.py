"""The content of a report, independent of its format: tables of texts, notes, figures, and records for programs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from raz.report.statistics import summarize
from raz.spec.metric_names import ONE_TO_ONE_METRICS
from raz.utils.json_types import Json, JsonLike

EMPTY = "-"
MAX_METRIC_COLUMNS = 6  # metrics that stand side by side; with more, each metric and row is a line
_STEMS = {
    "mae": "MAE", "rmse": "RMSE", "bias": "bias", "ap": "AP", "ar": "AR", "map": "mAP", "mar": "mAR",
    "regions_per_image": "regions per image", "images_zoomed": "images zoomed", "f1": "F1",
    "gflops_per_image": "GFLOP per image",
}  # fmt: skip
_QUARTILE = re.compile(r"(?:^|_)q([1-4])$")  # of local density, at the end of a metric's branch

Record: TypeAlias = Mapping[str, JsonLike]
"""Named values of one thing (a cell, a claim, a trial, a figure's data point) for JSON and CSV."""


@dataclass(frozen=True)
class TextTable:
    """A rectangle of texts.

    left: indices of the left-aligned columns; the others hold numbers. cells: (line, column) -> the name of the record
    that it shows.
    """

    title: str
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    left: frozenset[int] = frozenset({0})
    cells: Mapping[tuple[int, int], str] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """A figure: its data as rows, and plotly's traces and layout that draw them."""

    title: str
    rows: tuple[Record, ...]
    traces: Sequence[Record]
    layout: Record
    note: str = ""

    @property
    def spec(self) -> dict[str, JsonLike]:
        """The plotly specification."""
        return {"data": self.traces, "layout": self.layout}


@dataclass(frozen=True)
class Report:
    """Tables and notes for readers, the same numbers as records, and the command that fills empty cells."""

    title: str
    sheets: tuple[TextTable, ...]
    notes: tuple[str, ...]
    records: tuple[Record, ...]
    facts: Record = field(default_factory=dict)  # of the whole report, for JSON
    command: str = ""  # empty where no cell is
    cost: str = ""  # a sentence: what the command takes
    figures: tuple[Figure, ...] = ()


# ------------------------------------------------------------------------------------ titles and numbers


def metric_title(metric: str) -> str:
    """`test.ap50@40` -> `AP.50 (sigma 40)`, `test.f1_q4@8` -> `F1 Q4 (8 px)`, `val.mae` -> `MAE (validation)`."""
    split, _, name = metric.partition(".")
    stem, _, sigma = name.partition("@")
    base, _, branch = stem.partition("_") if stem not in _STEMS else (stem, "", "")
    if base[:2] in ("ap", "ar") and base[2:].isdigit():
        title = f"{_STEMS[base[:2]]}.{base[2:]}"
    else:
        title = _STEMS.get(base, base)
    if branch:
        title += " " + _QUARTILE.sub(r" Q\1", branch).lstrip()
    suffix = sigma
    if sigma[:1].isdigit():
        suffix = f"{sigma} px" if stem in ONE_TO_ONE_METRICS else f"sigma {sigma}"
    qualifiers = ([suffix] if sigma else []) + (["validation"] if split == "val" else [])
    return f"{title} ({', '.join(qualifiers)})" if qualifiers else title


def digits(metric: str) -> int:
    """Decimals of a metric, as in the paper's tables."""
    name = metric.partition(".")[2]
    return 3 if name.partition("@")[2][:1].isdigit() else 1


def number(metric: str, value: float | None, *, sign: bool = False) -> str:
    """A value as shown in a cell; a share in per cent; `-` for None."""
    if value is None:
        return EMPTY
    if metric.endswith("images_zoomed"):
        return f"{100 * value:.0f} %"
    text = f"{value:+.{digits(metric)}f}" if sign else f"{value:.{digits(metric)}f}"
    return text.replace("-", "−") if text.strip("+-0.") else text.lstrip("+-")


def printed_number(metric: str, value: float | None) -> str:
    """As the paper prints it: 126 stays 126, 133.0 keeps its decimal."""
    if value is None:
        return EMPTY
    return str(value) if isinstance(value, int) else f"{value:.{digits(metric)}f}"


def mean_sd(metric: str, values: Mapping[int, float]) -> str:
    """`65.1 ± 0.4`, the mean alone for one seed, or `-`."""
    summary = summarize(values.values())
    if metric.endswith("images_zoomed") or summary.sd is None:
        return number(metric, summary.mean)
    return f"{number(metric, summary.mean)} ± {summary.sd:.{digits(metric)}f}"


def nan_to_none(value: JsonLike) -> Json:
    """The value with null in place of NaN and infinities, which JSON lacks."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: nan_to_none(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [nan_to_none(item) for item in value]
    return value
