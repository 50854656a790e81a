"""YAML with a line number for every complaint.

Only plain data is built (the composer of PyYAML's safe loader, never a constructor of objects), and what
YAML 1.1 reads otherwise than a person writes it is a complaint of its own: `1e-4` (text), `yes` (true),
`1:30` (sexagesimal), `010` (octal), dates, a key written twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from raz.errors import RazError, raise_all
from raz.utils.suggestions import did_you_mean

MAX_BYTES = 1 << 20  # bytes; these files are written by hand
MAX_DEPTH = 32  # levels
MAX_NODES = 100_000  # keys and items, aliases written out

Key = str | int
Place = tuple[Key, ...]


@dataclass(frozen=True)
class Document:
    """A file's data, and the line of every key and list item."""

    name: str  # as the user typed it
    data: dict[str, Any]
    lines: Mapping[Place, int]
    comment: str = ""  # the comment that opens the file, without the hashes
    faults: tuple[RazError, ...] = ()  # of a document that was not read strictly

    def where(self, *place: Key) -> str:
        """`file:line` of a key or item, or of the nearest part above it that the file has."""
        while place and place not in self.lines:
            place = place[:-1]
        return f"{self.name}:{self.lines.get(place, 1)}"


@dataclass
class Problems:
    """Collects the faults of one file, so that they are told together, in the order of the lines."""

    document: Document
    found: list[RazError] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.found += self.document.faults

    def add(self, place: Place, what: str, hint: str = "") -> None:
        """Note a fault at a key or item of the file."""
        self.found.append(RazError(self.document.where(*place), what, hint, ".".join(map(str, place))))

    def keys(self, place: Place, value: Mapping[str, Any], legal: Iterable[str], required: Iterable[str] = ()) -> None:
        """Complain of keys that are not legal, and of required ones that are missing."""
        legal = list(legal)
        prefix = "".join(f"{part}." for part in place)
        for key in value:
            if key not in legal:
                self.add((*place, key), f"unknown key {prefix + str(key)!r}", did_you_mean(str(key), legal))
        for key in required:
            if key not in value:
                self.found.append(RazError(self.document.where(*place), f"{prefix}{key} is missing", "", prefix + key))

    def raise_if_any(self) -> None:
        """Raise what was collected, if anything."""
        raise_all(sorted(self.found, key=lambda fault: int(fault.where.rpartition(":")[2])))


def read(path: Path, name: str = "", *, strict: bool = True, aliases: bool = False) -> Document:
    """The document in the file. Raises RazError(s) with `file:line`; OSError goes through.

    Without `strict`, values that YAML reads otherwise than they are meant are kept in `faults` instead,
    to be told together with what else is wrong (`Faults` begins with them).
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
    """The document in the text; `name` stands in the complaints. See `read`.

    With `aliases`, `*name` stands for what `&name` marks (files that another program reads are written so), and the
    line of an item that is an alias is its anchor's.
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
    lines: dict[Place, int] = {(): 1}
    if node is None:
        raise RazError(f"{name}:1", "the file is empty")
    data = _build(node, (), name, lines, faults)
    if not isinstance(data, dict):
        faults.append(RazError(f"{name}:1", f"the file holds {describe_value(data)}, expected keys with values"))
    if strict or not isinstance(data, dict):
        raise_all(faults)
    return Document(name, data, lines, _opening_comment(text), tuple(faults))


def _check_depth_and_aliases(text: str, name: str, faults: list[RazError]) -> None:
    """Notes aliases, which may make a document of any size. Raises RazError at a level too deep: to read on could
    take for ever."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH + 1:
            raise _fault(name, event.start_mark, f"more than {MAX_DEPTH} levels deep")
        if isinstance(event, yaml.AliasEvent):
            faults.append(_fault(name, event.start_mark, f"alias *{event.anchor}", "write the value out"))


def scalar(text: str, where: str) -> Any:
    """One value of the command line (`--set key=value`), read as the files are."""
    found: list[RazError] = []
    try:
        try:
            _check_depth_and_aliases(text, where, found)
        except RazError as error:
            found = [error]
        raise_all([RazError(where, fault.what, fault.hint) for fault in found])  # the command line has no lines
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise RazError(where, f"not a YAML value: {str(error).splitlines()[0]}") from None
    if node is None:
        raise RazError(where, "the value is empty")
    faults: list[RazError] = []
    value = _build(node, (), where, {}, faults)
    raise_all([RazError(where, fault.what, fault.hint) for fault in faults])
    return value


def describe_value(value: Any) -> str:
    """What a value is, in the words of the complaints."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "keys with values"
    if isinstance(value, list):
        return "a list"
    return repr(value)


