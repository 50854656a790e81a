"""`raz-sweep data add`: describe a custom folder in raz-dataset.yaml, from options, guesses and answers."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml

from raz.data import DATASETS, custom, pointfiles
from raz.data.contract import SPLITS, ScanResult
from raz.data.dataset_file import FILE, KEYS, NAME, UNLISTED, Spec, Splits, read_spec, spec_of
from raz.data.image_pairs import ScanBuilder, folder_entries
from raz.data.images import SUFFIXES
from raz.errors import RazError, flatten_errors, raise_all
from raz.utils.atomic import atomic_write
from raz.utils.json_types import JsonLike
from raz.utils.shipped import slugify
from raz.utils.suggestions import did_you_mean
from raz.utils.yamlfile import parse

Ask = Callable[[str, str], str]  # (question, default answer) -> answer
_HEADER = "# Written by `raz-sweep data add`; `raz-sweep data check {name} --data-root ..` checks the data set.\n"


@dataclass(frozen=True)
class FolderOptions:
    """Options of the command line; None: the value is guessed or asked for."""

    name: str | None = None
    title: str | None = None
    objects: str | None = None
    images: str | None = None
    points: str | None = None
    columns: str | None = None  # image,x,y
    offset: float | None = None
    unlisted: str | None = None
    splits: str | None = None  # folders | column=NAME | test=0.2 | train=FILE,test=FILE[,val=FILE]


def describe(folder: Path, options: FolderOptions, ask: Ask | None) -> Spec:
    """The description of a folder. Values that are not in `options` are guessed, and confirmed by `ask` unless None.

    Raises RazError for invalid options, and without `ask` for values that cannot be guessed, naming their options.
    """
    if not folder.is_dir():
        raise RazError(
            str(folder), "no such folder", "raz-sweep data add DIR, with the images and the points below DIR"
        )
    folder = folder.resolve()
    for option, text in (("--title", options.title), ("--objects", options.objects)):
        if text is not None and not text.isprintable():
            raise RazError(option, f"{text!r} contains unprintable characters such as line breaks", f"another {option}")
    name = _answer(options.name, "--name", slugify(folder.name, "-", "my-data"), "its name in commands and files", ask)
    if not NAME.fullmatch(name):
        raise RazError(
            "--name", f"{name!r}, expected 1 to 64 of a-z, 0-9, _ and -", f"--name {slugify(name, '-', 'my-data')}"
        )
    if name in DATASETS:
        raise RazError("--name", f"{name!r} is a published data set", f"--name my-{name.partition('@')[0]}")
    objects = _answer(options.objects, "--objects", "objects", "what is counted", ask) or "objects"
    images = _answer(options.images, "--images", _guess_images(folder), "the folder of images in it", ask)
    points = _answer(options.points, "--points", _guess_points(folder, images), "the file or folder of points", ask)
    spec = Spec(folder, name, options.title or folder.name, images, points, objects)
    _check_paths(spec)
    points_path = folder / points
    header = _header(points_path)
    spec = replace(spec, columns=_columns(spec, options, header, ask))
    spec = replace(spec, splits=_splits(spec, options, header, ask))
    _check_spec(spec)
    spec = replace(spec, offset=_offset(spec, options, ask))
    spec = replace(spec, unlisted=_unlisted(spec, options, ask))
    _check_spec(spec)
    return spec


def to_yaml(spec: Spec) -> str:
    """The text of raz-dataset.yaml."""
    values: dict[str, JsonLike] = {
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


def write(spec: Spec, overwrite: bool = False) -> Path:
    """Write raz-dataset.yaml atomically and return its path. Raises RazError if it exists, unless `overwrite`."""
    path = spec.folder / FILE
    if path.exists() and not overwrite:
        raise RazError(str(path), "exists already", "edit it, or --force")
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(to_yaml(spec), encoding="utf-8")
            read_spec(temporary)  # raises if the text does not parse
    except OSError as error:
        raise RazError(str(path), f"cannot be written ({error.strerror})", "check the folder's permissions") from error
    return path


def scan(spec: Spec) -> ScanResult:
    """The scan of the described folder. Raises RazError with all faults if train or test has no image."""
    result = custom.scan(spec, spec.folder)
    without = [split for split in ("train", "test") if not result.samples.get(split)]
    if without:
        what = f"no image to {' or to '.join(without)} on is found"
        hint = "fix the following faults, or give other options" if result.faults else "--splits test=0.2"
        raise_all([RazError(str(spec.folder), what, hint), *result.faults])
    return result


def _check_spec(spec: Spec) -> None:
    """Raise RazError for invalid values, naming their options."""
    try:
        spec_of(parse(to_yaml(spec), FILE, strict=False), spec.folder)
    except RazError as error:
        faults = []
        for fault in flatten_errors(error):
            key = fault.parameter.partition(".")[0]
            hint = f"--{key} {fault.hint.partition(': ')[2]}" if fault.hint.startswith(f"{key}: ") else fault.hint
            faults.append(RazError(f"--{key}", fault.what, hint) if key in KEYS else fault)
        raise_all(faults)


# ------------------------------------------------------------------ guesses


def _answer(value: str | None, option: str, guess: str, question: str, ask: Ask | None) -> str:
    """The option's value, else the answer, else the guess. Raises RazError without any of them."""
    if value is not None:
        return value
    if ask is not None:
        return ask(question, guess).strip() or guess
    if not guess:
        raise RazError(option, f"cannot be guessed: {question}", f"{option} …")
    return guess


