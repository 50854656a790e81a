"""Read files of points: CSV, JSON, and the text files of the public localization benchmarks.

CSV      a header with `image`, `x`, `y`, and for predictions `score`; for true heads `w` and `h` of the box, or
         `sigma_s` and `sigma_l`, and `level`. A row with an image's name alone is an image without points.
JSON     a list of such records, or a mapping from image to a list of [x, y] or [x, y, score], or a list of
         {"image": ..., "points": [[x, y, score], ...]}, also as the value of "images" (`raz-sweep predict --json`).
text     the format of NWPU-Crowd's and FIDTM's scripts, one line per image: `id n x y x y …`, or for true heads
         `id n x y sigma_s sigma_l level …`.

Coordinates are pixels of the original image (27): pixel i covers [i, i+1).
"""

from __future__ import annotations

import csv
import json
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raz.data.pointfiles import DuplicateNameError, reject_duplicates
from raz.errors import RazError, raise_all
from raz.utils.json_types import Json, JsonObject
from raz.utils.suggestions import did_you_mean

Floats = NDArray[np.float64]
COLUMNS = ("image", "x", "y", "score", "w", "h", "sigma_s", "sigma_l", "level")
SIZES = ("w", "h", "sigma_s", "sigma_l")
PIXELS = ("x", "y", *SIZES)
MAX_COORDINATE = 1e9  # px; larger than any image, and squares of it stay precise
LARGE = 1 << 20  # bytes; a CSV file of this size or more is first read in one pass by pyarrow
MAX_REPORTED = 20  # faults of one file that are listed one by one


@dataclass(frozen=True)
class PointSet:
    """One image's predicted points or true heads, in original px."""

    xy: Floats  # (n, 2) x, y
    score: Floats | None = None  # (n,) higher is more confident
    sigma: Floats | None = None  # (n, 2) sigma_s and sigma_l of each head
    level: NDArray[np.int64] | None = None  # (n,) 0 to 5 by the head's area

    def __len__(self) -> int:
        return len(self.xy)


