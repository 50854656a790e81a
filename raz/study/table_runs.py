"""Notes of the tables that were run in a store, so that garbage collection keeps their stages."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raz.config import TrialConfig, from_parameters, parameters
from raz.errors import RazError
from raz.store.cache import digest, write_json
from raz.store.paths import StorePaths
from raz.study.journal import registration_lock
from raz.utils.json_types import as_list, as_object, as_str, parse_object

if TYPE_CHECKING:
    from raz.spec.ablation import AblationTable


def record_table_run(store: Path, table: AblationTable, profile: str, configs: Iterable[TrialConfig]) -> None:
    """Writes a note with the configurations of the table's trials into the store, unless it has the same note.

    Raises RazError during a garbage collection.
    """
    trials = [parameters(config) for config in configs]
    path = StorePaths(store).table(table.table, digest(trials)[:16])
    with registration_lock(store):  # a running garbage collection would not know of it
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"table": table.table, "profile": profile, "trials": trials})


@dataclass(frozen=True)
class TableRun:
    """A note: the name of a table, and the configurations of its trials."""

    table: str
    configs: tuple[TrialConfig, ...]


def read_table_run(path: Path) -> TableRun:
    """The note in the file, without configurations that this version cannot read.

    Raises RazError where the note is damaged.
    """
    try:
        note = parse_object(path.read_text(encoding="utf-8"))
        table = as_str(note.get("table"), "table")
        trials = [as_object(trial, "trials") for trial in as_list(note.get("trials"), "trials")]
    except ValueError:
        raise RazError(
            str(path), "the note of a table that was run is damaged", "delete it to forget the table"
        ) from None
    configs = []
    for trial in trials:
        with suppress(RazError):
            configs.append(from_parameters(trial))
    return TableRun(table, tuple(configs))
