"""`raz-sweep data add`: look at a folder of one's own, guess what can be guessed, ask for the rest, write it down."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from raz.data import DATASETS, custom, pointfiles
from raz.data.contract import SPLITS, ScanResult
from raz.data.custom import FILE, KEYS, NAME, Spec
from raz.data.image_pairs import ScanBuilder, folder_entries
from raz.data.images import SUFFIXES
from raz.errors import RazError, flatten_errors, raise_all
from raz.utils.atomic import atomic_write
from raz.utils.shipped import slugify
from raz.utils.suggestions import did_you_mean
from raz.utils.yamlfile import parse

Ask = Callable[[str, str], str]  # question, what is taken for an empty answer -> answer
_HEADER = "# Written by `raz-sweep data add`; `raz-sweep data check {name} --data-root ..` says whether all is right.\n"


@dataclass(frozen=True)
class FolderOptions:
    """What the command line says; None is guessed or asked for."""

    name: str | None = None
    title: str | None = None
    objects: str | None = None
    images: str | None = None
    points: str | None = None
    columns: str | None = None  # image,x,y
    offset: float | None = None
    unlisted: str | None = None
    splits: str | None = None  # folders | column=NAME | test=0.2 | train=FILE,test=FILE[,val=FILE]


def describe(place: Path, given: FolderOptions, ask: Ask | None) -> Spec:
    """The description of a folder. `ask` None: what cannot be guessed is a fault that names the option for it.

    Raises RazError.
    """
    if not place.is_dir():
        raise RazError(str(place), "no such folder", "raz-sweep data add DIR, with the images and the points below DIR")
    place = place.resolve()
    for option, text in (("--title", given.title), ("--objects", given.objects)):
        if text is not None and not text.isprintable():
            raise RazError(option, f"{text!r} has a line break or the like in it", f"another {option}")
    name = _answer(given.name, "--name", slugify(place.name, "-", "my-data"), "its name in commands and files", ask)
    if not NAME.fullmatch(name):
        raise RazError(
            "--name", f"{name!r}, expected 1 to 64 of a-z, 0-9, _ and -", f"--name {slugify(name, '-', 'my-data')}"
        )
    if name in DATASETS:
        raise RazError("--name", f"{name!r} is a published data set", f"--name my-{name.partition('@')[0]}")
    objects = _answer(given.objects, "--objects", "objects", "what is counted", ask) or "objects"
    images = _answer(given.images, "--images", _guess_images(place), "the folder of images in it", ask)
    points = _answer(given.points, "--points", _guess_points(place, images), "the file or folder of points", ask)
    spec = Spec(place, name, given.title or place.name, images, points, objects)
    _check_paths(spec)
    table_at = place / points
    header = _header(table_at)
    spec = replace(spec, columns=_columns(spec, given, header, ask))
    spec = replace(spec, splits=_splits(spec, given, header, ask))
    _check_spec(spec)
    spec = replace(spec, offset=_offset(spec, given, ask))
    spec = replace(spec, unlisted=_unlisted(spec, given, ask))
    _check_spec(spec)
    return spec


def to_yaml(spec: Spec) -> str:
    """The file that says so."""
    values: dict[str, Any] = {
        "name": spec.name, "title": spec.title, "objects": spec.objects, "images": spec.images, "points": spec.points,
    }  # fmt: skip
    if spec.columns:
        values["columns"] = dict(spec.columns)
    if spec.offset:
        values["offset"] = spec.offset
    if spec.unlisted != "fault":
        values["unlisted"] = spec.unlisted
    values["splits"] = spec.splits if isinstance(spec.splits, str) else dict(spec.splits)
    return _HEADER.format(name=spec.name) + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def write(spec: Spec, replace_it: bool = False) -> Path:
    """Write raz-dataset.yaml whole. Raises RazError when there is one and `replace_it` is not set."""
    path = spec.folder / FILE
    if path.exists() and not replace_it:
        raise RazError(str(path), "is there already", "edit it, or --force")
    try:
        with atomic_write(path) as aside:
            aside.write_text(to_yaml(spec), encoding="utf-8")
            custom.read_spec(aside)  # what is written is read as it was meant
    except OSError as error:
        raise RazError(str(path), f"cannot be written ({error.strerror})", "check the folder's permissions") from error
    return path


def scan(spec: Spec) -> ScanResult:
    """What the description finds. Raises RazError, with every fault, when that is nothing to train or to test on."""
    seen = custom.scan(spec, spec.folder)
    without = [split for split in ("train", "test") if not seen.samples.get(split)]
    if without:
        what = f"no image to {' or to '.join(without)} on is found so"
        hint = "put right what follows, or give other options" if seen.faults else "--splits test=0.2"
        raise_all([RazError(str(spec.folder), what, hint), *seen.faults])
    return seen


def _check_spec(spec: Spec) -> None:
    """Raise what is wrong with values that were given, in the names of their options."""
    try:
        custom.spec_of(parse(to_yaml(spec), FILE, strict=False), spec.folder)
    except RazError as error:
        found = []
        for fault in flatten_errors(error):
            key = fault.parameter.partition(".")[0]
            hint = f"--{key} {fault.hint.partition(': ')[2]}" if fault.hint.startswith(f"{key}: ") else fault.hint
            found.append(RazError(f"--{key}", fault.what, hint) if key in KEYS else fault)
        raise_all(found)


# ------------------------------------------------------------------ guesses


def _answer(given: str | None, option: str, guess: str, question: str, ask: Ask | None) -> str:
    if given is not None:
        return given
    if ask is not None:
        return ask(question, guess).strip() or guess
    if not guess:
        raise RazError(option, f"cannot be guessed: {question}", f"{option} …")
    return guess


def _check_paths(spec: Spec) -> None:
    for option, value in (("--images", spec.images), ("--points", spec.points)):
        path = (spec.folder / value).resolve()
        if not path.is_relative_to(spec.folder) and not (spec.folder / value).is_symlink():
            raise RazError(option, f"{value} is not below {spec.folder}", "copy or link it there")
        if not value:
            raise RazError(option, "an empty name", f"{option} NAME, or {option} . for {spec.folder} itself")
        if not os.path.exists(path):
            here = [p.name for p in folder_entries(spec.folder)]
            raise RazError(option, f"no {value} in {spec.folder}", did_you_mean(value, here))
        if option == "--images" and not path.is_dir():
            raise RazError(option, f"{value} is a file, expected the folder of images", "--images images")


def _images_in(place: Path) -> int:
    return sum(path.suffix.lower() in SUFFIXES for path in folder_entries(place))


def _guess_images(place: Path) -> str:
    """`images` or the only folder with images, `.` where they or folders of splits lie in it."""
    folders = [p for p in folder_entries(place) if p.is_dir()]
    if _images_in(place) or any(p.name.lower() in SPLITS for p in folders):
        return "."
    holding = [p.name for p in folders if _images_in(p) or any((p / split).is_dir() for split in SPLITS)]
    named = [name for name in holding if name.lower() in ("images", "image", "imgs", "img", "pictures", "photos")]
    return (named or holding)[0] if named or len(holding) == 1 else ""


def _guess_points(place: Path, images: str) -> str:
    """The only file of points, a folder of them, or the images' own folder where they lie beside the images."""
    here = folder_entries(place)
    files = [p.name for p in here if p.suffix.lower() in (".csv", ".json", ".tsv")]
    if len(files) == 1:
        return files[0]
    named = [name for name in files if Path(name).stem.lower() in ("points", "annotations", "labels", "coordinates")]
    if len(named) == 1:
        return named[0]
    folders = [p.name for p in here if p.is_dir() and p.name != images]
    for name in folders:
        if name.lower() in ("points", "labels", "annotations", "gt", "ground_truth", "ground-truth", "coordinates"):
            return name
    beside = next((p for p in _two_levels(place / images) if p.suffix.lower() in pointfiles.SUFFIXES), None)
    return images if beside is not None and not files else ""


