"""The common style of all figures: colours that are legible in both themes, and named axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from raz.report.layout import Figure, Record
from raz.utils.json_types import JsonLike

# Legible on a light and on a dark page.
COLOURS = ("#0969da", "#cf222e", "#1a7f37", "#9a6700", "#8250df", "#bf3989", "#57606a", "#0a7ea4")

Trace: TypeAlias = dict[str, JsonLike]
"""A trace of a plotly specification, as plain JSON."""


def figure(title: str, rows: Sequence[Record], traces: Sequence[Record], x: str, y: str,
           note: str = "", **layout: JsonLike) -> Figure:  # fmt: skip
    """A figure in the common style.

    x, y: titles of the axes. Each trace gets its own colour unless it has one. `layout` adds to plotly's layout;
    mappings are merged with the defaults.
    """
    coloured = []
    for i, trace in enumerate(traces):
        part = "line" if trace.get("mode") == "lines" else "marker"
        style = trace.get(part)
        colour: Trace = {"color": COLOURS[i % len(COLOURS)]}
        coloured.append({**trace, part: {**colour, **(style if isinstance(style, Mapping) else {})}})
    whole: dict[str, JsonLike] = {
        "xaxis": {"title": {"text": x}, "automargin": True}, "yaxis": {"title": {"text": y}, "automargin": True},
        "margin": {"l": 60, "r": 20, "t": 20, "b": 50}, "height": 420, "legend": {"orientation": "h", "y": 1.12},
    }  # fmt: skip
    for name, value in layout.items():
        default = whole.get(name)
        whole[name] = {**default, **value} if isinstance(value, Mapping) and isinstance(default, Mapping) else value
    return Figure(title, tuple(rows), coloured, whole, note)
