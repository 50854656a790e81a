"""A folder of one's own: images with points in CSV, JSON or text (cells, bacteria, cars), described by a file in it.

    cells/raz-dataset.yaml
    cells/images/*.png, cells/points.csv

`raz-dataset.yaml` (written by `raz-sweep data add`) names the data set and says where its parts are; every path in it
is below its folder. A data root holds such folders beside the published data sets, and they are found by the name in
the file, so no name of a data set ever becomes a path.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

from raz.data import pointfiles
from raz.data.contract import SPLITS, Reader, ScanResult, Split
from raz.data.image_pairs import (
    Annotation,
    Pair,
    ScanBuilder,
    drop_name_clashes,
    folder_entries,
    list_folder,
    read_pairs,
)
from raz.data.images import SUFFIXES
from raz.data.splits import id_hash
from raz.errors import RazError, flatten_errors
from raz.utils.yamlfile import Document, Problems, describe_value, read

FILE = "raz-dataset.yaml"
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
KEYS = ("name", "title", "objects", "images", "points", "columns", "offset", "unlisted", "splits")
UNLISTED = ("fault", "empty")
_DEEPEST = 8  # folders below `images`


@dataclass(frozen=True)
class Spec:
    """What raz-dataset.yaml says."""

    folder: Path
    name: str
    title: str
    images: str = "."  # a folder, read with all below it
    points: str = "points.csv"  # a file for all images, or a folder with one an image
    objects: str = "objects"  # what is counted
    columns: Mapping[str, str] = field(default_factory=dict)  # image, x, y -> the column's name
    offset: float = 0.0  # added to x and y: 0.5 for pixel numbers from 0, -0.5 from 1 (27)
    unlisted: str = "fault"  # an image that the points' file does not name: a fault, or holds nothing
    splits: Mapping[str, Any] | str = "folders"  # folders | {column: C} | {test: 0.2} | {train: LIST, test: LIST}


def read_spec(path: Path) -> Spec:
    """The description in a file. Raises RazError(s) with `file:line`, all faults at once; OSError goes through."""
    return spec_of(read(path, strict=False), path.parent)


def spec_of(document: Document, folder: Path) -> Spec:
    """What a document says of a folder. Raises RazError(s), all faults at once."""
    data: dict[str, Any] = document.data
    faults = Problems(document)
    faults.keys((), data, KEYS, ("name", "images", "points", "splits"))
    name = data.get("name")
    if "name" in data and not (isinstance(name, str) and NAME.fullmatch(name)):
        faults.add(("name",), f"name is {describe_value(name)}, expected 1 to 64 of a-z, 0-9, _ and -", "name: cells")
    for key in ("title", "objects"):
        if not isinstance(data.get(key, ""), str):
            faults.add((key,), f"{key} is {describe_value(data[key])}, expected a text")
    for key in ("images", "points"):
        if key in data:
            _below(data[key], (key,), faults)
    columns = data.get("columns", {})
    if not isinstance(columns, dict) or not all(isinstance(v, str) for v in columns.values()):
        faults.add(
            ("columns",),
            f"columns is {describe_value(columns)}, expected names of columns",
            "{image: file, x: cx, y: cy}",
        )
        columns = {}
    faults.keys(("columns",), columns, ("image", "x", "y"))
    offset = data.get("offset", 0)
    if isinstance(offset, bool) or not isinstance(offset, (int, float)) or not abs(offset) <= 1:
        faults.add(("offset",), f"offset is {describe_value(offset)}, expected a number from -1 to 1", "offset: 0.5")
        offset = 0
    if data.get("unlisted", "fault") not in UNLISTED:
        faults.add(("unlisted",), f"unlisted is {describe_value(data['unlisted'])}, expected {' or '.join(UNLISTED)}")
    _check_splits(document, faults)
    faults.raise_if_any()
    return Spec(
        folder, str(name), data.get("title") or str(name), data["images"], data["points"],
        data.get("objects") or "objects", columns, float(offset), data.get("unlisted", "fault"), data["splits"],
    )  # fmt: skip


def _below(value: Any, place: tuple[str, ...], faults: Problems) -> None:
    """Complain of what is no path below the folder of the file."""
    name = ".".join(place)
    if not isinstance(value, str) or not value:
        faults.add(
            place, f"{name} is {describe_value(value)}, expected a file or folder beside {FILE}", f"{place[-1]}: images"
        )
    elif PurePosixPath(value).is_absolute() or ".." in PurePosixPath(value).parts or ":" in value or "\\" in value:
        faults.add(place, f"{name} is {value!r}, expected a path below the folder of {FILE}", "copy or link it there")


def _check_splits(document: Document, faults: Problems) -> None:
    splits: Any = document.data.get("splits", "folders")
    example = "{test: 0.2}, {column: split}, {train: train.txt, test: test.txt}, or folders"
    if splits == "folders":
        return
    if not isinstance(splits, dict) or not splits:
        faults.add(("splits",), f"splits is {describe_value(splits)}, expected how images are divided", example)
    elif "column" in splits:
        faults.keys(("splits",), splits, ("column",))
        if not isinstance(splits["column"], str):
            faults.add(
                ("splits", "column"), f"splits.column is {describe_value(splits['column'])}, expected a column's name"
            )
    elif isinstance(splits.get("test"), float):
        faults.keys(("splits",), splits, ("test",))
        if not 0 < splits["test"] < 1:
            faults.add(("splits", "test"), f"splits.test is {splits['test']}, expected a part between 0 and 1")
    else:
        faults.keys(("splits",), splits, SPLITS, ("train", "test"))
        for split in splits:
            if split in SPLITS:
                _below(splits[split], ("splits", split), faults)


def _spec(path: Path) -> Spec:
    status = path.stat()
    return _read_once(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def _read_once(path: Path, mtime: int, size: int) -> Spec:
    """`read_spec` of a file as it is: names are asked for at every value of a study."""
    return read_spec(path)


def find_custom_datasets(root: Path) -> dict[str, Reader]:
    """The data sets of one's own in a data root (its folders, and itself) by name; damaged descriptions are left out.

    Two of one name: neither is taken, so that no study reads another folder than it did.
    """
    found: dict[str, list[Reader]] = {}
    for folder in _candidates(root):
        try:
            reader = reader_of(_spec(folder / FILE))
        except (RazError, OSError):
            continue  # `description_faults` tells
        found.setdefault(reader[0], []).append(reader[1])
    return {name: readers[0] for name, readers in sorted(found.items()) if len(readers) == 1}


def description_faults(root: Path) -> list[RazError]:
    """Why descriptions in a data root are not taken."""
    faults: list[RazError] = []
    seen: dict[str, Path] = {}
    for folder in _candidates(root):
        try:
            name = _spec(folder / FILE).name
        except RazError as error:
            faults += flatten_errors(error)
        except OSError as error:
            faults.append(RazError(str(folder / FILE), f"cannot be read ({error.strerror})", "check its permissions"))
        else:
            first = seen.setdefault(name, folder)
            if first != folder:
                faults.append(RazError(str(folder / FILE), f"is named {name}, as {first / FILE} is", "rename one"))
    return faults


def _candidates(root: Path) -> list[Path]:
    try:
        here = [root, *folder_entries(root)]
    except RazError:
        return []
    return [folder for folder in here if os.path.isfile(folder / FILE)]


def reader_of(spec: Spec) -> tuple[str, Reader]:
    """The reader that a description makes, under its name."""

    def find(root: Path) -> Path:
        return spec.folder

    told = {"folders": "folders train, test (val)"}.get(str(spec.splits), "as its raz-dataset.yaml says")
    return spec.name, Reader(
        spec.title, partial(scan, spec), f"NAME/{FILE}", find, splits=told, source=f"your own {spec.objects}"
    )


# ------------------------------------------------------------------ reading it


def scan(spec: Spec, folder: Path | None) -> ScanResult:
    """Read all points and hash every file; no image is decoded."""
    builder = ScanBuilder()
    images = image_files(spec, builder)
    by_split: dict[Split, list[Pair]] = {split: [] for split in SPLITS}
    try:
        pairs, told = _pairs(spec, images, builder)
    except RazError as error:
        builder.faults += flatten_errors(error)
        pairs, told = {}, {}
    chosen = _split(spec, {name: images[name] for name in pairs}, told, builder)
    for name, split in chosen.items():
        pair = pairs[name]
        stem = str(PurePosixPath(name).with_suffix(""))
        if stem.lower().startswith(f"{split}/"):
            stem = stem[len(split) + 1 :]
        by_split[split].append(Pair(f"{split}/{stem}", pair.picture, pair.label, pair.expected, given=pair.given))

    def parse(data: bytes, where: str) -> Annotation:
        return Annotation(pointfiles.read_image_points(data, where, spec.columns) + spec.offset)

    found = {split: read_pairs(each, parse, builder) for split, each in by_split.items() if each or split != "val"}
    for split in ("train", "test"):
        if pairs and not by_split[split]:
            builder.fault(spec.folder / FILE, f"splits leave no image for {split}", "see `splits` in it")
    return builder.result(found)


def image_files(spec: Spec, builder: ScanBuilder) -> dict[str, Path]:
    """Image files below `images`, by their path below it; names that clash are faults."""
    base = spec.folder / spec.images
    files = [p for p in _walk(base, builder, _DEEPEST) if p.suffix.lower() in SUFFIXES]
    if not files and not builder.faults:
        builder.fault(base, "holds no image", f"expected files that end in {', '.join(SUFFIXES)}")
    return {p.relative_to(base).as_posix(): p for p in drop_name_clashes(files, builder)}


def _walk(folder: Path, builder: ScanBuilder, depth: int) -> list[Path]:
    out: list[Path] = []
    for path in list_folder(folder, builder) or ():
        if not os.path.isdir(path):
            out.append(path)
        elif depth > 0:
            out += _walk(path, builder, depth - 1)
    return out


def match_names(listed: Mapping[str, Any], images: Mapping[str, Path]) -> tuple[dict[str, str], list[str]]:
    """(image -> the name it is listed under, listed names of no image).

    A name is a path below `images`, or a file's name with or without its ending where only one image has it.
    """
    ways: dict[str, set[str]] = {}
    for image in images:
        path = PurePosixPath(image)
        for way in {image, str(path.with_suffix("")), path.name, path.stem}:
            ways.setdefault(way.lower(), set()).add(image)
    out: dict[str, str] = {}
    nowhere = []
    for name in listed:
        meant = ways.get(name.replace("\\", "/").removeprefix("./").lower(), set())
        if len(meant) != 1:
            meant = ways.get(PurePosixPath(name.replace("\\", "/")).name.lower(), set())
        if len(meant) == 1 and next(iter(meant)) not in out:
            out[next(iter(meant))] = name
        else:
            nowhere.append(name)
    return out, nowhere


def _pairs(spec: Spec, images: Mapping[str, Path], builder: ScanBuilder) -> tuple[dict[str, Pair], dict[str, str]]:
    """Every image with its points, and the split that the points' file says it is in. Raises RazError."""
    place = spec.folder / spec.points
    if os.path.isdir(place):
        return _one_each(spec, place, images, builder), {}
    try:
        data = place.read_bytes()
    except OSError as error:
        raise RazError(str(place), f"cannot be read ({error.strerror})", f"see `points` in {FILE}") from error
    column = spec.splits.get("column") if isinstance(spec.splits, Mapping) else None
    table = pointfiles.read_table(data, str(place), spec.columns, column)
    listed, nowhere = match_names(table.points, images)
    builder.orphaned += [f"{place} ({name})" for name in nowhere]
    expected = Path(f"a row in {place} (or `unlisted: empty` in {FILE})")
    pairs = {}
    for image, picture in images.items():
        given = None
        if image in listed:
            given = Annotation(table.heads(listed[image]) + spec.offset)
        elif spec.unlisted == "empty":
            given = Annotation(pointfiles.PointTable({image: []}).heads(image))
        pairs[image] = Pair(image, picture, None, expected, given=given)
    return pairs, {image: table.splits[name] for image, name in listed.items() if name in table.splits}


