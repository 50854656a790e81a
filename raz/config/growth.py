"""Fields that were added after stores and studies existed (`raz.config.added`). While such a field has its `before`
value, keys and meanings are the same as without it."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache

from raz.config.parameters import Settings, configure, field_types
from raz.config.trial import TrialConfig
from raz.utils.json_types import Json, to_json

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

_NOTHING = object()


@lru_cache(maxsize=1)  # as parameter_types
def before_values() -> Mapping[str, Json]:
    """Dotted name -> `before` value as JSON, of every field that was `added`.

    Raises ValueError for a `before` value that is not of the field's type.
    """
    out: dict[str, Json] = {}

    def walk(cls: type[DataclassInstance], prefix: str, outer: object) -> None:
        types = field_types(cls)
        for f in fields(cls):
            name, of = f"{prefix}{f.name}", types[f.name]
            before = f.metadata.get("before", _NOTHING if outer is _NOTHING else getattr(outer, f.name))
            part = of.part_class()
            if part is not None:
                walk(part, f"{name}.", before if is_dataclass(before) else _NOTHING)
            if before is not _NOTHING and not is_dataclass(before):  # a leaf, or the word for a part
                out[name] = to_json(of.coerce(before))

    walk(TrialConfig, "", _NOTHING)
    return out


def without_before(values: Mapping[str, Json]) -> dict[str, Json]:
    """The parameters that enter a key or a study's meaning: all but the added fields that have their `before` value."""
    before = before_values()
    return {
        name: value for name, value in values.items()
        if name not in before or before[name] != value or isinstance(before[name], bool) != isinstance(value, bool)
    }  # fmt: skip


def completed(values: Mapping[str, Json]) -> dict[str, Json]:
    """A stored configuration, with the `before` value of each added field that it lacks.

    The parameters of a part for which a word stands (`raz.regions: same`) are not missing.
    """
    out = dict(values)
    for name, value in before_values().items():
        words = name.split(".")
        parts = (".".join(words[:i]) for i in range(1, len(words)))
        if name not in out and not any(p in out for p in parts) and not any(n.startswith(f"{name}.") for n in values):
            out[name] = value
    return out


def changed_since(part: DataclassInstance) -> dict[str, Json]:
    """Names and values of a dataclass's own added fields that do not have their `before` value."""
    values = {f.name: (getattr(part, f.name), f.metadata["before"]) for f in fields(part) if "before" in f.metadata}
    return {name: value for name, (value, before) in values.items() if value != before}


def from_parameters(values: Mapping[str, Json]) -> TrialConfig:
    """The configuration that was stored as `parameters`. A missing field has its `before` value if it was added, else
    its default. Raises RazError(s) for an unknown name or an illegal value."""
    stored: Settings = completed(values)
    return configure(TrialConfig(), stored, "stored configuration")
