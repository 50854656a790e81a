"""The report of a study: best trials, parameter importance, pruned and failed trials, time spent and saved."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from raz.report.layout import Record, Report, TextTable, metric_title
from raz.report.stage_costs import cost_table, costs_of_records
from raz.study.index import pareto_front
from raz.study.remaining import superseded
from raz.study.trial_status import TrialStatus
from raz.utils.json_types import Json, JsonLike

if TYPE_CHECKING:
    from raz.study.attributes import StudyAttributes
    from raz.study.records import TrialRecord

MAX_BEST = 10  # best trials that are shown
MAX_FRONT = 30  # trials of a Pareto front that are shown
MAX_PRUNED_STEPS = 10  # steps at which trials were pruned that are shown
STATUS_ORDER = (
    TrialStatus.COMPLETE, TrialStatus.PRUNED, TrialStatus.FAILED, TrialStatus.LOST, TrialStatus.RUNNING,
    TrialStatus.WAITING,
)  # fmt: skip


def study_report(
    study: str,
    records: Sequence[TrialRecord],
    objectives: Mapping[str, str],
    importances: Mapping[str, float] | None = None,
    command: str = "",
    store_option: str = "",
    all_trials: bool = False,
) -> Report:
    """The report of a study's trials.

    objectives: metric -> minimize | maximize; with several, the Pareto front takes the place of the best trials.
    importances: parameter -> share. command: what ran the study, '' where unknown. store_option: ` --store DIR`, which
    ends commands about a trial; '' for the default store. all_trials: add a table of all trials.
    """
    several = len(objectives) > 1
    best = pareto_front(records, objectives) if several else _ranked(records, objectives)[:MAX_BEST]
    complete = [r for r in records if r.state == TrialStatus.COMPLETE and r.value is not None]
    header = ("trial", *objectives, "seconds", "values")
    lines = tuple(
        (str(r.number), *(_objective_text(r, metric, objectives) for metric in objectives), f"{r.seconds:.0f}",
         _values_text(r.values)) for r in best[:MAX_FRONT]
    )  # fmt: skip
    links = {(i, 0): f"trial {r.number}" for i, r in enumerate(best[:MAX_FRONT])}
    title = "Pareto front: no other trial is as good in all objectives and better in one" if several else "Best trials"
    repeated = superseded(records)  # a trial that was run again counts once, by its last run
    states = Counter(record.state for record in records if record.number not in repeated)
    sheets = [
        TextTable(title, header, lines, left=frozenset({len(header) - 1}), cells=links),
        TextTable(
            "Trials", ("state", "trials"),
            tuple((str(status), str(states[status])) for status in STATUS_ORDER if states[status]),
        ),
    ]  # fmt: skip
    if importances:
        shares = tuple((name, f"{100 * share:.0f} %") for name, share in importances.items())
        importance_title = f"Parameter importance (PED-ANOVA of {len(complete)} trials)"
        sheets.append(TextTable(importance_title, ("parameter", "share"), shares))
    sheets += [*_pruned_table(records), *_failures_table(records)]
    costs = costs_of_records(records)
    if costs:
        sheets.append(cost_table(costs))
    if all_trials:
        sheets.append(_all_trials_table(records, objectives))
    notes = [_opening_note(objectives, len(best), len(complete))]
    if len(independent_runs(complete)) == 1 and len(complete) > 1:
        notes.append(
            "All trials used one seed, so they are one independent run: a difference between them is about these"
            " trained models and may not hold when they are trained again."
        )
    metric, direction = next(iter(objectives.items()))
    facts: dict[str, JsonLike] = {
        "study": study, "metric": metric, "direction": direction, "objectives": dict(objectives),
        "states": {str(status): n for status, n in states.items()}, "command": command,
    }  # fmt: skip
    if several:
        facts["pareto_front"] = [r.number for r in best]
    all_records = tuple(_trial_record(study, r, store_option) for r in records)
    return Report(f"Study {study}", tuple(sheets), tuple(notes), all_records, facts)


def _opening_note(objectives: Mapping[str, str], best: int, complete: int) -> str:
    if not complete:
        return "No trial is complete."
    targets = ", ".join(f"{direction} {metric}" for metric, direction in objectives.items())
    if len(objectives) == 1:
        return (
            f"Objective: {targets}. A pruned trial has no value. The {best} best of {complete} complete trials are"
            " shown."
        )
    shown = f"; {MAX_FRONT} of them are shown" if best > MAX_FRONT else ""
    return (
        f"Objectives: {targets}. {best} of {complete} complete trials are on the front{shown}. No trial of the front is"
        " better than another one in all objectives."
    )


def _ranked(records: Sequence[TrialRecord], objectives: Mapping[str, str]) -> list[TrialRecord]:
    """Complete trials, the best first; of equals the earliest."""
    (direction,) = objectives.values()
    sign = 1 if direction == "minimize" else -1
    complete = [(r.value, r) for r in records if r.state == TrialStatus.COMPLETE and r.value is not None]
    return [r for _, r in sorted(complete, key=lambda pair: (sign * pair[0], pair[1].number))]


def held_out_table(attributes: StudyAttributes) -> list[TextTable]:
    """The best trial's test metrics next to those of the baselines; [] where no run has recorded them."""
    held_out = attributes.held_out
    if held_out is None:
        return []
    by_dataset = list(attributes.baselines.values())
    baselines = by_dataset[0] if len(by_dataset) == 1 else {}  # of several data sets it is unknown which one applies
    names = [name for name in ("median", "ridge") if name in baselines]
    titles = {"median": "the training median", "ridge": "ridge on edges"}
    lines = tuple(
        (
            metric_title(name),
            f"{value:.4g}",
            *(f"{baselines[b][name]:.4g}" if name in baselines[b] else "-" for b in names),
        )
        for name, value in sorted(held_out.metrics.items())
        if name in ("test.mae", "test.rmse") or name.startswith(("test.map@", "test.mar@"))
    )
    header = ("metric", f"trial {held_out.trial}", *(titles[name] for name in names))
    return [TextTable("Held out: the best trial on the test images", header, lines)] if lines else []