def _one_each(spec: Spec, place: Path, images: Mapping[str, Path], builder: ScanBuilder) -> dict[str, Pair]:
    """Points in a file an image: of its name, in the same folder below `points` or right in it."""
    skip = {(spec.folder / FILE).name.lower()}
    labels: dict[str, Path] = {}
    for path in _walk(place, builder, _DEEPEST):
        if path.suffix.lower() in pointfiles.SUFFIXES and path.name.lower() not in skip:
            key = path.relative_to(place).with_suffix("").as_posix().lower()
            twin = labels.setdefault(key, path)
            if twin is not path:
                builder.fault(path, f"stands beside {twin.name} for the same image", "keep one of them")
    pairs = {}
    for image, picture in images.items():
        stem = PurePosixPath(image).with_suffix("")
        label = labels.get(str(stem).lower()) or labels.get(stem.name.lower())
        expected = place / f"{stem}.csv"
        given = None
        if label is None and spec.unlisted == "empty":
            given = Annotation(pointfiles.PointTable({image: []}).heads(image))
        pairs[image] = Pair(image, picture, label, expected, given=given)
    used = {pair.label for pair in pairs.values()}
    lists = (
        {spec.folder / v for v in spec.splits.values() if isinstance(v, str)} if isinstance(spec.splits, dict) else {}
    )
    builder.orphaned += [str(path) for path in labels.values() if path not in used and path not in lists]
    return pairs


