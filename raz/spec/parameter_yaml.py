"""`parameters:` of a search space: every name and every value that a trial could draw is tried on the base."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raz.config import TrialConfig, parameter_types
from raz.spec.base_config import validate_settings
from raz.spec.designs import DESIGNS
from raz.spec.parameter import Parameter, contains_exactly, optuna_label
from raz.utils.suggestions import did_you_mean
from raz.utils.yamlfile import Document, Place, Problems, describe_value

KINDS = ("choice", "int", "float")
KEYS = (*KINDS, "log", "step", "grid", "when")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")  # of a named choice
MOST_PLACES = 1000  # of `grid:`


def read_parameters(
    document: Document, faults: Problems, base: TrialConfig, sampler: str, data_root: Path | None = None
) -> tuple[Parameter, ...]:
    """The parameters of the file, each after those its conditions name."""
    raw = document.data.get("parameters", {})
    if not isinstance(raw, dict) or ("parameters" in document.data and not raw):
        faults.add(
            ("parameters",),
            f"parameters is {'empty' if raw == {} else describe_value(raw)}, expected dotted names with ranges",
            "depth: {choice: [1, 2, 3]}",
        )
        return ()
    hints = parameter_types()
    found: dict[str, Parameter] = {}
    for name, body in raw.items():
        several = isinstance(body, dict) and isinstance(body.get("choice"), dict)
        if name not in hints and not (several and NAME.fullmatch(name)):
            faults.add(("parameters", name), f"unknown parameter {name!r}", did_you_mean(name, hints))
            continue
        parameter = _parameter(name, body, faults)
        if parameter is not None:
            found[name] = parameter
            if sampler in DESIGNS and parameter.kind == "float" and not (parameter.step or parameter.grid):
                what = f"{name} is a range without steps, which a {sampler} design cannot go through"
                faults.add(("parameters", name), what, "grid: 8, step: 0.1, or choice: [...]")
    _check_overlapping(found, faults)
    for parameter in found.values():
        for other, legal in parameter.when:
            _condition(parameter.name, other, legal, raw, found, faults)
    ordered = _ordered(found, faults)
    for parameter in ordered:
        _try_values(parameter, found, base, faults, data_root)
    return ordered


def _parameter(name: str, body: Any, faults: Problems) -> Parameter | None:
    place: Place = ("parameters", name)
    before = len(faults.found)
    if not isinstance(body, dict):
        hint = f"{name}: {{choice: {json.dumps(body)}}}" if isinstance(body, list) else f"{name}: {{int: [1, 4]}}"
        faults.add(place, f"{name} is {describe_value(body)}, expected choice, int or float", hint)
        return None
    kinds = [key for key in KINDS if key in body]
    for key in body:
        if key not in KEYS:
            faults.add((*place, key), f"unknown key {key!r} of {name}", did_you_mean(key, KEYS))
    if len(kinds) != 1:
        got = " and ".join(kinds) if kinds else "no range"
        faults.add(place, f"{name} has {got}, expected one of choice, int and float", f"{name}: {{choice: [1, 2]}}")
        return None
    when = _when(name, body.get("when", {}), faults)
    found = _choice(name, body, when, faults) if kinds == ["choice"] else _range(name, kinds[0], body, when, faults)
    return found if len(faults.found) == before else None


When = tuple[tuple[str, tuple[Any, ...]], ...]


def _choice(name: str, body: Mapping[str, Any], when: When, faults: Problems) -> Parameter | None:
    place: Place = ("parameters", name, "choice")
    for key in ("log", "step", "grid"):
        if key in body:
            faults.add((*place[:2], key), f"{name} has {key} beside choice", f"leave {key} out, or give a range")
    values = body["choice"]
    if isinstance(values, dict) and values:
        return _named(name, values, when, faults)
    if not isinstance(values, list) or not values:
        got = describe_value(values) if values or not isinstance(values, (list, dict)) else "empty"
        faults.add(place, f"{name}.choice is {got}, expected a list", "[1, 2]")
        return None
    seen: list[Any] = []
    for i, value in enumerate(values):
        if isinstance(value, dict) or value is None:
            hint = f"{{this: {{{name}: …}}, that: …}}" if isinstance(value, dict) else ""
            faults.add((*place, i), f"{name}.choice has {describe_value(value)}, expected values", hint)
        elif any(contains_exactly(optuna_label(value), (other,)) for other in seen):
            faults.add((*place, i), f"{name}.choice has {value!r} twice", "leave one out")
        seen.append(optuna_label(value))
    return Parameter(name, "choice", tuple(values), when=when)


def _named(name: str, values: Mapping[str, Any], when: When, faults: Problems) -> Parameter | None:
    """`{narrow: {counting.channels: [32]}, wide: …}`, or names for the values of one parameter."""
    place: Place = ("parameters", name, "choice")
    own = name in parameter_types()
    sets: dict[str, Mapping[str, Any]] = {}
    for word, value in values.items():
        if isinstance(value, dict) and value:
            sets[word] = value
        elif own and value is not None and not isinstance(value, dict):
            sets[word] = {name: value}
        else:
            got = "nothing" if value is None or value == {} else describe_value(value)
            hint = f"{word}: {{counting.channels: [32, 32]}}"
            faults.add((*place, word), f"{name}.choice.{word} is {got}, expected dotted names with values", hint)
    return Parameter(name, "choice", tuple(sets), when=when, sets=sets)


def _range(name: str, chosen: str, body: Mapping[str, Any], when: When, faults: Problems) -> Parameter | None:
    place: Place = ("parameters", name)
    bounds = body[chosen]
    log: Any = body.get("log", False)
    step: Any = body.get("step")
    number = int if chosen == "int" else (int, float)
    word = "whole numbers" if chosen == "int" else "numbers"

    def is_number(value: Any) -> bool:
        return isinstance(value, number) and not isinstance(value, bool) and abs(value) <= 1e300

    if not (isinstance(bounds, list) and len(bounds) == 2 and all(map(is_number, bounds))):
        shown = json.dumps(bounds) if isinstance(bounds, list) else describe_value(bounds)
        faults.add(
            (*place, chosen), f"{name}.{chosen} is {shown}, expected two {word}: the lowest and the highest", "[1, 4]"
        )
        return None
    low, high = (float(b) if chosen == "float" else b for b in bounds)
    if low > high:
        faults.add(
            (*place, chosen), f"{name}.{chosen} is [{low}, {high}], the lowest is above the highest", f"[{high}, {low}]"
        )
    if not isinstance(log, bool):
        faults.add((*place, "log"), f"{name}.log is {describe_value(log)}, expected true or false")
    elif log and low <= 0:
        faults.add(
            (*place, "log"), f"{name} has log: true and starts at {low}, expected more than 0", "a higher lowest value"
        )
    if "step" in body:
        if not is_number(step) or step <= 0:
            faults.add((*place, "step"), f"{name}.step is {describe_value(step)}, expected one of the {word} over 0")
        elif log is True:
            faults.add((*place, "step"), f"{name} has both step and log: true", "leave one out")
        elif low <= high and abs((high - low) / step - round((high - low) / step)) > 1e-9:
            top = low + math.floor((high - low) / step) * step
            faults.add((*place, "step"), f"{name}.step {step} does not lead from {low} to {high}", f"[{low}, {top:g}]")
    grid = body.get("grid")
    if "grid" in body:
        if isinstance(grid, bool) or not isinstance(grid, int) or not 2 <= grid <= MOST_PLACES:
            what = f"{name}.grid is {describe_value(grid)}, expected a whole number from 2 to {MOST_PLACES}"
            faults.add((*place, "grid"), what, "grid: 8")
        elif "step" in body:
            faults.add((*place, "grid"), f"{name} has both step and grid", "leave one out")
        elif low == high:
            faults.add((*place, "grid"), f"{name} has a grid over the one value {low}", "leave grid out")
    return Parameter(name, chosen, low=low, high=high, step=step, log=log, grid=grid, when=when)


def _check_overlapping(found: Mapping[str, Parameter], faults: Problems) -> None:
    owner: dict[str, str] = {}
    for parameter in found.values():
        for name in parameter.names():
            if name in owner:
                what = f"{name} is set by {parameter.name} and by {owner[name]}"
                faults.add(("parameters", parameter.name), what, "leave one out")
            owner.setdefault(name, parameter.name)


def _when(name: str, raw: Any, faults: Problems) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    place: Place = ("parameters", name, "when")
    if not isinstance(raw, dict):
        faults.add(
            place, f"{name}.when is {describe_value(raw)}, expected parameters with values", "when: {fusion.rule: grid}"
        )
        return ()
    out = []
    for other, legal in raw.items():
        values = legal if isinstance(legal, list) else [legal]
        if not values:
            faults.add((*place, other), f"{name}.when.{other} is empty, so {name} would never be drawn")
            continue
        out.append((other, tuple(values)))
    return tuple(out)


def _condition(
    name: str,
    other: str,
    legal: tuple[Any, ...],
    raw: Mapping[str, Any],
    found: Mapping[str, Parameter],
    faults: Problems,
) -> None:
    place: Place = ("parameters", name, "when", other)
    if other not in raw:
        hint = f"add {other} to parameters" if other in parameter_types() else did_you_mean(other, parameter_types())
        faults.add(place, f"{name} depends on {other!r}, which is no parameter of this file", hint)
        return
    if other not in found:
        return  # it has a fault of its own
    parent = found[other]
    if parent.kind == "float":
        faults.add(place, f"{name} depends on {other}, a range of floats, expected a choice or whole numbers")
        return
    for value in legal:
        if not contains_exactly(value, parent.values()):
            shown = parent.values() if len(parent.values()) <= 12 else (*parent.values()[:12], "…")
            faults.add(place, f"{name}.when: {other} is never {value!r}", "one of " + ", ".join(map(str, shown)))


def _ordered(found: dict[str, Parameter], faults: Problems) -> tuple[Parameter, ...]:
    """Parents first, else the order of the file. A circle of conditions is a fault."""
    left, out = dict(found), []
    while left:
        ready = [p for p in left.values() if not any(other in left for other, _ in p.when)]
        if not ready:
            names = " -> ".join(left)
            faults.add(
                ("parameters", next(iter(left)), "when"), f"the conditions go in a circle: {names}", "drop one `when`"
            )
            return ()
        out.append(ready[0])
        del left[ready[0].name]
    return tuple(out)


def _try_values(
    parameter: Parameter, found: Mapping[str, Parameter], base: TrialConfig, faults: Problems, data_root: Path | None
) -> None:
    """Sets every choice, or both ends of a range, on the base, beside values that make it active."""
    beside = activating_values(parameter, found)
    parents = [found[name].settings(value) for name, value in beside.items() if _is_valid_choice(found[name], value)]
    if any(validate_settings(base, settings, data_root=data_root) for settings in parents):
        return  # the parent is at fault, and says so
    context = {name: value for settings in parents for name, value in settings.items()}
    told = set()
    for i, value in enumerate(extreme_values(parameter)):
        for fault in validate_settings(base, {**context, **parameter.settings(value)}, data_root=data_root):
            if fault.what not in told:
                told.add(fault.what)
                where: Place = (value, fault.parameter)
                faults.add(
                    ("parameters", parameter.name, parameter.kind, *(where if parameter.sets else (i,))),
                    fault.what, fault.hint,
                )  # fmt: skip


def extreme_values(parameter: Parameter) -> tuple[Any, ...]:
    """Every choice, or both ends of a range."""
    return parameter.choices if parameter.kind == "choice" else (parameter.low, parameter.high)


def activating_values(parameter: Parameter, found: Mapping[str, Parameter]) -> dict[str, Any]:
    """Values of other parameters beside which it is active."""
    out: dict[str, Any] = {}
    todo = [parameter]
    while todo:
        for other, legal in todo.pop().when:
            if other in found and other not in out:
                out[other] = legal[0]
                todo.append(found[other])
    return out


def _is_valid_choice(parameter: Parameter, value: Any) -> bool:
    return not parameter.sets or value in parameter.sets
