"""The stages behind a table's filled cells, as their manifests have them, and the curves that the trained ones left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from raz.pipeline.graph import TRAINED
from raz.report.figures.style import COLOURS, figure
from raz.report.layout import Figure
from raz.report.used_stages import UsedStage
from raz.spec.ablation import dataset_title
from raz.store.cache import stored_curve

MOST_CURVES = 24  # in one figure; more only hide each other
# What a trained stage is validated by, on whole validation images; RAZ-Net's stages on zoomed regions of them.
_VALUE = {
    "counting": "MAE", "localization": "loss (Eq. 3)", "attention": "loss", "raz": "loss (Eq. 3)",
    "raz_attention": "loss",
}  # fmt: skip


# ------------------------------------------------------------------------------------ learning curves


def learning_curves(uses: Sequence[UsedStage], data_root: Path | None = None) -> tuple[Figure, ...]:
    """A figure a trained stage and data set: the validation value and the training loss, epoch by epoch.

    A network that many rows share is one line; where rows trained networks of their own, each is named after the
    first row that uses it.
    """
    out = []
    for dataset in dict.fromkeys(use.dataset for use in uses):
        for stage in TRAINED:
            found = [use for use in uses if (use.dataset, use.node.stage) == (dataset, stage) and use.artifact]
            drawn = _stage_curves(stage, dataset_title(dataset, data_root), found)
            if drawn is not None:
                out.append(drawn)
    return tuple(out)


def _stage_curves(stage: str, title: str, found: Sequence[UsedStage]) -> Figure | None:
    lines = list(_curves_by_network(found))
    shown = lines[:MOST_CURVES]
    rows: list[Mapping[str, Any]] = []
    value: list[dict[str, Any]] = []
    loss: list[dict[str, Any]] = []
    for i, (name, best, points) in enumerate(shown):
        rows += [{"network": name, "best": point["epoch"] == best, **point} for point in points]
        epochs = [point["epoch"] for point in points]
        colour = COLOURS[i % len(COLOURS)]
        at = [i for i, epoch in enumerate(epochs) if epoch == best]
        common = {"type": "scatter", "name": name, "legendgroup": name}
        value.append({
            **common, "mode": "lines+markers", "x": epochs, "y": [point["value"] for point in points],
            "line": {"color": colour}, "xaxis": "x", "yaxis": "y",
            "marker": {"color": colour, "size": [10 if k in at else 3 for k in range(len(epochs))]},
        })  # fmt: skip
        loss.append({
            **common, "mode": "lines", "x": epochs, "y": [point["loss"] for point in points], "showlegend": False,
            "line": {"color": colour, "dash": "dot"}, "xaxis": "x2", "yaxis": "y2",
        })  # fmt: skip
    if not rows:
        return None
    note = "The large marker is the epoch whose weights are used."
    if len(lines) > len(shown):
        note += f" {len(shown)} of {len(lines)} networks are shown."
    return figure(
        f"Learning curves: {stage}, {title}", rows, [*value, *loss], "epoch",
        f"validation {_VALUE.get(stage, 'value')}", note, xaxis={"domain": [0, 0.45]},
        xaxis2={"domain": [0.55, 1], "title": {"text": "epoch"}, "anchor": "y2", "matches": "x"},
        yaxis2={"title": {"text": "training loss"}, "anchor": "x2", "automargin": True},
    )  # fmt: skip


def _curves_by_network(found: Sequence[UsedStage]) -> Iterator[tuple[str, int, list[dict[str, float]]]]:
    """(name, best epoch, curve) of every network among these uses."""
    networks: dict[str, list[UsedStage]] = {}
    for use in found:
        networks.setdefault(use.key, []).append(use)
    per_seed: dict[int, set[str]] = {}
    for use in found:
        per_seed.setdefault(use.seed, set()).add(use.key)
    own = any(len(keys) > 1 for keys in per_seed.values())  # rows trained networks of their own
    for uses in networks.values():
        first = uses[0]
        assert first.artifact is not None
        points = stored_curve(first.artifact.folder)
        if points:
            name = f"{first.row}, seed {first.seed}" if own else f"seed {first.seed}"
            yield name, first.artifact.manifest.best_epoch or 0, points
