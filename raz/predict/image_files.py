"""The images that were named: files, folders and patterns, in a steady order, each with a name of its own."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from raz.errors import RazError, raise_all

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def find_images(given: Sequence[str]) -> tuple[Path, ...]:
    """Every file, the images directly in every folder, and what each pattern matches; each file once.

    Raises RazError naming everything given that leads to no image.
    """
    found: dict[Path, None] = {}
    faults = []
    for text in given:
        path = Path(text).expanduser()
        if not text:  # an unset variable of a shell, not the folder one is in
            inside, what = [], "an empty name"
        elif path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
            what = f"holds no image ({', '.join(SUFFIXES)})"
        elif path.exists():
            inside, what = [path], ""
        elif glob.has_magic(text):
            inside = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
            inside = [p for p in inside if p.suffix.lower() in SUFFIXES]
            what = "matches no image"
        else:
            inside, what = [], "no such file or folder"
        if not inside:
            faults.append(
                RazError(text or "IMAGE", what, "images, folders of them, or patterns such as 'photos/*.jpg'")
            )
        found |= dict.fromkeys(inside)
    raise_all(faults)
    return tuple(found)


def unique_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """A name for each image, its file's, with as much of its folder before it as tells it from the others."""
    names = [path.name for path in paths]
    for depth in range(2, 16):
        clashing = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
        if not clashing:
            break
        names = [
            "/".join(path.absolute().parts[-depth:]) if name in clashing else name
            for name, path in zip(names, paths, strict=True)
        ]
    return tuple(names)
