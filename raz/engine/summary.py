"""What a finished run prints: the lines of a search and of a table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from raz.engine.progress import spent_and_saved
from raz.engine.results import StudyResult, TableResult
from raz.utils.formatting import assignments, columns, duration, number
from raz.utils.json_types import Json, JsonLike


def table_summary(result: TableResult) -> list[str]:
    """The lines of a table's run: number of trials, compute, and failures."""
    failed = result.failed
    out = [
        f"table {result.table}, profile {result.profile}: {len(result.cells) - len(failed)} trials done,"
        f" {len(failed)} failed",
        *_compute_and_stop(result),
    ]
    out += [
        f"  {cell.row}, {cell.dataset}, seed {cell.seed}: {cell.outcome.reason}: {cell.outcome.message}"
        for cell in failed
    ]
    return out


def _compute_and_stop(result: StudyResult | TableResult) -> list[str]:
    out = []
    compute = result.compute
    if compute.spent or compute.saved:
        out.append(f"compute: {spent_and_saved(compute.spent, compute.saved)}")
    if result.stopped:
        out.append(f"{result.stopped}: {result.left} trials are left, and the same command goes on from here")
    return out


def summary(result: StudyResult) -> list[str]:
    """The lines of a study's run: best configuration, its validation metric, its test metrics and those of baselines,
    and the next commands."""
    counts = result.counts
    out = [
        f"study {result.study}: {counts['complete']} complete, {counts['pruned']} pruned, {counts['failed']} failed"
        f" ({result.ran} run now, {duration(result.seconds)})",
        *_compute_and_stop(result),
    ]
    if result.reasons:
        out.append("failures: " + ", ".join(f"{reason} {n}" for reason, n in sorted(result.reasons.items())))
    best = result.best
    if result.front:
        metrics = list(result.front[0].objectives)
        out.append(f"front: {len(result.front)} trials that no other beats in every objective")
        rows = [
            (f"#{r.number}", *(number(r.objectives.get(m)) for m in metrics), assignments(r.values))
            for r in result.front
        ]
        out += [f"  {row}" for row in columns(("trial", *metrics, "values"), rows, right=range(len(metrics) + 1))]
    if best is None:
        out.append("no trial is complete, so there is no best configuration")
    else:
        title = f"best in {result.metric}" if result.front else "best"
        out.append(f"{title}: trial {best.number}, {result.metric} {best.value:.4g}")
        if not result.changed:
            out.append("  the base itself")
        for name, (base, value) in sorted(result.changed.items()):
            out.append(f"  {name}: {json.dumps(value)}  (base {json.dumps(base)})")
        if result.stopped:
            out.append("the test images are predicted once the search is complete")
        elif result.trouble:
            out.append(f"the test images could not be predicted: {result.trouble}")
        else:
            out += _held_out(result)
    store = f" --store {result.store}" if result.store != "raz-store" else ""
    out.append("")
    out.append(f"next: raz-sweep report {result.study}{store}")
    if result.failed:
        out.append("      the same command with --retry runs the failed trials again")
    out.append(f"      raz-sweep dashboard {result.study}{store}   (read-only; pip install 'raz-sweep[dashboard]')")
    return out


def _held_out(result: StudyResult) -> list[str]:
    out = []
    for name in ("test.mae", "test.rmse"):
        if name in result.held_out:
            shown = [
                f"{title}: {result.baselines[key][name]:.4g}"
                for key, title in (("median", "guessing the training median"), ("ridge", "ridge regression on edges"))
                if key in result.baselines
            ]
            baselines = f"  ({'; '.join(shown)})" if shown else ""
            out.append(f"held out: {name} {result.held_out[name]:.4g}{baselines}")
    others = {
        name: value
        for name, value in sorted(result.held_out.items())
        if name.startswith("test.") and name.partition(".")[2].startswith(("map@", "mar@"))
    }
    if others:
        out.append("held out: " + "  ".join(f"{name} {value:.4g}" for name, value in others.items()))
    return out


def to_json(value: JsonLike) -> str:
    """One JSON document. A number that is not finite, such as a score of images without heads, is null."""
    return json.dumps(_finite(value), indent=2, allow_nan=False)


def _finite(value: JsonLike) -> Json:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(name): _finite(inner) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(inner) for inner in value]
    return value
