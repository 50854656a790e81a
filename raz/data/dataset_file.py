"""The description of a custom data set, raz-dataset.yaml, and its schema."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from raz.data.contract import SPLITS
from raz.utils.json_types import Json
from raz.utils.schema import Either, Keys, Record, Scalar, Schema, choice, key, matching, number, text
from raz.utils.yamlfile import Document, Problems, read

FILE = "raz-dataset.yaml"
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
UNLISTED = ("fault", "empty")

Splits: TypeAlias = Mapping[str, str | float] | str
"""folders | {column: C} | {test: 0.2} | {train: LIST, test: LIST, val: LIST}, the last optional"""


@dataclass(frozen=True)
class Spec:
    """The content of a raz-dataset.yaml."""

    folder: Path
    name: str
    title: str
    images: str = "."  # folder, searched recursively
    points: str = "points.csv"  # a file for all images, or a folder with one file per image
    objects: str = "objects"  # name of what is counted
    columns: Mapping[str, str] = field(default_factory=dict)  # image, x, y -> name of the column
    offset: float = 0.0  # px added to x and y: 0.5 for pixel indices from 0, -0.5 for indices from 1 (27)
    unlisted: str = "fault"  # an image without points in the file or folder is a "fault", or "empty"
    splits: Splits = "folders"


def _below(value: Json) -> str | None:
    """A relative path without `..`, a drive or a backslash."""
    path = PurePosixPath(value) if isinstance(value, str) else None
    if path is None or not isinstance(value, str) or ":" in value or "\\" in value:
        return None
    return None if path.is_absolute() or ".." in path.parts else value


def _path(example: str) -> Schema[str]:
    """A path below the folder of the file."""
    return Either(
        lambda value: isinstance(value, str) and value != "",
        Scalar(_below, f"a path below the folder of {FILE}", "copy or link it there"),
        Scalar(lambda _: None, f"a file or folder beside {FILE}", f"{example}: images"),
    )


def _fraction(value: Json) -> float | None:
    """A float between 0 and 1, both exclusive."""
    return value if isinstance(value, float) and 0 < value < 1 else None


_DIVISION: Schema[Mapping[str, str | float]] = Either(
    lambda value: isinstance(value, dict) and "column" in value,
    Keys({"column": text("a column's name")}),
    Either(
        lambda value: isinstance(value, dict) and isinstance(value.get("test"), float),
        Keys({"test": Scalar(_fraction, "a part between 0 and 1")}),
        Keys({split: _path(split) for split in SPLITS}, required=("train", "test")),
    ),
)
_SPLITS: Schema[Splits] = Either(
    lambda value: isinstance(value, dict) and bool(value),
    _DIVISION,
    Scalar(
        lambda value: "folders" if value == "folders" else None,
        "how images are divided",
        "{test: 0.2}, {column: split}, {train: train.txt, test: test.txt}, or folders",
    ),
)
_COLUMNS = Keys(
    {axis: text("the name of a column") for axis in ("image", "x", "y")},
    expected="names of columns", hint="{image: file, x: cx, y: cy}",
)  # fmt: skip


@dataclass(frozen=True)
class DatasetFile:
    """The keys of the file and their schemas."""

    name: str = key(matching(NAME, "1 to 64 of a-z, 0-9, _ and -", "name: cells"), default="", required=True)
    title: str = key(text(), default="")
    objects: str = key(text(), default="")
    images: str = key(_path("images"), default=".", required=True)
    points: str = key(_path("points"), default="points.csv", required=True)
    columns: Mapping[str, str] = key(_COLUMNS, default={})
    offset: float = key(number(-1, 1, hint="offset: 0.5"), default=0)
    unlisted: str = key(choice(UNLISTED, " or ".join(UNLISTED)), default="fault")
    splits: Splits = key(_SPLITS, default="folders", required=True)


KEYS = tuple(f.name for f in fields(DatasetFile))


def read_spec(path: Path) -> Spec:
    """The description in a file. Raises RazError naming all faults with `file:line`, OSError if it cannot be read."""
    return spec_of(read(path, strict=False), path.parent)


def spec_of(document: Document, folder: Path) -> Spec:
    """The description of a folder in a document. Raises RazError naming all faults."""
    problems = Problems(document)
    file = Record(DatasetFile).read(document.data, (), problems)
    problems.raise_if_any()
    return Spec(
        folder, file.name, file.title or file.name, file.images, file.points, file.objects or "objects", file.columns,
        float(file.offset), file.unlisted, file.splits,
    )  # fmt: skip
