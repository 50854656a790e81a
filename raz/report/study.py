"""The report of a study: best trials, what matters, what was pruned and why, time spent and saved."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raz.report.layout import Report, Sheet

if TYPE_CHECKING:
    from raz.study.records import TrialRecord

BEST = 10  # trials of a study that are shown


def study_report(study: str, records: Sequence[TrialRecord], metric: str, direction: str) -> Report:
    """Best trials, how many trials are in each state, and why the failed ones failed."""
    sign = 1 if direction == "minimize" else -1
    ranked: list[tuple[float, TrialRecord]] = sorted(
        ((r.value, r) for r in records if r.state == "complete" and r.value is not None),
        key=lambda pair: (sign * pair[0], pair[1].number),
    )
    best = tuple((str(r.number), f"{value:.4g}", f"{r.seconds:.0f}", _settings(r.values)) for value, r in ranked[:BEST])
    states = Counter(record.state for record in records)
    order = ("complete", "pruned", "failed", "lost", "running", "waiting")
    sheets = [
        Sheet("Best trials", ("trial", metric, "seconds", "values"), best, left=frozenset({3})),
        Sheet("Trials", ("state", "trials"), tuple((state, str(states[state])) for state in order if states[state])),
    ]
    failed: dict[str, list[TrialRecord]] = {}
    for record in records:
        if record.state in ("failed", "lost"):
            failed.setdefault(record.reason or "error", []).append(record)
    if failed:
        lines = tuple(
            (reason, str(len(group)), str(group[0].number), next(iter(group[0].message.splitlines()), ""))
            for reason, group in sorted(failed.items())
        )
        sheets.append(Sheet("Failures", ("reason", "trials", "first", "what it said"), lines, left=frozenset({0, 3})))
    notes = [f"{direction} {metric}; a pruned trial has no value. The {min(BEST, len(ranked))} best are shown."]
    if not ranked:
        notes = ["No trial is complete."]
    data = tuple(
        {
            "study": study, "trial": r.number, "state": r.state, "value": r.value, "reason": r.reason,
            "message": r.message, "seconds": r.seconds, "retry_of": r.retry_of,
            **{f"set.{k}": v for k, v in r.values.items()},
            **{k: v for k, v in sorted(r.metrics.items()) if math.isfinite(v)},
        }
        for r in records
    )  # fmt: skip
    facts = {"study": study, "metric": metric, "direction": direction, "states": dict(states)}
    return Report(f"Study {study}", tuple(sheets), tuple(notes), data, facts)


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )
