"""NWPU-Crowd (Wang, Gao, Lin, Li, TPAMI 2020) in its native layout.

    NWPU-Crowd/{images/0001.jpg,mats/0001.mat,jsons/0001.json,train.txt,val.txt,test.txt}

A line of a list begins with an image's number (`0001 2 3`: then luminance and crowd level), as read by
NWPU-Crowd-Sample-Code (datasets/basedataset.py). A mat holds `annPoints` (n, 2) x, y px (datasets/preapre_NWPU.m) and
`annBoxes` (n, 4) x0, y0, x1, y1 of the heads; a json holds `points` [[x, y], …] and `boxes`; either will do, the mat
first. Copies from before May 2020 have no boxes: their points are scored by every protocol but NWPU-Crowd's own. The
images may also lie in images_part1 … images_part5, as they are unpacked.

**The labels of the test images are withheld** (scores come from the authors' server). So this reader's `test` is the
official *validation* split, which is read once and never tuned on, as a test split is (24); its `val` is made of the
training images. The unlabelled test images are counted and otherwise left alone.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from raz.data.contract import Reader, ScannedSample, ScanResult, Sizes, Split
from raz.data.image_pairs import (
    Annotation,
    Pair,
    ScanBuilder,
    drop_name_clashes,
    files_by_name,
    find_folder,
    list_folder,
    read_pairs,
)
from raz.data.images import SUFFIXES
from raz.data.matlab import COPY_AGAIN, as_heads, heads_of_variable, read_variables
from raz.errors import RazError

LISTS: tuple[tuple[Split, str, int], ...] = (("train", "train.txt", 3109), ("test", "val.txt", 500))
_FOLDER = re.compile(r"images(_part\d+)?", re.IGNORECASE)


def parse(data: bytes, where: str) -> Annotation:
    """The heads of a mat or, by its name, a json. Raises RazError."""
    if not where.lower().endswith(".json"):
        variable = read_variables(data, where, "annPoints", "annBoxes")
        heads = heads_of_variable(variable, where, "annPoints")
        sizes, odd = box_sizes(variable.get("annBoxes"), len(heads))
        return Annotation(heads, odd, sizes)
    try:
        content: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RazError(where, f"is no JSON that can be read ({error})", COPY_AGAIN) from error
    if not isinstance(content, dict) or "points" not in content:
        raise RazError(where, "has no field points", COPY_AGAIN)
    try:
        heads = as_heads(content["points"], where, "points")
    except ValueError as error:  # rows of different lengths
        raise RazError(where, "points are not all [x, y]", COPY_AGAIN) from error
    sizes, odd = box_sizes(content.get("boxes"), len(heads))
    stated = content.get("human_num")
    if isinstance(stated, int) and stated != len(heads):
        odd = (f"the annotation states {stated} heads and holds {len(heads)}", *odd)
    return Annotation(heads, odd, sizes)


def box_sizes(values: Any, heads: int) -> tuple[Sizes | None, tuple[str, ...]]:
    """(n, 2) width and height px of annotated boxes [[x0, y0, x1, y1], …], whichever corner comes first; and a note.

    None without boxes, and, noted, for boxes that do not belong to the heads: training and counting need none, so
    nothing is refused for them.
    """
    try:
        boxes = np.asarray([] if values is None else values, dtype=np.float64)
    except (TypeError, ValueError):  # text, or rows of different lengths
        return None, ("its boxes are not all [x0, y0, x1, y1]: left out",)
    if boxes.size == 0:
        return (np.zeros((0, 2)) if heads == 0 else None), ()
    if boxes.shape != (heads, 4):
        return None, (f"its boxes have the shape {boxes.shape}, expected ({heads}, 4): left out",)
    if not np.isfinite(boxes).all():
        return None, ("a box is not finite: its boxes are left out",)
    return np.abs(boxes[:, 2:] - boxes[:, :2]), ()


def scan(folder: Path | None) -> ScanResult:
    """Read the lists, every annotation they name, and hash every image; no image is decoded."""
    assert folder is not None
    notes = ScanBuilder()
    images: dict[str, Path] = {}
    for place in _image_folders(folder, notes):
        files = [p for p in list_folder(place, notes) or () if p.suffix.lower() in SUFFIXES]
        images |= {p.stem.lower(): p for p in drop_name_clashes(files, notes)}
    labels: dict[str, Path] = {}
    kinds = [(name, suffix) for name, suffix in (("jsons", ".json"), ("mats", ".mat")) if os.path.isdir(folder / name)]
    for name, suffix in kinds:  # the mats come last and so win
        found = files_by_name(list_folder(folder / name, notes) or (), suffix, notes)
        labels |= {path.stem.lower(): path for path in found.values()}
    if not kinds:
        notes.fault(folder, "no folder mats or jsons", "expected the annotations in one of them")
    out: dict[Split, tuple[ScannedSample, ...]] = {}
    named: dict[str, str] = {}
    for split, name, published in LISTS:
        pairs = []
        for stem in _names(folder / name, named, notes):
            picture, label = images.get(stem.lower()), labels.get(stem.lower())
            if picture is None:
                hint = "copy the image, or take its line out"
                notes.fault(folder / name, f"names {stem}, of which there is no image in images", hint)
            elif label is not None or kinds:
                expected = folder / kinds[-1][0] / f"{stem}{kinds[-1][1]}"
                pairs.append(Pair(f"{name.removesuffix('.txt')}/{picture.stem}", picture, label, expected))
        notes.compare_size("val" if split == "test" else split, len(pairs), published)
        out[split] = read_pairs(pairs, parse, notes)
    _leftover(images, labels, named, notes)
    return notes.scan(out)


def _image_folders(folder: Path, notes: ScanBuilder) -> list[Path]:
    here = list_folder(folder, notes) or []
    found = [p for p in here if _FOLDER.fullmatch(p.name) and os.path.isdir(p)]
    if not found and here:
        notes.fault(folder / "images", "no such folder", "unpack the images into it (or leave them in images_part1, …)")
    return found


def _names(path: Path, named: dict[str, str], notes: ScanBuilder) -> list[str]:
    """The images that a list names; `named` remembers in which list each was met."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        told = error.strerror if isinstance(error, OSError) else "no text"
        notes.fault(path, f"cannot be read ({told})", "copy the official list: one image a line, its number first")
        return []
    names = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name = line.split()[0]
        first = named.setdefault(name.lower(), path.name)
        if first != path.name:
            notes.fault(f"{path}:{number}", f"names {name}, which {first} names too", "an image is in one split only")
        elif name in names:
            notes.fault(f"{path}:{number}", f"names {name} twice", "take one of the lines out")
        else:
            names.append(name)
    if not names:
        notes.fault(path, "names no image", "copy the official list: one image a line, its number first")
    return names


