"""Schemas of the YAML files that a person writes: which keys and values are legal, declared as data.

    @dataclass(frozen=True)
    class Design:
        sampler: str = key(choice(("tpe", "random")), default="tpe")
        trials: int = key(integer(1, 1000), default=1, required=True)

    design = Record(Design).read(document.data["design"], ("design",), problems)

Reading notes every fault of the file in `Problems`, each with `file:line`, what was found, what was expected, and the
nearest legal name; it goes on after a fault, so that all of them are reported at once. strictyaml declares schemas in
the same way, but reports only the first fault; pydantic and jsonschema report all of them, but know no lines and no
nearest names.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from raz.utils.json_types import Json
from raz.utils.suggestions import did_you_mean
from raz.utils.yamlfile import Problems, YamlPath, describe_value

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
D = TypeVar("D", bound="DataclassInstance")

LARGEST = 1e300  # of a number


class Invalid(Exception):
    """A value does not fit its schema. Its fault is noted in `Problems`; the caller goes on without the value."""


class Schema(Protocol[T_co]):
    """What a value must be."""

    def read(self, value: Json, path: YamlPath, problems: Problems) -> T_co:
        """The value, checked and converted. Notes its faults; raises Invalid where no value is left."""
        ...


def read_or(schema: Schema[T], value: Json, path: YamlPath, problems: Problems, default: T) -> T:
    """The value, or `default` where it does not fit the schema."""
    try:
        return schema.read(value, path, problems)
    except Invalid:
        return default


# ------------------------------------------------------------------ single values


@dataclass(frozen=True)
class Scalar(Generic[T]):
    """One value. `convert` returns None for a value that does not fit."""

    convert: Callable[[Json], T | None]
    expected: str
    hint: str | Callable[[Json], str] = ""
    show: Callable[[Json], str] = describe_value  # the value in the message

    def read(self, value: Json, path: YamlPath, problems: Problems) -> T:
        """See `Schema`."""
        out = self.convert(value)
        if out is None:
            hint = self.hint if isinstance(self.hint, str) else self.hint(value)
            problems.wrong(path, self.show(value), self.expected, hint)
            raise Invalid
        return out


@dataclass(frozen=True)
class Anything:
    """Any value. What it may be depends on other parts of the file."""

    def read(self, value: Json, path: YamlPath, problems: Problems) -> Json:
        """See `Schema`."""
        return value


@dataclass(frozen=True)
class Nothing:
    """null."""

    def read(self, value: Json, path: YamlPath, problems: Problems) -> None:
        """See `Schema`."""
        if value is not None:
            problems.wrong(path, describe_value(value), "nothing")
            raise Invalid


@dataclass(frozen=True)
class Located(Generic[T]):
    """A value, and where in the file it is."""

    value: T
    path: YamlPath


@dataclass(frozen=True)
class WithPath(Generic[T]):
    """A value whose path is needed later, to report a fault that depends on other values."""

    item: Schema[T]

    def read(self, value: Json, path: YamlPath, problems: Problems) -> Located[T]:
        """See `Schema`."""
        return Located(self.item.read(value, path, problems), path)


def text(expected: str = "a text", hint: str = "") -> Scalar[str]:
    """A text, also an empty one."""
    return Scalar(lambda value: value if isinstance(value, str) else None, expected, hint)


def matching(pattern: re.Pattern[str], expected: str, hint: str | Callable[[Json], str] = "") -> Scalar[str]:
    """A text that the whole pattern matches."""
    return Scalar(lambda value: value if isinstance(value, str) and pattern.fullmatch(value) else None, expected, hint)


def boolean() -> Scalar[bool]:
    """true or false."""
    return Scalar(lambda value: value if isinstance(value, bool) else None, "true or false")


def choice(words: Iterable[str], expected: str = "") -> Scalar[str]:
    """One of the words; the nearest is the hint."""
    legal = tuple(words)
    return Scalar(
        lambda value: value if isinstance(value, str) and value in legal else None,
        expected or f"one of {', '.join(legal)}",
        lambda value: did_you_mean(str(value), legal),
    )


def integer(low: int | None = None, high: int | None = None, expected: str = "", hint: str = "") -> Scalar[int]:
    """A whole number from low to high, both included; true and 1.0 are no whole numbers."""

    def convert(value: Json) -> int | None:
        if isinstance(value, bool) or not isinstance(value, int):
            return None
        return value if _within(value, low, high) else None

    return Scalar(convert, expected or _span("a whole number", low, high), hint)


def number(low: float | None = None, high: float | None = None, expected: str = "", hint: str = "") -> Scalar[float]:
    """A finite number from low to high, both included. A whole number stays an int; true is no number."""

    def convert(value: Json) -> float | None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        return value if math.isfinite(value) and _within(value, low, high) else None

    return Scalar(convert, expected or _span("a number", low, high), hint)


def _within(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or low <= value) and (high is None or value <= high)


def _span(what: str, low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"{what} from {low} to {high}"
    return what if low is None else f"{what} from {low} on"


# ------------------------------------------------------------------ lists, mappings and alternatives


@dataclass(frozen=True)
class ListOf(Generic[T]):
    """A list of values of one schema. Values that do not fit, and repeated ones, are faults and left out."""

    item: Schema[T]
    expected: str = "a list"
    hint: str = "[…]"
    fewest: int = 0
    most: int | None = None
    repeats: bool = False  # whether a value may stand in it twice
    same: Callable[[Any, Any], bool] = operator.eq  # which two values are the same

    def read(self, value: Json, path: YamlPath, problems: Problems) -> tuple[T, ...]:
        """See `Schema`."""
        if not isinstance(value, list):
            problems.wrong(path, describe_value(value), self.expected, self.hint)
            raise Invalid
        if len(value) < self.fewest or (self.most is not None and len(value) > self.most):
            shown = f"a list of {len(value)}" if value else "empty"
            problems.wrong(path, shown, self.expected, self.hint)
            raise Invalid
        out: list[T] = []
        for i, raw in enumerate(value):
            try:
                item = self.item.read(raw, (*path, i), problems)
            except Invalid:
                continue
            if not self.repeats and any(self.same(item, other) for other in out):
                problems.add((*path, i), f"{problems.name(path)} has {raw!r} twice", "leave one out")
            else:
                out.append(item)
        return tuple(out)


@dataclass(frozen=True)
class MapOf(Generic[T]):
    """A mapping whose keys are names and whose values have one schema. Those that do not fit are faults and left
    out."""

    item: Schema[T]
    expected: str = "keys with values"
    hint: str = ""
    keys: Collection[str] | None = None  # the legal names; None: any
    noun: str = "name"  # what messages call such a name
    may_be_empty: bool = True

    def read(self, value: Json, path: YamlPath, problems: Problems) -> dict[str, T]:
        """See `Schema`."""
        if not isinstance(value, dict) or not (value or self.may_be_empty):
            problems.wrong(path, "empty" if value == {} else describe_value(value), self.expected, self.hint)
            raise Invalid
        out: dict[str, T] = {}
        for key_, raw in value.items():
            if self.keys is not None and key_ not in self.keys:
                problems.add((*path, key_), f"unknown {self.noun} {key_!r}", did_you_mean(key_, self.keys))
                continue
            try:
                out[key_] = self.item.read(raw, (*path, key_), problems)
            except Invalid:
                continue
        return out


@dataclass(frozen=True)
class Keys(Generic[T]):
    """A mapping with fixed keys, each with its own schema. The result holds the keys that the file has."""

    items: Mapping[str, Schema[T]]
    required: tuple[str, ...] = ()
    also: tuple[str, ...] = ()  # keys that are legal, and read elsewhere
    expected: str = "keys with values"
    hint: str = ""

    def read(self, value: Json, path: YamlPath, problems: Problems) -> dict[str, T]:
        """See `Schema`."""
        if not isinstance(value, dict):
            problems.wrong(path, describe_value(value), self.expected, self.hint)
            raise Invalid
        problems.keys(path, value, (*self.items, *self.also), self.required)
        out: dict[str, T] = {}
        for key_, raw in value.items():
            if key_ not in self.items:
                continue
            try:
                out[key_] = self.items[key_].read(raw, (*path, key_), problems)
            except Invalid:
                continue
        return out


@dataclass(frozen=True)
class Either(Generic[T]):
    """One schema for the values that a test picks, another for all others."""

    when: Callable[[Json], bool]
    then: Schema[T]
    otherwise: Schema[T]

    def read(self, value: Json, path: YamlPath, problems: Problems) -> T:
        """See `Schema`."""
        return (self.then if self.when(value) else self.otherwise).read(value, path, problems)


# ------------------------------------------------------------------ records


def key(schema: Schema[Any], *, default: Any, required: bool = False, name: str = "") -> Any:
    """A field of a dataclass that a `Record` reads, as `dataclasses.field`.

    default: its value where the file lacks the key, or has a value that is a fault.
    required: a file without the key is wrong.
    name: the key in the file, where it is not the field's name.
    """
    return field(default_factory=lambda: default, metadata={"schema": schema, "required": required, "name": name})


@dataclass(frozen=True)
class Record(Generic[D]):
    """A mapping that becomes a dataclass: its keys are the fields declared with `key`."""

    cls: type[D]
    expected: str = "keys with values"
    hint: str = ""

    def read(self, value: Json, path: YamlPath, problems: Problems) -> D:
        """See `Schema`."""
        if not isinstance(value, dict):
            problems.wrong(path, describe_value(value), self.expected, self.hint)
            raise Invalid
        declared = {f.metadata["name"] or f.name: f for f in fields(self.cls) if "schema" in f.metadata}
        required = [key_ for key_, f in declared.items() if f.metadata["required"]]
        problems.keys(path, value, declared, required)
        out = {}
        for key_, f in declared.items():
            if key_ in value:
                try:
                    out[f.name] = f.metadata["schema"].read(value[key_], (*path, key_), problems)
                except Invalid:
                    continue
        return self.cls(**out)
