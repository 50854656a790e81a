"""A figure of the seconds spent on each kind of stage, and saved by sharing."""

from __future__ import annotations

from collections.abc import Sequence

from raz.report.figures.style import figure
from raz.report.layout import Figure, Record
from raz.report.stage_costs import StageCost


def stage_cost_figures(costs: Sequence[StageCost]) -> tuple[Figure, ...]:
    """One bar for each kind of stage, the first stage at the bottom; no figure where no time was spent."""
    if not any(cost.unshared for cost in costs):
        return ()
    rows: list[Record] = [
        {"stage": c.stage, "made": c.made, "uses": c.uses, "spent": c.seconds, "saved": c.saved} for c in costs
    ]
    names = [f"{c.stage} ({c.made} made, {c.uses} uses)" for c in costs]
    traces: list[Record] = [
        {"type": "bar", "orientation": "h", "name": "spent", "x": [c.seconds for c in costs], "y": names},
        {"type": "bar", "orientation": "h", "name": "saved", "x": [c.saved for c in costs], "y": names},
    ]
    return (
        figure("The stage tree: time spent and saved", rows, traces, "seconds", "", barmode="stack",
               height=140 + 30 * len(costs)),
    )  # fmt: skip