def _leftover(images: dict[str, Path], labels: dict[str, Path], named: dict[str, str], notes: ScanBuilder) -> None:
    """Say what becomes of the withheld test images, and note annotations without an image."""
    unnamed = [stem for stem in images if stem not in named]
    withheld = sum(stem not in labels for stem in unnamed)
    notes.warnings.append(
        f"the labels of NWPU-Crowd's own test images are withheld ({withheld} images without one here): `test` is the "
        "official validation split, and `val` is made of training images"
    )
    if labelled := [stem for stem in unnamed if stem in labels]:
        notes.warnings.append(f"{len(labelled)} image(s) with an annotation are in no list, the first is {labelled[0]}")
    notes.orphaned += [str(path) for stem, path in labels.items() if stem not in images]


def _find(root: Path) -> Path:
    names = ("NWPU-Crowd", "NWPU_Crowd", "NWPU")
    return find_folder(root, names, ("train.txt", "val.txt"), "NWPU-Crowd/train.txt and images in it")


READER = Reader(
    "NWPU-Crowd (val)", scan, "NWPU-Crowd/{images/0001.jpg,mats/0001.mat,train.txt,val.txt}", _find,
    splits="train; test: the official val (test labels are withheld); val: a tenth of train",
    source="www.crowdbenchmark.com; academic, not commercial",
)  # fmt: skip
