"""ParameterType: the type of a parameter, read from its annotation; converts JSON and YAML values."""

from __future__ import annotations

import math
import types
import typing
from dataclasses import dataclass, is_dataclass
from typing import Any, Literal, TypeAlias

from raz.utils.json_types import JsonLike

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

Leaf: TypeAlias = "bool | int | float | str | tuple[Leaf, ...]"
"""The value of a field that is no part: what the dataclasses of `raz.config.trial` hold."""

_SCALARS: dict[type, Literal["bool", "int", "float", "str"]] = {bool: "bool", int: "int", float: "float", str: "str"}


@dataclass(frozen=True)
class ParameterType:
    """The type of a parameter."""

    kind: Literal["bool", "int", "float", "str", "word", "union", "list", "tuple", "part"]
    words: tuple[bool | int | str, ...] = ()  # of `word`: the legal values
    inner: tuple[ParameterType, ...] = ()  # alternatives of a union, items of a tuple, the one item of a list
    part: type[DataclassInstance] | None = None  # of `part`: a dataclass whose fields are parameters of their own

    def part_class(self) -> type[DataclassInstance] | None:
        """The dataclass that it is, or that it may be beside a word (`raz.regions: same`); None for a leaf."""
        if self.kind == "union":
            return next((option.part for option in self.inner if option.part is not None), None)
        return self.part

    def coerce(self, value: JsonLike) -> Leaf:
        """`value` in this type: a whole number as a float, a list as a tuple. Raises ValueError saying what was
        expected."""
        match self.kind:
            case "bool":
                if isinstance(value, bool):
                    return value
                raise ValueError("true or false")
            case "int":
                if isinstance(value, int) and not isinstance(value, bool):
                    return value
                raise ValueError("a whole number")
            case "float":
                if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                    return float(value)
                raise ValueError(
                    "a finite number" + (" (write 1.0e-4: YAML reads 1e-4 as text)" if _looks_numeric(value) else "")
                )
            case "str":
                if isinstance(value, str):
                    return value
                raise ValueError("a text")
            case "word":
                for word in self.words:
                    if value == word and type(value) is type(word):
                        return word
                raise ValueError("one of " + ", ".join(map(str, self.words)))
            case "union":
                expected = []
                for option in self.inner:
                    try:
                        return option.coerce(value)
                    except ValueError as error:
                        expected.append(str(error))
                raise ValueError(" or ".join(expected))
            case "list":
                if isinstance(value, (list, tuple)):
                    return tuple(self.inner[0].coerce(item) for item in value)
                raise ValueError("a list of numbers")
            case "tuple":
                if isinstance(value, (list, tuple)) and len(value) == len(self.inner):
                    return tuple(of.coerce(item) for of, item in zip(self.inner, value, strict=True))
                raise ValueError(f"a list of {len(self.inner)} numbers")
            case "part":
                raise ValueError("its own parameters, each by its dotted name")

    def summary(self) -> str:
        """Its legal words and types for people: `float, fitted`, `list of numbers`; '' for a part."""
        match self.kind:
            case "word":
                return ", ".join(map(str, self.words))
            case "union":
                return ", ".join(text for option in self.inner if (text := option.summary()))
            case "list":
                return "list of numbers"
            case "tuple":
                return f"list of {len(self.inner)}"
            case "part":
                return ""
            case _:
                return self.kind


def parameter_type(annotation: Any) -> ParameterType:  # no static type covers `int`, `int | str` and `Literal["a"]`
    """The type that an annotation of a field means. Raises TypeError for one that no parameter can have."""
    if annotation in _SCALARS:
        return ParameterType(_SCALARS[annotation])
    if isinstance(annotation, type) and is_dataclass(annotation):
        return ParameterType("part", part=annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return ParameterType("word", words=arguments)
    if origin in (types.UnionType, typing.Union):
        return ParameterType("union", inner=tuple(map(parameter_type, arguments)))
    if origin is tuple and arguments[-1] is Ellipsis:
        return ParameterType("list", inner=(parameter_type(arguments[0]),))
    if origin is tuple:
        return ParameterType("tuple", inner=tuple(map(parameter_type, arguments)))
    raise TypeError(f"no parameter can be annotated {annotation}")


def _looks_numeric(value: JsonLike) -> bool:
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False
