"""The report of a study: best trials, what matters, what was pruned and why, time spent and saved."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from raz.report import stage_costs
from raz.report.layout import Report, TextTable, metric_title
from raz.study.index import pareto_front
from raz.study.remaining import superseded
from raz.study.trial_status import TrialStatus

if TYPE_CHECKING:
    from raz.study.records import TrialRecord

BEST = 10  # trials of a study that are shown
FRONT = 30  # of a Pareto front
PRUNED = 10  # steps at which trials were pruned that are shown
ORDER = (
    TrialStatus.COMPLETE, TrialStatus.PRUNED, TrialStatus.FAILED, TrialStatus.LOST, TrialStatus.RUNNING,
    TrialStatus.WAITING,
)  # fmt: skip


def study_report(
    study: str,
    records: Sequence[TrialRecord],
    objectives: Mapping[str, str],
    importances: Mapping[str, float] | None = None,
    command: str = "",
    where: str = "",
    everything: bool = False,
) -> Report:
    """Best trials, states, what matters, what was pruned and why, why trials failed, time spent and saved.

    `objectives` are metrics with their directions; several give the Pareto front in place of the best trials.
    `everything` adds a sheet of all trials, for a page that sorts. `command` is what ran the study, as far as it is
    known, and `where` the words that name the store to a command about a trial.
    """
    several = len(objectives) > 1
    best = pareto_front(records, objectives) if several else _ranked(records, objectives)[:BEST]
    complete = [r for r in records if r.state == "complete" and r.value is not None]
    header = ("trial", *objectives, "seconds", "values")
    lines = tuple(
        (str(r.number), *(_measured(r, metric, objectives) for metric in objectives), f"{r.seconds:.0f}",
         _settings(r.values)) for r in best[:FRONT]
    )  # fmt: skip
    links = {(i, 0): f"trial {r.number}" for i, r in enumerate(best[:FRONT])}
    title = "Pareto front: no other trial is as good in all and better in one" if several else "Best trials"
    again = superseded(records)  # what was run again counts once, as what became of it
    states = Counter(record.state for record in records if record.number not in again)
    sheets = [
        TextTable(title, header, lines, left=frozenset({len(header) - 1}), cells=links),
        TextTable(
            "Trials", ("state", "trials"), tuple((state, str(states[state])) for state in ORDER if states[state])
        ),
    ]
    if importances:
        shares = tuple((name, f"{100 * share:.0f} %") for name, share in importances.items())
        sheets.append(TextTable(f"What matters (PED-ANOVA of {len(complete)} trials)", ("parameter", "share"), shares))
    sheets += [*_pruned(records), *_failures(records)]
    times = stage_costs.of_records(records)
    if times:
        sheets.append(stage_costs.sheet(times))
    if everything:
        sheets.append(_all(records, objectives))
    notes = [_opening(objectives, len(best), len(complete))]
    seeds = independent_runs(complete)
    if len(seeds) == 1 and len(complete) > 1:
        notes.append(
            "All trials were trained from one seed, so they are one run in what chance can do: a difference among them"
            " is of these trained models, not of training again."
        )
    metric, direction = next(iter(objectives.items()))
    facts: dict[str, Any] = {
        "study": study, "metric": metric, "direction": direction, "objectives": dict(objectives),
        "states": dict(states), "command": command,
    }  # fmt: skip
    if several:
        facts["pareto_front"] = [r.number for r in best]
    return Report(
        f"Study {study}", tuple(sheets), tuple(notes), tuple(_record(study, r, where) for r in records), facts
    )


def _opening(objectives: Mapping[str, str], best: int, complete: int) -> str:
    if not complete:
        return "No trial is complete."
    asked = ", ".join(f"{direction} {metric}" for metric, direction in objectives.items())
    if len(objectives) == 1:
        return f"{asked}; a pruned trial has no value. The {best} best of {complete} complete trials are shown."
    short = f"; {FRONT} of them are shown" if best > FRONT else ""
    return f"{asked}: {best} of {complete} complete trials are on the front{short}. None of these is the best of all."


def _ranked(records: Sequence[TrialRecord], objectives: Mapping[str, str]) -> list[TrialRecord]:
    """Complete trials, the best first; of equals the earliest."""
    (direction,) = objectives.values()
    sign = 1 if direction == "minimize" else -1
    done = [(r.value, r) for r in records if r.state == "complete" and r.value is not None]
    return [r for _, r in sorted(done, key=lambda pair: (sign * pair[0], pair[1].number))]


def held_out(attributes: Mapping[str, Any]) -> list[TextTable]:
    """What the best trial scores on the test images, beside blind guesses; nothing until a run kept it."""
    kept = attributes.get("held_out")
    if not isinstance(kept, Mapping):
        return []
    guesses = attributes.get("baselines", {})
    by_set = list(guesses.values()) if isinstance(guesses, Mapping) else []
    blind = by_set[0] if len(by_set) == 1 else {}  # of several data sets it is not known which is meant
    names = [name for name in ("median", "ridge") if name in blind]
    words = {"median": "the training median", "ridge": "ridge on edges"}
    lines = tuple(
        (metric_title(name), f"{value:.4g}", *(f"{blind[g][name]:.4g}" if name in blind[g] else "-" for g in names))
        for name, value in sorted(kept.get("metrics", {}).items())
        if name in ("test.mae", "test.rmse") or name.startswith(("test.map@", "test.mar@"))
    )
    header = ("metric", f"trial {kept.get('trial')}", *(words[name] for name in names))
    return [TextTable("Held out: the best trial on the test images", header, lines)] if lines else []


def independent_runs(records: Sequence[TrialRecord]) -> set[tuple[Any, Any]]:
    """(data set, seed) of every run behind these trials; a trial over several seeds has as many."""
    return {
        (r.config.get("dataset"), seed)
        for r in records
        for seed in (list(r.seeds) if r.seeds else [str(r.config.get("seed"))])
    }


def _measured(r: TrialRecord, metric: str, objectives: Mapping[str, str], digits: int = 4) -> str:
    """The objective of a trial; a study of one objective need not name it."""
    value = r.value if len(objectives) == 1 else r.objectives.get(metric)
    return "-" if value is None else f"{value:.{digits}g}"


def _record(study: str, r: TrialRecord, where: str) -> dict[str, Any]:
    return {
        "name": f"trial {r.number}", "study": study, "trial": r.number, "state": r.state, "value": r.value,
        "reason": r.reason, "message": r.message, "seconds": r.seconds, "retry_of": r.retry_of,
        "seed": r.config.get("seed"), "commit": r.versions.get("commit", ""),
        **{f"set.{k}": v for k, v in r.values.items()},
        **{k: v for k, v in sorted(r.metrics.items()) if math.isfinite(v)},
        "command": f"raz-sweep rerun {study}#{r.number}{where}" if r.state == "complete" else "",
    }  # fmt: skip


def _pruned(records: Sequence[TrialRecord]) -> list[TextTable]:
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
    return [TextTable("Pruned, and how they stood", header, tuple(lines), left=frozenset({4}))]


def _failures(records: Sequence[TrialRecord]) -> list[TextTable]:
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
    return [TextTable("Failures", ("reason", "trials", "first", "what it said"), lines, left=frozenset({0, 3}))]


def _all(records: Sequence[TrialRecord], objectives: Mapping[str, str]) -> TextTable:
    names = list(dict.fromkeys(name for record in records for name in record.values))
    lines = tuple(
        (
            str(r.number), r.state, *(_measured(r, metric, objectives, 6) for metric in objectives), f"{r.seconds:.1f}",
            *(_shown(r.values[name]) if name in r.values else "-" for name in names),
        )
        for r in records
    )  # fmt: skip
    links = {(i, 0): f"trial {r.number}" for i, r in enumerate(records)}
    return TextTable("All trials", ("trial", "state", *objectives, "seconds", *names), lines, frozenset({1}), links)


def compared(study: str, records: Sequence[TrialRecord], other: str, others: Sequence[TrialRecord],
             objectives: Mapping[str, str]) -> TextTable:  # fmt: skip
    """Two studies side by side: how many trials, and of each objective the best and the middle."""
    lines = []
    for name, trials in ((study, records), (other, others)):
        complete = [r for r in trials if r.state == "complete"]
        told: list[str] = []
        for metric, direction in objectives.items():
            values = [r.metrics[metric] for r in complete if metric in r.metrics]
            pick = min if direction == "minimize" else max
            told += [f"{pick(values):.4g}", f"{median(values):.4g}"] if values else ["-", "-"]
        seconds = f"{sum(r.seconds for r in trials):.0f}"
        lines.append((name, str(len(complete)), str(len(independent_runs(complete))), *told, seconds))
    of = tuple(word for metric in objectives for word in (f"best {metric}", "median"))
    return TextTable(f"Compared with {other}", ("study", "complete", "independent runs", *of, "seconds"), tuple(lines))


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_shown(value)}" for name, value in values.items())


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
