"""How every figure looks: colours seen in both themes, axes that are named. Plain plotly specifications."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raz.report.layout import Figure

COLOURS = (
    "#0969da",
    "#cf222e",
    "#1a7f37",
    "#9a6700",
    "#8250df",
    "#bf3989",
    "#57606a",
    "#0a7ea4",
)  # seen in both themes


def figure(title: str, rows: Sequence[Mapping[str, Any]], traces: list[dict[str, Any]], x: str, y: str,
           note: str = "", **layout: Any) -> Figure:  # fmt: skip
    """A figure with its axes named."""
    for i, trace in enumerate(traces):
        key = "line" if trace.get("mode") == "lines" else "marker"
        trace[key] = {"color": COLOURS[i % len(COLOURS)]} | trace.get(key, {})
    whole: dict[str, Any] = {
        "xaxis": {"title": {"text": x}, "automargin": True}, "yaxis": {"title": {"text": y}, "automargin": True},
        "margin": {"l": 60, "r": 20, "t": 20, "b": 50}, "height": 420, "legend": {"orientation": "h", "y": 1.12},
    }  # fmt: skip
    for name, value in layout.items():
        whole[name] = {**whole[name], **value} if isinstance(value, dict) and name in whole else value
    return Figure(title, tuple(rows), {"data": traces, "layout": whole}, note)
