"""The report of a study: best trials, what matters, what was pruned and why, time spent and saved."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from raz.report import spent
from raz.report.layout import Report, Sheet

if TYPE_CHECKING:
    from raz.study.records import TrialRecord

BEST = 10  # trials of a study that are shown
PRUNED = 10  # steps at which trials were pruned that are shown
ORDER = ("complete", "pruned", "failed", "lost", "running", "waiting")


def study_report(
    study: str,
    records: Sequence[TrialRecord],
    metric: str,
    direction: str,
    importances: Mapping[str, float] | None = None,
    command: str = "",
    everything: bool = False,
) -> Report:
    """Best trials, states, what matters, what was pruned and why, why trials failed, time spent and saved.

    `everything` adds a sheet of all trials, for a page that sorts. `command` is what runs the study again.
    """
    sign = 1 if direction == "minimize" else -1
    ranked: list[tuple[float, TrialRecord]] = sorted(
        ((r.value, r) for r in records if r.state == "complete" and r.value is not None),
        key=lambda pair: (sign * pair[0], pair[1].number),
    )
    best = tuple((str(r.number), f"{value:.4g}", f"{r.seconds:.0f}", _settings(r.values)) for value, r in ranked[:BEST])
    links = {(i, 0): f"trial {r.number}" for i, (_, r) in enumerate(ranked[:BEST])}
    states = Counter(record.state for record in records)
    lines = tuple((state, str(states[state])) for state in ORDER if states[state])
    sheets = [
        Sheet("Best trials", ("trial", metric, "seconds", "values"), best, left=frozenset({3}), cells=links),
        Sheet("Trials", ("state", "trials"), lines),
    ]
    if importances:
        shares = tuple((name, f"{100 * share:.0f} %") for name, share in importances.items())
        sheets.append(Sheet("What matters (PED-ANOVA)", ("parameter", "share"), shares))
    sheets += [*_pruned(records), *_failures(records)]
    times = spent.of_records(records)
    if times:
        sheets.append(spent.sheet(times))
    if everything:
        sheets.append(_all(records, metric))
    notes = [f"{direction} {metric}; a pruned trial has no value. The {min(BEST, len(ranked))} best are shown."]
    if not ranked:
        notes = ["No trial is complete."]
    seeds = {(r.config.get("dataset"), r.config.get("seed")) for _, r in ranked}
    if len(seeds) == 1 and len(ranked) > 1:
        notes.append(
            "All trials were trained from one seed, so they are one run in what chance can do: a difference among them"
            " is of these trained models, not of training again."
        )
    facts = {"study": study, "metric": metric, "direction": direction, "states": dict(states), "command": command}
    return Report(f"Study {study}", tuple(sheets), tuple(notes), tuple(_record(study, r) for r in records), facts)


def _record(study: str, r: TrialRecord) -> dict[str, Any]:
    return {
        "name": f"trial {r.number}", "study": study, "trial": r.number, "state": r.state, "value": r.value,
        "reason": r.reason, "message": r.message, "seconds": r.seconds, "retry_of": r.retry_of,
        "seed": r.config.get("seed"), "commit": r.versions.get("commit", ""),
        **{f"set.{k}": v for k, v in r.values.items()},
        **{k: v for k, v in sorted(r.metrics.items()) if math.isfinite(v)},
    }  # fmt: skip


def _pruned(records: Sequence[TrialRecord]) -> list[Sheet]:
    """At which steps trials were stopped, and how they stood there against those that went on."""
    stopped: dict[int, list[TrialRecord]] = {}
    for record in records:
        if record.pruned_at is not None:
            stopped.setdefault(record.pruned_at[0], []).append(record)
    lines = []
    for step, group in sorted(stopped.items())[:PRUNED]:
        values = [r.pruned_at[1] for r in group if r.pruned_at is not None]
        others = [r.steps[step] for r in records if r.state == "complete" and step in r.steps]
        against = f"{median(others):.4g} of {len(others)}" if others else "none complete"
        shown = ", ".join(str(r.number) for r in group[:6]) + (" …" if len(group) > 6 else "")
        lines.append((str(step), str(len(group)), f"{median(values):.4g}", against, shown))
    if not lines:
        return []
    header = ("step", "pruned", "their median", "median of complete ones there", "trials")
    return [Sheet("Pruned, and how they stood", header, tuple(lines), left=frozenset({4}))]


def _failures(records: Sequence[TrialRecord]) -> list[Sheet]:
    failed: dict[str, list[TrialRecord]] = {}
    for record in records:
        if record.state in ("failed", "lost"):
            failed.setdefault(record.reason or "error", []).append(record)
    if not failed:
        return []
    lines = tuple(
        (reason, str(len(group)), str(group[0].number), next(iter(group[0].message.splitlines()), ""))
        for reason, group in sorted(failed.items())
    )
    return [Sheet("Failures", ("reason", "trials", "first", "what it said"), lines, left=frozenset({0, 3}))]


def _all(records: Sequence[TrialRecord], metric: str) -> Sheet:
    names = list(dict.fromkeys(name for record in records for name in record.values))
    lines = tuple(
        (
            str(r.number), r.state, "-" if r.value is None else f"{r.value:.6g}", f"{r.seconds:.1f}",
            *(_shown(r.values[name]) if name in r.values else "-" for name in names),
        )
        for r in records
    )  # fmt: skip
    links = {(i, 0): f"trial {r.number}" for i, r in enumerate(records)}
    return Sheet("All trials", ("trial", "state", metric, "seconds", *names), lines, frozenset({1}), links)


def compared(study: str, records: Sequence[TrialRecord], other: str, others: Sequence[TrialRecord],
             metric: str, direction: str) -> Sheet:  # fmt: skip
    """Two studies side by side: how many trials, the best of each, and the middle of each."""
    pick = min if direction == "minimize" else max
    lines = []
    for name, trials in ((study, records), (other, others)):
        values = [r.metrics[metric] for r in trials if r.state == "complete" and metric in r.metrics]
        seeds = len({(r.config.get("dataset"), r.config.get("seed")) for r in trials if r.state == "complete"})
        best = f"{pick(values):.4g}" if values else "-"
        middle = f"{median(values):.4g}" if values else "-"
        seconds = f"{sum(r.seconds for r in trials):.0f}"
        lines.append((name, str(len(values)), str(seeds), best, middle, seconds))
    header = ("study", "complete", "independent runs", f"best {metric}", "median", "seconds")
    return Sheet(f"Compared with {other}", header, tuple(lines))


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_shown(value)}" for name, value in values.items())


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
