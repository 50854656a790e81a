"""YAML files with the line of every key and item. `raz.utils.schema` declares what a file may hold.

Only plain data is built, with the composer of PyYAML's safe loader and no constructor of objects. A value that YAML 1.1
reads differently from what a person means is a fault: `1e-4` (text), `yes` (true), `1:30` (base 60), `010` (base 8), a
date. So is a key that is written twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import yaml

from raz.errors import RazError, RazErrorGroup, raise_all
from raz.utils.json_types import Json
from raz.utils.suggestions import did_you_mean

MAX_BYTES = 1 << 20  # bytes; these files are written by hand
MAX_DEPTH = 32  # levels
MAX_NODES = 100_000  # keys and items, aliases written out

Key = str | int
YamlPath = tuple[Key, ...]


@dataclass(frozen=True)
class Document:
    """A file's data, and the line of every key and list item."""

    name: str  # as the user typed it
    data: dict[str, Json]
    lines: Mapping[YamlPath, int]
    comment: str = ""  # the comment that opens the file, without the hashes
    faults: tuple[RazError, ...] = ()  # of single values; empty if the document was read strictly

    def where(self, *path: Key) -> str:
        """`file:line` of a key or item, or of the nearest part above it that the file has."""
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.name}:{self.lines.get(path, 1)}"


@dataclass
class Problems:
    """The faults of one file, to be reported together in the order of the lines."""

    document: Document
    faults: list[RazError] = field(default_factory=list)
    unnamed: tuple[Key, ...] = ()  # sections that `name` leaves out of a path, since their keys are full names

    def __post_init__(self) -> None:
        self.faults += self.document.faults

    def add(self, path: YamlPath, what: str, hint: str = "") -> None:
        """Note a fault at a key or item."""
        self.faults.append(RazError(self.document.where(*path), what, hint, ".".join(map(str, path))))

    def wrong(self, path: YamlPath, shown: str, expected: str, hint: str = "") -> None:
        """Note that a value, described by `shown`, is not what was expected."""
        if path and isinstance(path[-1], int):
            self.add(path, f"{self.name(path[:-1])} has {shown}, expected {expected}", hint)
        else:
            self.add(path, f"{self.name(path)} is {shown}, expected {expected}", hint)

    def name(self, path: YamlPath) -> str:
        """A path as messages name it: `design.trials`."""
        return ".".join(map(str, path[1:] if len(path) > 1 and path[0] in self.unnamed else path))

    def keys(
        self, path: YamlPath, value: Mapping[str, Json], legal: Iterable[str], required: Iterable[str] = ()
    ) -> None:
        """Note keys that are not legal, and required ones that are missing."""
        legal = list(legal)
        prefix = f"{self.name(path)}." if path else ""
        for key in value:
            if key not in legal:
                self.add((*path, key), f"unknown key {prefix + str(key)!r}", did_you_mean(str(key), legal))
        for key in required:
            if key not in value:
                self.faults.append(RazError(self.document.where(*path), f"{prefix}{key} is missing", "", prefix + key))

    def raise_if_any(self) -> None:
        """Raise the faults, if there are any."""
        raise_all(sorted(self.faults, key=line_of))


def line_of(error: RazError) -> int:
    """The line of an error whose `where` is `file:line`."""
    return int(error.where.rpartition(":")[2])


