"""A table's scores in one file of numbers, as Parquet or CSV: a store can be lost, and the results are still there.

A line is the score of one split of one trial (row, data set, seed). Its columns:

    table, profile, row, dataset, seed, split
    key          of the score; `stages` has the first 16 digits of the key of every stage behind it, as JSON
    weights      what the keys hold for `backbone.weights`; `data` the fingerprint of each split's images, as JSON
                 (and `tiled`, the stages whose images are so large that they go by tiles)
    device, threads, versions, made, config    what made it, see `raz.report.score_index.ScoreProvenance`; JSON
    metrics.*    every metric
    images.*     the numbers of each image, see `raz.pipeline.scoring.Scores`: `images.ids`, `images.truth` …
    points.*     the ranked points of all images, the best first: the index of its image, and its distance and the
                 radius at which its head is claimed, see `raz.paper.metrics.Matches`

In CSV a list is JSON. Points keep what metrics and intervals need and no more: of scores their order, and of distances
and radii between which two radii of the metrics they lie. So an image's points cannot be drawn from the file.
"""

from __future__ import annotations

import csv
import json
import math
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raz.errors import RazError
from raz.paper.metrics import THRESHOLDS
from raz.report.per_image import PerImage
from raz.report.score_index import ScoreProvenance, TrialScores
from raz.utils.atomic import atomic_write
from raz.utils.json_types import Json, JsonLike, as_float, as_int, as_object, as_str, parse_json

SUFFIXES = (".parquet", ".csv")
_SIGMAS = (40.0, 20.0, 5.0)  # px: those of the page's figures, whatever the metrics are at
_TEXTS = ("table", "profile", "row", "dataset", "split", "key", "weights", "device")
_WHOLE = ("seed", "threads")
_OBJECTS = ("stages", "data", "versions", "made", "config")
_COLUMNS = (
    "table", "profile", "row", "dataset", "seed", "split", "key", "device", "threads", "weights", "data", "versions",
    "made", "stages", "config",
)  # fmt: skip
_KEY_DIGITS = 16  # of the keys in `stages`

Line = dict[str, Any]  # column -> value, of the types that the columns have when they are read


@dataclass(frozen=True)
class FileScore:
    """A line of the file.

    stages: node -> first digits of its key, in topological order. data: split -> fingerprint.
    """

    row: str
    dataset: str
    seed: int
    split: str
    key: str
    metrics: Mapping[str, float]  # without the split in their names
    provenance: ScoreProvenance
    stages: Mapping[str, str]
    weights: str
    data: Mapping[str, str]
    images: PerImage


@dataclass(frozen=True)
class KeyParts:
    """What the key of a score is made of. See `FileScore`."""

    stages: Mapping[str, str]
    weights: str
    data: Mapping[str, str]


def check_suffix(path: Path, option: str) -> None:
    """Raise RazError unless the path ends with one of SUFFIXES."""
    if path.suffix.lower() not in SUFFIXES:
        what = f"{path} ends with {path.suffix or 'nothing'}, expected {' or '.join(SUFFIXES)}"
        raise RazError(option, what, f"{option} {path.with_suffix(SUFFIXES[0])}")


def short_key(key: str) -> str:
    """A key as `stages` has it."""
    return key[:_KEY_DIGITS]


# ------------------------------------------------------------------ lines


def line_of(
    place: Mapping[str, str | int], split: str, trial: TrialScores, parts: KeyParts, sigmas: Sequence[float]
) -> Line:
    """The line of a split's score.

    place: table, profile, row, dataset and seed. sigmas: those of the trial's metrics, px. Raises RazError where the
    score's per-image part cannot be read.
    """
    made = trial.provenance[split]
    prefix = f"{split}."
    out: Line = {
        **place, "split": split, "key": trial.keys[split], "device": made.device,
        "threads": int(str(made.config.get("threads", 0))), "weights": parts.weights, "data": dict(parts.data),
        "versions": dict(made.versions), "made": {kind: list(values) for kind, values in made.made.items()},
        "stages": dict(parts.stages), "config": _without_paths(made.config),
    }  # fmt: skip
    metrics = {name: value for name, value in trial.metrics.items() if name.startswith(prefix)}
    out |= {f"metrics.{name.removeprefix(prefix)}": float(value) for name, value in metrics.items()}
    return out | image_columns(_stored_arrays(trial, split), sigmas)


