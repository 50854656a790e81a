"""Files that come with the package, found by name: in the installed package, else in the checkout."""

from __future__ import annotations

import re
import unicodedata
from importlib.resources import files
from pathlib import Path

from raz.errors import RazError
from raz.utils.suggestions import did_you_mean

FOLDERS = ("search_spaces", "ablations", "cluster")


def roots() -> tuple[Path, ...]:
    """Folders that may hold FOLDERS: the installed package, then its parent, which is a checkout.

    They are found through `files("raz")`: FOLDERS are no packages, so an editable install has no `raz.search_spaces`.
    """
    package = Path(str(files("raz")))
    return (package, package.parent)


def shipped(folder: str, suffix: str = ".yaml") -> dict[str, Path]:
    """Name without suffix -> path of the package's files in a folder. Raises ValueError for none of FOLDERS."""
    if folder not in FOLDERS:
        raise ValueError(f"folder is {folder!r}, expected one of {FOLDERS}")
    for root in roots():
        paths = sorted((root / folder).glob(f"*{suffix}"))
        if paths:
            return {path.stem: path for path in paths}
    return {}


def slugify(text: str, joint: str, otherwise: str) -> str:
    """A name of a-z, 0-9, _ and - made of any text: `Köln Süd` -> `koln_sud`, at most 64 characters.

    joint: replaces each run of other characters.
    otherwise: the name where nothing is left.
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9_-]+", joint, plain).strip("_-")[:64] or otherwise


def find_shipped(name: str, folders: tuple[str, ...] = ("search_spaces", "ablations")) -> Path:
    """The file that `name` means: a path, `search_spaces/fusion.yaml`, or only `fusion`.

    Raises RazError when there is no such file, with the nearest name in the package, and when two folders have it.
    """
    if not name:  # an unset shell variable
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
    matches = bare.get(name.removesuffix(".yaml"), [])
    if len(matches) == 1:
        return names[matches[0]]
    if matches:
        raise RazError(name, "two files have this name", " or ".join(matches))
    raise RazError(name, "no such file", did_you_mean(Path(name).stem, bare))
