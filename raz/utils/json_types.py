"""Types of JSON documents, and checked reads of their fields.

`json.loads` returns Any. A reader binds its result to `Json` and narrows it with the functions below, so that a damaged
or foreign document is a ValueError with the field's name, never an AttributeError somewhere later.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TypeAlias

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
"""What `json.loads` returns."""

JsonObject: TypeAlias = "dict[str, Json]"

JsonLike: TypeAlias = "bool | int | float | str | Sequence[JsonLike] | Mapping[str, JsonLike] | None"
"""What `json.dumps` takes: also tuples, and containers of one type such as `dict[str, float]`."""


def parse_json(text: str | bytes) -> Json:
    """The document in the text. Raises ValueError where it is not JSON."""
    document: Json = json.loads(text)
    return document


def parse_object(text: str | bytes) -> JsonObject:
    """The object in the text. Raises ValueError where it is not JSON, or not an object."""
    return as_object(parse_json(text), "the document")


def as_object(value: Json, name: str = "the value") -> JsonObject:
    """The value, which must be an object. Raises ValueError with the name otherwise."""
    if isinstance(value, dict):
        return value
    raise ValueError(f"{name} is {_kind(value)}, expected an object")


def as_list(value: Json, name: str = "the value") -> list[Json]:
    """The value, which must be a list. Raises ValueError with the name otherwise."""
    if isinstance(value, list):
        return value
    raise ValueError(f"{name} is {_kind(value)}, expected a list")


def as_str(value: Json, name: str = "the value") -> str:
    """The value, which must be a string. Raises ValueError with the name otherwise."""
    if isinstance(value, str):
        return value
    raise ValueError(f"{name} is {_kind(value)}, expected a string")


def as_int(value: Json, name: str = "the value") -> int:
    """The value, which must be a whole number and no boolean. Raises ValueError with the name otherwise."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"{name} is {_kind(value)}, expected a whole number")


def as_float(value: Json, name: str = "the value") -> float:
    """The value as a float; a whole number is one too. Raises ValueError with the name otherwise."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise ValueError(f"{name} is {_kind(value)}, expected a number")


def object_or_empty(value: Json) -> JsonObject:
    """The value if it is an object, else an empty object: for documents whose fields may be missing."""
    return value if isinstance(value, dict) else {}


def get_object(document: Mapping[str, Json], key: str) -> JsonObject:
    """The object in a field; empty where the document lacks it. Raises ValueError for another kind of value."""
    return as_object(document.get(key, {}), key)


def get_list(document: Mapping[str, Json], key: str) -> list[Json]:
    """The list in a field; empty where the document lacks it. Raises ValueError for another kind of value."""
    return as_list(document.get(key, []), key)


def get_str(document: Mapping[str, Json], key: str, default: str | None = None) -> str:
    """The string in a field. Raises ValueError for another kind of value, and where it is missing without default."""
    return as_str(document.get(key, default), key)


def get_int(document: Mapping[str, Json], key: str, default: int | None = None) -> int:
    """The whole number in a field. Raises ValueError as `get_str`."""
    return as_int(document.get(key, default), key)


def get_float(document: Mapping[str, Json], key: str, default: float | None = None) -> float:
    """The number in a field. Raises ValueError as `get_str`."""
    return as_float(document.get(key, default), key)


def to_json(value: JsonLike) -> Json:
    """The value as `json.loads` would return it: tuples and other sequences as lists."""
    if isinstance(value, str) or not isinstance(value, (Sequence, Mapping)):
        return value
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    return [to_json(item) for item in value]


def _kind(value: Json) -> str:
    """A value as messages show it; a long one is shortened."""
    if value is None:
        return "null or missing"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    return json.dumps(value)[:80]
