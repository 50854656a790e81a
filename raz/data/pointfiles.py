"""Read annotated points from CSV, JSON and text files: one file for all images, or one per image.

One file for all images: CSV with a header (comma, semicolon or tab), `image,x,y` and any other columns; a row with
empty x and y is an image without points. JSON: `{"a.png": [[x, y], …]}`, `[{"image": "a.png", "points": [[x, y], …]}]`,
or COCO's `images` and `annotations`, whose boxes are replaced by their centres.
One file per image: CSV with a header (`x,y`) or two columns of numbers; JSON `[[x, y], …]` or `{"points": …}`; text
with x and y first in each line. A file without a point is an image without points, but a file of 0 bytes is damaged.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from raz.data.contract import Heads
from raz.errors import RazError, raise_all
from raz.utils.json_types import Json, JsonObject

SUFFIXES = (".csv", ".json", ".txt", ".tsv")
# Known names of columns, the default first.
COLUMN_ALIASES: dict[str, tuple[str, ...]] = {
    "image": ("image", "file", "filename", "file_name", "image_name", "image_id", "img", "name", "slice"),
    "x": ("x", "cx", "xc", "center_x", "x_center", "centroid_x", "x_px", "col", "column"),
    "y": ("y", "cy", "yc", "center_y", "y_center", "centroid_y", "y_px", "row"),
}
_SAVE = "save the points as CSV with the header image,x,y"


class DuplicateNameError(ValueError):
    """A name occurs twice in one JSON object; `json` would keep the last value only and lose points."""


def reject_duplicates(pairs: list[tuple[str, Json]]) -> JsonObject:
    """The object of these pairs, for `json.loads(…, object_pairs_hook=…)`. Raises DuplicateNameError."""
    out = dict(pairs)
    if len(out) < len(pairs):
        names = [name for name, _ in pairs]
        raise DuplicateNameError(f"{next(name for name in out if names.count(name) > 1)!r} occurs twice in one object")
    return out


@dataclass
class PointTable:
    """The points of many images, by the image's name as written in the file."""

    points: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)  # image -> split, if the file has splits

    def heads(self, name: str) -> Heads:
        """(n, 2) float64 x, y of an image."""
        return np.array(self.points[name], dtype=np.float64).reshape(-1, 2)


def read_header(data: bytes, where: str) -> list[str]:
    """The column names of a CSV file with a header. Raises RazError if it is empty or not valid CSV."""
    return _rows(data, where)[0]


def find_column(header: Sequence[str], role: str) -> str | None:
    """The column of a header for a role (image, x or y) by its usual names; None if there is none."""
    lower = {name.strip().lower(): name for name in reversed(header)}
    return next((lower[alias] for alias in COLUMN_ALIASES[role] if alias in lower), None)


def read_table(
    data: bytes, where: str, columns: Mapping[str, str] | None = None, split: str | None = None
) -> PointTable:
    """The points of all images in a CSV file, or in a JSON file by its name.

    `columns` maps image, x, y to column names that are not the usual ones; `split` names the column of the splits.
    Raises RazError naming each kind of fault with its first line and the number of such lines.
    """
    if where.lower().endswith(".json"):
        return _from_json(_parse_json(data, where), where)
    header, rows = _rows(data, where)
    chosen = {role: (columns or {}).get(role) or find_column(header, role) for role in ("image", "x", "y")}
    missing = [f"{role} ({name or 'none found'})" for role, name in chosen.items() if name not in header]
    if split is not None and split not in header:
        missing.append(f"split ({split})")
    if missing:
        raise RazError(
            f"{where}:1", f"no column for {', '.join(missing)} among {', '.join(header)}",
            "name them: columns: {image: …, x: …, y: …}",
        )  # fmt: skip
    position = {role: header.index(str(name)) for role, name in chosen.items()}
    table, faults = PointTable(), _LineFaults(where)
    for line, row in rows:
        if len(row) != len(header):
            faults.add(line, f"{len(row)} fields, the header has {len(header)}")
            continue
        name, x, y = (row[position[role]].strip() for role in ("image", "x", "y"))
        if not name:
            faults.add(line, "the image has no name")
            continue
        points = table.points.setdefault(name, [])
        if split is not None:
            value = row[header.index(split)].strip()
            if table.splits.setdefault(name, value) != value:
                faults.add(line, f"{name} is in {table.splits[name]} and in {value}")
        if x or y:
            points += faults.parse_point(line, x, y)
    faults.raise_if_any()
    return table


