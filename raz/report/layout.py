"""What a report says, before how it looks: sheets of texts for readers, records of numbers for programs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raz.report.fill import Cell, FilledTable
from raz.report.statistics import difference, summarize, verdict
from raz.study.ablation import REGIONS, dataset_title

if TYPE_CHECKING:
    from raz.study.ledger import TrialRecord

EMPTY = "-"
WIDEST = 4  # metrics that stand side by side; more go one to a line
BEST = 10  # trials of a study that are shown
_STEMS = {
    "mae": "MAE", "rmse": "RMSE", "bias": "bias", "ap": "AP", "ar": "AR", "map": "mAP", "mar": "mAR",
    "regions_per_image": "regions per image", "images_zoomed": "images zoomed",
}  # fmt: skip


@dataclass(frozen=True)
class Sheet:
    """A rectangle of texts; the columns of `left` are read from the left, the others are numbers."""

    title: str
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    left: frozenset[int] = frozenset({0})


@dataclass(frozen=True)
class Report:
    """Sheets and notes to read, the same as records, and the one command that fills what is empty."""

    title: str
    sheets: tuple[Sheet, ...]
    notes: tuple[str, ...]
    records: tuple[Mapping[str, Any], ...]
    facts: Mapping[str, Any] = field(default_factory=dict)  # of the whole report, for JSON
    command: str = ""


# ------------------------------------------------------------------------------------ words and digits


def metric_title(metric: str) -> str:
    """`test.ap50@40` -> `AP.50 (sigma 40)`, `val.mae` -> `MAE (validation)`."""
    split, _, name = metric.partition(".")
    stem, _, sigma = name.partition("@")
    base, _, branch = stem.partition("_") if stem not in _STEMS else (stem, "", "")
    if base[:2] in ("ap", "ar") and base[2:].isdigit():
        title = f"{_STEMS[base[:2]]}.{base[2:]}"
    else:
        title = _STEMS.get(base, base)
    if branch:
        title += f" {branch}"
    asides = ([f"sigma {sigma}"] if sigma else []) + (["validation"] if split == "val" else [])
    return f"{title} ({', '.join(asides)})" if asides else title


def digits(metric: str) -> int:
    """Decimals a metric is shown with: those of the paper's tables."""
    name = metric.partition(".")[2]
    return 3 if "@" in name else 1


def number(metric: str, value: float | None, *, sign: bool = False) -> str:
    """A value as it stands in a cell; a share is in per cent."""
    if value is None:
        return EMPTY
    if metric.endswith("images_zoomed"):
        return f"{100 * value:.0f} %"
    text = f"{value:+.{digits(metric)}f}" if sign else f"{value:.{digits(metric)}f}"
    return text.replace("-", "−") if text.strip("+-0.") else text.lstrip("+-")


def printed_number(metric: str, value: float | None) -> str:
    """As printed: 126 stays 126, 133.0 keeps its decimal."""
    if value is None:
        return EMPTY
    return str(value) if isinstance(value, int) else f"{value:.{digits(metric)}f}"


def mean_sd(metric: str, values: Mapping[int, float]) -> str:
    """`65.1 ± 0.4`, or the mean alone for one seed, or `-`."""
    summary = summarize(values.values())
    if metric.endswith("images_zoomed") or summary.sd is None:
        return number(metric, summary.mean)
    return f"{number(metric, summary.mean)} ± {summary.sd:.{digits(metric)}f}"


# ------------------------------------------------------------------------------------ a table


def table_report(filled: FilledTable, command: str = "") -> Report:
    """The filled table: a sheet a data set. `command` is what fills it, shown when something is missing."""
    table, profile = filled.table, filled.profile
    marks = {id(m): f"[{i}]" for i, m in enumerate(_shown_misprints(filled), 1)}
    sheets = tuple(_sheet(filled, dataset, marks) for dataset in profile.datasets)
    notes = [
        f"Profile {profile.name} (preset {profile.preset}). Mean ± standard deviation over n seeds"
        f" ({', '.join(map(str, table.seeds))} asked for)."
    ]
    foreign = [d for d in profile.datasets if d not in table.printed_datasets]
    if table.printed_datasets:
        source = f": {table.paper}" if table.paper else ""
        meaning = " diff = mean − printed." if len(foreign) < len(profile.datasets) else ""
        notes.append(f"paper{source}.{meaning}")
        if any(metric.partition(".")[2].startswith("rmse") for metric in table.metrics):
            notes.append('RMSE is what the paper heads "MSE": the root is taken.')
        if foreign:
            beside = dataset_title(table.printed_datasets[0])
            notes.append(
                f"The numbers beside {_and(foreign)} are the paper's on {beside}, another data set:"
                " compare the order of the rows, not the values."
            )
        if profile.name == "paper":
            notes.append("agrees: the printed number lies where 95 % of single further runs would (needs two seeds).")
        elif len(foreign) < len(profile.datasets):
            notes.append(f"Preset {profile.preset} is not what the paper trained, so a difference is to be expected.")
    notes += [f"{marks[id(m)]} {m.note}; shown as printed." for m in _shown_misprints(filled)]
    notes += table.notes
    notes += [f"{dataset}: {trouble}" for dataset, trouble in filled.troubles.items()]
    missing = filled.missing
    if missing:
        notes.append(f"{missing} of {filled.wanted} trials (row x data set x seed) are not in the store.")
    title = f"{table.table}: {table.title}" if table.title else table.table
    facts = {
        "table": table.table, "title": table.title, "paper": table.paper, "profile": profile.name,
        "preset": profile.preset, "seeds": list(table.seeds), "missing": missing,
    }  # fmt: skip
    return Report(title, sheets, tuple(notes), _records(filled), facts, command if missing else "")