def _two_levels(place: Path) -> list[Path]:
    """What lies in a folder and in the folders right below it."""
    out = folder_entries(place) if place.is_dir() else []
    return out + [path for inner in out if inner.is_dir() for path in folder_entries(inner)]


def _header(path: Path) -> list[str]:
    """The columns of the file for all images, or of the first file of an image; none for JSON and plain numbers."""
    if path.is_dir():
        first = next((p for p in _two_levels(path) if p.suffix.lower() in (".csv", ".tsv")), None)
    else:
        first = path if path.suffix.lower() != ".json" else None
    if first is None:
        return []
    header = pointfiles.read_header(first.read_bytes(), str(first))
    return [] if path.is_dir() and all(re.fullmatch(r"[-+.\deE]+", name) for name in header) else header


def _columns(spec: Spec, given: FolderOptions, header: list[str], ask: Ask | None) -> dict[str, str]:
    """Columns whose names are not the usual ones."""
    wanted = ("x", "y") if (spec.folder / spec.points).is_dir() else ("image", "x", "y")
    if given.columns is not None:
        names = [name.strip() for name in given.columns.split(",")]
        missing = [name for name in names if name not in header]
        if len(names) != len(wanted) or missing or len(set(names)) < len(names):
            what = f"{given.columns!r}, expected {','.join(wanted)} of the columns {', '.join(header)}"
            raise RazError("--columns", what, did_you_mean(missing[0], header) if missing else "")
        return dict(zip(wanted, names, strict=True))
    out: dict[str, str] = {}
    for what in wanted if header else ():
        if pointfiles.find_column(header, what) is None:
            question = f"which column of {', '.join(header)} holds the {what}"
            if ask is None:
                raise RazError(
                    "--columns", f"cannot be guessed: {question}", f"--columns {','.join(wanted)}, as they are"
                )
            out[what] = ask(question, "")
            if out[what] not in header:
                raise RazError("--columns", f"no column {out[what]!r}", did_you_mean(out[what], header))
    return out


