"""Custom data sets: a folder of images with points in CSV, JSON or text, described by a YAML file in the folder.

    cells/raz-dataset.yaml
    cells/images/*.png, cells/points.csv

`raz-dataset.yaml`, which `raz-sweep data add` writes, has the name of the data set and the paths of its parts, all of
which are below the folder. A data root can contain such folders besides published data sets. They are found by the name
in the file: the name of a data set is never used as a path.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath

import numpy as np

from raz.data import pointfiles
from raz.data.contract import SPLITS, Reader, ScanResult, Split
from raz.data.dataset_file import FILE, Spec, read_spec
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

_MAX_DEPTH = 8  # of folders below `images`


def _cached_spec(path: Path) -> Spec:
    """`read_spec`, cached until the file changes: names of data sets are looked up for every trial of a study."""
    status = path.stat()
    return _read_version(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def _read_version(path: Path, mtime: int, size: int) -> Spec:
    return read_spec(path)


def find_custom_datasets(root: Path) -> dict[str, Reader]:
    """The custom data sets of a data root (its subfolders, and itself) by name, without invalid descriptions.

    If two folders have the same name, neither is returned, so that a study never changes its folder silently.
    """
    by_name: dict[str, list[Reader]] = {}
    for folder in _candidates(root):
        try:
            spec = _cached_spec(folder / FILE)
        except (RazError, OSError):
            continue  # reported by `description_faults`
        by_name.setdefault(spec.name, []).append(make_reader(spec))
    return {name: readers[0] for name, readers in sorted(by_name.items()) if len(readers) == 1}


def description_faults(root: Path) -> list[RazError]:
    """Why descriptions in a data root are ignored."""
    faults: list[RazError] = []
    folders: dict[str, Path] = {}
    for folder in _candidates(root):
        try:
            name = _cached_spec(folder / FILE).name
        except RazError as error:
            faults += flatten_errors(error)
        except OSError as error:
            faults.append(RazError(str(folder / FILE), f"cannot be read ({error.strerror})", "check its permissions"))
        else:
            first = folders.setdefault(name, folder)
            if first != folder:
                faults.append(RazError(str(folder / FILE), f"is named {name}, as {first / FILE} is", "rename one"))
    return faults


def _candidates(root: Path) -> list[Path]:
    """The root and its subfolders, as far as they have a description."""
    try:
        folders = [root, *folder_entries(root)]
    except RazError:
        return []
    return [folder for folder in folders if os.path.isfile(folder / FILE)]


def make_reader(spec: Spec) -> Reader:
    """The reader of a described folder."""

    def find(root: Path) -> Path:
        return spec.folder

    splits = {"folders": "folders train, test (val)"}.get(str(spec.splits), "as its raz-dataset.yaml says")
    return Reader(
        spec.title, partial(scan, spec), f"NAME/{FILE}", find, splits=splits, source=f"your own {spec.objects}"
    )


# ------------------------------------------------------------------ scanning the folder


def scan(spec: Spec, folder: Path | None) -> ScanResult:
    """Scan the folder: all points are read, files hashed, no image is decoded. `folder` is not used."""
    builder = ScanBuilder()
    images = image_files(spec, builder)
    by_split: dict[Split, list[Pair]] = {split: [] for split in SPLITS}
    try:
        pairs, listed = _pairs(spec, images, builder)
    except RazError as error:
        builder.faults += flatten_errors(error)
        pairs, listed = {}, {}
    splits = _assign_splits(spec, {name: images[name] for name in pairs}, listed, builder)
    for name, split in splits.items():
        pair = pairs[name]
        stem = str(PurePosixPath(name).with_suffix(""))
        if stem.lower().startswith(f"{split}/"):
            stem = stem[len(split) + 1 :]
        by_split[split].append(
            Pair(f"{split}/{stem}", pair.picture, pair.label, pair.expected, annotation=pair.annotation)
        )

    def parse(data: bytes, where: str) -> Annotation:
        return Annotation(pointfiles.read_image_points(data, where, spec.columns) + spec.offset)

    samples = {split: read_pairs(each, parse, builder) for split, each in by_split.items() if each or split != "val"}
    for split in ("train", "test"):
        if pairs and not by_split[split]:
            builder.fault(spec.folder / FILE, f"splits leave no image for {split}", "see `splits` in it")
    return builder.result(samples)


def image_files(spec: Spec, builder: ScanBuilder) -> dict[str, Path]:
    """The image files below `images` by their path relative to it; names that clash are faults added to `builder`."""
    base = spec.folder / spec.images
    files = [p for p in _walk(base, builder, _MAX_DEPTH) if p.suffix.lower() in SUFFIXES]
    if not files and not builder.faults:
        builder.fault(base, "holds no image", f"expected files that end in {', '.join(SUFFIXES)}")
    return {p.relative_to(base).as_posix(): p for p in drop_name_clashes(files, builder)}


def _walk(folder: Path, builder: ScanBuilder, depth: int) -> list[Path]:
    """All files in the folder and in `depth` levels of subfolders."""
    out: list[Path] = []
    for path in list_folder(folder, builder) or ():
        if not os.path.isdir(path):
            out.append(path)
        elif depth > 0:
            out += _walk(path, builder, depth - 1)
    return out


def match_names(listed: Iterable[str], images: Mapping[str, Path]) -> tuple[dict[str, str], list[str]]:
    """(image -> its listed name, listed names that match no image).

    A listed name is a path below `images`, or a file name with or without suffix if only one image has it.
    """
    images_by_name: dict[str, set[str]] = {}
    for image in images:
        path = PurePosixPath(image)
        for name in {image, str(path.with_suffix("")), path.name, path.stem}:
            images_by_name.setdefault(name.lower(), set()).add(image)
    out: dict[str, str] = {}
    unmatched = []
    for name in listed:
        matches = images_by_name.get(name.replace("\\", "/").removeprefix("./").lower(), set())
        if len(matches) != 1:
            matches = images_by_name.get(PurePosixPath(name.replace("\\", "/")).name.lower(), set())
        if len(matches) == 1 and next(iter(matches)) not in out:
            out[next(iter(matches))] = name
        else:
            unmatched.append(name)
    return out, unmatched


def _pairs(spec: Spec, images: Mapping[str, Path], builder: ScanBuilder) -> tuple[dict[str, Pair], dict[str, str]]:
    """Every image with its points, and its split if the file of points has a column for it. Raises RazError."""
    points_path = spec.folder / spec.points
    if os.path.isdir(points_path):
        return _pairs_of_files(spec, points_path, images, builder), {}
    try:
        data = points_path.read_bytes()
    except OSError as error:
        raise RazError(str(points_path), f"cannot be read ({error.strerror})", f"see `points` in {FILE}") from error
    column = str(spec.splits["column"]) if isinstance(spec.splits, Mapping) and "column" in spec.splits else None
    table = pointfiles.read_table(data, str(points_path), spec.columns, column)
    listed, unmatched = match_names(table.points, images)
    builder.orphaned += [f"{points_path} ({name})" for name in unmatched]
    expected = Path(f"a row in {points_path} (or `unlisted: empty` in {FILE})")
    pairs = {}
    for image, picture in images.items():
        annotation = None
        if image in listed:
            annotation = Annotation(table.heads(listed[image]) + spec.offset)
        elif spec.unlisted == "empty":
            annotation = Annotation(np.zeros((0, 2)))
        pairs[image] = Pair(image, picture, None, expected, annotation=annotation)
    return pairs, {image: table.splits[name] for image, name in listed.items() if name in table.splits}


def _pairs_of_files(
    spec: Spec, points_folder: Path, images: Mapping[str, Path], builder: ScanBuilder
) -> dict[str, Pair]:
    """Every image with the file of its points: at the same relative path below `points`, or else in `points` itself."""
    labels: dict[str, Path] = {}
    for path in _walk(points_folder, builder, _MAX_DEPTH):
        if path.suffix.lower() in pointfiles.SUFFIXES and path.name.lower() != FILE:
            key = path.relative_to(points_folder).with_suffix("").as_posix().lower()
            twin = labels.setdefault(key, path)
            if twin is not path:
                builder.fault(path, f"and {twin.name} annotate the same image", "keep one of them")
    pairs = {}
    for image, picture in images.items():
        stem = PurePosixPath(image).with_suffix("")
        label = labels.get(str(stem).lower()) or labels.get(stem.name.lower())
        expected = points_folder / f"{stem}.csv"
        annotation = None
        if label is None and spec.unlisted == "empty":
            annotation = Annotation(np.zeros((0, 2)))
        pairs[image] = Pair(image, picture, label, expected, annotation=annotation)
    used = {pair.label for pair in pairs.values()}
    lists = (
        {spec.folder / v for v in spec.splits.values() if isinstance(v, str)} if isinstance(spec.splits, dict) else {}
    )
    builder.orphaned += [str(path) for path in labels.values() if path not in used and path not in lists]
    return pairs


# ------------------------------------------------------------------ splits


def _assign_splits(
    spec: Spec, images: Mapping[str, Path], listed: Mapping[str, str], builder: ScanBuilder
) -> dict[str, Split]:
    """The split of every image; an image without one is a fault. `listed`: image -> split in the file of points."""
    if isinstance(spec.splits, Mapping) and isinstance(fraction := spec.splits.get("test"), float):
        ranked = sorted(images, key=id_hash)
        test_images = set(ranked[: max(1, round(fraction * len(ranked)))])
        return {image: "test" if image in test_images else "train" for image in images}
    if isinstance(spec.splits, Mapping) and "column" not in spec.splits:
        return _from_lists(spec, images, builder)
    out: dict[str, Split] = {}
    unknown: dict[str, list[str]] = {}
    for image in images:
        top = image.partition("/")[0] if "/" in image else ""
        name = listed.get(image, "") if isinstance(spec.splits, Mapping) else top
        split = next((s for s in SPLITS if s == name.lower()), None)
        if split is None:
            unknown.setdefault(name, []).append(image)
        else:
            out[image] = split
    for name, members in unknown.items():
        more = f" ({len(members)} such images)" if len(members) > 1 else ""
        if isinstance(spec.splits, Mapping):
            what = f"split {name!r}{more}, expected train, val or test"
        else:
            what = f"is in {f'folder {name}' if name else 'no folder'}{more}, expected train, val or test"
        builder.fault(images[members[0]], what, f"see `splits` in {FILE}")
    return out


def _from_lists(spec: Spec, images: Mapping[str, Path], builder: ScanBuilder) -> dict[str, Split]:
    """The split of every image from the files that list the images of each split."""
    assert isinstance(spec.splits, Mapping)
    out: dict[str, Split] = {}
    for split in SPLITS:
        if split not in spec.splits:
            continue
        path = spec.folder / str(spec.splits[split])
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            builder.fault(path, f"cannot be read ({reason})", f"one image per line; see `splits` in {FILE}")
            continue
        names = {line.strip(): number for number, line in enumerate(lines, start=1) if line.strip()}
        listed, unmatched = match_names(names, images)
        for name in unmatched:
            builder.fault(f"{path}:{names[name]}", f"names {name}, which is no image", "correct or remove it")
        for image, name in listed.items():
            if image in out:
                builder.fault(f"{path}:{names[name]}", f"names {name}, which is in {out[image]} too", "keep one")
            out.setdefault(image, split)
    left = [image for image in images if image not in out]
    if left:
        builder.warnings.append(f"{len(left)} image(s) are in no list and ignored, the first is {left[0]}")
    return out
