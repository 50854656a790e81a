"""`raz-sweep init`: write a commented search space for a data set."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from raz.cli.options import DataRoot
from raz.spec.template import run_command, write_space


def init_command(
    dataset: Annotated[str, typer.Option(help="A data set, as `raz-sweep data list` names it.")] = "toy",
    out: Annotated[Path, typer.Option("--out", help="The file to write; its name names the study.")] = Path("my.yaml"),
    data_root: DataRoot = None,
    preset: Annotated[
        str | None,
        typer.Option(help="tiny, small or paper. Default: small for published photographs or with weights, else tiny."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--backbone-weights", help="A file of the preset's pretrained weights: `backbone.weights`."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented search space to start from.

    \b
    raz-sweep init
    raz-sweep init --dataset cells --data-root . --out cells.yaml     a folder that `raz-sweep data add` described
    raz-sweep init --dataset shanghaitech_b --backbone-weights lite0.safetensors --out b.yaml
    """
    study = write_space(out, dataset, preset, weights, force, data_root)
    typer.echo(f"{out}: study {study}; edit it, then: {run_command(dataset, shlex.quote(str(out)), data_root)}")