def box_sigmas(w: Floats, h: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """((n, 2) sigma_s and sigma_l in px, (n,) level) of head boxes, as NWPU-Crowd defines them.

    sigma_s = min(w, h) / 2, sigma_l = sqrt(w² + h²) / 2. Level l is the areas in (10^l, 10^(l+1)] px²; level 0 includes
    smaller areas, level 5 larger ones.
    """
    sigma = np.stack([np.minimum(w, h) / 2, np.sqrt(w * w + h * h) / 2], axis=1)
    # compared with the powers themselves: a logarithm could round 1000 to either side
    return sigma, np.searchsorted(10.0 ** np.arange(1, 6), w * h, side="left").astype(np.int64)


@dataclass
class _Parser:
    """The points of a file read so far, and its faults."""

    path: Path
    faults: list[RazError] = field(default_factory=list)
    unreported: int = 0  # faults beyond MAX_REPORTED
    names: dict[str, int] = field(default_factory=dict)  # image -> its number
    columns: tuple[str, ...] = ()
    owner: array[int] = field(default_factory=lambda: array("q"))  # per point, the number of its image
    values: dict[str, array[float]] = field(default_factory=dict)  # column -> a number per point

    def fault(self, line: int | str, what: str, hint: str = "") -> None:
        """Add a fault at a line, or at an entry of a JSON list; beyond MAX_REPORTED, faults are only counted."""
        if len(self.faults) < MAX_REPORTED:
            where = f"{self.path}:{line}" if isinstance(line, int) else f"{self.path}: {line}"
            self.faults.append(RazError(where, what, hint))
        else:
            self.unreported += 1

    def begin(self, columns: Sequence[str]) -> None:
        """Set the columns of all following rows."""
        self.columns = tuple(columns)
        self.values = {name: array("d") for name in columns}

    def image(self, name: str) -> int:
        """The number of an image, which is added if it is new."""
        return self.names.setdefault(name, len(self.names))

    def row(self, line: int | str, image: str, values: Sequence[Json]) -> None:
        """Add one point with values in the order of `columns`, or a fault if a value is invalid."""
        numbers: list[float] = []
        for column, value in zip(self.columns, values, strict=True):
            try:
                number = _to_float(value)
            except (ValueError, OverflowError):
                self.fault(line, f"{column} is {str(value)[:40]!r}, expected a number")
                return
            if not math.isfinite(number):
                self.fault(line, f"{column} is {value}, expected a finite number")
                return
            if column in PIXELS and abs(number) > MAX_COORDINATE:
                self.fault(line, f"{column} is {number:g}, expected pixels")
                return
            if column in SIZES and number < 0:
                self.fault(line, f"{column} is {number:g}, expected 0 or more pixels")
                return
            if column == "level" and (number != int(number) or not 0 <= number <= 5):
                self.fault(line, f"level is {number:g}, expected 0 to 5")
                return
            numbers.append(number)
        self.owner.append(self.image(image))
        for column, number in zip(self.columns, numbers, strict=True):
            self.values[column].append(number)

    def finish(self) -> dict[str, PointSet]:
        """The points of each image. Raises RazError naming all faults."""
        if self.unreported:
            self.faults.append(RazError(str(self.path), f"and {self.unreported} more faults"))
        if not self.faults and not self.names:
            self.faults.append(RazError(str(self.path), "holds no image", "one row per point: image,x,y,score"))
        raise_all(self.faults)
        table = {name: np.asarray(column, dtype=np.float64) for name, column in self.values.items()}
        return _by_image(list(self.names), np.asarray(self.owner, dtype=np.int64), table)


def _to_float(value: Json) -> float:
    """A number, or a text that states one, as a float; nan for a boolean. Raises ValueError for anything else."""
    if isinstance(value, bool):
        return math.nan
    if isinstance(value, (int, float, str)):
        return float(value)
    raise ValueError(value)


def _by_image(names: Sequence[str], owner: NDArray[np.int64], table: Mapping[str, Floats]) -> dict[str, PointSet]:
    """The points of each image, from columns of all points and per point (p,) the index of its image in `names`."""
    order = np.argsort(owner, kind="stable")
    cuts = np.searchsorted(owner[order], np.arange(1, len(names)))
    split = {name: np.split(column[order], cuts) for name, column in table.items()}
    out = {}
    for i, name in enumerate(names):
        own = {column: parts[i] for column, parts in split.items()}
        sigma, level = None, None
        if "sigma_s" in own and "sigma_l" in own:
            sigma = np.stack([own["sigma_s"], own["sigma_l"]], axis=1)
        elif "w" in own and "h" in own:
            sigma, level = box_sigmas(own["w"], own["h"])
        if "level" in own:
            level = own["level"].astype(np.int64)
        xy = np.stack([own["x"], own["y"]], axis=1) if "x" in own else np.zeros((0, 2))
        out[name] = PointSet(xy, own.get("score"), sigma, level)
    return out


def read_points(path: Path) -> dict[str, PointSet]:
    """The points of each image named in a file, in the order of the file.

    Raises RazError naming every fault of the file with its line: the first 20, and the number of further ones.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RazError(str(path), f"cannot be read ({error.strerror or error})", "check the path") from error
    suffix = path.suffix.lower()
    if suffix == ".csv" and len(data) >= LARGE and (points := _read_valid_csv(data)) is not None:
        return points
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RazError(str(path), f"is not UTF-8 text (byte {error.start})", "a CSV, JSON or text file") from error
    del data
    parser = _Parser(path)
    if suffix == ".json" or (suffix not in (".csv", ".txt") and text.lstrip()[:1] in ("[", "{")):
        _json(parser, text)
    elif suffix == ".txt" and "," not in text[:4096]:
        _benchmark_text(parser, text)
    else:
        _csv(parser, text)
    return parser.finish()


def _csv(parser: _Parser, text: str) -> None:
    rows = csv.reader(text.splitlines(), skipinitialspace=True, strict=True)
    try:
        header = next(rows, None)
        if not header:
            parser.fault(1, "the file is empty", "begin with a header: image,x,y,score")
            return
        columns = [name.strip().lower() for name in header]
        for name in columns:
            if columns.count(name) > 1:
                parser.fault(1, f"column {name!r} occurs twice")
                return
        for needed in ("image", "x", "y"):
            if needed not in columns:
                shown = ",".join(header)[:60]
                parser.fault(1, f"the header is {shown!r}, without a column {needed!r}", "image,x,y,score")
        for name in columns:
            if name not in COLUMNS:
                parser.fault(1, f"unknown column {name!r}", did_you_mean(name, COLUMNS))
        if parser.faults:
            return
        image_column = columns.index("image")
        parser.begin([name for name in columns if name != "image"])
        for row in rows:
            if not row:
                continue
            if len(row) != len(columns):
                parser.fault(rows.line_num, f"{len(row)} values, expected {len(columns)} as in the header")
                continue
            name = row.pop(image_column).strip()
            if not name:
                parser.fault(rows.line_num, "the image has no name")
            elif any(row):
                parser.row(rows.line_num, name, row)
            else:
                parser.image(name)
    except csv.Error as error:
        parser.fault(rows.line_num, f"is not valid CSV ({error})")


def _read_valid_csv(data: bytes) -> dict[str, PointSet] | None:
    """The points of a valid CSV file, ten times as fast as line by line; None if anything in it is invalid."""
    import pyarrow as pa
    from pyarrow import compute
    from pyarrow import csv as table_csv

    header = data[: max(0, data.find(b"\n"))].decode("utf-8-sig", errors="replace")
    columns = [name.strip().lower() for name in header.split(",")]
    if len(set(columns)) < len(columns) or not {"image", "x", "y"} <= set(columns) <= set(COLUMNS):
        return None
    numbers = [name for name in columns if name != "image"]
    try:
        table = table_csv.read_csv(
            pa.BufferReader(data),
            read_options=table_csv.ReadOptions(column_names=columns, skip_rows=1),
            convert_options=table_csv.ConvertOptions(
                column_types={"image": pa.string(), **dict.fromkeys(numbers, pa.float64())}, null_values=[""]
            ),
            memory_pool=pa.system_memory_pool(),  # returns memory to the system that it no longer needs
        )
    except pa.ArrowInvalid:
        return None
    names = table.column("image").combine_chunks()
    if compute.any(compute.not_equal(names, compute.utf8_trim_whitespace(names))).as_py() or not len(names):
        return None
    values = np.stack([table.column(name).to_numpy() for name in numbers])  # an empty field is nan
    empty = np.stack([table.column(name).is_null().to_numpy() for name in numbers]).all(axis=0)
    valid = np.isfinite(values) | empty
    for row, name in enumerate(numbers):
        if name in PIXELS:
            least = 0.0 if name in SIZES else -MAX_COORDINATE
            valid[row] &= ((values[row] >= least) & (values[row] <= MAX_COORDINATE)) | empty
        elif name == "level":
            valid[row] &= np.isin(values[row], range(6)) | empty
    encoded = names.dictionary_encode()
    images = encoded.dictionary.to_pylist()
    if not valid.all() or "" in images:
        return None
    owner = np.asarray(encoded.indices.to_numpy()[~empty], dtype=np.int64)
    return _by_image(images, owner, dict(zip(numbers, values[:, ~empty], strict=True)))


def _json(parser: _Parser, text: str) -> None:
    try:
        data: Json = json.loads(text, object_pairs_hook=reject_duplicates)
    except json.JSONDecodeError as error:
        parser.fault(error.lineno, f"is not valid JSON ({error.msg})")
        return
    except DuplicateNameError as error:
        parser.fault(1, str(error), "one list of points per image")
        return
    except RecursionError:
        parser.fault(1, "is nested too deeply for a list of points")
        return
    if isinstance(data, dict) and isinstance(data.get("images"), list):
        data = data["images"]
    if isinstance(data, dict):
        data = [{"image": name, "points": points} for name, points in data.items()]
    if not isinstance(data, list):
        parser.fault(1, f"holds a {type(data).__name__}, expected a list of points or of images")
        return
    if any(isinstance(entry, dict) and "points" in entry for entry in data):
        _json_images(parser, data)
    else:
        _json_records(parser, data)


def _json_records(parser: _Parser, data: Sequence[Json]) -> None:
    """A list of {image, x, y, ...}, all with the fields of the first one."""
    first: JsonObject = next((entry for entry in data if isinstance(entry, dict) and "x" in entry), {})
    parser.begin([name for name in COLUMNS[1:] if name in first])
    for number, entry in enumerate(data):
        index = f"[{number}]"
        if not isinstance(entry, dict):
            parser.fault(index, f"is a {type(entry).__name__}, expected {{image, x, y, score}}")
        elif not isinstance(entry.get("image"), (str, int)):
            parser.fault(index, f"image is {entry.get('image')!r}, expected a name")
        elif set(entry) == {"image"}:
            parser.image(str(entry["image"]))
        elif missing := [name for name in ("x", "y", *parser.columns) if name not in entry]:
            parser.fault(index, f"{missing[0]} is missing")
        else:
            parser.row(index, str(entry["image"]), [entry[name] for name in parser.columns])


def _json_images(parser: _Parser, data: Sequence[Json]) -> None:
    """A list of {image, points}: points are [x, y], [x, y, score], or with `sizes` [x, y, w, h]; one form per file."""
    names: set[str] = set()
    for number, entry in enumerate(data):
        index = f"[{number}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), (str, int)):
            parser.fault(index, "names no image, expected {image, points}")
            continue
        name = str(entry["image"])
        if name in names:
            parser.fault(index, f"image {name!r} occurs twice")
            continue
        names.add(name)
        points = entry.get("points")
        if not isinstance(points, list):
            parser.fault(index, f"points is {type(points).__name__}, expected a list")
            continue
        lists = {key: value for key in ("scores", "sizes") if isinstance(value := entry.get(key), list)}
        for key, values in lists.items():
            if len(values) != len(points):
                parser.fault(index, f"{len(values)} {key} for {len(points)} points")
        parser.image(name)
        forms = {2: ["x", "y"], 3: ["x", "y", "score"], 4: ["x", "y", "w", "h"]}
        for i, point in enumerate(_joined(points, list(lists.values()))):
            if not isinstance(point, list) or (len(point) == 4) != ("sizes" in lists) or len(point) not in forms:
                parser.fault(f"{index} point {i}", f"is {str(point)[:40]}, expected [x, y] or [x, y, score]")
                continue
            if not parser.columns:
                parser.begin(forms[len(point)])
            if len(point) != len(parser.columns):
                parser.fault(f"{index} point {i}", f"has {len(point)} numbers, the first had {len(parser.columns)}")
                continue
            parser.row(f"{index} point {i}", name, point)


def _joined(points: Sequence[Json], others: Sequence[Sequence[Json]]) -> Iterator[Json]:
    """Each point with its values of the other lists appended; the points alone if lengths differ."""
    if not others or any(len(other) != len(points) for other in others):
        yield from points
        return
    for point, *more in zip(points, *others, strict=True):
        flat = list(point) if isinstance(point, list) else [point]
        for value in more:
            flat += value if isinstance(value, list) else [value]
        yield flat


def _benchmark_text(parser: _Parser, text: str) -> None:
    """One line per image: its id, the number of points, and 2 or 5 numbers per point."""
    forms = {2: ["x", "y"], 5: ["x", "y", "sigma_s", "sigma_l", "level"]}
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        count = int(fields[1]) if len(fields) > 1 and fields[1].isdigit() else -1
        rest = fields[2:]
        per_point = len(rest) // count if count > 0 and len(rest) % count == 0 else 0
        if count < 0 or (count == 0 and rest) or (count > 0 and per_point not in forms):
            expected = "`id n`, then n times `x y`, or n times `x y sigma_s sigma_l level`"
            parser.fault(number, f"{len(fields)} numbers for n = {fields[1] if len(fields) > 1 else '-'}", expected)
            continue
        if fields[0] in parser.names:
            parser.fault(number, f"image {fields[0]!r} occurs twice")
            continue
        parser.image(fields[0])
        if count and not parser.columns:
            parser.begin(forms[per_point])
        if count and per_point != len(parser.columns):
            parser.fault(number, f"{per_point} numbers per point, earlier lines have {len(parser.columns)}")
            continue
        for i in range(count):
            parser.row(number, fields[0], rest[per_point * i : per_point * (i + 1)])
