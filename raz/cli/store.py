"""`raz-sweep store ls | du | verify | gc`: list, measure, check and clean a store."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raz.cli.options import DEFAULT_STORE, DataRoot, Json, Store, resolve_store
from raz.cli.study import tell

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
    from raz.errors import RazError
    from raz.maintenance.garbage_collection import list_artifacts
    from raz.maintenance.reachability import compute_reachability
    from raz.utils import formatting

    store = resolve_store(store)
    artifacts = list_artifacts(store)
    users = (
        compute_reachability(store, artifacts, data_root=data_root, tables=_tables(None, data_root)).users
        if artifacts
        else {}
    )
    names = sorted({artifact.stage for artifact in artifacts})
    if stage is not None and stage not in names:
        raise RazError("--stage", f"{store} has no {stage!r}, expected one of {', '.join(names) or 'none'}")
    rows: list[dict[str, Any]] = [
        {
            "stage": artifact.name, "key": artifact.key, "bytes": artifact.bytes,
            "changed": datetime.fromtimestamp(artifact.changed).isoformat(timespec="seconds"),
            "seconds": artifact.manifest.seconds if artifact.manifest else None, "damaged": artifact.manifest is None,
            "users": sorted(users.get((artifact.stage, artifact.key), ())),
        }
        for artifact in artifacts
        if stage in (None, artifact.stage)
    ]  # fmt: skip
    ages = {artifact.key: formatting.duration(max(0.0, time.time() - artifact.changed)) for artifact in artifacts}
    lines = [
        (
            row["stage"],
            row["key"][:16],
            formatting.size(row["bytes"]),
            ages[row["key"]],
            formatting.duration(row["seconds"] or 0.0),
            "damaged" if row["damaged"] else ", ".join(row["users"]) or "nobody",
        )
        for row in rows
    ]
    shown = formatting.columns(("stage", "key", "size", "age", "made in", "used by"), lines, right=(2, 3, 4))
    tell(rows, shown if rows else [f"{store} holds no finished stage yet"], as_json)


@store_app.command("du")
def du_(store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """Show the disk usage by stage and by cache.

    \b
    raz-sweep store du
    """
    from raz.store.inventory import check_store, usage
    from raz.utils import formatting

    store = resolve_store(store)
    check_store(store)
    found = usage(store)
    total = sum(use.bytes for use in found)
    lines = [(use.what, str(use.items), formatting.size(use.bytes)) for use in found] + [
        ("total", "", formatting.size(total))
    ]
    document = {"bytes": total, "parts": [{"what": u.what, "items": u.items, "bytes": u.bytes} for u in found]}
    tell(document, formatting.columns(("what", "items", "size"), lines, right=(1, 2)), as_json)


@store_app.command("verify")
def verify_(store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """Verify the digests of every finished stage. Exits 1 when one is damaged.

    A damaged stage is never used: it is made again when a trial needs it.

    \b
    raz-sweep store verify
    """
    from raz.maintenance.garbage_collection import list_artifacts
    from raz.store.inventory import integrity_errors

    store = resolve_store(store)
    artifacts = list_artifacts(store)
    damaged = [(artifact, found) for artifact in artifacts if (found := integrity_errors(artifact))]
    document = {
        "artifacts": len(artifacts),
        "damaged": [{"stage": a.name, "key": a.key, "path": str(a.path), "faults": found} for a, found in damaged],
    }
    lines = [f"{a.name} {a.key[:16]}: {'; '.join(found)}  ({a.path})" for a, found in damaged]
    tell(document, [*lines, f"{len(artifacts)} stages read, {len(damaged)} damaged"], as_json)
    raise typer.Exit(1 if damaged else 0)


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

    from raz.maintenance.garbage_collection import collect, exclusive, list_artifacts, plan
    from raz.maintenance.reachability import compute_reachability
    from raz.utils import formatting

    store = resolve_store(store)
    tables = _tables(keep_table, data_root)
    list_artifacts(store)
    with nullcontext() if dry_run else exclusive(store):
        artifacts = list_artifacts(store)
        found = plan(store, artifacts, compute_reachability(store, artifacts, data_root=data_root, tables=tables))
        freed = found.bytes if dry_run else collect(store, found.garbage)
    document = {
        "deleted": [{"path": str(g.path.relative_to(store)), "why": g.why, "bytes": g.bytes} for g in found.garbage],
        "bytes": freed, "kept": found.kept, "notes": list(found.notes), "dry_run": dry_run,
    }  # fmt: skip
    lines = [(str(g.path.relative_to(store)), formatting.size(g.bytes), g.why) for g in found.garbage]
    shown = [(what if len(what) < 60 else f"{what[:56]}…", size, why) for what, size, why in lines]
    word = "would be freed" if dry_run else "freed"
    last = f"{formatting.size(freed)} {word}, {len(found.garbage)} things; {found.kept} stages kept"
    table = formatting.columns(("what", "size", "why"), shown, right=(1,)) if shown else []
    tell(document, [*table, *found.notes, last], as_json)


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.add_typer(store_app, name="store")