def independent_runs(records: Sequence[TrialRecord]) -> set[tuple[str, str]]:
    """(data set, seed) of every run of these trials; a trial over several seeds has several."""
    return {
        (str(r.config.get("dataset")), seed)
        for r in records
        for seed in (list(r.seeds) if r.seeds else [str(r.config.get("seed"))])
    }


def _objective_text(r: TrialRecord, metric: str, objectives: Mapping[str, str], digits: int = 4) -> str:
    value = r.value if len(objectives) == 1 else r.objectives.get(metric)
    return "-" if value is None else f"{value:.{digits}g}"


def _trial_record(study: str, r: TrialRecord, store_option: str) -> Record:
    return {
        "name": f"trial {r.number}", "study": study, "trial": r.number, "state": r.state, "value": r.value,
        "reason": r.reason, "message": r.message, "seconds": r.seconds, "retry_of": r.retry_of,
        "seed": r.config.get("seed"), "commit": r.versions.get("commit", ""),
        "device": r.device,
        **{f"set.{k}": v for k, v in r.values.items()},
        **{k: v for k, v in sorted(r.metrics.items()) if math.isfinite(v)},
        "command": f"raz-sweep rerun {study}#{r.number}{store_option}" if r.state == TrialStatus.COMPLETE else "",
    }  # fmt: skip


def _pruned_table(records: Sequence[TrialRecord]) -> list[TextTable]:
    """The steps at which trials were pruned, and their values there against those of complete trials."""
    by_step: dict[int, list[TrialRecord]] = {}
    for record in records:
        if record.pruned_at is not None:
            by_step.setdefault(record.pruned_at[0], []).append(record)
    lines = []
    for step, group in sorted(by_step.items())[:MAX_PRUNED_STEPS]:
        values = [r.pruned_at[1] for r in group if r.pruned_at is not None]
        others = [r.steps[step] for r in records if r.state == TrialStatus.COMPLETE and step in r.steps]
        reference = f"{median(others):.4g} of {len(others)}" if others else "none complete"
        numbers = ", ".join(str(r.number) for r in group[:6]) + (" …" if len(group) > 6 else "")
        lines.append((str(step), str(len(group)), f"{median(values):.4g}", reference, numbers))
    if not lines:
        return []
    header = ("step", "pruned", "their median", "median of complete ones there", "trials")
    return [TextTable("Pruned trials, by step", header, tuple(lines), left=frozenset({4}))]


def _failures_table(records: Sequence[TrialRecord]) -> list[TextTable]:
    by_reason: dict[str, list[TrialRecord]] = {}
    for record in records:
        if record.state in (TrialStatus.FAILED, TrialStatus.LOST):
            by_reason.setdefault(record.reason or "error", []).append(record)
    if not by_reason:
        return []
    lines = tuple(
        (reason, str(len(group)), str(group[0].number), next(iter(group[0].message.splitlines()), ""))
        for reason, group in sorted(by_reason.items())
    )
    return [TextTable("Failures", ("reason", "trials", "first", "what it said"), lines, left=frozenset({0, 3}))]


def _all_trials_table(records: Sequence[TrialRecord], objectives: Mapping[str, str]) -> TextTable:
    names = list(dict.fromkeys(name for record in records for name in record.values))
    lines = tuple(
        (
            str(r.number), str(r.state), *(_objective_text(r, metric, objectives, 6) for metric in objectives),
            f"{r.seconds:.1f}", *(_value_text(r.values[name]) if name in r.values else "-" for name in names),
        )
        for r in records
    )  # fmt: skip
    links = {(i, 0): f"trial {r.number}" for i, r in enumerate(records)}
    return TextTable("All trials", ("trial", "state", *objectives, "seconds", *names), lines, frozenset({1}), links)


def comparison_table(study: str, records: Sequence[TrialRecord], other: str, others: Sequence[TrialRecord],
                     objectives: Mapping[str, str]) -> TextTable:  # fmt: skip
    """Two studies side by side: the number of trials, and of each objective the best value and the median."""
    lines = []
    for name, trials in ((study, records), (other, others)):
        complete = [r for r in trials if r.state == TrialStatus.COMPLETE]
        texts: list[str] = []
        for metric, direction in objectives.items():
            values = [r.metrics[metric] for r in complete if metric in r.metrics]
            best = min if direction == "minimize" else max
            texts += [f"{best(values):.4g}", f"{median(values):.4g}"] if values else ["-", "-"]
        seconds = f"{sum(r.seconds for r in trials):.0f}"
        lines.append((name, str(len(complete)), str(len(independent_runs(complete))), *texts, seconds))
    columns = tuple(column for metric in objectives for column in (f"best {metric}", "median"))
    header = ("study", "complete", "independent runs", *columns, "seconds")
    return TextTable(f"Compared with {other}", header, tuple(lines))


def _values_text(values: Mapping[str, Json]) -> str:
    return ", ".join(f"{name} {_value_text(value)}" for name, value in values.items())


def _value_text(value: Json) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