def _check_paths(spec: Spec) -> None:
    """Raise RazError unless the folder of images and the points exist below the folder."""
    for option, value in (("--images", spec.images), ("--points", spec.points)):
        path = (spec.folder / value).resolve()
        if not path.is_relative_to(spec.folder) and not (spec.folder / value).is_symlink():
            raise RazError(option, f"{value} is not below {spec.folder}", "copy or link it there")
        if not value:
            raise RazError(option, "an empty name", f"{option} NAME, or {option} . for {spec.folder} itself")
        if not os.path.exists(path):
            names = [p.name for p in folder_entries(spec.folder)]
            raise RazError(option, f"no {value} in {spec.folder}", did_you_mean(value, names))
        if option == "--images" and not path.is_dir():
            raise RazError(option, f"{value} is a file, expected the folder of images", "--images images")


def _images_in(folder: Path) -> int:
    return sum(path.suffix.lower() in SUFFIXES for path in folder_entries(folder))


def _guess_images(folder: Path) -> str:
    """ "." if the folder contains images or folders of splits, else its only folder with images; "" if unknown."""
    folders = [p for p in folder_entries(folder) if p.is_dir()]
    if _images_in(folder) or any(p.name.lower() in SPLITS for p in folders):
        return "."
    holding = [p.name for p in folders if _images_in(p) or any((p / split).is_dir() for split in SPLITS)]
    named = [name for name in holding if name.lower() in ("images", "image", "imgs", "img", "pictures", "photos")]
    return (named or holding)[0] if named or len(holding) == 1 else ""


def _guess_points(folder: Path, images: str) -> str:
    """The only file of points, a folder of them, or the folder of images if it has files of points; "" if unknown."""
    entries = folder_entries(folder)
    files = [p.name for p in entries if p.suffix.lower() in (".csv", ".json", ".tsv")]
    if len(files) == 1:
        return files[0]
    named = [name for name in files if Path(name).stem.lower() in ("points", "annotations", "labels", "coordinates")]
    if len(named) == 1:
        return named[0]
    folders = [p.name for p in entries if p.is_dir() and p.name != images]
    for name in folders:
        if name.lower() in ("points", "labels", "annotations", "gt", "ground_truth", "ground-truth", "coordinates"):
            return name
    among_images = any(p.suffix.lower() in pointfiles.SUFFIXES for p in _two_levels(folder / images))
    return images if among_images and not files else ""


def _two_levels(folder: Path) -> list[Path]:
    """The entries of a folder and of its subfolders."""
    out = folder_entries(folder) if folder.is_dir() else []
    return out + [path for inner in out if inner.is_dir() for path in folder_entries(inner)]


def _header(path: Path) -> list[str]:
    """The columns of the file of points, or of the first one in a folder; [] for JSON and without a header."""
    if path.is_dir():
        first = next((p for p in _two_levels(path) if p.suffix.lower() in (".csv", ".tsv")), None)
    else:
        first = path if path.suffix.lower() != ".json" else None
    if first is None:
        return []
    header = pointfiles.read_header(first.read_bytes(), str(first))
    return [] if path.is_dir() and all(re.fullmatch(r"[-+.\deE]+", name) for name in header) else header


