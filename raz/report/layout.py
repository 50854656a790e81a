"""What a report says, before how it looks: sheets of texts for readers, records of numbers for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raz.report.statistics import summarize

EMPTY = "-"
WIDEST = 6  # metrics that stand side by side; more go one to a line
_STEMS = {
    "mae": "MAE", "rmse": "RMSE", "bias": "bias", "ap": "AP", "ar": "AR", "map": "mAP", "mar": "mAR",
    "regions_per_image": "regions per image", "images_zoomed": "images zoomed",
}  # fmt: skip


@dataclass(frozen=True)
class TextTable:
    """A rectangle of texts; the columns of `left` are read from the left, the others are numbers."""

    title: str
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    left: frozenset[int] = frozenset({0})
    cells: Mapping[tuple[int, int], str] = field(default_factory=dict)  # (line, column) -> the record it shows


@dataclass(frozen=True)
class Figure:
    """A figure: its rows of data, and the plotly specification (`data`, `layout`) that draws them."""

    title: str
    rows: tuple[Mapping[str, Any], ...]
    spec: Mapping[str, Any]
    note: str = ""


@dataclass(frozen=True)
class Report:
    """Sheets and notes to read, the same as records, and the one command that fills what is empty."""

    title: str
    sheets: tuple[TextTable, ...]
    notes: tuple[str, ...]
    records: tuple[Mapping[str, Any], ...]
    facts: Mapping[str, Any] = field(default_factory=dict)  # of the whole report, for JSON
    command: str = ""
    cost: str = ""  # what the command will take, beside it
    figures: tuple[Figure, ...] = ()


# ------------------------------------------------------------------------------------ words and digits


def metric_title(metric: str) -> str:
    """`test.ap50@40` -> `AP.50 (sigma 40)`, `val.mae` -> `MAE (validation)`."""
    split, _, name = metric.partition(".")
    stem, _, sigma = name.partition("@")
    base, _, branch = stem.partition("_") if stem not in _STEMS else (stem, "", "")
    if base[:2] in ("ap", "ar") and base[2:].isdigit():
        title = f"{_STEMS[base[:2]]}.{base[2:]}"
    else:
        title = _STEMS.get(base, base)
    if branch:
        title += f" {branch}"
    after = f"sigma {sigma}" if sigma[:1].isdigit() else sigma
    asides = ([after] if sigma else []) + (["validation"] if split == "val" else [])
    return f"{title} ({', '.join(asides)})" if asides else title


def digits(metric: str) -> int:
    """Decimals a metric is shown with: those of the paper's tables."""
    name = metric.partition(".")[2]
    return 3 if name.partition("@")[2][:1].isdigit() else 1


def number(metric: str, value: float | None, *, sign: bool = False) -> str:
    """A value as it stands in a cell; a share is in per cent."""
    if value is None:
        return EMPTY
    if metric.endswith("images_zoomed"):
        return f"{100 * value:.0f} %"
    text = f"{value:+.{digits(metric)}f}" if sign else f"{value:.{digits(metric)}f}"
    return text.replace("-", "−") if text.strip("+-0.") else text.lstrip("+-")


def printed_number(metric: str, value: float | None) -> str:
    """As printed: 126 stays 126, 133.0 keeps its decimal."""
    if value is None:
        return EMPTY
    return str(value) if isinstance(value, int) else f"{value:.{digits(metric)}f}"


def mean_sd(metric: str, values: Mapping[int, float]) -> str:
    """`65.1 ± 0.4`, or the mean alone for one seed, or `-`."""
    summary = summarize(values.values())
    if metric.endswith("images_zoomed") or summary.sd is None:
        return number(metric, summary.mean)
    return f"{number(metric, summary.mean)} ± {summary.sd:.{digits(metric)}f}"


def nan_to_none(value: Any) -> Any:
    """The same with null for every number that JSON has no word for."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: nan_to_none(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [nan_to_none(item) for item in value]
    return value
