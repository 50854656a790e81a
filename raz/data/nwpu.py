"""NWPU-Crowd (Wang, Gao, Lin, Li, TPAMI 2020) in its native layout.

    NWPU-Crowd/{images/0001.jpg,mats/0001.mat,jsons/0001.json,train.txt,val.txt,test.txt}

Each line of a list starts with an image's number (`0001 2 3`: then luminance and crowd level), as in
NWPU-Crowd-Sample-Code (datasets/basedataset.py). A mat file has `annPoints` (n, 2) x, y px (datasets/preapre_NWPU.m)
and `annBoxes` (n, 4) x0, y0, x1, y1 of the heads; a json file has `points` [[x, y], …] and `boxes`. One of the two
suffices, and the mat file is preferred. Copies from before May 2020 have no boxes and cannot be scored by NWPU-Crowd's
own protocol. The images may also be in images_part1 … images_part5, as in the published archives.

**The labels of the test images are withheld**; scores come from the authors' server. So this reader's `test` is the
official *validation* split, which is never used for tuning (24), and its `val` is made of training images. The
unlabelled test images are counted and otherwise ignored.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

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
from raz.utils.json_types import Json

LISTS: tuple[tuple[Split, str, int], ...] = (("train", "train.txt", 3109), ("test", "val.txt", 500))
_FOLDER = re.compile(r"images(_part\d+)?", re.IGNORECASE)


def parse(data: bytes, where: str) -> Annotation:
    """The heads and boxes of a mat file, or of a json file by its name. Raises RazError."""
    if not where.lower().endswith(".json"):
        variable = read_variables(data, where, "annPoints", "annBoxes")
        heads = heads_of_variable(variable, where, "annPoints")
        sizes, notes = box_sizes(variable.get("annBoxes"), len(heads))
        return Annotation(heads, notes, sizes)
    try:
        content: Json = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RazError(where, f"is not valid JSON ({error})", COPY_AGAIN) from error
    if not isinstance(content, dict) or "points" not in content:
        raise RazError(where, "has no field points", COPY_AGAIN)
    try:
        heads = as_heads(content["points"], where, "points")
    except ValueError as error:  # rows of different lengths
        raise RazError(where, "points are not all [x, y]", COPY_AGAIN) from error
    sizes, notes = box_sizes(content.get("boxes"), len(heads))
    stated = content.get("human_num")
    if isinstance(stated, int) and stated != len(heads):
        notes = (f"the annotation states {stated} heads and holds {len(heads)}", *notes)
    return Annotation(heads, notes, sizes)


def box_sizes(values: ArrayLike | Json, heads: int) -> tuple[Sizes | None, tuple[str, ...]]:
    """(n, 2) width and height px of annotated boxes [[x0, y0, x1, y1], …], opposite corners in any order; and notes.

    The sizes are None without boxes. They are None with a note for invalid boxes, which are no fault: only scoring by
    NWPU-Crowd's protocol needs them.
    """
    try:
        boxes = np.asarray([] if values is None else values, dtype=np.float64)
    except (TypeError, ValueError):  # text, or rows of different lengths
        return None, ("its boxes are not all [x0, y0, x1, y1]: ignored",)
    if boxes.size == 0:
        return (np.zeros((0, 2)) if heads == 0 else None), ()
    if boxes.shape != (heads, 4):
        return None, (f"its boxes have the shape {boxes.shape}, expected ({heads}, 4): ignored",)
    if not np.isfinite(boxes).all():
        return None, ("a box is not finite: its boxes are ignored",)
    return np.abs(boxes[:, 2:] - boxes[:, :2]), ()


def scan(folder: Path | None) -> ScanResult:
    """Scan the folder: the images in the lists are hashed and their annotations parsed, no image is decoded."""
    assert folder is not None
    builder = ScanBuilder()
    images: dict[str, Path] = {}
    for image_folder in _image_folders(folder, builder):
        files = [p for p in list_folder(image_folder, builder) or () if p.suffix.lower() in SUFFIXES]
        images |= {p.stem.lower(): p for p in drop_name_clashes(files, builder)}
    labels: dict[str, Path] = {}
    kinds = [(name, suffix) for name, suffix in (("jsons", ".json"), ("mats", ".mat")) if os.path.isdir(folder / name)]
    for name, suffix in kinds:  # mat files come last and so replace json files
        paths = files_by_name(list_folder(folder / name, builder) or (), suffix, builder)
        labels |= {path.stem.lower(): path for path in paths.values()}
    if not kinds:
        builder.fault(folder, "no folder mats or jsons", "expected the annotations in one of them")
    out: dict[Split, tuple[ScannedSample, ...]] = {}
    named: dict[str, str] = {}
    for split, name, published in LISTS:
        pairs = []
        for stem in _names(folder / name, named, builder):
            picture, label = images.get(stem.lower()), labels.get(stem.lower())
            if picture is None:
                hint = "copy the image, or remove its line"
                builder.fault(folder / name, f"names {stem}, of which there is no image in images", hint)
            elif label is not None or kinds:
                expected = folder / kinds[-1][0] / f"{stem}{kinds[-1][1]}"
                pairs.append(Pair(f"{name.removesuffix('.txt')}/{picture.stem}", picture, label, expected))
        builder.compare_size("val" if split == "test" else split, len(pairs), published)
        out[split] = read_pairs(pairs, parse, builder)
    _report_unlisted(images, labels, named, builder)
    return builder.result(out)


def _image_folders(folder: Path, builder: ScanBuilder) -> list[Path]:
    entries = list_folder(folder, builder) or []
    folders = [p for p in entries if _FOLDER.fullmatch(p.name) and os.path.isdir(p)]
    if not folders and entries:
        builder.fault(
            folder / "images", "no such folder", "unpack the images into it (or leave them in images_part1, …)"
        )
    return folders


def _names(path: Path, named: dict[str, str], builder: ScanBuilder) -> list[str]:
    """The names in a list; `named` maps each name to the first list that contains it, and is updated."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        builder.fault(
            path, f"cannot be read ({reason})", "copy the official list: one image per line, its number first"
        )
        return []
    names = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name = line.split()[0]
        first = named.setdefault(name.lower(), path.name)
        if first != path.name:
            builder.fault(f"{path}:{number}", f"names {name}, which {first} names too", "an image is in one split only")
        elif name in names:
            builder.fault(f"{path}:{number}", f"names {name} twice", "remove one of the lines")
        else:
            names.append(name)
    if not names:
        builder.fault(path, "names no image", "copy the official list: one image per line, its number first")
    return names


