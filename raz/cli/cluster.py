"""`raz-sweep cluster …`: where the shipped cluster files lie, and whether one is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from raz.errors import RazError, RazErrorGroup
from raz.utils.shipped import shipped
from raz.utils.suggestions import did_you_mean

cluster_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Cluster files: where they lie, and whether one is right."
)


def cluster_files() -> dict[str, Path]:
    """Names (without suffix) and paths of the cluster files that come with the package."""
    return {**shipped("cluster"), **shipped("cluster", ".sh")}


@cluster_app.command("check")
def check_command(
    file: Annotated[Path, typer.Argument(help="A cluster file: for `ray up`, KubeRay, or a Slurm script.")],
    with_json: Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else.")] = False,
) -> None:
    """Say what is wrong with a cluster file, with its lines, before anything is paid. Contacts nothing.

    Exits 2 on faults.

    \b
    raz-sweep cluster check cluster/gpu.yaml
    """
    from raz.remote.cluster_file import check_file

    try:
        checked = check_file(file)
    except RazError as error:
        if not with_json:
            raise
        faults = error.faults if isinstance(error, RazErrorGroup) else (error,)
        told = [{"where": fault.where, "what": fault.what, "hint": fault.hint} for fault in faults]
        typer.echo(json.dumps({"ok": False, "faults": told}, indent=1))
        raise typer.Exit(2) from None
    if with_json:
        typer.echo(json.dumps({"ok": True, "kind": checked.kind, "notes": checked.notes}, indent=1))
        return
    typer.echo(f"{file}: {checked.kind}, no fault found")
    for note in checked.notes:
        typer.echo(f"not asked: {note}")


@cluster_app.command("where")
def where_command(
    name: Annotated[str | None, typer.Argument(help="gpu, onprem, …; without it, all of them.")] = None,
    out: Annotated[Path | None, typer.Option(help="Copy it there, to be filled in.")] = None,
) -> None:
    """Say where a shipped cluster file lies, or copy it.

    \b
    raz-sweep cluster where
    raz-sweep cluster where gpu --out my-gpu.yaml
    """
    files = cluster_files()
    if name is None:
        if out is not None:
            raise RazError("--out", "which file is meant was not said", f"raz-sweep cluster where gpu --out {out}")
        for known, path in sorted(files.items()):
            typer.echo(f"{known:<8}  {path}")
        return
    if name not in files:
        raise RazError(
            name, f"no cluster file of this name, there are {', '.join(sorted(files))}", did_you_mean(name, files)
        )
    if out is None:
        typer.echo(files[name])
        return
    with out.open("xb") as target:  # never over a file that was filled in
        target.write(files[name].read_bytes())
    typer.echo(f"wrote {out}; fill in each FILL_IN, then: raz-sweep cluster check {out}")