def read_image_points(data: bytes, where: str, columns: Mapping[str, str] | None = None) -> Heads:
    """The points (n, 2) float64 x, y of a file that annotates one image. Raises RazError as `read_table`."""
    if not data:
        raise RazError(where, "is empty (0 bytes)", "write a header line x,y for an image without points")
    faults, out = _LineFaults(where), []
    if where.lower().endswith(".json"):
        content = _parse_json(data, where)
        values = content.get("points") if isinstance(content, dict) else content
        if not isinstance(values, list):
            raise RazError(where, "has no list of points", "write [[x, y], …]")
        for number, value in enumerate(values, start=1):
            out += faults.parse_pair(number, value)
    elif where.lower().endswith(".txt"):
        for line, text in enumerate(_text(data, where).splitlines(), start=1):
            fields = text.replace(",", " ").split()
            if fields:
                out += faults.parse_point(line, fields[0], fields[1] if len(fields) > 1 else "")
    else:
        header, rows = _rows(data, where)
        if _number(header[0]) is None:
            names = [(columns or {}).get(role) or find_column(header, role) for role in ("x", "y")]
            if not set(names) <= set(header):
                raise RazError(
                    f"{where}:1", f"no column for x and y among {', '.join(header)}", "columns: {x: …, y: …}"
                )
            x_column, y_column = (header.index(str(name)) for name in names)
        else:  # two columns of numbers without a header
            x_column, y_column, rows = 0, 1, [(1, header), *rows]
        for line, row in rows:
            fields = [*row, "", ""]
            out += faults.parse_point(line, fields[x_column], fields[y_column])
    faults.raise_if_any()
    return np.array(out, dtype=np.float64).reshape(-1, 2)


class _LineFaults:
    """Faults of many lines; each kind is reported once, with its first line and the number of such lines."""

    def __init__(self, where: str) -> None:
        self.where = where
        self._by_kind: dict[str, list[tuple[int, str]]] = {}

    def add(self, line: int, what: str, kind: str = "") -> None:
        """Add a fault; `kind` is by default the message."""
        self._by_kind.setdefault(kind or what, []).append((line, what))

    def parse_point(self, line: int, x: str, y: str) -> list[tuple[float, float]]:
        """[(x, y)], or [] with a fault added."""
        x_value, y_value = _number(x), _number(y)
        if x_value is None or y_value is None:
            self.add(line, f"x, y are {x!r}, {y!r}, expected numbers", "text")
            return []
        return self._finite(line, x_value, y_value)

    def parse_pair(self, line: int, value: Json) -> list[tuple[float, float]]:
        """[(x, y)] of [x, y], or [] with a fault added."""
        numbers = _numbers(value, 2)
        if numbers is None:
            self.add(line, f"point {line} is {json.dumps(value)[:40]}, expected [x, y] in numbers", "pair")
            return []
        return self._finite(line, numbers[0], numbers[1])

    def _finite(self, line: int, x: float, y: float) -> list[tuple[float, float]]:
        if not (math.isfinite(x) and math.isfinite(y)):
            self.add(line, f"x, y are {x}, {y}, expected finite numbers", "finite")
            return []
        return [(x, y)]

    def raise_if_any(self) -> None:
        """Raise RazError with all faults, if there are any."""
        faults = []
        for lines in self._by_kind.values():
            line, what = lines[0]
            more = f" ({len(lines)} such)" if len(lines) > 1 else ""
            faults.append(RazError(f"{self.where}:{line}", what + more, "correct or remove it"))
        raise_all(faults)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _numbers(value: Json, count: int) -> list[float] | None:
    """The numbers of a list of this length; None for anything else."""
    if not isinstance(value, list) or len(value) != count:
        return None
    numbers = [float(v) for v in value if isinstance(v, (int, float)) and not isinstance(v, bool)]
    return numbers if len(numbers) == count else None


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RazError(where, f"byte {data[error.start]:#04x} is not UTF-8", "save the file as UTF-8") from error


