"""A configuration as dotted names with values: `zooming.k_z: 10`, as files, `--set` and stores write it."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from operator import attrgetter, itemgetter

from raz.config.ranges import validate_ranges
from raz.config.trial import TrialConfig
from raz.config.value_types import Leaf, ParameterType, parameter_type
from raz.errors import RazError, raise_all
from raz.utils.json_types import Json, JsonLike, to_json
from raz.utils.suggestions import did_you_mean

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = Mapping[str, JsonLike]
"""Dotted names with values as a file or a command line gives them, not yet checked."""

_Part = typing.TypeVar("_Part", bound="DataclassInstance")


def parameters(config: TrialConfig) -> dict[str, Json]:
    """Dotted name -> JSON value of every leaf; a tuple is a list."""
    out: dict[str, Json] = {}

    def walk(part: DataclassInstance, prefix: str) -> None:
        for f in fields(part):
            value = getattr(part, f.name)
            if is_dataclass(value) and not isinstance(value, type):
                walk(value, f"{prefix}{f.name}.")
            else:
                out[f"{prefix}{f.name}"] = to_json(value)

    walk(config, "")
    return out


@lru_cache(maxsize=1)  # a trial asks for them several times, and reading annotations takes milliseconds
def parameter_types() -> Mapping[str, ParameterType]:
    """Every legal dotted name with its type."""
    out: dict[str, ParameterType] = {}

    def walk(cls: type[DataclassInstance], prefix: str) -> None:
        for name, of in field_types(cls).items():
            part = of.part_class()
            if part is not None:
                walk(part, f"{prefix}{name}.")
            if of.kind != "part":  # a leaf, or a part that may also be a word
                out[f"{prefix}{name}"] = of

    walk(TrialConfig, "")
    return out


def field_types(cls: type[DataclassInstance]) -> dict[str, ParameterType]:
    """The type of each field of a dataclass of the configuration, in their order."""
    annotations = typing.get_type_hints(cls)
    return {f.name: parameter_type(annotations[f.name]) for f in fields(cls)}


def configure(base: TrialConfig, settings: Settings, where: str = "settings") -> TrialConfig:
    """`base` with dotted names set: `configure(paper, {"zooming.k_z": 4})`.

    A word for a whole part (`raz.regions: same`) is set before the part's leaves. Raises RazError(s) for every unknown
    name and every value of the wrong type; if there is none, for every value out of range. Each fault has this `where`
    and names its parameter.
    """
    types = parameter_types()
    faults: list[tuple[int, RazError]] = []
    changed: dict[str, Leaf] = {}
    unchanged: dict[str, JsonLike] = {}
    for name, value in settings.items():
        if name not in types:
            unknown = RazError(where, f"unknown parameter {name!r}", did_you_mean(name, types), parameter=name)
            faults.append((name.count("."), unknown))
        elif _has_value(base, name, value):  # most of a stored configuration is as in `base`
            unchanged[name] = value
        else:
            try:
                changed[name] = types[name].coerce(value)
            except ValueError as error:
                wrong = RazError(where, f"{name} is {value!r}, expected {error}", parameter=name)
                faults.append((name.count("."), wrong))
    raise_all([fault for _, fault in sorted(faults, key=itemgetter(0))])  # those of whole parts first
    for word in [name for name, value in changed.items() if isinstance(value, str) and types[name].part_class()]:
        # The word replaces the part, so leaves of it that are set to what `base` has are set again.
        replaced = {name: value for name, value in unchanged.items() if name.startswith(f"{word}.")}
        changed |= {name: types[name].coerce(value) for name, value in replaced.items()}
    config = _replace_leaves(base, changed) if changed else base
    raise_all(validate_ranges(config, where))
    return config


def _has_value(config: TrialConfig, name: str, value: JsonLike) -> bool:
    """Whether a parameter has this value already, of the same type."""
    try:
        current = _getter(name)(config)
    except AttributeError:  # a word stands for the part
        return False
    if type(current) is tuple and type(value) is list:  # as JSON stores a tuple
        return current == tuple(value) and [*map(type, current)] == [*map(type, value)]
    return type(current) is type(value) and bool(current == value)


@lru_cache(maxsize=1024)
def _getter(name: str) -> attrgetter[Leaf | DataclassInstance]:
    return attrgetter(name)


def _replace_leaves(part: _Part, values: Mapping[str, Leaf], prefix: str = "") -> _Part:
    """The part with values of the right type at their dotted names below it. Each part is made once, however many of
    its leaves are set."""
    own: dict[str, Leaf | DataclassInstance] = {}
    inner: dict[str, dict[str, Leaf]] = {}
    for name, value in values.items():
        first, _, rest = name.partition(".")
        if rest:
            inner.setdefault(first, {})[rest] = value
        else:
            own[first] = value
    for first, below in inner.items():
        current: Leaf | DataclassInstance = own.get(first, getattr(part, first))
        if not is_dataclass(current):  # the word is replaced by the part's defaults, then set
            cls = parameter_types()[f"{prefix}{first}"].part_class()
            assert cls is not None
            current = cls()
        own[first] = _replace_leaves(current, below, f"{prefix}{first}.")
    return type(part)(**{**vars(part), **own})  # as `replace`, in a third of the time


def diff(a: TrialConfig, b: TrialConfig) -> dict[str, tuple[Json, Json]]:
    """Dotted names whose values differ, each with both values; None where a name has no value of its own."""
    left, right = parameters(a), parameters(b)
    return {
        name: (left.get(name), right.get(name))
        for name in left.keys() | right.keys()
        if left.get(name) != right.get(name)
    }
