"""The report of a filled table: our numbers and the printed ones, differences to the base row, claims, notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raz.report.comparisons import JudgedClaim, best_rows, differences_to_base, judge_claims
from raz.report.devices import device_notes
from raz.report.fill import FilledTable, TableCell
from raz.report.layout import (
    MAX_METRIC_COLUMNS,
    Record,
    Report,
    TextTable,
    mean_sd,
    metric_title,
    number,
    printed_number,
)
from raz.report.statistics import Effect, Over, difference, summarize, verdict
from raz.report.table_notes import (
    BEST,
    CLAIM_NOTE,
    best_note,
    ceiling_notes,
    import_notes,
    method_note,
    opening_notes,
    problem_notes,
    provenance_notes,
    quartile_notes,
    weights_notes,
)
from raz.report.table_records import cell_records, claim_record, record_name
from raz.spec.ablation import Misprint
from raz.spec.metric_names import REGION_METRICS

# Images of the test splits that the paper's numbers are of, and their heads where the paper states them. The
# annotations circulate in versions that differ by less than 0.5 %.
_PAPER_TEST_SPLIT: dict[str, tuple[int, int | None]] = {
    "shanghaitech_a": (182, 78_862), "shanghaitech_b": (316, 39_121), "worldexpo": (600, None), "ucf_qnrf": (334, None),
}  # fmt: skip


def table_report(
    filled: FilledTable, command: str = "", cost: str = "", over: Over | None = None, stale: Sequence[str] = ()
) -> Report:
    """The report of a filled table: for each data set its cells, the differences to the base row, and its claims.

    `command` fills the table and `cost` says what that takes; both are shown where trials are missing. `over` says
    what differences are taken over; None: seeds where at least two are paired, else images. `stale` are notes on
    results that no longer count (`raz.report.stale`).
    """
    table, profile = filled.table, filled.profile
    misprints = _shown_misprints(filled)
    marks = {id(misprint): f"[{i}]" for i, misprint in enumerate(misprints, 1)}
    sheets: list[TextTable] = []
    records: list[Record] = []
    notes = opening_notes(filled)
    all_effects: set[Effect] = set()
    any_claim = False
    for dataset in profile.datasets:
        effects = differences_to_base(filled, dataset, over)
        all_effects |= set(effects.values())
        best = best_rows(filled, dataset, over)
        sheets.append(_cells_table(filled, dataset, marks, best))
        if effects:
            sheets.append(_differences_table(filled, dataset, effects))
        printed_dataset = filled.printed_dataset(dataset)
        claims = judge_claims(filled, dataset, over, printed_dataset)
        any_claim = any_claim or bool(claims)
        if any(claim.effect or claim.printed is not None for claim in claims):
            sheets.append(_claims_table(filled, dataset, claims, printed_dataset))
        records += cell_records(filled, dataset, effects)
        records += [claim_record(filled, dataset, claim) for claim in claims]
        if best:
            notes.append(best_note(filled, dataset))
    if any_claim:
        notes.append(CLAIM_NOTE)
    if all_effects:
        notes.append(method_note(all_effects, table.base_row))
    notes += quartile_notes(table.metrics)
    notes += [f"{marks[id(misprint)]} {misprint.note}; shown as printed." for misprint in misprints]
    notes += table.notes
    notes += [note for dataset in profile.datasets for note in ceiling_notes(filled, dataset)]
    notes += [note for dataset in profile.datasets for note in provenance_notes(filled, dataset)]
    notes += [note for dataset in profile.datasets for note in device_notes(filled, dataset)]
    notes += weights_notes(filled)
    notes += problem_notes(filled)
    notes += stale
    missing = filled.missing
    if missing:
        where = filled.imported or "the store"
        notes.append(f"{missing} of {filled.wanted} trials (row x data set x seed) are not in {where}.")
    notes += import_notes(filled)
    title = f"{table.table}: {table.title}" if table.title else table.table
    title += f" (imported from {filled.imported})" if filled.imported else ""
    facts: Record = {
        "table": table.table, "title": table.title, "paper": table.paper, "profile": profile.name,
        "preset": profile.preset, "seeds": list(profile.seeds), "missing": missing, "base_row": table.base_row,
        "command": command, **({"imported": filled.imported} if filled.imported else {}),
    }  # fmt: skip
    return Report(title, tuple(sheets), tuple(notes), tuple(records), facts, *((command, cost) if missing else ()))


# ------------------------------------------------------------------------------------ cells


def _shown_misprints(filled: FilledTable) -> list[Misprint]:
    shown = {filled.printed_dataset(dataset) for dataset in filled.profile.datasets}
    return [misprint for misprint in filled.table.misprints if misprint.dataset in shown]


def _comparable(filled: FilledTable, cell: TableCell) -> bool:
    """Whether a cell may get a verdict: profile paper, ImageNet weights, the annotations of the paper's test split."""
    if filled.profile.name != "paper" or cell.config is None or cell.config.backbone.weights != "imagenet":
        return False
    images, heads = _PAPER_TEST_SPLIT.get(cell.dataset, (0, None))
    for trial in cell.scores.values():
        if trial.metrics.get("test.images") != images:
            return False
        if heads is not None and abs(trial.metrics.get("test.heads", 0.0) / heads - 1) > 0.005:
            return False
    return True


