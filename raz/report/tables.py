"""What a report says of a filled table: the numbers beside the printed ones, differences, claims, provenance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raz.report.comparisons import JudgedClaim, best_rows, differences_to_base, judge_claims
from raz.report.fill import Cell, FilledTable
from raz.report.layout import WIDEST, Report, TextTable, digits, mean_sd, metric_title, number, printed_number
from raz.report.statistics import Effect, Over, difference, summarize, verdict
from raz.spec.ablation import REGIONS, Misprint

BEST = " *"
# The test splits the paper's numbers are of: images, and heads where their number is known. The annotations circulate
# in versions that differ by less than 0.5 %.
_TEST_SPLIT: dict[str, tuple[int, int | None]] = {
    "shanghaitech_a": (182, 78_862), "shanghaitech_b": (316, 39_121), "worldexpo": (600, None), "ucf_qnrf": (334, None),
}  # fmt: skip


def table_report(
    filled: FilledTable, command: str = "", cost: str = "", over: Over | None = None, stale: Sequence[str] = ()
) -> Report:
    """The filled table: for each data set its cells, the differences to the base row, and its claims.

    `command` is what fills it and `cost` what that takes, both shown when something is missing. `over` says what
    differences are taken over; None: seeds, where two are paired, else images. `stale` are notes on results that no
    longer count (`raz.report.stale`).
    """
    table, profile = filled.table, filled.profile
    marks = {id(m): f"[{i}]" for i, m in enumerate(_shown_misprints(filled), 1)}
    sheets: list[TextTable] = []
    records: list[Mapping[str, Any]] = []
    notes = _opening_notes(filled)
    told: dict[str, dict[tuple[str, str], Effect]] = {}
    for dataset in profile.datasets:
        effects = told[dataset] = differences_to_base(filled, dataset, over)
        best = best_rows(filled, dataset, over)
        sheets.append(_sheet(filled, dataset, marks, best))
        if effects:
            sheets.append(_differences(filled, dataset, effects))
        beside = _printed_dataset(filled, dataset)
        claims = judge_claims(filled, dataset, over, beside)
        if any(claim.effect or claim.printed is not None for claim in claims):
            sheets.append(_claims(filled, dataset, claims, beside))
        records += _records(filled, dataset, effects)
        records += [_claim_record(filled, dataset, claim) for claim in claims]
        if best:
            notes.append(f"{filled.title(dataset)}:{BEST} differs from every other row of its column (corrected).")
    if any("ours" in record for record in records):
        notes.append("A claim is one question asked before the runs, so it is judged by its own interval, uncorrected.")
    if any(told.values()):
        notes.append(_method_note({e for of in told.values() for e in of.values()}, table.base_row))
    notes += [f"{marks[id(m)]} {m.note}; shown as printed." for m in _shown_misprints(filled)]
    notes += table.notes
    notes += [line for dataset in profile.datasets for line in _ceiling(filled, dataset)]
    notes += [line for dataset in profile.datasets for line in _provenance_notes(filled, dataset)]
    notes += [f"{dataset}: {trouble}" for dataset, trouble in filled.troubles.items()]
    notes += [f"{folder} is damaged, so its cell stays empty: the command below makes it anew."
              for folder in filled.damaged]  # fmt: skip
    notes += stale
    missing = filled.missing
    if missing:
        notes.append(f"{missing} of {filled.wanted} trials (row x data set x seed) are not in the store.")
    title = f"{table.table}: {table.title}" if table.title else table.table
    facts = {
        "table": table.table, "title": table.title, "paper": table.paper, "profile": profile.name,
        "preset": profile.preset, "seeds": list(table.seeds), "missing": missing, "base_row": table.base_row,
        "command": command,
    }  # fmt: skip
    return Report(title, tuple(sheets), tuple(notes), tuple(records), facts, *((command, cost) if missing else ()))


# ------------------------------------------------------------------------------------ notes


def _opening_notes(filled: FilledTable) -> list[str]:
    table, profile = filled.table, filled.profile
    notes = [
        f"Profile {profile.name} (preset {profile.preset}). Mean ± standard deviation over n independent runs"
        f" (seeds {', '.join(map(str, table.seeds))} asked for)."
    ]
    foreign = [d for d in profile.datasets if d not in table.printed_datasets]
    if not table.printed_datasets:
        return notes
    source = f": {table.paper}" if table.paper else ""
    meaning = " diff = mean − printed." if len(foreign) < len(profile.datasets) else ""
    notes.append(f"paper{source}.{meaning}")
    if any(metric.partition(".")[2].startswith("rmse") for metric in table.metrics):
        notes.append('RMSE is what the paper heads "MSE": the root is taken.')
    if foreign:
        beside = filled.title(table.printed_datasets[0])
        shown = _join_titles([filled.title(name) for name in foreign])
        notes.append(
            f"The numbers beside {shown} are the paper's on {beside}, another data set:"
            " compare the order of the rows, not the values."
        )
    if profile.name == "paper":
        notes.append(
            "agrees: the printed number lies where 95 % of single further runs would, told from three runs on; given"
            " for ImageNet weights on the annotations that the paper's test split has."
        )
    elif len(foreign) < len(profile.datasets):
        notes.append(f"Preset {profile.preset} is not what the paper trained, so a difference is to be expected.")
    quoted = [row for row in table.rows if row.quoted]
    if quoted:
        notes.append(f"Quoted, not run: {'; '.join(f'{row.name} ({row.source})' for row in quoted)}.")
    return notes


def _method_note(effects: set[Effect], base: str) -> str:
    """Which population the intervals are of."""
    words = {
        "seeds": "over seeds: Student t on differences paired by seed, a claim about training again",
        "images": "over images: a bootstrap on differences paired by image (studentized and symmetric for counts,"
        " percentiles for AP and AR), a claim about these trained models on other images; on skewed errors it was seen"
        " to hold 94 to 97 % of MAE's differences and 90 to 98 % of RMSE's, which few images decide",
    }
    kinds = sorted({effect.over for effect in effects}, reverse=True)
    which = ". ".join(words[kind][0].upper() + words[kind][1:] for kind in kinds)
    return (
        f"Differences are to {base}; each 95 % interval holds by itself, while `differs` and p are Holm-corrected over"
        f" a sheet (p is shown from six seeds on). {which}."
    )


def _ceiling(filled: FilledTable, dataset: str) -> Iterator[str]:
    """What the true label maps give back, beside counts of localized points (14)."""
    counts = any("localization" in m or m.partition("@")[2][:1].isdigit() for m in filled.table.metrics_of(dataset))
    for split in filled.table.splits:
        for row in filled.table.run_rows:
            cell = filled.cells[row.name, dataset]
            counted = counts or (cell.config is not None and cell.config.fusion.rule != "density")
            values = [cell.values(f"{split}.{name}_ceiling") for name in ("mae", "rmse")]
            if counted and all(values):
                mae, rmse = (next(iter(value.values())) for value in values)
                words = {"test": "test", "val": "validation"}[split]
                yield (
                    f"{filled.title(dataset)}, {words} images: heads nearer than 4 px share a label, so the true label"
                    f" maps themselves give back MAE {mae:.1f}, RMSE {rmse:.1f}; zooming is what lifts it."
                )
                break


def _provenance_notes(filled: FilledTable, dataset: str) -> Iterator[str]:
    """A line for each of code, data and kind of device in which the rows of a data set differ, networks included."""
    seen: dict[str, dict[str, set[str]]] = {"code": {}, "data": {}, "kinds of device": {}, "torch": {}}
    for row in filled.table.run_rows:
        for found in filled.cells[row.name, dataset].found.values():
            for split, about in found.about.items():
                made = about.get("made") or {}
                facts = {
                    "code": [value[:12] for value in made.get("code", ())],
                    "data": [str((about.get("data") or {}).get(split, "unknown"))[:12] + f" ({split})"],
                    "kinds of device": made.get("device", ()),
                    "torch": made.get("torch", ()),
                }
                for kind, values in facts.items():
                    for value in values:
                        seen[kind].setdefault(value, set()).add(row.name)
    for kind, values in seen.items():
        by_split = len({value.rpartition("(")[2] for value in values}) if kind == "data" else 1
        if len(values) > by_split:
            rows = "; ".join(f"{value}: {len(names)} rows" for value, names in sorted(values.items()))
            yield f"{filled.title(dataset)}: the rows were made by different {kind} ({rows})."


def _join_titles(titles: Sequence[str]) -> str:
    return titles[0] if len(titles) == 1 else ", ".join(titles[:-1]) + " and " + titles[-1]


# ------------------------------------------------------------------------------------ cells


def _shown_misprints(filled: FilledTable) -> list[Misprint]:
    shown = {_printed_dataset(filled, dataset) for dataset in filled.profile.datasets}
    return [m for m in filled.table.misprints if m.dataset in shown]


def _printed_dataset(filled: FilledTable, dataset: str) -> str:
    """The data set whose printed numbers stand beside: its own, else the table's first, else none."""
    printed = filled.table.printed_datasets
    return dataset if dataset in printed else (printed[0] if printed else "")


