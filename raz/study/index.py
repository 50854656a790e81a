"""The Parquet index of a study: what reports, notebooks and listings read instead of replaying the journal.

    STORE/studies/NAME.parquet      a row a trial; the footer holds the study's own attributes

Replaying the journal of 10,000 trials takes many seconds, reading the index well under one. It is derived: it names
the size and the time of the journal it was made from, and one that is missing, damaged, older or of another layout is
made again. Where the store may only be read, the journal is replayed and nothing is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from optuna.trial import FrozenTrial

from raz.config import completed
from raz.errors import FailureReason, RazError
from raz.spec.search_space import STUDY_NAME
from raz.study.journal import journal_path
from raz.study.optuna_internals import fixed_values
from raz.study.records import TrialRecord, TrialStatus, base_in, is_running, load_study, records, with_later_fields
from raz.study.remaining import superseded
from raz.utils.atomic import atomic_write

SCHEMA_VERSION = 1  # raise it when the same journal would give another index
_PLAIN: dict[str, pa.DataType] = {
    "number": pa.int64(), "state": pa.string(), "value": pa.float64(), "reason": pa.string(),
    "message": pa.string(), "seconds": pa.float64(), "retry_of": pa.int64(),
    "started": pa.timestamp("us"), "finished": pa.timestamp("us"),
}  # fmt: skip
_METRIC = "metric "
_NAMES = tuple(f.name for f in fields(TrialRecord) if f.name != "study")
_KNOWN = ("values", "parameters", "metrics", "stages", "reason", "message", "seconds", "versions", "retry_of")


@dataclass(frozen=True)
class StudySnapshot:
    """A study as it stands in the store."""

    name: str
    store: Path
    running: bool  # whether a driver holds it now
    directions: tuple[str, ...]  # minimize | maximize, one an objective
    attributes: Mapping[str, Any]  # of the study: `meaning`, `held_out` …
    trials: tuple[TrialRecord, ...]
    extras: tuple[Mapping[str, Any], ...]  # attributes of each trial that its record leaves out: `trace`, `fixed` …

    @cached_property
    def meaning(self) -> Mapping[str, Any]:
        """What it asks, flat, with the fields that its base lacks since they came later; empty in a journal that
        another tool wrote."""
        told = self.attributes.get("meaning", {})
        return with_later_fields(told) if isinstance(told, Mapping) else {}

    @property
    def metric(self) -> str:
        return str(self.meaning.get("objective.metric", "objective"))

    @property
    def objectives(self) -> dict[str, str]:
        """Metric -> minimize | maximize. A journal of another tool names none, so they are numbered there."""
        others = [metric for metric, _ in self.meaning.get("objective.others", ())]
        names = [self.metric, *others]
        if len(names) != len(self.directions):
            names = [f"objective {i}" for i in range(len(self.directions))]
        return dict(zip(names, self.directions, strict=True))

    @property
    def best(self) -> TrialRecord | None:
        """The complete trial with the best objective; of equals the earliest. None with several objectives."""
        if len(self.directions) != 1:
            return None
        sign = 1 if self.directions[0] == "minimize" else -1
        done = [trial for trial in self.trials if trial.state == "complete" and trial.value is not None]
        return min(done, key=lambda trial: (sign * (trial.value or 0.0), trial.number), default=None)

    @property
    def front(self) -> tuple[TrialRecord, ...]:
        """Of several objectives the complete trials that none beats in every one (Pareto); of one, the best."""
        if len(self.directions) == 1:
            return () if self.best is None else (self.best,)
        return tuple(sorted(pareto_front(self.trials, self.objectives), key=lambda trial: trial.number))

    def counts(self) -> dict[str, int]:
        """Trials by state, in the order of a trial's life; states that no trial has are left out.

        A failed trial that was run again counts once, as what became of it.
        """
        again = superseded(self.trials)
        out = dict.fromkeys(("complete", "pruned", "failed", "lost", "running", "waiting"), 0)
        for trial in self.trials:
            if trial.number not in again:
                out[trial.state] += 1
        return {state: n for state, n in out.items() if n}


def read_study(store: Path, name: str) -> StudySnapshot:
    """The study of this name, out of its index where that is as new as the journal.

    Raises RazError when the store has none of this name, and when its journal is damaged.
    """
    journal = journal_path(store, name)
    running = is_running(store, name)  # asked first: a driver that ends in between leaves nothing running
    stamp = _journal_signature(journal)
    found = None if stamp is None else _read(_path(journal), stamp)
    if found is None:
        found = _replay(store, name)
        if stamp is not None:
            _write(_path(journal), stamp, found)
    trials = found.trials
    if not running:  # the index holds what the journal says; without a living driver, what is RUNNING was lost
        trials = tuple(
            replace(trial, state=TrialStatus.LOST, reason=trial.reason or FailureReason.LOST)
            if trial.state == TrialStatus.RUNNING
            else trial
            for trial in trials
        )
    return replace(found, store=store, running=running, trials=trials)


def _path(journal: Path) -> Path:
    return journal.with_suffix(".parquet")


def _journal_signature(journal: Path) -> dict[str, int] | None:
    try:
        status = journal.stat()
    except OSError:
        return None
    return {"layout": SCHEMA_VERSION, "size": status.st_size, "time": status.st_mtime_ns}


def _replay(store: Path, name: str) -> StudySnapshot:
    study = load_study(store, name)
    frozen = study.get_trials(deepcopy=False)
    extras = tuple(_extras(trial) for trial in frozen)
    directions = tuple(direction.name.lower() for direction in study.directions)
    return StudySnapshot(name, store, True, directions, study.user_attrs, records(study, alive=True), extras)


def _extras(trial: FrozenTrial) -> dict[str, Any]:
    """What the record leaves out; of a waiting trial also the values it was queued with (`fixed`)."""
    out = {name: value for name, value in trial.user_attrs.items() if name not in _KNOWN}
    fixed = fixed_values(trial)
    return {**out, "fixed": fixed} if fixed and not trial.user_attrs.get("parameters") else out


# ------------------------------------------------------------------ to and from Parquet


def _write(path: Path, stamp: Mapping[str, int], study: StudySnapshot) -> None:
    """Aside and renamed. A store that cannot be written is read all the same, only slower."""
    base: Mapping[str, Any] = next((trial.config for trial in study.trials if trial.config), {})
    columns: dict[str, Any] = {}
    for name in _NAMES:
        column = [getattr(trial, name) for trial in study.trials]
        if name == "config":  # sixty names a trial, of which a few differ
            column = [_difference(base, config) for config in column]
        if name == "metrics":  # half a hundred numbers a trial: columns of their own, below
            continue
        kind = _PLAIN.get(name)
        columns[name] = pa.array(column, kind) if kind else pa.array(map(json.dumps, column), pa.string())
    columns["extras"] = pa.array(map(json.dumps, study.extras), pa.string())
    metrics = sorted({name for trial in study.trials for name in trial.metrics})
    for name in metrics:
        columns[_METRIC + name] = pa.array([trial.metrics.get(name) for trial in study.trials], pa.float64())
    about = {
        "stamp": stamp, "columns": list(_NAMES), "base": base, "directions": study.directions,
        "attributes": study.attributes,
    }  # fmt: skip
    with suppress(OSError), atomic_write(path) as aside:
        pq.write_table(pa.table(columns).replace_schema_metadata({"raz": json.dumps(about)}), aside)


def _read(path: Path, stamp: Mapping[str, int]) -> StudySnapshot | None:
    """None where the index is missing, damaged, or of another journal."""
    try:
        with pq.ParquetFile(path) as file:  # read_table would import pandas
            table = file.read(use_threads=False)
        about = json.loads((table.schema.metadata or {})[b"raz"])
        if about["stamp"] != stamp or about["columns"] != list(_NAMES):
            return None
        columns: dict[str, Sequence[Any]] = {"study": [path.stem] * len(table)}
        for name in (*_NAMES, "extras"):
            if name == "metrics":
                columns[name] = _metrics(table)
            else:
                column = table.column(name).to_pylist()
                columns[name] = column if name in _PLAIN else _parsed(column)
        base = about["base"]
        configs = (_apply(base, difference) for difference in columns["config"])
        columns["config"] = [completed(config) if config else config for config in configs]
        columns["steps"] = [{int(step): value for step, value in steps.items()} for steps in columns["steps"]]
        columns["state"] = [TrialStatus(state) for state in columns["state"]]
        columns["stages"] = [tuple(stages) for stages in columns["stages"]]
        order = [columns[f.name] for f in fields(TrialRecord)]
        trials = tuple(TrialRecord(*row) for row in zip(*order, strict=True))
        directions = tuple(about["directions"])
        return StudySnapshot(path.stem, path, True, directions, about["attributes"], trials, tuple(columns["extras"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException):
        return None


def _metrics(table: pa.Table) -> list[dict[str, float]]:
    """A mapping a trial. A metric it lacks is null; none is NaN, which the ledger does not keep."""
    columns = [name for name in table.column_names if name.startswith(_METRIC)]
    if not columns:
        return [{} for _ in range(len(table))]
    names = [name.removeprefix(_METRIC) for name in columns]
    matrix = np.column_stack([table.column(name).to_numpy() for name in columns])
    whole = ~np.isnan(matrix).any(axis=1)
    return [
        dict(zip(names, row, strict=True)) if ok else {n: v for n, v in zip(names, row, strict=True) if v == v}
        for row, ok in zip(matrix.tolist(), whole.tolist(), strict=True)
    ]


def _parsed(texts: Sequence[str]) -> list[Any]:
    """The JSON values; equal texts, such as the versions of a whole study, are read once and shared."""
    distinct = list(dict.fromkeys(texts))
    values = dict(zip(distinct, json.loads(f"[{','.join(distinct)}]"), strict=True))
    return [values[text] for text in texts]


def _difference(base: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    changed = {name: value for name, value in config.items() if name not in base or base[name] != value}
    missing = [name for name in base if name not in config]
    return {"set": changed, "without": missing} if missing else {"set": changed}


def _apply(base: Mapping[str, Any], difference: Mapping[str, Any]) -> dict[str, Any]:
    config = {**base, **difference["set"]}
    for name in difference.get("without", ()):
        del config[name]
    return config


def pareto_front(records: Sequence[TrialRecord], objectives: Mapping[str, str]) -> list[TrialRecord]:
    """Complete trials that no other dominates (as good in all objectives, better in one), by the first objective."""
    signs = np.array([1.0 if direction == "minimize" else -1.0 for direction in objectives.values()])
    done = [r for r in records if r.state == "complete" and all(metric in r.objectives for metric in objectives)]
    if not done:
        return []
    losses = signs * np.array([[r.objectives[metric] for metric in objectives] for r in done])
    order = np.lexsort(losses.T[::-1])  # whatever dominates a trial comes before it
    front: list[int] = []
    for i in order:
        ahead = losses[front]
        if not bool(((ahead <= losses[i]).all(axis=1) & (ahead < losses[i]).any(axis=1)).any()):
            front.append(int(i))
    return [done[i] for i in front]


def parse_reference(reference: str) -> tuple[str, int | None]:
    """`fusion` -> (fusion, None), `fusion#3` -> (fusion, 3). Raises RazError for anything else."""
    name, mark, number = reference.partition("#")
    if not STUDY_NAME.fullmatch(name) or (mark and not re.fullmatch(r"\d{1,9}", number)):
        raise RazError(reference, "expected a study or a trial of one", "fusion or fusion#3")
    return name, int(number) if mark else None


def split_study(reference: str) -> str:
    """The name of a study. Raises RazError for anything else, a trial among them."""
    name, number = parse_reference(reference)
    if number is not None:
        raise RazError(reference, "is a trial, expected a study", name)
    return name


def trial_index(study: StudySnapshot, number: int) -> int:
    """The place of a trial in the study. Raises RazError when it has no such trial."""
    if number >= len(study.trials):
        last = len(study.trials) - 1
        what = f"study {study.name} has no trial {number}, "
        raise RazError(f"{study.name}#{number}", what + (f"expected 0 to {last}" if last >= 0 else "it has none yet"))
    return number


def base_parameters(study: StudySnapshot) -> dict[str, Any]:
    """The base configuration: dotted name -> value; empty where the study does not tell."""
    return base_in(study.meaning)
