"""Find image files from paths, folders and patterns, and give each a unique name."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from raz.errors import RazError, raise_all

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def find_images(arguments: Sequence[str]) -> tuple[Path, ...]:
    """The files, the images directly in folders, and the images that match patterns; each file once, in order.

    Raises RazError naming every argument without an image.
    """
    images: dict[Path, None] = {}
    faults = []
    for text in arguments:
        path = Path(text).expanduser()
        if not text:  # an unset shell variable, which must not mean the current folder
            matches, what = [], "an empty name"
        elif path.is_dir():
            matches = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
            what = f"contains no image ({', '.join(SUFFIXES)})"
        elif path.exists():
            matches, what = [path], ""
        elif glob.has_magic(text):
            matches = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
            matches = [p for p in matches if p.suffix.lower() in SUFFIXES]
            what = "matches no image"
        else:
            matches, what = [], "no such file or folder"
        if not matches:
            faults.append(
                RazError(text or "IMAGE", what, "images, folders of them, or patterns such as 'photos/*.jpg'")
            )
        images |= dict.fromkeys(matches)
    raise_all(faults)
    return tuple(images)


def unique_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """A unique name for each image: its file name, preceded by as many parent folders as needed."""
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