def _shown_misprints(filled: FilledTable) -> list[Any]:
    shown = {_beside(filled, dataset) for dataset in filled.profile.datasets}
    return [m for m in filled.table.misprints if m.dataset in shown]


def _beside(filled: FilledTable, dataset: str) -> str:
    """The data set whose printed numbers stand beside: its own, else the table's first, else none."""
    printed = filled.table.printed_datasets
    return dataset if dataset in printed else (printed[0] if printed else "")


def _sheet(filled: FilledTable, dataset: str, marks: Mapping[int, str]) -> Sheet:
    table, profile = filled.table, filled.profile
    beside = _beside(filled, dataset)
    own = beside == dataset
    judged = own and profile.name == "paper"
    zooming = any(filled.cells[row.name, dataset].zooms for row in table.rows)
    regions = tuple(f"{table.splits[-1]}.{name}" for name in REGIONS) if zooming else ()

    def columns(metric: str) -> tuple[str, ...]:
        paper = ("paper" if own else f"paper ({dataset_title(beside)})",) if beside else ()
        return (metric, *paper, *(("diff",) if own and beside else ()), *(("",) if judged else ()))

    def texts(cell: Cell, metric: str) -> tuple[str, ...]:
        values = cell.values(metric)
        short = f" (n {len(values)})" if 0 < len(values) < len(cell.found) else ""
        out = [mean_sd(metric, values) + short]
        if beside:
            value = table.row(cell.row).paper.get(beside, {}).get(metric)
            misprint = table.misprint(cell.row, beside, metric)
            out.append(printed_number(metric, value) + (f" {marks[id(misprint)]}" if misprint else ""))
            if own:
                summary = summarize(values.values())
                trusted = None if misprint else value
                out.append(number(metric, difference(summary, trusted), sign=True))
                if judged:
                    out.append(verdict(summary, trusted))
        return tuple(out)

    def n(cell: Cell) -> str:
        return f"{len(cell.found)}/{len(table.seeds)}"

    cells = [filled.cells[row.name, dataset] for row in table.rows]
    title = f"{dataset_title(dataset)}"
    if len(table.metrics) <= WIDEST:
        header = ["row", *(text for metric in table.metrics for text in columns(metric_title(metric))), "n"]
        header += [metric_title(metric) for metric in regions]
        lines = [
            (
                cell.row, *(text for metric in table.metrics for text in texts(cell, metric)), n(cell),
                *((mean_sd(m, cell.values(m)) if cell.zooms else "") for m in regions),
            )
            for cell in cells
        ]  # fmt: skip
        return Sheet(title, tuple(header), tuple(lines))
    header = ["metric", "row", *columns("mean"), "n"]
    lines = [
        (metric_title(metric), cell.row, *texts(cell, metric), n(cell)) for metric in table.metrics for cell in cells
    ]
    blank = ("",) * (len(columns("")) - 1)
    lines += [
        (metric_title(metric), cell.row, mean_sd(metric, cell.values(metric)), *blank, n(cell))
        for metric in regions
        for cell in cells
        if cell.zooms
    ]
    return Sheet(title, tuple(header), tuple(lines), left=frozenset({0, 1}))


def _records(filled: FilledTable) -> tuple[Mapping[str, Any], ...]:
    """One record a row, data set and metric; printed numbers only where they are of this data set."""
    table, out = filled.table, []
    for dataset in filled.profile.datasets:
        for row in table.rows:
            cell = filled.cells[row.name, dataset]
            extra = [f"{split}.{name}" for split in table.splits for name in REGIONS] if cell.zooms else []
            for metric in dict.fromkeys([*table.metrics, *extra]):
                values = cell.values(metric)
                summary = summarize(values.values())
                printed = row.paper.get(dataset, {}).get(metric)
                misprint = table.misprint(row.name, dataset, metric)
                out.append(
                    {
                        "table": table.table, "profile": filled.profile.name, "dataset": dataset, "row": row.name,
                        "metric": metric, "n": summary.n, "mean": summary.mean, "sd": summary.sd,
                        "printed": printed, "difference": difference(summary, None if misprint else printed),
                        "misprint": misprint.note if misprint else "",
                        "values": {str(seed): value for seed, value in values.items()},
                    }
                )  # fmt: skip
    return tuple(out)


def _and(names: Sequence[str]) -> str:
    titles = [dataset_title(name) for name in names]
    return titles[0] if len(titles) == 1 else ", ".join(titles[:-1]) + " and " + titles[-1]


# ------------------------------------------------------------------------------------ a study


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