def _columns(spec: Spec, options: FolderOptions, header: list[str], ask: Ask | None) -> dict[str, str]:
    """The columns whose names are not the usual ones: role -> name."""
    roles = ("x", "y") if (spec.folder / spec.points).is_dir() else ("image", "x", "y")
    if options.columns is not None:
        names = [name.strip() for name in options.columns.split(",")]
        missing = [name for name in names if name not in header]
        if len(names) != len(roles) or missing or len(set(names)) < len(names):
            what = f"{options.columns!r}, expected {','.join(roles)} of the columns {', '.join(header)}"
            raise RazError("--columns", what, did_you_mean(missing[0], header) if missing else "")
        return dict(zip(roles, names, strict=True))
    out: dict[str, str] = {}
    for role in roles if header else ():
        if pointfiles.find_column(header, role) is None:
            question = f"which column of {', '.join(header)} contains the {role}"
            if ask is None:
                raise RazError(
                    "--columns",
                    f"cannot be guessed: {question}",
                    f"--columns {','.join(roles)}, by their names in the header",
                )
            out[role] = ask(question, "")
            if out[role] not in header:
                raise RazError("--columns", f"no column {out[role]!r}", did_you_mean(out[role], header))
    return out


def _splits(spec: Spec, options: FolderOptions, header: list[str], ask: Ask | None) -> Splits:
    """How images are divided: the option's value, an answer or a guess from folders, columns and files."""
    images = custom.image_files(spec, ScanBuilder())
    top_folders = {name.partition("/")[0].lower() for name in images if "/" in name}
    one_file = not (spec.folder / spec.points).is_dir()
    column = next((name for name in header if name.lower() in ("split", "subset", "set", "fold")), None)
    if {"train", "test"} <= top_folders:
        guess = "folders"
    elif column is not None and one_file:
        guess = f"column={column}"
    elif all((spec.folder / f"{split}.txt").is_file() for split in ("train", "test")):
        guess = ",".join(f"{s}={s}.txt" for s in SPLITS if (spec.folder / f"{s}.txt").is_file())
    else:
        guess = "test=0.2"
    question = "how images are divided: folders, column=NAME, test=PART, or train=FILE,test=FILE"
    answer = _answer(options.splits, "--splits", guess, question, ask)
    if answer == "folders":
        return answer
    try:
        parts = dict(part.split("=", 1) for part in answer.split(","))
        if set(parts) == {"test"}:
            return {"test": float(parts["test"])}
    except ValueError:
        raise RazError("--splits", f"{answer!r} is not valid", f"--splits {guess}") from None
    return {key.strip(): value.strip() for key, value in parts.items()}


def _offset(spec: Spec, options: FolderOptions, ask: Ask | None) -> float:
    """Px to add to x and y: the option's value, an answer or a guess.

    Whole numbers are taken as pixel indices, whose centres are half a pixel away (27): from 1 if there is no 0 and a
    point would lie outside its image, else from 0.
    """
    if options.offset is not None:
        return options.offset
    samples = custom.scan(replace(spec, unlisted="empty"), spec.folder).samples
    scanned = [s for each in samples.values() for s in each]
    heads = np.concatenate([np.zeros((0, 2)), *[s.sample.load_heads() for s in scanned]])
    guess = 0.0
    if len(heads) and (heads == np.rint(heads)).all():
        guess = -0.5 if heads.min() >= 1 and any(s.outside for s in scanned) else 0.5
    if ask is None or not guess:
        return guess
    answer = ask("the points are whole numbers: add 0.5 (pixels numbered from 0), -0.5 (from 1) or 0", f"{guess:g}")
    try:
        return float(answer)
    except ValueError:
        raise RazError("--offset", f"{answer!r} is not a number", "--offset 0.5") from None


def _unlisted(spec: Spec, options: FolderOptions, ask: Ask | None) -> str:
    """What an image without points is, "fault" or "empty": the option's value or an answer."""
    if options.unlisted is not None:
        if options.unlisted not in UNLISTED:
            raise RazError("--unlisted", f"{options.unlisted!r}, expected {' or '.join(UNLISTED)}")
        return options.unlisted
    missing = custom.scan(spec, spec.folder).missing
    if not missing or ask is None:
        return "fault"
    question = f"{len(missing)} image(s) have no points: are they empty (empty), or are points missing (fault)"
    return ask(question, "fault")
