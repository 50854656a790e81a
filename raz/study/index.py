"""StudySnapshot, the form in which reports, notebooks and listings read a study, and its Parquet index.

    STORE/studies/NAME.parquet      one row per trial; the footer holds the attributes of the study

Replaying a journal of 10,000 trials takes many seconds, reading the index less than one. The index is derived data: it
records the size and modification time of its journal, and is built again if it is missing, damaged, outdated or of
another layout. In a read-only store the journal is replayed and no index is written.
"""

from __future__ import annotations

import json
import os
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
from raz.study.attributes import StudyAttributes, objectives_in, parse_stage_use
from raz.study.journal import journal_path
from raz.study.optuna_internals import fixed_values
from raz.study.records import (
    TrialRecord,
    base_in,
    config_changes,
    is_running,
    load_optuna_study,
    records,
    with_later_fields,
)
from raz.study.remaining import superseded
from raz.study.trial_status import TrialStatus
from raz.utils.atomic import atomic_write
from raz.utils.json_types import Json

SCHEMA_VERSION = 1  # raise it when the same journal gives another index
_COLUMN_TYPES: dict[str, pa.DataType] = {
    "number": pa.int64(), "state": pa.string(), "value": pa.float64(), "reason": pa.string(),
    "message": pa.string(), "seconds": pa.float64(), "retry_of": pa.int64(),
    "started": pa.timestamp("us"), "finished": pa.timestamp("us"),
}  # fmt: skip
_METRIC = "metric "  # prefix of the columns of metrics
_COLUMNS = tuple(f.name for f in fields(TrialRecord) if f.name != "study")
_IN_RECORD = ("values", "parameters", "metrics", "stages", "reason", "message", "seconds", "versions", "retry_of")


@dataclass(frozen=True)
class StudySnapshot:
    """The state of a study at one moment."""

    name: str
    store: Path
    running: bool  # whether a driver holds it
    directions: tuple[str, ...]  # minimize | maximize, one per objective
    attributes: Mapping[str, Json]  # user attributes of the study, read through `recorded`
    trials: tuple[TrialRecord, ...]
    extras: tuple[Mapping[str, Json], ...]  # attributes of each trial that its record lacks: `trace`, `fixed` …

    @cached_property
    def recorded(self) -> StudyAttributes:
        """The user attributes of the study."""
        return StudyAttributes.parse(self.attributes)

    @cached_property
    def meaning(self) -> Mapping[str, Json]:
        """The study's question as `SearchSpace.meaning` records it, with later fields as `with_later_fields` sets them;
        {} for a journal of another tool."""
        return with_later_fields(self.recorded.meaning or {})

    @property
    def metric(self) -> str:
        """The metric of the first objective."""
        return next(iter(objectives_in(self.meaning)), "objective")

    @property
    def objectives(self) -> dict[str, str]:
        """Metric -> minimize | maximize. A journal of another tool names no metrics; `objective 0` … stand for them."""
        names = objectives_in(self.meaning) or (self.metric,)
        if len(names) != len(self.directions):
            names = tuple(f"objective {i}" for i in range(len(self.directions)))
        return dict(zip(names, self.directions, strict=True))

    @property
    def best(self) -> TrialRecord | None:
        """The complete trial with the best objective, the first of several equals; None for several objectives."""
        if len(self.directions) != 1:
            return None
        sign = 1 if self.directions[0] == "minimize" else -1
        done = [trial for trial in self.trials if trial.state == "complete" and trial.value is not None]
        return min(done, key=lambda trial: (sign * (trial.value or 0.0), trial.number), default=None)

    @property
    def front(self) -> tuple[TrialRecord, ...]:
        """The Pareto front of the complete trials, by number; of a single objective, the best trial."""
        if len(self.directions) == 1:
            return () if self.best is None else (self.best,)
        return tuple(sorted(pareto_front(self.trials, self.objectives), key=lambda trial: trial.number))

    def counts(self) -> dict[str, int]:
        """Number of trials by state, without states that no trial has.

        A trial that was retried is not counted, its retry is.
        """
        retried = superseded(self.trials)
        out = dict.fromkeys(("complete", "pruned", "failed", "lost", "running", "waiting"), 0)
        for trial in self.trials:
            if trial.number not in retried:
                out[trial.state] += 1
        return {state: n for state, n in out.items() if n}


