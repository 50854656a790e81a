"""ShanghaiTech Part A and Part B (Zhang et al., CVPR 2016) in their native layout.

    part_A/{train_data,test_data}/{images/IMG_n.jpg,ground-truth/GT_IMG_n.mat}

Other copies write `part_A_final` and `ground_truth`; both are accepted. An annotation's
`image_info[0,0]["location"][0,0]` is (n, 2) x, y px. The data set ships no validation split.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from raz.data.contract import Heads, Reader, ScannedSample, ScanResult, Split
from raz.data.image_pairs import (
    Annotation,
    Pair,
    ScanBuilder,
    files_by_name,
    folder_entries,
    list_folder,
    list_images,
    note_orphans,
    read_pairs,
)
from raz.data.matlab import COPY_AGAIN, as_heads, read_variables
from raz.errors import RazError

ANNOTATION_FOLDERS = ("ground-truth", "ground_truth")
_FOLDERS: dict[Split, str] = {"train": "train_data", "test": "test_data"}


@dataclass(frozen=True)
class Part:
    """What is known of one part before reading it."""

    letter: str
    images: tuple[tuple[Split, int], ...]  # as published
    known_faults: tuple[tuple[str, str], ...] = ()  # (id, what is wrong with it)


PART_A = Part("A", (("train", 300), ("test", 182)))
PART_B = Part("B", (("train", 400), ("test", 316)), (("train/IMG_108", "its labels are known to be wrong"),))


def find_part(root: Path, part: Part) -> Path:
    """The folder of a part: `root` itself, or within `root` or `root/ShanghaiTech`.

    Raises RazError when there is none, or when there are two (part_A beside part_A_final).
    """
    names = {f"part_{part.letter}".lower(), f"part_{part.letter}_final".lower()}
    other = "b" if part.letter == "A" else "a"
    is_a_part = any(os.path.isdir(root / folder) for folder in _FOLDERS.values())
    if is_a_part and not root.resolve().name.lower().startswith(f"part_{other}"):
        return root
    for base in (root, root / "ShanghaiTech"):
        here = (
            [p for p in folder_entries(base) if p.name.lower() in names and os.path.isdir(p)]
            if os.path.isdir(base)
            else []
        )
        if len(here) > 1:
            raise RazError(
                str(base), f"holds {' and '.join(p.name for p in here)}, expected one of them",
                f"--data-root {here[0]}",
            )  # fmt: skip
        if here:
            return here[0]
    raise RazError(
        str(root), f"no folder part_{part.letter} or part_{part.letter}_final here, nor in ShanghaiTech below it",
        f"--data-root DIR with DIR/part_{part.letter}/train_data/images in it",
    )  # fmt: skip


def read_locations(data: bytes, where: str) -> tuple[Heads, int | None]:
    """Heads (n, 2) float64 as annotated, in x, y px of the image, and the number the file itself states.

    Raises RazError for bytes that are no MATLAB file, a missing field, and what `points` refuses.
    """
    info: Any = read_variables(data, where, "image_info").get("image_info")
    if info is None:
        raise RazError(where, "has no variable image_info", COPY_AGAIN)
    try:
        record = info[0, 0]
        location = np.asarray(record["location"][0, 0])
    except (IndexError, KeyError, ValueError, TypeError) as error:
        raise RazError(where, "has no field image_info[0,0]['location'][0,0]", COPY_AGAIN) from error
    return as_heads(location, where, "location"), _stated_number(record)


def _stated_number(record: Any) -> int | None:
    """The count a file states beside its points, where it states one."""
    try:
        number = np.asarray(record["number"][0, 0])
    except (IndexError, KeyError, ValueError, TypeError):
        return None
    return int(number.item()) if number.size == 1 and number.dtype.kind in "fiu" else None


def _parse(data: bytes, where: str) -> Annotation:
    heads, stated = read_locations(data, where)
    if stated is None or stated == len(heads):
        return Annotation(heads)
    return Annotation(heads, (f"the annotation states {stated} heads and holds {len(heads)}",))


def scan(part: Part, folder: Path | None) -> ScanResult:
    """Read every annotation and hash every file of a part's folder; no image is decoded."""
    assert folder is not None  # the readers below have a `find`
    notes = ScanBuilder()
    found: dict[Split, tuple[ScannedSample, ...]] = {}
    for split, published in part.images:
        pairs = _pairs(split, folder / _FOLDERS[split], notes)
        notes.compare_size(split, len(pairs), published)
        found[split] = read_pairs(pairs, _parse, notes)
    ids = {f.item.id for each in found.values() for f in each}
    notes.warnings += [f"{item_id}: {what}" for item_id, what in part.known_faults if item_id in ids]
    return notes.scan(found)


def _pairs(split: Split, folder: Path, notes: ScanBuilder) -> list[Pair]:
    """The images of a split, each with its annotation."""
    places = [folder / name for name in ANNOTATION_FOLDERS if os.path.isdir(folder / name)]
    if not places:
        notes.fault(folder, f"no folder {' or '.join(ANNOTATION_FOLDERS)}", "expected GT_IMG_1.mat in it")
        list_folder(folder / "images", notes)  # whether it is there, too
        return []
    labels = files_by_name(list_folder(places[0], notes) or (), ".mat", notes)
    pairs = []
    for picture in list_images(folder / "images", notes, "IMG_1.jpg, IMG_2.jpg, …"):
        name = f"GT_{picture.stem}.mat"
        pairs.append(Pair(f"{split}/{picture.stem}", picture, labels.get(name.lower()), places[0] / name))
    if pairs:
        note_orphans(labels, pairs, notes)
    return pairs


def _layout(part: Part) -> str:
    return f"part_{part.letter}/{{train_data,test_data}}/{{images,ground-truth}}"


def _reader(part: Part) -> Reader:
    return Reader(
        f"ShanghaiTech Part {part.letter}", partial(scan, part), _layout(part), partial(find_part, part=part),
        splits="train, test; val: a tenth of train",
        source="its authors' repository (Zhang et al., CVPR 2016), for research",
    )  # fmt: skip


READER_A, READER_B = _reader(PART_A), _reader(PART_B)
