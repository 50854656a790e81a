"""What a finished run says, in lines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from raz.engine.progress import spent_and_saved
from raz.engine.study_runner import SweepResult
from raz.utils.formatting import assignments, columns, duration, number


def summary(result: SweepResult) -> list[str]:
    """The best configuration, its validation metric, the test metrics beside a blind guess, where to look next."""
    counts = result.counts
    out = [
        f"study {result.study}: {counts['complete']} complete, {counts['pruned']} pruned, {counts['failed']} failed"
        f" ({result.ran} run now, {duration(result.seconds)})"
    ]
    if result.spent or result.saved:
        out.append(f"compute: {spent_and_saved(result.spent, result.saved)}")
    if result.stopped:
        out.append(f"{result.stopped}: {result.left} trials are left, and the same command goes on from here")
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
        word = f"best in {result.metric}" if result.front else "best"
        out.append(f"{word}: trial {best.number}, {result.metric} {best.value:.4g}")
        if not result.changed:
            out.append("  the base itself")
        for name, (base, value) in sorted(result.changed.items()):
            out.append(f"  {name}: {json.dumps(value)}  (base {json.dumps(base)})")
        if result.stopped:
            out.append("the test images are predicted when the search has come to its end")
        elif result.trouble:
            out.append(f"the test images could not be predicted: {result.trouble}")
        else:
            out += _held_out(result)
    where = f" --store {result.store}" if result.store != "raz-store" else ""
    out.append("")
    out.append(f"next: raz-sweep report {result.study}{where}")
    if result.failed:
        out.append("      the same command with --retry runs the failed trials again")
    out.append(f"      raz-sweep dashboard {result.study}{where}   (read-only; pip install 'raz-sweep[dashboard]')")
    return out


def _held_out(result: SweepResult) -> list[str]:
    out = []
    for name in ("test.mae", "test.rmse"):
        if name in result.held_out:
            guesses = [
                f"{what}: {result.baselines[key][name]:.4g}"
                for key, what in (("median", "guessing the training median"), ("ridge", "ridge regression on edges"))
                if key in result.baselines
            ]
            beside = f"  ({'; '.join(guesses)})" if guesses else ""
            out.append(f"held out: {name} {result.held_out[name]:.4g}{beside}")
    others = {
        name: value
        for name, value in sorted(result.held_out.items())
        if name.startswith("test.") and name.partition(".")[2].startswith(("map@", "mar@"))
    }
    if others:
        out.append("held out: " + "  ".join(f"{name} {value:.4g}" for name, value in others.items()))
    return out


def to_json(value: Any) -> str:
    """One JSON document; a number that is none (a score without any head) is null."""
    return json.dumps(_plain(value), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