# ------------------------------------------------------------------ splits


def _split(spec: Spec, images: Mapping[str, Path], told: Mapping[str, str], builder: ScanBuilder) -> dict[str, Split]:
    """The split of every image that has one; each other is a fault."""
    if isinstance(spec.splits, Mapping) and isinstance(spec.splits.get("test"), float):
        ranked = sorted(images, key=id_hash)
        tested = set(ranked[: max(1, round(spec.splits["test"] * len(ranked)))])
        return {image: "test" if image in tested else "train" for image in images}
    if isinstance(spec.splits, Mapping) and "column" not in spec.splits:
        return _from_lists(spec, images, builder)
    out: dict[str, Split] = {}
    wrong: dict[str, list[str]] = {}
    for image in images:
        top = image.partition("/")[0] if "/" in image else ""
        name = told.get(image, "") if isinstance(spec.splits, Mapping) else top
        split = next((s for s in SPLITS if s == name.lower()), None)
        if split is None:
            wrong.setdefault(name, []).append(image)
        else:
            out[image] = split
    for name, which in wrong.items():
        more = f" ({len(which)} such images)" if len(which) > 1 else ""
        if isinstance(spec.splits, Mapping):
            what = f"split {name!r}{more}, expected train, val or test"
        else:
            what = f"lies in {f'folder {name}' if name else 'no folder'}{more}, expected train, val or test"
        builder.fault(images[which[0]], what, f"see `splits` in {FILE}")
    return out


def _from_lists(spec: Spec, images: Mapping[str, Path], builder: ScanBuilder) -> dict[str, Split]:
    assert isinstance(spec.splits, Mapping)
    out: dict[str, Split] = {}
    for split in SPLITS:
        if split not in spec.splits:
            continue
        path = spec.folder / spec.splits[split]
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "no text"
            builder.fault(path, f"cannot be read ({why})", f"one image a line; see `splits` in {FILE}")
            continue
        names = {line.strip(): number for number, line in enumerate(lines, start=1) if line.strip()}
        listed, nowhere = match_names(names, images)
        for name in nowhere:
            builder.fault(f"{path}:{names[name]}", f"names {name}, which is no image", "put it right, or take it out")
        for image, name in listed.items():
            if image in out:
                builder.fault(f"{path}:{names[name]}", f"names {name}, which is in {out[image]} too", "keep one")
            out.setdefault(image, split)
    left = [image for image in images if image not in out]
    if left:
        builder.warnings.append(f"{len(left)} image(s) are in no list and left out, the first is {left[0]}")
    return out
