"""Which tables were run in a store, so that garbage collection keeps their stages."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from raz.config import TrialConfig, from_parameters, parameters
from raz.errors import RazError
from raz.store.cache import digest, write_json
from raz.store.paths import StorePaths
from raz.study.journal import registration_lock

if TYPE_CHECKING:
    from raz.spec.ablation import AblationTable


def record_table_run(store: Path, table: AblationTable, profile: str, configs: Iterable[TrialConfig]) -> None:
    """Notes that this table was run in the store, with the trials' configurations."""
    trials = [parameters(config) for config in configs]
    path = StorePaths(store).table(table.table, digest(trials)[:16])
    with registration_lock(store):  # a collection that has begun would not know of it
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"table": table.table, "profile": profile, "trials": trials})


def _remembered(path: Path) -> list[tuple[str, TrialConfig]]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        title, trials = str(told["table"]), [dict(trial) for trial in told["trials"]]
    except (ValueError, KeyError, TypeError):
        raise RazError(
            str(path), "the note of a table that was run is damaged", "delete it to forget the table"
        ) from None
    out = []
    for trial in trials:
        try:
            out.append((title, from_parameters(trial)))
        except RazError:  # of a version with other names
            continue
    return out