def _without_paths(config: Mapping[str, Json]) -> dict[str, Json]:
    """A configuration with the names of files in place of their paths, which say something of this machine alone."""
    return {
        name: Path(value).name if isinstance(value, str) and "/" in value else value for name, value in config.items()
    }


def _stored_arrays(trial: TrialScores, split: str) -> dict[str, NDArray[Any]]:
    path = trial.per_image_path(split)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise RazError(str(path), f"cannot be read: {error}", "delete its folder and run the table again") from None


def image_columns(arrays: Mapping[str, NDArray[Any]], sigmas: Sequence[float]) -> Line:
    """The columns `images.*` and `points.*` from the arrays of `per_image.npz` by their stored names."""
    out: Line = {f"images.{name}": array.tolist() for name, array in arrays.items() if not name.startswith("match_")}
    if "match_score" not in arrays:
        return out
    ends, score = arrays["match_ends"], arrays["match_score"]
    order = np.argsort(-score, kind="stable")
    owner = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    radii = sorted({s * math.sqrt(-2 * math.log(t)) for s in (*sigmas, *_SIGMAS) for t in THRESHOLDS})
    out["points.image"] = owner[order]
    for name in ("distance", "before"):
        out[f"points.{name}"] = _between(arrays[f"match_{name}"][order], radii)
    return out


def _between(values: NDArray[Any], radii: Sequence[float]) -> NDArray[np.float64]:
    """Each value as the same short number for all that lie between the same two of the radii (ascending, above 0).

    So `value < r` and `r <= value` stay as they were for every one of the radii r, compared in the values' precision.
    """
    ends = [0.0, *radii, math.inf]
    short = [_short_number(low, high) for low, high in pairwise(ends)]
    below = np.searchsorted(np.asarray(radii, dtype=values.dtype), values, side="right")
    return np.asarray(short)[below]


def _short_number(low: float, high: float) -> float:
    """The number with the fewest decimals in [low, high)."""
    numbers = (math.ceil(low * 10**decimals) / 10**decimals for decimals in range(17))
    return next((number for number in numbers if low <= number < high), low)


def _points(line: Line, images: int) -> dict[str, NDArray[Any]]:
    """The arrays `match_*` of a line: ranked points, image after image, with the place in the order as their score."""
    owner = np.asarray(line["points.image"], dtype=np.int64)
    if len(owner) and not 0 <= owner.min() <= owner.max() < images:
        raise ValueError("points.image has an index that is no image")
    by_image = np.argsort(owner, kind="stable")
    rank = np.arange(len(owner), 0, -1, dtype=np.float64)
    out = {"match_ends": np.cumsum(np.bincount(owner, minlength=images)), "match_score": rank[by_image]}
    for name in ("distance", "before"):
        values = np.asarray(line[f"points.{name}"], dtype=np.float64)
        if len(values) != len(owner):
            raise ValueError(f"points.{name} has {len(values)} values for {len(owner)} points")
        out[f"match_{name}"] = values[by_image]
    return out


def _score(line: Line) -> FileScore:
    """A line as it is used. Raises ValueError or KeyError for a line that is damaged."""
    arrays = {
        name.removeprefix("images."): np.asarray(value)
        for name, value in line.items() if name.startswith("images.") and value is not None
    }  # fmt: skip
    lengths = {name: len(arrays[name]) for name in ("ids", "truth", "regions")}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"its images differ in number: {lengths}")
    if line.get("points.image") is not None:
        arrays |= _points(line, lengths["ids"])
    data = {name: as_str(value, "data") for name, value in as_object(line["data"], "data").items()}
    split = as_str(line["split"], "split")
    about = {name: line[name] for name in ("device", "versions", "data", "config", "made")}
    metrics = {
        name.removeprefix("metrics."): as_float(value, name)
        for name, value in line.items() if name.startswith("metrics.") and value is not None
    }  # fmt: skip
    return FileScore(
        as_str(line["row"], "row"), as_str(line["dataset"], "dataset"), as_int(line["seed"], "seed"), split,
        as_str(line["key"], "key"), metrics, ScoreProvenance.from_json(about),
        {node: as_str(key, "stages") for node, key in as_object(line["stages"], "stages").items()},
        as_str(line["weights"], "weights"), data, PerImage.from_arrays(arrays),
    )  # fmt: skip


# ------------------------------------------------------------------ files