def read_study(store: Path, name: str) -> StudySnapshot:
    """The study of this name, from its index if that is up to date, else from its journal.

    Raises RazError when the store has no such study, and when its journal is damaged.
    """
    journal = journal_path(store, name)
    running = is_running(store, name)  # before reading: a driver that ends in between leaves no running trial
    signature = _journal_signature(journal)
    study = None if signature is None else _read(_index_path(journal), signature)
    if study is None:
        study = _replay(store, name)
        if signature is not None:
            _write(_index_path(journal), signature, study)
    trials = study.trials
    if not running:  # the index has the states of the journal: without a driver, running trials are lost
        trials = tuple(
            replace(trial, state=TrialStatus.LOST, reason=trial.reason or FailureReason.LOST)
            if trial.state == TrialStatus.RUNNING
            else trial
            for trial in trials
        )
    return replace(study, store=store, running=running, trials=trials)


def _index_path(journal: Path) -> Path:
    return journal.with_suffix(".parquet")


def _journal_signature(journal: Path) -> dict[str, Json] | None:
    """Identifies a version of the journal and of the index's layout; None where the journal is missing."""
    try:
        with journal.open("rb") as file:  # opening it has a client of NFS ask for its present size and time
            status = os.fstat(file.fileno())
    except OSError:
        return None
    return {"layout": SCHEMA_VERSION, "size": status.st_size, "time": status.st_mtime_ns}


def _replay(store: Path, name: str) -> StudySnapshot:
    study = load_optuna_study(store, name)
    extras = tuple(_extras(trial) for trial in study.get_trials(deepcopy=False))
    directions = tuple(direction.name.lower() for direction in study.directions)
    return StudySnapshot(name, store, True, directions, study.user_attrs, records(study, alive=True), extras)


def _extras(trial: FrozenTrial) -> dict[str, Json]:
    """User attributes that the record lacks; of a waiting trial also the values it was enqueued with (`fixed`)."""
    out: dict[str, Json] = {name: value for name, value in trial.user_attrs.items() if name not in _IN_RECORD}
    fixed = fixed_values(trial)
    return {**out, "fixed": fixed} if fixed and not trial.user_attrs.get("parameters") else out


# ------------------------------------------------------------------ to and from Parquet


def _write(path: Path, signature: Mapping[str, Json], study: StudySnapshot) -> None:
    """Writes the index atomically; does nothing where the store cannot be written."""
    base: Mapping[str, Json] = next((trial.config for trial in study.trials if trial.config), {})
    columns: dict[str, pa.Array] = {}
    for name in _COLUMNS:
        if name == "metrics":  # some fifty numbers per trial: a column each, below
            continue
        column = [getattr(trial, name) for trial in study.trials]
        if name == "config":  # some sixty parameters per trial, few of which differ
            column = [_difference(base, trial.config) for trial in study.trials]
        elif name == "stages":
            column = [[use.to_dict() for use in trial.stages] for trial in study.trials]
        column_type = _COLUMN_TYPES.get(name)
        columns[name] = pa.array(column, column_type) if column_type else pa.array(map(json.dumps, column), pa.string())
    columns["extras"] = pa.array(map(json.dumps, study.extras), pa.string())
    metrics = sorted({name for trial in study.trials for name in trial.metrics})
    for name in metrics:
        columns[_METRIC + name] = pa.array([trial.metrics.get(name) for trial in study.trials], pa.float64())
    footer = {
        "stamp": signature, "columns": list(_COLUMNS), "base": base, "directions": study.directions,
        "attributes": study.attributes,
    }  # fmt: skip
    with suppress(OSError), atomic_write(path) as temporary:
        pq.write_table(pa.table(columns).replace_schema_metadata({"raz": json.dumps(footer)}), temporary)


