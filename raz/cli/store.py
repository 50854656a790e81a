"""`raz-sweep store ls | du | verify | gc`: list, measure, check and clean a store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raz.cli.options import DEFAULT_STORE, DataRoot, Json, Store, resolve_store
from raz.cli.study import print_result

if TYPE_CHECKING:
    from raz.spec.ablation import AblationTable

store_app = typer.Typer(
    help="The contents of a store: list, measure, check and clean them.", no_args_is_help=True, rich_markup_mode=None
)
_Keep = Annotated[
    list[str] | None,
    typer.Option("--keep-table", metavar="FILE", help="Keep what this table of your own needs; repeatable."),
]


def _tables(own: list[str] | None, data_root: Path | None) -> list[AblationTable]:
    from raz.spec.ablation_yaml import load_table
    from raz.utils.shipped import find_shipped, shipped

    paths = [*shipped("ablations").values(), *(find_shipped(name, ("ablations",)) for name in own or [])]
    return [load_table(path, str(path), data_root=data_root) for path in paths]


@store_app.command("ls")
def ls_(
    store: Store = DEFAULT_STORE,
    data_root: DataRoot = None,
    stage: Annotated[str | None, typer.Option(help="Only this stage: counting, zoom …")] = None,
    as_json: Json = False,
) -> None:
    """List the finished stages: key, size, age, and the studies and tables that use them.

    \b
    raz-sweep store ls
    raz-sweep store ls --stage counting --json
    """
    from raz.maintenance.reachability import compute_reachability
    from raz.maintenance.store_reports import describe_artifacts, list_artifacts

    store = resolve_store(store)
    artifacts = list_artifacts(store)
    users: Mapping[tuple[str, str], set[str]] = {}
    if artifacts:
        users = compute_reachability(store, artifacts, data_root=data_root, tables=_tables(None, data_root)).users
    listed = describe_artifacts(store, artifacts, users, stage)
    typer.echo(json.dumps(listed.to_list(), indent=1) if as_json else listed.to_text())


@store_app.command("du")
def du_(store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """Show the disk usage by stage and by cache.

    \b
    raz-sweep store du
    """
    from raz.maintenance.store_reports import disk_usage

    print_result(disk_usage(resolve_store(store)), as_json)


@store_app.command("verify")
def verify_(store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """Verify the digests of every finished stage. Exits 1 when one is damaged.

    A damaged stage is never used: it is made again when a trial needs it.

    \b
    raz-sweep store verify
    """
    from raz.maintenance.store_reports import verify

    result = verify(resolve_store(store))
    print_result(result, as_json)
    raise typer.Exit(1 if result.damaged else 0)


@store_app.command("gc")
def gc_(
    store: Store = DEFAULT_STORE,
    data_root: DataRoot = None,
    keep_table: _Keep = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be deleted; delete nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Delete what no study and no table uses: stages, chains, dead attempts, packs, cached features.

    Everything that the store's studies, the tables run in it, the shipped tables and --keep-table reach is kept.
    Refused while a run works in the store.

    \b
    raz-sweep store gc --dry-run
    raz-sweep store gc --keep-table my_table.yaml --data-root ~/data
    """
    from contextlib import nullcontext

    from raz.maintenance.garbage_collection import CollectionResult, collect, locked_store, plan
    from raz.maintenance.reachability import compute_reachability
    from raz.maintenance.store_reports import list_artifacts

    store = resolve_store(store)
    tables = _tables(keep_table, data_root)
    list_artifacts(store)
    with nullcontext() if dry_run else locked_store(store):
        artifacts = list_artifacts(store)
        planned = plan(store, artifacts, compute_reachability(store, artifacts, data_root=data_root, tables=tables))
        freed = planned.bytes if dry_run else collect(store, planned.garbage)
    print_result(CollectionResult(store, planned, freed, dry_run), as_json)


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.add_typer(store_app, name="store")
