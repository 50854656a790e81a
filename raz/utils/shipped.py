"""A name the user typed -> a file: their own path, else the copy in the wheel, else the checkout's."""

from __future__ import annotations

import re
import unicodedata
from importlib.resources import files
from pathlib import Path

from raz.errors import RazError
from raz.utils.suggestions import did_you_mean

FOLDERS = ("search_spaces", "ablations", "cluster")


def roots() -> tuple[Path, ...]:
    """Where the folders of data may lie: inside the installed package, then beside it in a checkout.

    Through `files("raz")`, since the folders are no packages of their own: an editable install has no
    `raz.search_spaces`.
    """
    package = Path(str(files("raz")))
    return (package, package.parent)


def shipped(folder: str, suffix: str = ".yaml") -> dict[str, Path]:
    """Names (without suffix) and paths of the files that come with the package in one of FOLDERS."""
    if folder not in FOLDERS:
        raise ValueError(f"folder is {folder!r}, expected one of {FOLDERS}")
    for root in roots():
        found = sorted((root / folder).glob(f"*{suffix}"))
        if found:
            return {path.stem: path for path in found}
    return {}


def slugify(text: str, joint: str, otherwise: str) -> str:
    """A name of a-z, 0-9, _ and - out of any text, at most 64 long: `Köln Süd` -> `koln_sud`."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9_-]+", joint, plain).strip("_-")[:64] or otherwise


def find_shipped(name: str, folders: tuple[str, ...] = ("search_spaces", "ablations")) -> Path:
    """The file meant by `name`: `my/file.yaml`, `search_spaces/fusion.yaml` or only `fusion`.

    Raises RazError when there is none, naming the nearest that comes with the package, and when a
    bare name lies in two folders.
    """
    if not name:  # an unset variable of a shell
        raise RazError("FILE", "an empty name", "raz-sweep run fusion")
    own = Path(name).expanduser()
    if own.is_file():
        return own
    if own.is_dir():
        raise RazError(name, "this is a folder, expected a YAML file", f"{name.rstrip('/')}/NAME.yaml")
    names: dict[str, Path] = {}
    bare: dict[str, list[str]] = {}
    for folder in folders:
        for stem, path in shipped(folder).items():
            names[f"{folder}/{stem}.yaml"] = path
            bare.setdefault(stem, []).append(f"{folder}/{stem}.yaml")
    if f"{name.removesuffix('.yaml')}.yaml" in names:
        return names[f"{name.removesuffix('.yaml')}.yaml"]
    meant = bare.get(name.removesuffix(".yaml"), [])
    if len(meant) == 1:
        return names[meant[0]]
    if meant:
        raise RazError(name, "two files have this name", " or ".join(meant))
    raise RazError(name, "no such file", did_you_mean(Path(name).stem, bare))
