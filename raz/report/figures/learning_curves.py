"""Learning curves of the trained stages behind a table's filled cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from raz.pipeline.graph import TRAINED
from raz.report.figures.style import COLOURS, figure
from raz.report.layout import Figure, Record
from raz.report.used_stages import UsedStage
from raz.spec.ablation import dataset_title
from raz.store.cache import stored_curve

MAX_CURVES = 24  # in one figure; more would hide each other
# The validation value of each trained stage: of Main-Net's on whole validation images, of RAZ-Net's on zoomed regions.
_VALUE = {
    "counting": "MAE", "localization": "loss (Eq. 3)", "attention": "loss", "raz": "loss (Eq. 3)",
    "raz_attention": "loss",
}  # fmt: skip


@dataclass(frozen=True)
class NetworkCurve:
    """The learning curve of one network: points of epoch, loss, value and seconds; `best_epoch` has its weights."""

    name: str
    best_epoch: int
    points: Sequence[dict[str, float]]


def learning_curves(stages: Sequence[UsedStage], data_root: Path | None = None) -> tuple[Figure, ...]:
    """A figure for each data set and trained stage: validation value and training loss of each epoch.

    A network that rows share is one line. Where rows trained networks of their own, each is named after the first row
    that uses it.
    """
    out = []
    for dataset in dict.fromkeys(stage.dataset for stage in stages):
        for name in TRAINED:
            trained = [s for s in stages if (s.dataset, s.node.stage) == (dataset, name) and s.artifact]
            curves = _stage_figure(name, dataset_title(dataset, data_root), trained)
            if curves is not None:
                out.append(curves)
    return tuple(out)


def _stage_figure(stage: str, title: str, trained: Sequence[UsedStage]) -> Figure | None:
    """None where no network has a curve."""
    curves = list(_network_curves(trained))
    shown = curves[:MAX_CURVES]
    rows: list[Record] = []
    values: list[Record] = []
    losses: list[Record] = []
    for i, curve in enumerate(shown):
        rows += [{"network": curve.name, "best": p["epoch"] == curve.best_epoch, **p} for p in curve.points]
        epochs = [point["epoch"] for point in curve.points]
        colour = COLOURS[i % len(COLOURS)]
        common = {"type": "scatter", "name": curve.name, "legendgroup": curve.name}
        values.append({
            **common, "mode": "lines+markers", "x": epochs, "y": [point["value"] for point in curve.points],
            "line": {"color": colour}, "xaxis": "x", "yaxis": "y",
            "marker": {"color": colour, "size": [10 if epoch == curve.best_epoch else 3 for epoch in epochs]},
        })  # fmt: skip
        losses.append({
            **common, "mode": "lines", "x": epochs, "y": [point["loss"] for point in curve.points], "showlegend": False,
            "line": {"color": colour, "dash": "dot"}, "xaxis": "x2", "yaxis": "y2",
        })  # fmt: skip
    if not rows:
        return None
    note = "The large marker is the epoch whose weights are used."
    if len(curves) > len(shown):
        note += f" {len(shown)} of {len(curves)} networks are shown."
    return figure(
        f"Learning curves: {stage}, {title}", rows, [*values, *losses], "epoch",
        f"validation {_VALUE.get(stage, 'value')}", note, xaxis={"domain": [0, 0.45]},
        xaxis2={"domain": [0.55, 1], "title": {"text": "epoch"}, "anchor": "y2", "matches": "x"},
        yaxis2={"title": {"text": "training loss"}, "anchor": "x2", "automargin": True},
    )  # fmt: skip


def _network_curves(trained: Sequence[UsedStage]) -> Iterator[NetworkCurve]:
    """The curve of each distinct network that has one."""
    networks: dict[str, list[UsedStage]] = {}
    per_seed: dict[int, set[str]] = {}
    for stage in trained:
        networks.setdefault(stage.key, []).append(stage)
        per_seed.setdefault(stage.seed, set()).add(stage.key)
    own = any(len(keys) > 1 for keys in per_seed.values())  # rows trained networks of their own
    for uses in networks.values():
        first = uses[0]
        assert first.artifact is not None
        points = stored_curve(first.artifact.folder)
        if points:
            name = f"{first.row}, seed {first.seed}" if own else f"seed {first.seed}"
            yield NetworkCurve(name, first.artifact.manifest.best_epoch or 0, points)
