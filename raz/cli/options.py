"""The options that several commands share, so that each has one name, one text and one meaning everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raz.errors import RazError
from raz.store.s3 import download_journals, local_mirror_path

DEFAULT_STORE = Path("raz-store")  # the store, where nothing says otherwise


def _place(text: str) -> Path:
    # click looks at a path of its own kind while it parses
    return local_mirror_path(Path(text))


def nearest_existing(path: Path) -> Path:
    """The path, or the nearest of the folders above it that is there."""
    return next((at for at in (path, *path.absolute().parents) if at.exists()), path)


def expand_folder(path: Path, where: str, hint: str) -> Path:
    """A folder's path with `~` opened; it may not be there yet. Raises RazError where a file stands in its place."""
    path = path.expanduser()
    there = nearest_existing(path)
    if there.exists() and not there.is_dir():
        raise RazError(where, f"{there} is a file, expected a folder", hint)
    return path


def resolve_store(store: Path) -> Path:
    """The folder of a `--store`, or the one that stands for its bucket, with what drivers have noted there. To be
    called by the command itself: what is typed is looked at nowhere else. Raises RazError where a file stands in its
    place, and for a URL that is none."""
    found = expand_folder(local_mirror_path(store), f"store {store}", "--store DIR, or RAZ_STORE")
    download_journals(found)
    return found


def out_folder(out: Path) -> Path:
    """The folder of an `--out`, with `~` opened; called as `resolve_store`. Raises RazError where a file stands in its
    place."""
    return expand_folder(out, f"--out {out}", "another --out")


DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        "--root",
        envvar="RAZ_DATA_ROOT",
        help="The folder that holds the data sets, or s3://….",
        parser=_place,
        metavar="<path>",
    ),
]
Store = Annotated[
    Path,
    typer.Option(
        "--store",
        envvar="RAZ_STORE",
        help="Where studies and stages are kept: a folder, or s3://….",
        parser=Path,
        metavar="<path>",
    ),
]
OutFolder = Annotated[
    Path | None,
    typer.Option("--out", help="Write a picture an image, points.csv and predictions.json here."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a parameter of the base; repeatable.")
]
Profile = Annotated[str | None, typer.Option("--profile", help="Of an ablation: at which scale. Default: toy.")]
