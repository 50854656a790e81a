"""Data sets behind one contract: `open_dataset(name, root)` and what it returns.

A new data set is a module with a `Reader` and a line in `DATASETS`.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Literal

from raz.config import nearest
from raz.data import jhu, nwpu, shanghaitech, toy, ucf, worldexpo
from raz.data.contract import SPLITS, Dataset, Found, Item, Reader, Split, Survey
from raz.data.frames import Frames
from raz.data.splits import find_leaks, split_validation
from raz.errors import RazError, raise_all

__all__ = ["DATASETS", "Dataset", "Frames", "Item", "Reader", "Split", "locate", "open_dataset", "survey"]

DATASETS: dict[str, Reader] = {
    "toy": toy.READER,
    "shanghaitech_a": shanghaitech.READER_A,
    "shanghaitech_b": shanghaitech.READER_B,
    "ucf_qnrf": ucf.READER_QNRF,
    **ucf.READERS_CC_50,
    "worldexpo": worldexpo.READER,
    "jhu_crowd": jhu.READER,
    "nwpu_crowd": nwpu.READER,
}


def locate(name: str, root: Path | None = None) -> Path | None:
    """The data set's own folder; None for one that is generated.

    `root` None means the environment's RAZ_DATA_ROOT. Raises RazError for an unknown name, and for a data set
    on disk without a root or whose folder is not there.
    """
    if name not in DATASETS:
        folds = [known for known in DATASETS if known.startswith(f"{name}@")]
        hint = f"{', '.join(folds)}: a fold each" if folds else nearest(name, DATASETS)
        raise RazError("data set", f"unknown name {name!r}", hint)
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
    root = root.expanduser().absolute()  # items are read in other processes, too, from other folders
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
    `leaks` is "keep". Where the data set ships no validation split, one is made of its training images (24). What
    this process has opened before is served again while the names, sizes and times of its files stay as they were.
    Raises RazError naming every fault of the data set at once.
    """
    folder = locate(name, root)
    stamp = _stamp(folder)
    opened = _OPENED.get((name, folder, leaks))
    if opened is None or opened[0] != stamp:
        opened = _OPENED[name, folder, leaks] = (stamp, _open(name, folder, leaks))
    return opened[1]


_OPENED: dict[tuple[str, Path | None, str], tuple[str, Dataset]] = {}


def _stamp(folder: Path | None) -> str:
    """Changes when a file comes, goes or is written: a hundredth of the time that reading them takes."""
    total = hashlib.sha256()
    for place, folders, files in os.walk(folder, followlinks=True) if folder is not None else ():
        folders.sort()
        for file in sorted(files):
            path = os.path.join(place, file)
            status = os.stat(path, follow_symlinks=os.path.exists(path))
            total.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return total.hexdigest()


def _open(name: str, folder: Path | None, leaks: Literal["drop", "keep"]) -> Dataset:
    reader = DATASETS[name]
    seen = reader.survey(folder)
    raise_all(seen.faults)
    warnings = list(seen.warnings)
    found: dict[Split, tuple[Found, ...]] = dict(seen.found)
    if leaks == "drop":
        dropped = {leak.image: leak.twin for leak in find_leaks(found)}
        for image, twin in dropped.items():
            warnings.append(f"{image} is byte-identical to {twin}: left out of {image.split('/')[0]}")
        found = {split: tuple(f for f in each if f.item.id not in dropped) for split, each in found.items()}
    items: dict[Split, tuple[Item, ...]] = {split: tuple(f.item for f in each) for split, each in found.items()}
    if "val" not in items:
        items["train"], items["val"] = split_validation(items["train"], where=name)
    return Dataset(name, reader.title, {split: items[split] for split in SPLITS}, tuple(warnings))
