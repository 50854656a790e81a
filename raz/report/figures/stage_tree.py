"""The stage tree as a figure, with seconds spent and saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raz.report.figures.style import figure
from raz.report.layout import Figure
from raz.report.stage_costs import StageCost

if TYPE_CHECKING:
    pass


def stage_cost_figures(rows: Sequence[StageCost]) -> tuple[Figure, ...]:
    """The stage tree, root at the bottom: bars of seconds spent and saved."""
    data: list[Mapping[str, Any]] = [
        {"stage": s.stage, "made": s.made, "uses": s.uses, "spent": s.seconds, "saved": s.saved} for s in rows
    ]
    if not any(s.unshared for s in rows):
        return ()
    names = [f"{s.stage} ({s.made} made, {s.uses} uses)" for s in rows]
    traces: list[dict[str, Any]] = [
        {"type": "bar", "orientation": "h", "name": "spent", "x": [s.seconds for s in rows], "y": names},
        {"type": "bar", "orientation": "h", "name": "saved", "x": [s.saved for s in rows], "y": names},
    ]
    return (
        figure("The stage tree: time spent and saved", data, traces, "seconds", "", barmode="stack",
               height=140 + 30 * len(rows)),
    )  # fmt: skip