def read(path: Path, name: str = "", *, strict: bool = True, aliases: bool = False) -> Document:
    """The document in the file. Raises RazError(s) with `file:line`, and OSError where it cannot be read.

    name: the file as messages name it, by default its path.
    strict: True raises the faults of single values. False keeps them in `Document.faults`, for `Problems` to report
        together with the other faults.
    """
    shown = name or str(path)
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise RazError(
            f"{shown}:1", f"the file is larger than {MAX_BYTES // 1024} KiB, expected a file written by hand"
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise RazError(
            f"{shown}:{line}", f"byte {raw[error.start]:#04x} is not UTF-8", "save the file as UTF-8"
        ) from None
    return parse(text, shown, strict=strict, aliases=aliases)


def parse(text: str, name: str, *, strict: bool = True, aliases: bool = False) -> Document:
    """The document in the text. See `read`.

    aliases: whether `*name` may stand for the value that `&name` marks, as in files that another program reads. The
        line of such a value is its anchor's. Otherwise an alias is a fault.
    """
    faults: list[RazError] = []
    try:
        _check_depth_and_aliases(text, name, [] if aliases else faults)
        raise_all(faults)  # before composing: an alias may make a document of any size
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        hint = "indent with spaces" if "\\t" in str(error.problem) else ""
        raise RazError(f"{name}:{line}", f"not YAML: {error.problem or error.context}", hint) from None
    except yaml.YAMLError as error:
        raise RazError(f"{name}:1", f"not YAML: {str(error).splitlines()[0]}") from None
    lines: dict[YamlPath, int] = {(): 1}
    if node is None:
        raise RazError(f"{name}:1", "the file is empty")
    data = _Builder(name, lines, faults).build(node)
    if not isinstance(data, dict):
        faults.append(RazError(f"{name}:1", f"the file holds {describe_value(data)}, expected keys with values"))
        raise faults[0] if len(faults) == 1 else RazErrorGroup(faults)
    if strict:
        raise_all(faults)
    return Document(name, data, lines, _opening_comment(text), tuple(faults))


def _check_depth_and_aliases(text: str, name: str, faults: list[RazError]) -> None:
    """Note aliases, which could make a document of any size. Raises RazError at a level that is too deep, before the
    composer recurses into it."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH + 1:
            raise _fault(name, event.start_mark, f"more than {MAX_DEPTH} levels deep")
        if isinstance(event, yaml.AliasEvent):
            faults.append(_fault(name, event.start_mark, f"alias *{event.anchor}", "write the value out"))


def scalar(text: str, where: str) -> Json:
    """One value of the command line (`--set key=value`), read as files are. Raises RazError(s) with `where`."""
    faults: list[RazError] = []
    try:
        try:
            _check_depth_and_aliases(text, where, faults)
        except RazError as error:
            faults = [error]
        raise_all([RazError(where, fault.what, fault.hint) for fault in faults])  # the command line has no lines
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise RazError(where, f"not a YAML value: {str(error).splitlines()[0]}") from None
    if node is None:
        raise RazError(where, "the value is empty")
    value = _Builder(where, {}, faults).build(node)
    raise_all([RazError(where, fault.what, fault.hint) for fault in faults])
    return value


def describe_value(value: Json) -> str:
    """A value as messages show it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "keys with values"
    if isinstance(value, list):
        return "a list"
    return repr(value)


class Mark(Protocol):
    """A position in a YAML file, as the parsers in Python and in C give it."""

    @property
    def line(self) -> int: ...  # from 0


def _fault(name: str, mark: Mark | None, what: str, hint: str = "") -> RazError:
    return RazError(f"{name}:{mark.line + 1 if mark else 1}", what, hint)


@dataclass
class _Builder:
    """Builds the data of a document from PyYAML's nodes, and notes lines and faults."""

    name: str
    lines: dict[YamlPath, int]
    faults: list[RazError]
    too_large: bool = False

    def build(self, node: yaml.Node, path: YamlPath = ()) -> Json:
        """The data of a node; None for a node that is a fault."""
        if len(self.lines) > MAX_NODES or len(path) > MAX_DEPTH + 1:  # aliases of aliases, or of themselves
            if not self.too_large:
                self.too_large = True
                self.fault(node.start_mark, f"aliases make more than {MAX_NODES:,} items or {MAX_DEPTH} levels")
            return None
        standard = "tag:yaml.org,2002:"
        known = ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value")
        if not node.tag.startswith(standard) or node.tag.removeprefix(standard) not in known:
            self.fault(node.start_mark, f"tag {_short(node.tag)} is not read", "leave the tag out")
            return None
        if isinstance(node, yaml.MappingNode):
            out: dict[str, Json] = {}
            for key_node, value_node in node.value:
                key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
                # YAML 1.1 reads the word `on` as true, which no key can mean.
                boolean_name = key_node.tag == standard + "bool" and str(key).lower() not in ("true", "false")
                if key is None or not (boolean_name or key_node.tag == standard + "str"):
                    shown = "a list or mapping" if key is None else repr(key)
                    self.fault(key_node.start_mark, f"key {shown} is not text", "quote it")
                    continue
                key_path = (*path, key)
                if key in out:
                    what = f"key {key!r} is written twice, first on line {self.lines[key_path]}"
                    self.fault(key_node.start_mark, what)
                    continue
                self.lines[key_path] = key_node.start_mark.line + 1
                out[key] = self.build(value_node, key_path)
            return out
        if isinstance(node, yaml.SequenceNode):
            items: list[Json] = []
            for i, item in enumerate(node.value):
                self.lines[(*path, i)] = item.start_mark.line + 1
                items.append(self.build(item, (*path, i)))
            return items
        return self.scalar(node)

    def fault(self, mark: yaml.Mark, what: str, hint: str = "") -> None:
        """Note a fault at a mark."""
        self.faults.append(_fault(self.name, mark, what, hint))

    def scalar(self, node: yaml.Node) -> Json:
        """The value of a scalar. Where YAML reads it differently from what is meant, notes a fault and returns what is
        meant, so that no second fault is reported for the value."""
        text, tag, mark = str(node.value), node.tag.rpartition(":")[2], node.start_mark
        if isinstance(node, yaml.ScalarNode) and node.style is None:  # a plain scalar, so its type was guessed
            bare = text.lstrip("+-")
            if tag == "bool" and text.lower() not in ("true", "false"):
                value = "true" if text.lower() in ("yes", "on", "y") else "false"
                self.fault(mark, f"YAML reads {text} as {value}", f'write {value}, or "{text}" for the text')
                return value == "true"
            if tag in ("int", "float") and ":" in text:
                self.fault(mark, f"YAML reads {text} in base 60", f'write "{text}" for the text')
                return text
            if tag == "int" and len(bare) > 1 and bare[0] == "0" and bare[1] not in "bx":
                plain = bare.lstrip("0") or "0"
                self.fault(mark, f"YAML reads {text} in base 8", f"write {plain}")
                return int(plain) if plain.isdigit() else text
            if tag == "timestamp":
                self.fault(mark, f"YAML reads {text} as a date", f'write "{text}" for the text')
                return text
            if tag == "str" and _is_number(text):
                self.fault(mark, f"YAML reads {text} as text, not as a number", f"write {_plain_number(text)}")
                return float(text)
        if tag in ("merge", "value"):
            return text
        try:
            built: Json = yaml.SafeLoader("").construct_object(
                yaml.ScalarNode(node.tag, text, node.start_mark, node.end_mark)
            )
        except (yaml.YAMLError, ValueError, KeyError):  # an explicit tag that the text does not fit: `!!int pear`
            self.fault(mark, f"{text!r} is no {tag}", "leave the tag out")
            return None
        return built


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and "_" not in text
    except ValueError:
        return False


def _plain_number(text: str) -> str:
    """`text` as YAML 1.1 reads a number: with a dot in the mantissa and a sign in the exponent."""
    mantissa, e, exponent = text.lower().partition("e")
    if "." not in mantissa:
        mantissa += ".0"
    if e:
        return f"{mantissa}e{exponent if exponent[:1] in '+-' else '+' + exponent}"
    return mantissa


def _short(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")


def _opening_comment(text: str) -> str:
    out = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        out.append(line.lstrip("#").strip())
    return "\n".join(out)
