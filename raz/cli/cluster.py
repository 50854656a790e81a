"""`raz-sweep cluster …`: list, copy and check cluster files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from raz.errors import RazError, RazErrorGroup
from raz.utils.shipped import shipped
from raz.utils.suggestions import did_you_mean

cluster_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Cluster files: list, copy and check them.")


def cluster_files() -> dict[str, Path]:
    """Names (without suffix) and paths of the cluster files that come with the package."""
    return {**shipped("cluster"), **shipped("cluster", ".sh")}


@cluster_app.command("check")
def check_command(
    file: Annotated[Path, typer.Argument(help="A cluster file: for `ray up`, KubeRay, or a Slurm script.")],
    with_json: Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else.")] = False,
) -> None:
    """Check a cluster file offline and report every fault with its line, before anything costs money.

    Exits 2 on faults.

    \b
    raz-sweep cluster check cluster/gpu.yaml
    """
    from raz.remote.cluster_file import check_file

    try:
        report = check_file(file)
    except RazError as error:
        if not with_json:
            raise
        faults = error.faults if isinstance(error, RazErrorGroup) else (error,)
        rows = [{"where": fault.where, "what": fault.what, "hint": fault.hint} for fault in faults]
        typer.echo(json.dumps({"ok": False, "faults": rows}, indent=1))
        raise typer.Exit(2) from None
    if with_json:
        typer.echo(json.dumps({"ok": True, "kind": report.kind, "notes": report.notes}, indent=1))
        return
    typer.echo(f"{file}: {report.kind}, no fault found")
    for note in report.notes:
        typer.echo(f"not checked: {note}")


@cluster_app.command("where")
def where_command(
    name: Annotated[str | None, typer.Argument(help="gpu, onprem, …; default: list all.")] = None,
    out: Annotated[Path | None, typer.Option(help="Copy the file there, to be filled in.")] = None,
) -> None:
    """Print the path of a shipped cluster file, or copy the file.

    \b
    raz-sweep cluster where
    raz-sweep cluster where gpu --out my-gpu.yaml
    """
    files = cluster_files()
    if name is None:
        if out is not None:
            raise RazError("--out", "needs the name of a file", f"raz-sweep cluster where gpu --out {out}")
        for known, path in sorted(files.items()):
            typer.echo(f"{known:<8}  {path}")
        return
    if name not in files:
        raise RazError(
            name, f"no cluster file has this name, there are {', '.join(sorted(files))}", did_you_mean(name, files)
        )
    if out is None:
        typer.echo(files[name])
        return
    with out.open("xb") as target:  # never overwrites: the file may have been filled in
        target.write(files[name].read_bytes())
    typer.echo(f"wrote {out}; fill in each FILL_IN, then: raz-sweep cluster check {out}")
