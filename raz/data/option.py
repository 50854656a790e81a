"""The option that every command with data has: where the data sets lie."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _noted(root: Path | None) -> Path | None:
    from raz.data import use_root  # after the command line is understood: numpy takes its time

    return use_root(root)


DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root", "--root", envvar="RAZ_DATA_ROOT", help="The folder that holds the data sets.", callback=_noted
    ),
]