def _fault(name: str, mark: Any, what: str, hint: str = "") -> RazError:
    return RazError(f"{name}:{mark.line + 1}", what, hint)


def _build(node: Any, place: Place, name: str, lines: dict[Place, int], faults: list[RazError]) -> Any:
    if len(lines) > MAX_NODES or len(place) > MAX_DEPTH + 1:  # aliases of aliases, or of themselves
        if not any(fault.what.startswith("aliases make") for fault in faults):
            faults.append(
                _fault(name, node.start_mark, f"aliases make more than {MAX_NODES:,} items or {MAX_DEPTH} levels")
            )
        return None
    standard = "tag:yaml.org,2002:"
    known = ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value")
    if not node.tag.startswith(standard) or node.tag.removeprefix(standard) not in known:
        faults.append(_fault(name, node.start_mark, f"tag {_short(node.tag)} is not read", "leave the tag out"))
        return None
    if isinstance(node, yaml.MappingNode):
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            # YAML 1.1 reads the word `on` as true, which no key can mean.
            word = key_node.tag == standard + "bool" and str(key).lower() not in ("true", "false")
            if key is None or not (word or key_node.tag == standard + "str"):
                shown = "a list or mapping" if key is None else repr(key)
                faults.append(_fault(name, key_node.start_mark, f"key {shown} is not text", "quote it"))
                continue
            here = (*place, key)
            if key in out:
                faults.append(
                    _fault(name, key_node.start_mark, f"key {key!r} is written twice, first on line {lines[here]}")
                )
                continue
            lines[here] = key_node.start_mark.line + 1
            out[key] = _build(value_node, here, name, lines, faults)
        return out
    if isinstance(node, yaml.SequenceNode):
        items = []
        for i, item in enumerate(node.value):
            lines[(*place, i)] = item.start_mark.line + 1
            items.append(_build(item, (*place, i), name, lines, faults))
        return items
    return _scalar(node, name, faults)


def _scalar(node: Any, name: str, faults: list[RazError]) -> Any:
    text, tag = node.value, node.tag.rpartition(":")[2]

    def trap(what: str, hint: str, meant: Any) -> Any:
        faults.append(_fault(name, node.start_mark, what, hint))
        return meant  # so that the same value is not complained of twice

    if node.style is None:  # a plain scalar, so its kind was guessed
        bare = text.lstrip("+-")
        if tag == "bool" and text.lower() not in ("true", "false"):
            value = "true" if text.lower() in ("yes", "on", "y") else "false"
            return trap(f"YAML reads {text} as {value}", f'write {value}, or "{text}" for the text', value == "true")
        if tag in ("int", "float") and ":" in text:
            return trap(f"YAML reads {text} in base 60", f'write "{text}" for the text', text)
        if tag == "int" and len(bare) > 1 and bare[0] == "0" and bare[1] not in "bx":
            plain = bare.lstrip("0") or "0"
            return trap(f"YAML reads {text} in base 8", f"write {plain}", int(plain) if plain.isdigit() else text)
        if tag == "timestamp":
            return trap(f"YAML reads {text} as a date", f'write "{text}" for the text', text)
        if tag == "str" and _is_number(text):
            return trap(f"YAML reads {text} as text, not as a number", f"write {_plain_number(text)}", float(text))
    if tag in ("merge", "value"):
        return text
    try:
        return yaml.SafeLoader("").construct_object(yaml.ScalarNode(node.tag, text, node.start_mark, node.end_mark))
    except (yaml.YAMLError, ValueError, KeyError):  # an explicit tag the text does not fit: `!!int pear`
        return trap(f"{text!r} is no {tag}", "leave the tag out", None)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and "_" not in text
    except ValueError:
        return False


def _plain_number(text: str) -> str:
    """`text` so that YAML 1.1 reads a number: a dot in the mantissa and a sign in the exponent."""
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
