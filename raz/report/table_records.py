"""The numbers of a filled table as records, for JSON, CSV and the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from raz.report.comparisons import JudgedClaim
from raz.report.devices import devices_behind
from raz.report.fill import FilledTable, TableCell
from raz.report.layout import Record, digits
from raz.report.statistics import Effect, difference, summarize
from raz.spec.metric_names import REGION_METRICS


def record_name(filled: FilledTable, dataset: str, row: str, metric: str) -> str:
    """The name of a cell's record, which table cells refer to."""
    return f"{filled.table.table}/{dataset}/{row}/{metric}"


def cell_records(filled: FilledTable, dataset: str, effects: Mapping[tuple[str, str], Effect]) -> Iterator[Record]:
    """One record for each row and metric, with its trials; printed numbers only where they are of this data set."""
    table = filled.table
    for row in table.rows:
        cell = filled.cells[row.name, dataset]
        extra = [f"{split}.{name}" for split in table.splits for name in REGION_METRICS] if cell.zooms else []
        for metric in dict.fromkeys([*table.metrics_of(dataset), *extra]):
            values = cell.values(metric)
            summary = summarize(values.values())
            printed = row.paper.get(dataset, {}).get(metric)
            misprint = table.misprint(row.name, dataset, metric)
            yield {
                "name": record_name(filled, dataset, row.name, metric), "table": table.table,
                "profile": filled.profile.name, "dataset": dataset, "row": row.name, "metric": metric,
                "n": summary.n, "mean": summary.mean, "sd": summary.sd, "printed": printed,
                "difference": difference(summary, None if misprint else printed),
                "misprint": misprint.note if misprint else "", "source": row.source, "set": dict(row.set),
                "to_base": _effect_record(effects.get((row.name, metric))),
                "device": ", ".join(sorted({name for trial in cell.scores.values() for name in devices_behind(trial)})),
                "digits": digits(metric),
                "values": {str(seed): value for seed, value in values.items()},
                "trials": _trial_records(cell, metric),
            }  # fmt: skip


def claim_record(filled: FilledTable, dataset: str, judged: JudgedClaim) -> Record:
    """The record of a claim on one data set."""
    return {
        "table": filled.table.table, "profile": filled.profile.name, "dataset": dataset, "claim": judged.claim.say,
        "metric": " - ".join(judged.metrics), "printed": judged.printed, "paper": judged.paper,
        "to_base": _effect_record(judged.effect), "ours": judged.ours,
    }  # fmt: skip


def _trial_records(cell: TableCell, metric: str) -> list[Record]:
    """The value of each seed and what made it."""
    split, out = metric.partition(".")[0], list[Record]()
    for seed, trial in cell.scores.items():
        made = trial.provenance.get(split)
        versions = made.versions if made else {}
        out.append(
            {
                "seed": seed, "value": trial.metrics.get(metric), "score": trial.keys.get(split, ""),
                "commit": versions.get("commit", ""), "torch": versions.get("torch", ""),
                "device": ", ".join(devices_behind(trial)) or (made.device if made else ""),
            }
        )  # fmt: skip
    return out


def _effect_record(effect: Effect | None) -> Record | None:
    if effect is None:
        return None
    return {
        "over": effect.over, "n": effect.n, "value": effect.value, "low": effect.low, "high": effect.high,
        "p": effect.shown_p, "differs": effect.differs,
    }  # fmt: skip
