"""A field added to a dataclass of the configuration while the tests run, as if its source had one line more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass
from typing import Any

from raz.config import before_values, parameter_types
from raz.pipeline import graph

GENERATED = ("__init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__", "__match_args__")


def forget() -> None:
    """Clear the caches that depend on the fields of the configuration."""
    for cached in (parameter_types, before_values, graph._read_by):
        cached.cache_clear()


@contextmanager
def with_field(cls: type, name: str, kind: Any, later: Any) -> Iterator[None]:
    """`cls` with one more field, as if its source had the line `name: kind = later`. Configurations that exist have it
    at its default."""
    annotations, generated = dict(cls.__annotations__), {n: cls.__dict__[n] for n in GENERATED if n in cls.__dict__}
    known = cls.__dict__["__dataclass_fields__"]

    cls.__annotations__ = {**annotations, name: kind}
    for one, field in known.items():  # as their lines say, so that factories and what is beside a default stay
        if field.default is not MISSING or field.default_factory is not MISSING:
            setattr(cls, one, field)
    setattr(cls, name, later)
    for one in generated:
        delattr(cls, one)
    dataclass(frozen=True)(cls)
    forget()
    try:
        yield
    finally:
        cls.__annotations__ = annotations
        delattr(cls, name)
        for one in GENERATED:
            if one in cls.__dict__:
                delattr(cls, one)
        for one, value in generated.items():
            setattr(cls, one, value)
        cls.__dataclass_fields__ = known  # type: ignore[attr-defined]
        forget()
