"""Options that several commands share: one name, one text and one meaning everywhere.

Parsing an option does no I/O; a command resolves its paths in its body (`resolve_store`, `out_folder`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raz.errors import RazError
from raz.store.s3 import local_mirror_path
from raz.store.s3_journals import download_journals

DEFAULT_STORE = Path("raz-store")  # without --store and RAZ_STORE


def _parse_location(text: str) -> Path:
    # A function, not click's path type: that one calls stat while it parses.
    return local_mirror_path(Path(text))


def nearest_existing(path: Path) -> Path:
    """The path itself, or its nearest parent that exists."""
    return next((at for at in (path, *path.absolute().parents) if at.exists()), path)


def expand_folder(path: Path, where: str, hint: str) -> Path:
    """The folder's path with `~` expanded; it need not exist. Raises RazError if it, or a parent, is a file."""
    path = path.expanduser()
    existing = nearest_existing(path)
    if existing.exists() and not existing.is_dir():
        raise RazError(where, f"{existing} is a file, expected a folder", hint)
    return path


def resolve_store(store: Path) -> Path:
    """The local folder of `--store`: of an s3:// URL the mirror folder, with the bucket's journals downloaded.

    Each command calls it in its body. Raises RazError for a file and for a malformed URL.
    """
    folder = expand_folder(local_mirror_path(store), f"store {store}", "--store DIR, or RAZ_STORE")
    download_journals(folder)
    return folder


def out_folder(out: Path) -> Path:
    """The folder of `--out` with `~` expanded. Raises RazError for a file. Each command calls it in its body."""
    return expand_folder(out, f"--out {out}", "another --out")


DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        "--root",
        envvar="RAZ_DATA_ROOT",
        help="The folder that holds the data sets, or s3://….",
        parser=_parse_location,
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
    typer.Option("--out", help="Write a picture an image, counts.csv, points.csv and predictions.json here."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a parameter of the base; repeatable.")
]
Profile = Annotated[
    str | None, typer.Option("--profile", help="The scale, of those in the file: toy, small or paper. Default: toy.")
]