def _cells_table(filled: FilledTable, dataset: str, marks: Mapping[int, str], best: Mapping[str, str]) -> TextTable:
    table, profile = filled.table, filled.profile
    metrics = table.metrics_of(dataset)
    printed_dataset = filled.printed_dataset(dataset)
    own = printed_dataset == dataset
    judged = own and profile.name == "paper"
    zooming = any(filled.cells[row.name, dataset].zooms for row in table.rows)
    regions = tuple(f"{table.splits[-1]}.{name}" for name in REGION_METRICS) if zooming else ()

    def columns(metric: str) -> tuple[str, ...]:
        paper = ("paper" if own else f"paper ({filled.title(printed_dataset)})",) if printed_dataset else ()
        return (metric, *paper, *(("diff",) if own and printed_dataset else ()), *(("",) if judged else ()))

    def texts(cell: TableCell, metric: str) -> tuple[str, ...]:
        values = cell.values(metric)
        fewer = f" (n {len(values)})" if 0 < len(values) < len(cell.scores) else ""
        out = [mean_sd(metric, values) + fewer + (BEST if best.get(metric) == cell.row else "")]
        if cell.config is None:
            out = ["quoted"]
        if printed_dataset:
            printed = table.row(cell.row).paper.get(printed_dataset, {}).get(metric)
            misprint = table.misprint(cell.row, printed_dataset, metric)
            out.append(printed_number(metric, printed) + (f" {marks[id(misprint)]}" if misprint else ""))
            if own:
                summary = summarize(values.values())
                trusted = None if misprint else printed
                out.append(number(metric, difference(summary, trusted), sign=True))
                if judged:
                    out.append(verdict(summary, trusted) if _comparable(filled, cell) else "")
        return tuple(out)

    def n(cell: TableCell) -> str:
        return f"{len(cell.scores)}/{len(profile.seeds)}" if cell.config is not None else ""

    cells = [filled.cells[row.name, dataset] for row in table.rows]
    title = filled.title(dataset)
    width = len(columns(""))
    if len(metrics) <= MAX_METRIC_COLUMNS:
        header = ["row", *(text for metric in metrics for text in columns(metric_title(metric))), "n"]
        header += [metric_title(metric) for metric in regions]
        lines = [
            (
                cell.row, *(text for metric in metrics for text in texts(cell, metric)), n(cell),
                *((mean_sd(m, cell.values(m)) if cell.zooms else "") for m in regions),
            )
            for cell in cells
        ]  # fmt: skip
        links = {
            (i, 1 + k * width): record_name(filled, dataset, cell.row, metric)
            for i, cell in enumerate(cells)
            for k, metric in enumerate(metrics)
        }
        return TextTable(title, tuple(header), tuple(lines), cells=links)
    header = ["metric", "row", *columns("mean"), "n"]
    lines = [(metric_title(metric), cell.row, *texts(cell, metric), n(cell)) for metric in metrics for cell in cells]
    links = {
        (k * len(cells) + i, 2): record_name(filled, dataset, cell.row, metric)
        for k, metric in enumerate(metrics)
        for i, cell in enumerate(cells)
    }
    blank = ("",) * (width - 1)
    lines += [
        (metric_title(metric), cell.row, mean_sd(metric, cell.values(metric)), *blank, n(cell))
        for metric in regions
        for cell in cells
        if cell.zooms
    ]
    return TextTable(title, tuple(header), tuple(lines), left=frozenset({0, 1}), cells=links)


# ------------------------------------------------------------------------------------ differences and claims


def interval(metric: str, effect: Effect | None) -> str:
    """`−3.1 [−5.0, −1.2]`, the difference alone where it has no interval, or `-`."""
    if effect is None:
        return number(metric, None)
    value = number(metric, effect.value, sign=True)
    if effect.low is None or effect.high is None:
        return value
    return f"{value} [{number(metric, effect.low, sign=True)}, {number(metric, effect.high, sign=True)}]"


def _over(effect: Effect | None) -> str:
    return f"{effect.n} {effect.over}" if effect else ""


def _p(effect: Effect) -> str:
    if effect.shown_p is None:
        return ""
    return f"{effect.shown_p:.3f}" if effect.shown_p >= 0.001 else "< 0.001"


def _differences_table(filled: FilledTable, dataset: str, effects: Mapping[tuple[str, str], Effect]) -> TextTable:
    table = filled.table
    lines = []
    for metric in table.metrics_of(dataset):
        for row in table.run_rows:
            effect = effects.get((row.name, metric))
            if effect is not None:
                texts = interval(metric, effect), _over(effect), _p(effect), effect.verdict
                lines.append((metric_title(metric), row.name, *texts))
    header = ("metric", "row", f"minus {table.base_row} [95 %]", "over", "p", "")
    return TextTable(f"{filled.title(dataset)}, differences", header, tuple(lines), left=frozenset({0, 1, 3, 5}))


def _claims_table(filled: FilledTable, dataset: str, claims: Sequence[JudgedClaim], printed_dataset: str) -> TextTable:
    lines = []
    for judged in claims:
        metric = judged.metrics[0]
        paper = number(metric, judged.printed, sign=True) + (f" {judged.paper}" if judged.paper else "")
        lines.append(
            (
                judged.claim.say, ", ".join(metric_title(m) for m in judged.metrics), paper,
                interval(metric, judged.effect), _over(judged.effect), judged.ours,
            )
        )  # fmt: skip
    paper = f"the paper's, {filled.title(printed_dataset)}" if printed_dataset else "the paper's"
    header = ("claim", "metric", paper, "ours [95 %]", "over", "in our runs")
    return TextTable(f"{filled.title(dataset)}, claims", header, tuple(lines), left=frozenset({0, 1, 4, 5}))