def _read(path: Path, signature: Mapping[str, Json]) -> StudySnapshot | None:
    """The study in the index; None if the index is missing, damaged, or of another journal."""
    try:
        with pq.ParquetFile(path) as file:  # read_table would import pandas
            table = file.read(use_threads=False)
        footer = json.loads((table.schema.metadata or {})[b"raz"])
        if footer["stamp"] != signature or footer["columns"] != list(_COLUMNS):
            return None
        columns: dict[str, Sequence[Any]] = {"study": [path.stem] * len(table)}
        for name in (*_COLUMNS, "extras"):
            if name == "metrics":
                columns[name] = _metrics(table)
            else:
                column = table.column(name).to_pylist()
                columns[name] = column if name in _COLUMN_TYPES else _parsed(column)
        base = footer["base"]
        configs = (_apply(base, difference) for difference in columns["config"])
        columns["config"] = [completed(config) if config else config for config in configs]
        columns["steps"] = [{int(step): value for step, value in steps.items()} for steps in columns["steps"]]
        columns["state"] = [TrialStatus(state) for state in columns["state"]]
        columns["stages"] = [tuple(map(parse_stage_use, stages)) for stages in columns["stages"]]
        order = [columns[f.name] for f in fields(TrialRecord)]
        trials = tuple(TrialRecord(*row) for row in zip(*order, strict=True))
        directions = tuple(footer["directions"])
        return StudySnapshot(path.stem, path, True, directions, footer["attributes"], trials, tuple(columns["extras"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException):
        return None


def _metrics(table: pa.Table) -> list[dict[str, float]]:
    """The metrics of each trial. A missing metric is null, which NumPy reads as NaN; stored metrics are finite."""
    columns = [name for name in table.column_names if name.startswith(_METRIC)]
    if not columns:
        return [{} for _ in range(len(table))]
    names = [name.removeprefix(_METRIC) for name in columns]
    matrix = np.column_stack([table.column(name).to_numpy() for name in columns])
    complete = ~np.isnan(matrix).any(axis=1)
    return [
        dict(zip(names, row, strict=True)) if full else {n: v for n, v in zip(names, row, strict=True) if v == v}
        for row, full in zip(matrix.tolist(), complete.tolist(), strict=True)
    ]


def _parsed(texts: Sequence[str]) -> list[Any]:
    """The JSON values of a column. Equal texts, such as the versions of all trials, are parsed once and shared."""
    distinct = list(dict.fromkeys(texts))
    values = dict(zip(distinct, json.loads(f"[{','.join(distinct)}]"), strict=True))
    return [values[text] for text in texts]


def _difference(base: Mapping[str, Json], config: Mapping[str, Json]) -> dict[str, Json]:
    """The changes from `base` to `config`, in the form that `_apply` takes."""
    changed, missing = config_changes(base, config)
    return {"set": changed, "without": missing} if missing else {"set": changed}


def _apply(base: Mapping[str, Json], difference: Mapping[str, Any]) -> dict[str, Json]:
    config = {**base, **difference["set"]}
    for name in difference.get("without", ()):
        del config[name]
    return config


def pareto_front(records: Sequence[TrialRecord], objectives: Mapping[str, str]) -> list[TrialRecord]:
    """The complete trials that no other dominates (as good in all objectives, better in one), by the first objective.

    `objectives`: metric -> minimize | maximize. A trial without one of the metrics is left out.
    """
    signs = np.array([1.0 if direction == "minimize" else -1.0 for direction in objectives.values()])
    done = [r for r in records if r.state == "complete" and all(metric in r.objectives for metric in objectives)]
    if not done:
        return []
    losses = signs * np.array([[r.objectives[metric] for metric in objectives] for r in done])
    order = np.lexsort(losses.T[::-1])  # each trial comes after all that dominate it
    front: list[int] = []
    for i in order:
        others = losses[front]
        if not bool(((others <= losses[i]).all(axis=1) & (others < losses[i]).any(axis=1)).any()):
            front.append(int(i))
    return [done[i] for i in front]


def parse_reference(reference: str) -> tuple[str, int | None]:
    """`fusion` -> (fusion, None), `fusion#3` -> (fusion, 3). Raises RazError for anything else."""
    name, mark, number = reference.partition("#")
    if not STUDY_NAME.fullmatch(name) or (mark and not re.fullmatch(r"\d{1,9}", number)):
        raise RazError(reference, "expected a study or a trial of one", "fusion or fusion#3")
    return name, int(number) if mark else None


def split_study(reference: str) -> str:
    """The name of a study. Raises RazError for anything else, also for a trial (`fusion#3`)."""
    name, number = parse_reference(reference)
    if number is not None:
        raise RazError(reference, "is a trial, expected a study", name)
    return name


def trial_index(study: StudySnapshot, number: int) -> int:
    """Index into `study.trials` of the trial with this number. Raises RazError when there is none."""
    if number >= len(study.trials):
        last = len(study.trials) - 1
        expected = f"expected 0 to {last}" if last >= 0 else "it has none yet"
        raise RazError(f"{study.name}#{number}", f"study {study.name} has no trial {number}, {expected}")
    return number


def base_parameters(study: StudySnapshot) -> dict[str, Json]:
    """The base configuration: dotted name -> value; {} for a journal of another tool."""
    return base_in(study.meaning)
