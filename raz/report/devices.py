"""Which device made which results of a table or of studies, where these are not all of one kind (I5).

A device is known by its name: `cpu`, or that of a GPU. On devices of different names the same configuration gives
results that differ by rounding, and more where a training amplifies it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from raz.pipeline.graph import stage_of
from raz.report.fill import FilledTable
from raz.report.score_index import TrialScores
from raz.utils.formatting import joined

if TYPE_CHECKING:
    from raz.study.records import TrialRecord

MAX_NAMED = 8  # rows or trials that are named; more are counted

Seeds = dict[str, list[int]]  # row -> its seeds


def devices_behind(trial: TrialScores) -> tuple[str, ...]:
    """The devices that trained and ran the networks of a trial; () where none is known."""
    return tuple(sorted({name for made in trial.provenance.values() for name in made.made.get("device", ())}))


def device_notes(filled: FilledTable, dataset: str) -> Iterator[str]:
    """Which trials of a data set were made where, and which rows are compared with the base row across devices.
    Nothing where one device made all."""
    cells = [filled.cells[row.name, dataset] for row in filled.table.run_rows]
    placed: dict[str, Seeds] = {}  # where a trial was made, as `_place` says it
    present: Seeds = {}
    names: set[str] = set()
    for cell in cells:
        for seed, trial in sorted(cell.scores.items()):
            devices = devices_behind(trial)
            if devices:
                names |= {*devices}
                placed.setdefault(_place(trial, devices), {}).setdefault(cell.row, []).append(seed)
                present.setdefault(cell.row, []).append(seed)
    if len(names) < 2:
        return
    title = filled.title(dataset)
    if len(placed) == 1:
        yield f"{title}: every trial was made on different kinds of device, {next(iter(placed))}."
        return
    parts = [f"{_trials(seeds, present)} {place}" for place, seeds in placed.items()]
    yield f"{title}: the trials were made on different kinds of device: {'; '.join(parts)}."
    base = filled.cells[filled.table.base_row, dataset].scores
    across: Seeds = {}
    for cell in cells:
        for seed in sorted({*cell.scores} & {*base}):
            own, other = devices_behind(cell.scores[seed]), devices_behind(base[seed])
            if own and other and own != other:
                across.setdefault(cell.row, []).append(seed)
    if across:
        base_row = filled.table.base_row
        others = {row: seeds for row, seeds in present.items() if row != base_row}
        what = "all other rows" if across == others else _trials(across, others)
        yield f"{title}: {what} and row {base_row} were made on different devices, which is a part of their difference."


def _place(trial: TrialScores, devices: Sequence[str]) -> str:
    """Where a trial was made: `on cpu`; `with counting on A10, the rest on cpu`; `partly on A10, partly on cpu` where
    the stages are unknown, as in files of earlier versions."""
    if len(devices) == 1:
        return f"on {devices[0]}"
    nodes = sorted({text for made in trial.provenance.values() for text in made.made.get("stage device", ())})
    pairs = [(stage_of(node), device) for node, _, device in (text.partition(": ") for text in nodes)]
    if not pairs:
        return f"partly on {', partly on '.join(devices)}"
    most = Counter(device for _, device in pairs)
    rest = max(devices, key=lambda device: (most[device], device == "cpu"))
    parts = []
    for device in devices:
        stages = [*dict.fromkeys(stage for stage, at in pairs if at == device)]
        if device != rest:
            parts.append(f"{joined(stages)} on {device}")
    return f"with {', '.join([*parts, f'the rest on {rest}'])}"


def _trials(chosen: Seeds, present: Seeds) -> str:
    """Trials by row and seed, as briefly as they can be told: `seed 1`, `rows a, b (seed 0)`, `all rows`."""
    common = {tuple(seeds) for seeds in chosen.values()}
    if chosen == present:
        return "all rows"
    if chosen.keys() == present.keys() and len(common) == 1:
        (seeds,) = common
        return f"{'seed' if len(seeds) == 1 else 'seeds'} {joined([*map(str, seeds)])}"
    texts = [
        row
        if seeds == present[row]
        else f"{row} ({'seed' if len(seeds) == 1 else 'seeds'} {joined([*map(str, seeds)])})"
        for row, seeds in chosen.items()
    ]
    more = [f"{len(texts) - MAX_NAMED} more"] if len(texts) > MAX_NAMED else []
    return f"{'row' if len(texts) == 1 else 'rows'} {joined([*texts[:MAX_NAMED], *more])}"


def study_device_notes(studies: Mapping[str, Sequence[TrialRecord]]) -> Iterator[str]:
    """Which finished trials of a study, or of several that are compared, were made where. Nothing where one device made
    all."""
    placed: dict[str, dict[str, list[int]]] = {}  # device -> study -> trials
    for study, records in studies.items():
        for record in records:
            if record.device:
                placed.setdefault(record.device, {}).setdefault(study, []).append(record.number)
    if len(placed) == 1 and len(names := next(iter(placed)).split(", ")) > 1:
        yield f"Every trial was made on different kinds of device, partly on {', partly on '.join(names)}."
    if len(placed) < 2:
        return
    parts = []
    for device, by_study in sorted(placed.items()):
        for study, numbers in by_study.items():
            shown = [*map(str, numbers[:MAX_NAMED])]
            more = [f"{len(numbers) - MAX_NAMED} more"] if len(numbers) > MAX_NAMED else []
            of = f" of {study}" if len(studies) > 1 else ""
            what = "trial" if len(numbers) == 1 else "trials"
            parts.append(f"{what} {joined([*shown, *more])}{of} on {joined(device.split(', '))}")
    yield f"The trials were made on different kinds of device: {'; '.join(parts)}."
