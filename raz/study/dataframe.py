"""A study as a pandas DataFrame, for notebooks and for CSV and Parquet files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from raz.store import s3, s3_journals
from raz.study.index import StudySnapshot, read_study

if TYPE_CHECKING:
    import pandas

FIRST_COLUMNS = ("number", "state", "reason", "objective")
LAST_COLUMNS = ("seconds", "started", "finished", "retry_of", "hits", "stages", "steps", "pruned_at", "commit", "torch")


def load_study(name: str, *, store: str | Path | None = None) -> pandas.DataFrame:
    """The trials of a study, one row each, in the order of their numbers.

    Columns: `number`, `state` (complete, pruned, failed, lost, running, waiting), `reason` of a failure, `objective`;
    each searched parameter by its dotted name (NA where it was not active); each metric by its dotted name
    (`val.mae`); then `seconds`, `started`, `finished`, `retry_of`, `hits` (stages found in the store) of `stages`,
    `steps` (epochs reported), `pruned_at` (the step), `commit` and `torch` it ran with. `.attrs` has the study's
    `metric`, `directions` and `meaning`.

    `store` is by default the environment's RAZ_STORE, else `raz-store`. Raises RazError when it has no such study.
    """
    root = Path(store if store is not None else os.environ.get("RAZ_STORE", "raz-store"))
    path = s3.local_mirror_path(root).expanduser()
    s3_journals.download_journals(path)
    return frame(read_study(path, name))


def frame(study: StudySnapshot) -> pandas.DataFrame:
    """The trials of a study as a DataFrame. See `load_study`."""
    import pandas

    searched = list(dict.fromkeys(name for trial in study.trials for name in trial.values))
    metrics = sorted({name for trial in study.trials for name in trial.metrics})
    rows = []
    for trial in study.trials:
        row = {
            "number": trial.number, "state": str(trial.state), "reason": trial.reason or None, "objective": trial.value,
            **trial.values, **trial.metrics,
            "seconds": trial.seconds, "started": trial.started, "finished": trial.finished,
            "retry_of": trial.retry_of, "hits": sum(stage.hit for stage in trial.stages),
            "stages": len(trial.stages), "steps": len(trial.steps),
            "pruned_at": trial.pruned_at[0] if trial.pruned_at else None,
            "commit": trial.versions.get("commit"), "torch": trial.versions.get("torch"),
        }  # fmt: skip
        rows.append(row)
    table = pandas.DataFrame(rows, columns=[*FIRST_COLUMNS, *searched, *metrics, *LAST_COLUMNS])
    table = table.astype({"objective": "float64", "retry_of": "Int64", "pruned_at": "Int64"})
    for name in searched:  # integers stay integers if some trials lack the parameter
        kinds = {type(trial.values[name]) for trial in study.trials if name in trial.values}
        if kinds == {int}:
            table[name] = table[name].astype("Int64")
    table.attrs = {
        "study": study.name, "metric": study.metric, "directions": list(study.directions),
        "meaning": dict(study.meaning),
    }  # fmt: skip
    return table