def _splits(spec: Spec, given: FolderOptions, header: list[str], ask: Ask | None) -> Mapping[str, Any] | str:
    images = custom.image_files(spec, ScanBuilder())
    tops = {name.partition("/")[0].lower() for name in images if "/" in name}
    table = not (spec.folder / spec.points).is_dir()
    column = next((name for name in header if name.lower() in ("split", "subset", "set", "fold")), None)
    if {"train", "test"} <= tops:
        guess = "folders"
    elif column is not None and table:
        guess = f"column={column}"
    elif all((spec.folder / f"{split}.txt").is_file() for split in ("train", "test")):
        guess = ",".join(f"{s}={s}.txt" for s in SPLITS if (spec.folder / f"{s}.txt").is_file())
    else:
        guess = "test=0.2"
    question = "how images are divided: folders, column=NAME, test=PART, or train=FILE,test=FILE"
    told = _answer(given.splits, "--splits", guess, question, ask)
    if told == "folders":
        return told
    try:
        parts = dict(part.split("=", 1) for part in told.split(","))
        if set(parts) == {"test"}:
            return {"test": float(parts["test"])}
    except ValueError:
        raise RazError("--splits", f"{told!r} is not understood", f"--splits {guess}") from None
    return {key.strip(): value.strip() for key, value in parts.items()}


def _offset(spec: Spec, given: FolderOptions, ask: Ask | None) -> float:
    """Whole numbers are the numbers of pixels, from 0 or from 1: their centres are half a pixel away (27)."""
    if given.offset is not None:
        return given.offset
    found = custom.scan(replace(spec, unlisted="empty"), spec.folder).samples
    heads = [(f, f.sample.load_heads()) for each in found.values() for f in each]
    every = np.concatenate([np.zeros((0, 2)), *[xy for _, xy in heads]])
    guess = 0.0
    if len(every) and (every == np.rint(every)).all():
        guess = -0.5 if every.min() >= 1 and any(f.outside for f, _ in heads) else 0.5
    if ask is None or not guess:
        return guess
    told = ask("the points are whole numbers: add 0.5 (pixels numbered from 0), -0.5 (from 1) or 0", f"{guess:g}")
    try:
        return float(told)
    except ValueError:
        raise RazError("--offset", f"{told!r} is no number", "--offset 0.5") from None


def _unlisted(spec: Spec, given: FolderOptions, ask: Ask | None) -> str:
    if given.unlisted is not None:
        if given.unlisted not in custom.UNLISTED:
            raise RazError("--unlisted", f"{given.unlisted!r}, expected {' or '.join(custom.UNLISTED)}")
        return given.unlisted
    missing = custom.scan(spec, spec.folder).missing
    if not missing or ask is None:
        return "fault"
    question = f"{len(missing)} image(s) have no points: do they hold nothing (empty), or are points missing (fault)"
    return ask(question, "fault")