def _rows(data: bytes, where: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and every other non-blank row with its line number."""
    text = _text(data, where)
    first = text.splitlines()[0] if text.strip() else ""
    delimiter = max(",;\t", key=first.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        rows = [(reader.line_num, row) for row in reader if any(field.strip() for field in row)]
    except csv.Error as error:
        raise RazError(where, f"is not valid CSV ({error})", _SAVE) from error
    if not rows:
        raise RazError(where, "is empty, expected a header line", _SAVE)
    return [name.strip() for name in rows[0][1]], rows[1:]


def _parse_json(data: bytes, where: str) -> Json:
    try:
        content: Json = json.loads(_text(data, where), object_pairs_hook=reject_duplicates)
    except (ValueError, RecursionError) as error:
        raise RazError(where, f"is not valid JSON ({error})", _SAVE) from error
    return content


def _from_json(content: Json, where: str) -> PointTable:
    table, faults = PointTable(), _LineFaults(where)
    entries: list[tuple[Json, Json, Json]] = []  # image, points, split
    if isinstance(content, dict) and isinstance(annotations := content.get("annotations"), list):
        return _from_coco(content.get("images"), annotations, where)
    if isinstance(content, dict):
        for name, value in content.items():
            inner = value if isinstance(value, dict) else {"points": value}
            entries.append((name, inner.get("points"), inner.get("split")))
    elif isinstance(content, list):
        for number, value in enumerate(content, start=1):
            if isinstance(value, dict) and (key := find_column(list(value), "image")) is not None:
                entries.append((value[key], value.get("points"), value.get("split")))
            else:
                faults.add(number, f"entry {number} names no image", "image")
    for number, (image, points, split) in enumerate(entries, start=1):
        if not isinstance(points, list):
            faults.add(number, f"{image} has no list of points", "points")
            continue
        parsed = table.points.setdefault(str(image), [])
        for value in points:
            parsed += faults.parse_pair(number, value)
        if split is not None:
            table.splits[str(image)] = str(split)
    faults.raise_if_any()
    if not entries:
        raise RazError(where, "names no image", 'write {"a.png": [[x, y], …], …}')
    return table


def _from_coco(images: Json, annotations: list[Json], where: str) -> PointTable:
    """The centres of COCO's boxes; an image without annotation has no points."""
    table, faults = PointTable(), _LineFaults(where)
    names: dict[Json, str] = {}
    for number, image in enumerate(images if isinstance(images, list) else (), start=1):
        name = image.get("file_name") if isinstance(image, dict) else None
        if isinstance(image, dict) and isinstance(name, str) and _is_id(image.get("id", [])):
            names[image["id"]] = name
            table.points[name] = []
        else:
            faults.add(number, f"image {number} lacks id or file_name", "image")
    for number, annotation in enumerate(annotations, start=1):
        box = annotation.get("bbox") if isinstance(annotation, dict) else None
        image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
        if not isinstance(annotation, dict) or not _is_id(image_id) or image_id not in names:
            faults.add(number, f"annotation {number} belongs to no image in images", "annotation")
        elif (numbers := _numbers(box, 4)) is None:
            faults.add(
                number, f"annotation {number} has the bbox {json.dumps(box)[:40]}, expected [x, y, w, h]", "bbox"
            )
        else:
            x, y, w, h = numbers
            table.points[names[image_id]] += faults.parse_pair(number, [x + w / 2, y + h / 2])
    faults.raise_if_any()
    return table


def _is_id(value: Json) -> bool:
    """Whether the value can identify an image."""
    return not isinstance(value, (list, dict))
