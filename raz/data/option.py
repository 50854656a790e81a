"""The options that several commands share, so that each has one name, one text and one meaning everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raz.bucket import bring_notes, place
from raz.errors import RazError

HERE = Path("raz-store")  # the store, where nothing says otherwise


def _noted(root: Path | None) -> Path | None:
    from raz.data import use_root  # after the command line is understood: numpy takes its time

    return use_root(place(root) if root is not None else None)


def standing(path: Path) -> Path:
    """The path, or the nearest of the folders above it that is there."""
    return next((at for at in (path, *path.absolute().parents) if at.exists()), path)


def folder(path: Path, where: str, hint: str) -> Path:
    """A folder's path with `~` opened; it may not be there yet. Raises RazError where a file stands in its place."""
    path = path.expanduser()
    there = standing(path)
    if there.exists() and not there.is_dir():
        raise RazError(where, f"{there} is a file, expected a folder", hint)
    return path


def folder_of(store: Path) -> Path:
    """The store's folder, or the one that stands for its bucket, with what drivers have noted there."""
    found = folder(place(store), f"store {store}", "--store DIR, or RAZ_STORE")
    bring_notes(found)
    return found


def _out(out: Path | None) -> Path | None:
    return None if out is None else folder(out, f"--out {out}", "another --out")


DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        "--root",
        envvar="RAZ_DATA_ROOT",
        help="The folder that holds the data sets, or s3://….",
        callback=_noted,
    ),
]
Store = Annotated[
    Path,
    typer.Option(
        "--store",
        envvar="RAZ_STORE",
        help="Where studies and stages are kept: a folder, or s3://….",
        callback=folder_of,
    ),
]
OutFolder = Annotated[
    Path | None,
    typer.Option("--out", help="Write a picture an image, points.csv and predictions.json here.", callback=_out),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a parameter of the base; repeatable.")
]
Profile = Annotated[str | None, typer.Option("--profile", help="Of an ablation: at which scale. Default: toy.")]
