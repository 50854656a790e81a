"""The notes under a table: what its numbers mean, how they were compared, and where they come from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from raz.report.fill import FilledTable
from raz.report.statistics import MIN_RUNS_TO_AGREE, Effect
from raz.spec.metric_names import ONE_TO_ONE_METRICS
from raz.utils.formatting import joined

BEST = " *"  # marks the best row of a column
CLAIM_NOTE = (
    "Each claim is stated before the runs and judged by its own 95 % interval, without correction for the other claims."
)


def opening_notes(filled: FilledTable) -> list[str]:
    """What the cells and the printed numbers are."""
    table, profile = filled.table, filled.profile
    notes = [
        f"Profile {profile.name} (preset {profile.preset}). A cell is the mean ± standard deviation over n independent"
        f" runs; requested seeds: {', '.join(map(str, profile.seeds))}."
    ]
    foreign = [d for d in profile.datasets if d not in table.printed_datasets]
    if not table.printed_datasets:
        return notes
    source = f": {table.paper}" if table.paper else " holds the printed numbers"
    meaning = " Column diff: our mean − the printed number." if len(foreign) < len(profile.datasets) else ""
    notes.append(f"Column paper{source}.{meaning}")
    if any(metric.partition(".")[2].startswith("rmse") for metric in table.metrics):
        notes.append('RMSE is the error that the paper calls "MSE"; it takes the square root.')
    if foreign:
        printed = filled.title(table.printed_datasets[0])
        titles = joined([filled.title(name) for name in foreign])
        notes.append(
            f"The paper's numbers shown for {titles} are those on {printed}, another data set:"
            " compare the order of the rows, not the values."
        )
    if profile.name == "paper":
        notes.append(
            "agrees: the printed number lies inside the 95 % prediction interval of one more run; differs: it lies"
            f" outside. agrees needs at least {MIN_RUNS_TO_AGREE} runs. Verdicts are given only with ImageNet weights"
            " and with the annotations of the paper's test split."
        )
    elif len(foreign) < len(profile.datasets):
        notes.append(f"The paper did not train preset {profile.preset}, so differences are expected.")
    quoted = [row for row in table.rows if row.quoted]
    if quoted:
        notes.append(f"Quoted, not run: {'; '.join(f'{row.name} ({row.source})' for row in quoted)}.")
    return notes


def method_note(effects: Collection[Effect], base_row: str) -> str:
    """How the differences were estimated, and to which population their intervals apply."""
    methods = {
        "seeds": "Over seeds: Student t on differences paired by seed. The intervals are for training again with other"
        " seeds.",
        "images": "Over images: a bootstrap on differences paired by image (studentized and symmetric for counts,"
        " percentiles for AP, AR and F1). The intervals are for these trained models on other images. In simulations"
        " with skewed errors they covered 94 to 97 % of MAE's differences and 90 to 98 % of RMSE's, which a few images"
        " dominate.",
    }
    kinds = sorted({effect.over for effect in effects}, reverse=True)
    return (
        f'Differences are to row {base_row}. Each 95 % interval holds by itself; "differs" and p are Holm-corrected'
        " over all differences of a data set (p is shown from six seeds on)."
        f" {' '.join(methods[kind] for kind in kinds)}"
    )


def best_note(filled: FilledTable, dataset: str) -> str:
    """What the mark BEST in the cells of a data set means."""
    return (
        f"{filled.title(dataset)}:{BEST} marks a row that differs from every other row of its column (Holm-corrected)."
    )


def quartile_notes(metrics: Sequence[str]) -> Iterator[str]:
    """What F1 and the quartiles of local density are, where a metric is of them."""
    stems = [metric.partition(".")[2].partition("@")[0] for metric in metrics]
    if any(stem in ONE_TO_ONE_METRICS for stem in stems):
        yield (
            "F1, precision and recall: counted points matched one to one with heads within that many px of the original"
            " image, as many pairs as possible, all images together."
        )
    if any(stem.endswith(("_q1", "_q2", "_q3", "_q4")) for stem in stems):
        yield (
            "Q1 to Q4: quartiles of all heads of the split by local density, Q1 the sparsest. A head's local density is"
            " one over the squared mean distance to its four nearest heads; a point belongs with its nearest head."
        )


def ceiling_notes(filled: FilledTable, dataset: str) -> Iterator[str]:
    """The errors of the true label maps, next to counts of localized points (reading 14)."""
    counts = any("localization" in m or m.partition("@")[2][:1].isdigit() for m in filled.table.metrics_of(dataset))
    for split in filled.table.splits:
        for row in filled.table.run_rows:
            cell = filled.cells[row.name, dataset]
            counted = counts or (cell.config is not None and cell.config.fusion.rule != "density")
            values = [cell.values(f"{split}.{name}_ceiling") for name in ("mae", "rmse")]
            if counted and all(values):
                mae, rmse = (next(iter(value.values())) for value in values)
                split_title = {"test": "test", "val": "validation"}[split]
                yield (
                    f"{filled.title(dataset)}, {split_title} images: heads closer than 4 px share a label, so counting"
                    f" the peaks of the true label maps gives MAE {mae:.1f}, RMSE {rmse:.1f}. Zooming reduces this"
                    " limit."
                )
                break


def provenance_notes(filled: FilledTable, dataset: str) -> Iterator[str]:
    """One note for each of code, data, torch and pretrained weights in which the rows of a data set differ, networks
    included."""
    rows_by_value: dict[str, dict[str, set[str]]] = {"code": {}, "data": {}, "torch": {}, "pretrained weights": {}}
    for row in filled.table.run_rows:
        for trial in filled.cells[row.name, dataset].scores.values():
            for split, provenance in trial.provenance.items():
                made = provenance.made
                values_by_kind: dict[str, Sequence[str]] = {
                    "code": [value[:12] for value in made.get("code", ())],
                    "data": [provenance.data.get(split, "unknown")[:12] + f" ({split})"],
                    "torch": made.get("torch", ()),
                    "pretrained weights": made.get("weights", ()),
                }
                for kind, values in values_by_kind.items():
                    for value in values:
                        rows_by_value[kind].setdefault(value, set()).add(row.name)
    for kind, by_value in rows_by_value.items():
        expected = len({value.rpartition("(")[2] for value in by_value}) if kind == "data" else 1  # data: one a split
        if len(by_value) > expected:
            rows = "; ".join(f"{value}: {len(names)} rows" for value, names in sorted(by_value.items()))
            yield f"{filled.title(dataset)}: the rows were made by different {kind} ({rows})."


def weights_notes(filled: FilledTable) -> Iterator[str]:
    """That networks started from weights that a file stores in half precision."""
    found = {
        text
        for cell in filled.cells.values()
        for trial in cell.scores.values()
        for provenance in trial.provenance.values()
        for text in provenance.made.get("weights", ())
    }
    for text in sorted(found):
        if "half precision" in text:
            yield f"Trained from {text}: a rounded copy, so results may differ from those of the published weights."


def problem_notes(filled: FilledTable) -> Iterator[str]:
    """Why cells are empty: data sets that could not be opened, and damaged scores."""
    for dataset, problem in filled.problems.items():
        yield problem if problem.startswith(dataset) else f"{dataset}: {problem}"
    for folder in filled.damaged:
        yield f"{folder} is damaged, so its cell stays empty; the command below makes it again."


def import_notes(filled: FilledTable) -> Iterator[str]:
    """That the scores are from a file, what was left out of it, and what could not be checked."""
    if filled.imported:
        scores = sum(len(trial.keys) for cell in filled.cells.values() for trial in cell.scores.values())
        yield f"All {scores} scores are imported from {filled.imported}; none is from a store."
        yield from filled.import_notes
