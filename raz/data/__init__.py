"""Data sets behind one contract: `open_dataset(name, root)` and what it returns.

A new data set is a module with a `Reader` and a line in `DATASETS`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from raz.config import nearest
from raz.data import shanghaitech, toy
from raz.data.contract import Dataset, Found, Item, Reader, Split, Survey
from raz.data.frames import Frames
from raz.data.splits import find_leaks, split_validation
from raz.errors import RazError, raise_all

__all__ = ["DATASETS", "Dataset", "Frames", "Item", "Reader", "Split", "locate", "open_dataset", "survey"]

DATASETS: dict[str, Reader] = {
    "toy": toy.READER,
    "shanghaitech_a": shanghaitech.READER_A,
    "shanghaitech_b": shanghaitech.READER_B,
}


def locate(name: str, root: Path | None = None) -> Path | None:
    """The data set's own folder; None for one that is generated.

    `root` None means the environment's RAZ_DATA_ROOT. Raises RazError for an unknown name, and for a data set
    on disk without a root or whose folder is not there.
    """
    if name not in DATASETS:
        raise RazError("data set", f"unknown name {name!r}", nearest(name, DATASETS))
    reader = DATASETS[name]
    if reader.find is None:
        return None
    if root is None and os.environ.get("RAZ_DATA_ROOT"):
        root = Path(os.environ["RAZ_DATA_ROOT"])
    if root is None:
        raise RazError(
            name, "no folder given to read it from",
            f"--data-root DIR, or set RAZ_DATA_ROOT; the folder holds {reader.layout}",
        )  # fmt: skip
    root = root.expanduser()
    if not root.is_dir():
        raise RazError(str(root), f"no such folder (data root of {name})", "check --data-root and RAZ_DATA_ROOT")
    return reader.find(root)


def survey(name: str, root: Path | None = None) -> tuple[Reader, Survey]:
    """The data set's reader and what it finds, faults included. Raises RazError as `locate` does."""
    folder = locate(name, root)
    return DATASETS[name], DATASETS[name].survey(folder)


def open_dataset(name: str, root: Path | None = None, *, leaks: Literal["drop", "keep"] = "drop") -> Dataset:
    """Open a data set by name: its files are hashed and its annotations read, its images decoded later.

    A training (or validation) image that is byte-identical to a test image is left out with a warning, unless
    `leaks` is "keep". Where the data set ships no validation split, one is made of its training images (24).
    Raises RazError naming every fault of the data set at once.
    """
    reader, seen = survey(name, root)
    raise_all(seen.faults)
    warnings = list(seen.warnings)
    found: dict[Split, tuple[Found, ...]] = dict(seen.found)
    if leaks == "drop":
        dropped = {leak.image: leak.twin for leak in find_leaks(found)}
        for image, twin in dropped.items():
            warnings.append(f"{image} is byte-identical to {twin}: left out of {image.split('/')[0]}")
        found = {split: tuple(f for f in items if f.item.id not in dropped) for split, items in found.items()}
    items: dict[Split, tuple[Item, ...]] = {split: tuple(f.item for f in each) for split, each in found.items()}
    if "val" not in items:
        items["train"], items["val"] = split_validation(items["train"], where=name)
    return Dataset(name, reader.title, _ordered(items), tuple(warnings))


def _ordered(items: Mapping[Split, tuple[Item, ...]]) -> Mapping[Split, tuple[Item, ...]]:
    order: tuple[Split, ...] = ("train", "val", "test")
    return {split: items[split] for split in order}