def _report_unlisted(
    images: dict[str, Path], labels: dict[str, Path], named: dict[str, str], builder: ScanBuilder
) -> None:
    """Warn that test labels are withheld, and of annotated images in no list; add annotations without an image."""
    unnamed = [stem for stem in images if stem not in named]
    withheld = sum(stem not in labels for stem in unnamed)
    builder.warnings.append(
        f"the labels of NWPU-Crowd's own test images are withheld ({withheld} images without one here): `test` is the "
        "official validation split, and `val` is made of training images"
    )
    if labelled := [stem for stem in unnamed if stem in labels]:
        builder.warnings.append(
            f"{len(labelled)} image(s) with an annotation are in no list, the first is {labelled[0]}"
        )
    builder.orphaned += [str(path) for stem, path in labels.items() if stem not in images]


def _find(root: Path) -> Path:
    names = ("NWPU-Crowd", "NWPU_Crowd", "NWPU")
    return find_folder(root, names, ("train.txt", "val.txt"), "NWPU-Crowd/train.txt and images in it")


READER = Reader(
    "NWPU-Crowd (val)", scan, "NWPU-Crowd/{images/0001.jpg,mats/0001.mat,train.txt,val.txt}", _find,
    splits="train; test: the official val (test labels are withheld); val: a tenth of train",
    source="www.crowdbenchmark.com; academic, not commercial",
)  # fmt: skip