def _comparable(filled: FilledTable, cell: Cell) -> bool:
    """Whether a cell may be held to the printed number: profile paper, ImageNet weights, the same annotations."""
    if filled.profile.name != "paper" or cell.config is None or cell.config.backbone.weights != "imagenet":
        return False
    images, heads = _TEST_SPLIT.get(cell.dataset, (0, None))
    for found in cell.found.values():
        if found.metrics.get("test.images") != images:
            return False
        if heads is not None and abs(found.metrics.get("test.heads", 0.0) / heads - 1) > 0.005:
            return False
    return True


def _sheet(filled: FilledTable, dataset: str, marks: Mapping[int, str], best: Mapping[str, str]) -> TextTable:
    table, profile = filled.table, filled.profile
    metrics = table.metrics_of(dataset)
    beside = _printed_dataset(filled, dataset)
    own = beside == dataset
    judged = own and profile.name == "paper"
    zooming = any(filled.cells[row.name, dataset].zooms for row in table.rows)
    regions = tuple(f"{table.splits[-1]}.{name}" for name in REGIONS) if zooming else ()

    def columns(metric: str) -> tuple[str, ...]:
        paper = ("paper" if own else f"paper ({filled.title(beside)})",) if beside else ()
        return (metric, *paper, *(("diff",) if own and beside else ()), *(("",) if judged else ()))

    def texts(cell: Cell, metric: str) -> tuple[str, ...]:
        values = cell.values(metric)
        short = f" (n {len(values)})" if 0 < len(values) < len(cell.found) else ""
        out = [mean_sd(metric, values) + short + (BEST if best.get(metric) == cell.row else "")]
        if cell.config is None:
            out = ["quoted"]
        if beside:
            value = table.row(cell.row).paper.get(beside, {}).get(metric)
            misprint = table.misprint(cell.row, beside, metric)
            out.append(printed_number(metric, value) + (f" {marks[id(misprint)]}" if misprint else ""))
            if own:
                summary = summarize(values.values())
                trusted = None if misprint else value
                out.append(number(metric, difference(summary, trusted), sign=True))
                if judged:
                    out.append(verdict(summary, trusted) if _comparable(filled, cell) else "")
        return tuple(out)

    def n(cell: Cell) -> str:
        return f"{len(cell.found)}/{len(table.seeds)}" if cell.config is not None else ""

    cells = [filled.cells[row.name, dataset] for row in table.rows]
    title = f"{filled.title(dataset)}"
    width = len(columns(""))
    if len(metrics) <= WIDEST:
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
            (i, 1 + k * width): _name(filled, dataset, cell.row, metric)
            for i, cell in enumerate(cells)
            for k, metric in enumerate(metrics)
        }
        return TextTable(title, tuple(header), tuple(lines), cells=links)
    header = ["metric", "row", *columns("mean"), "n"]
    lines = [(metric_title(metric), cell.row, *texts(cell, metric), n(cell)) for metric in metrics for cell in cells]
    links = {
        (k * len(cells) + i, 2): _name(filled, dataset, cell.row, metric)
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


def _name(filled: FilledTable, dataset: str, row: str, metric: str) -> str:
    """What a record is called, so that a cell can point at it."""
    return f"{filled.table.table}/{dataset}/{row}/{metric}"


# ------------------------------------------------------------------------------------ differences and claims


def interval(metric: str, effect: Effect | None) -> str:
    """`−3.1 [−5.0, −1.2]`, or the difference alone, or `-`."""
    if effect is None:
        return number(metric, None)
    value = number(metric, effect.value, sign=True)
    if effect.low is None or effect.high is None:
        return value
    return f"{value} [{number(metric, effect.low, sign=True)}, {number(metric, effect.high, sign=True)}]"


def _over(effect: Effect | None) -> str:
    return f"{effect.n} {effect.over}" if effect else ""


def _p(effect: Effect | None) -> str:
    if effect is None or effect.shown_p is None:
        return ""
    return f"{effect.shown_p:.3f}" if effect.shown_p >= 0.001 else "< 0.001"


def _verdict_text(effect: Effect) -> str:
    if effect.p is None:
        return "one run"
    return "the same" if effect.same else "differs" if effect.differs else "cannot tell"


def _differences(filled: FilledTable, dataset: str, effects: Mapping[tuple[str, str], Effect]) -> TextTable:
    table = filled.table
    lines = []
    for metric in table.metrics_of(dataset):
        for row in table.run_rows:
            effect = effects.get((row.name, metric))
            if effect is not None:
                told = interval(metric, effect), _over(effect), _p(effect), _verdict_text(effect)
                lines.append((metric_title(metric), row.name, *told))
    header = ("metric", "row", f"minus {table.base_row} [95 %]", "over", "p", "")
    return TextTable(f"{filled.title(dataset)}, differences", header, tuple(lines), left=frozenset({0, 1, 3, 5}))


def _claims(filled: FilledTable, dataset: str, claims: Sequence[JudgedClaim], beside: str) -> TextTable:
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
    paper = f"the paper's, {filled.title(beside)}" if beside else "the paper's"
    header = ("claim", "metric", paper, "ours [95 %]", "over", "in our runs")
    return TextTable(f"{filled.title(dataset)}, claims", header, tuple(lines), left=frozenset({0, 1, 4, 5}))


# ------------------------------------------------------------------------------------ records


def _records(
    filled: FilledTable, dataset: str, effects: Mapping[tuple[str, str], Effect]
) -> Iterator[Mapping[str, Any]]:
    """One record a row and metric, with the trials behind it; printed numbers only where they are of this data set."""
    table = filled.table
    for row in table.rows:
        cell = filled.cells[row.name, dataset]
        extra = [f"{split}.{name}" for split in table.splits for name in REGIONS] if cell.zooms else []
        for metric in dict.fromkeys([*table.metrics_of(dataset), *extra]):
            values = cell.values(metric)
            summary = summarize(values.values())
            printed = row.paper.get(dataset, {}).get(metric)
            misprint = table.misprint(row.name, dataset, metric)
            effect = effects.get((row.name, metric))
            yield {
                "name": _name(filled, dataset, row.name, metric), "table": table.table,
                "profile": filled.profile.name, "dataset": dataset, "row": row.name, "metric": metric,
                "n": summary.n, "mean": summary.mean, "sd": summary.sd, "printed": printed,
                "difference": difference(summary, None if misprint else printed),
                "misprint": misprint.note if misprint else "", "source": row.source, "set": dict(row.set),
                "to_base": _effect_record(effect), "digits": digits(metric),
                "values": {str(seed): value for seed, value in values.items()},
                "trials": _trials(cell, metric),
            }  # fmt: skip


def _trials(cell: Cell, metric: str) -> list[dict[str, Any]]:
    """Where each value comes from."""
    split, out = metric.partition(".")[0], []
    for seed, found in cell.found.items():
        about = found.about.get(split, {})
        versions = about.get("versions") or {}
        out.append(
            {
                "seed": seed, "value": found.metrics.get(metric), "score": found.keys.get(split, ""),
                "commit": versions.get("commit", ""), "torch": versions.get("torch", ""),
                "device": about.get("device", ""),
            }
        )  # fmt: skip
    return out


def _effect_record(effect: Effect | None) -> dict[str, Any] | None:
    if effect is None:
        return None
    return {
        "over": effect.over, "n": effect.n, "value": effect.value, "low": effect.low, "high": effect.high,
        "p": effect.shown_p, "differs": effect.differs,
    }  # fmt: skip


def _claim_record(filled: FilledTable, dataset: str, judged: JudgedClaim) -> dict[str, Any]:
    return {
        "table": filled.table.table, "profile": filled.profile.name, "dataset": dataset, "claim": judged.claim.say,
        "metric": " - ".join(judged.metrics), "printed": judged.printed, "paper": judged.paper,
        "to_base": _effect_record(judged.effect), "ours": judged.ours,
    }  # fmt: skip