def write_lines(path: Path, lines: Sequence[Line]) -> None:
    """Write lines as Parquet or CSV, by the suffix. Raises OSError."""
    metrics = sorted({name for line in lines for name in line if name.startswith("metrics.")})
    arrays = dict.fromkeys(name for line in lines for name in line if name.startswith(("images.", "points.")))
    columns = (*_COLUMNS, *metrics, *arrays)
    with atomic_write(path) as temporary:
        if path.suffix.lower() == ".csv":
            with temporary.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(columns)
                writer.writerows([[_cell(line.get(name)) for name in columns] for line in lines])
            return
        table = pa.table({name: pa.array([_in_parquet(line.get(name)) for line in lines]) for name in columns})
        # Rows share points and branches: pages and compression wide enough to find what repeats.
        pq.write_table(table, temporary, compression="zstd", compression_level=12, data_page_size=1 << 26)


def _in_parquet(value: Any) -> Any:
    """A value as pyarrow takes it: JSON of objects."""
    return json.dumps(value) if isinstance(value, dict) else value


def _cell(value: Any) -> JsonLike:
    """A value in CSV: JSON of lists and objects, an empty field for None."""
    if value is None:
        return ""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    out: JsonLike = json.dumps(value) if isinstance(value, (dict, list)) else value
    return out


def read_scores(path: Path, table: str, profile: str) -> tuple[FileScore, ...]:
    """The scores of a table's profile in a file, as `write_lines` wrote it.

    Raises RazError for a file that is missing, damaged, or holds none of this profile.
    """
    check_suffix(path, "--scores")
    if not path.is_file():
        raise RazError(str(path), "no such file", f"raz-sweep report --table {table} --scores-out {path} writes one")
    try:
        lines = _csv_lines(path) if path.suffix.lower() == ".csv" else _parquet_lines(path)
    except (OSError, ValueError, pa.ArrowException, csv.Error) as error:
        raise _damaged(path, str(error)) from None
    missing = [name for name in _COLUMNS if lines and name not in lines[0]]
    if missing or not lines:
        lack = f"it lacks {', '.join(missing)}" if missing else "it has no lines"
        raise RazError(str(path), f"no file of a table's scores: {lack}", "a file that --scores-out wrote")
    held = dict.fromkeys((str(line["table"]), str(line["profile"])) for line in lines)
    if (table, profile) not in held:
        has = ", ".join(f"{name} ({of})" for name, of in held)
        raise RazError(
            str(path), f"has scores of {has}, and none of {table} ({profile})",
            f"--table {next(iter(held))[0]} --profile {next(iter(held))[1]}",
        )  # fmt: skip
    out = []
    for i, line in enumerate(lines, 1):
        if (line["table"], line["profile"]) == (table, profile):
            try:
                out.append(_score(line))
            except (ValueError, KeyError, TypeError) as error:
                raise _damaged(path, f"score {i}: {error}") from None
    return tuple(out)


def _damaged(path: Path, why: str) -> RazError:
    return RazError(str(path), f"cannot be read: {' '.join(why.split())[:200]}", "take another copy, or write it again")


def _parquet_lines(path: Path) -> list[Line]:
    table = pq.read_table(path, partitioning=None)
    columns = {name: _parquet_column(name, table.column(name)) for name in table.column_names}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _parquet_column(name: str, column: pa.ChunkedArray) -> list[Any]:
    if name in _OBJECTS:
        return [None if text is None else parse_json(text) for text in column.to_pylist()]
    if name.startswith("points."):  # as arrays: a list of numbers takes many times as long
        return [value.values.to_numpy(zero_copy_only=False) if value.is_valid else None for value in column]
    values: list[Any] = column.to_pylist()
    return values


def _csv_lines(path: Path) -> list[Line]:
    csv.field_size_limit(sys.maxsize)  # a list of points is longer than the default
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: _value(name, text) for name, text in line.items()} for line in csv.DictReader(file, strict=True)]


def _value(name: str, text: str | None) -> Json:
    """A field of a CSV file as a value of its column; None for an empty one. Raises ValueError."""
    if text is None:
        raise ValueError(f"a line ends before {name}")
    convert: Callable[[str], Json] = parse_json
    if name in _TEXTS:
        return text
    if name in _WHOLE:
        convert = int
    elif name.startswith("metrics."):
        convert = float
    try:
        return convert(text) if text else None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
