"""SearchSpace: a question about the hyperparameters, read from YAML and checked before anything runs.

Every parameter name and every value that a trial could draw is set on the base once, so a search never
dies in its fortieth trial of a misspelt word. All faults of a file are told together (`file:line: ...`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from raz import config as cfg
from raz.config import PRESETS, TrialConfig, configure, known_names, nearest, parameters
from raz.errors import RazError, RazErrors
from raz.study.yamlfile import Document, Faults, Place, kind, read

SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("none", "median", "percentile")  # median keeps the better half at each step, percentile a quarter
DIRECTIONS = ("minimize", "maximize")
KINDS = ("choice", "int", "float")
STUDY_NAME = re.compile(r"[a-z0-9_-]{1,64}")
LARGEST_GRID = 100_000
MOST_TRIALS = 1_000_000


class Suggests(Protocol):
    """The part of an Optuna trial that a space draws from."""

    def suggest_categorical(self, name: str, choices: Any, /) -> Any: ...
    def suggest_int(self, name: str, low: int, high: int, /, *, step: int = 1, log: bool = False) -> int: ...
    def suggest_float(
        self, name: str, low: float, high: float, /, *, step: float | None = None, log: bool = False
    ) -> float: ...


@dataclass(frozen=True)
class Parameter:
    """One searched hyperparameter: a choice of values, or a range with both ends included."""

    name: str  # dotted, as in raz.config
    kind: str  # choice | int | float
    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()  # active when each of these parameters has one of the values

    def active(self, values: Mapping[str, Any]) -> bool:
        """Whether it is drawn beside these values; a condition on a parameter that is not drawn itself fails."""
        return all(name in values and _among(values[name], legal) for name, legal in self.when)

    def draw(self, trial: Suggests) -> Any:
        """A value from the trial. Optuna keeps scalars, so any other choice goes by its JSON text."""
        if self.kind == "choice":
            labels = [label(value) for value in self.choices]
            return self.choices[labels.index(trial.suggest_categorical(self.name, labels))]
        if self.kind == "int":
            return trial.suggest_int(self.name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    def values(self) -> tuple[Any, ...]:
        """All its values, for a grid. Raises ValueError for a float without a step."""
        if self.kind == "choice":
            return self.choices
        if self.kind == "int":
            return tuple(range(int(self.low), int(self.high) + 1, int(self.step or 1)))
        if self.step is None:
            raise ValueError(f"{self.name} has no step")
        n = round((self.high - self.low) / self.step)
        return (*(self.low + i * self.step for i in range(n)), self.high)

    def meaning(self) -> dict[str, Any]:
        """What the file says of it, defaults left out."""
        out: dict[str, Any] = {}
        if self.kind == "choice":
            out["choice"] = list(self.choices)
        else:
            out[self.kind] = [self.low, self.high]
        if self.step is not None:
            out["step"] = self.step
        if self.log:
            out["log"] = True
        if self.when:
            out["when"] = {name: list(legal) for name, legal in self.when}
        return out


@dataclass(frozen=True)
class SearchSpace:
    """A study's question: where it starts (base), what is varied, how, and what is best."""

    study: str
    base: TrialConfig
    parameters: tuple[Parameter, ...]  # each after those its conditions name
    sampler: str = "tpe"
    trials: int = 1
    seed: int = 0
    metric: str = "val.mae"
    direction: str = "minimize"
    pruner: str = "none"
    warmup_steps: int = 0
    source: str = ""
    comment: str = field(default="", compare=False)

    def suggest(self, trial: Suggests) -> dict[str, Any]:
        """Draws the values of a trial: dotted name -> value, active parameters only."""
        values: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.active(values):
                values[parameter.name] = parameter.draw(trial)
        return values

    def config(self, values: Mapping[str, Any]) -> TrialConfig:
        """The base with these values set. Raises RazError when they cannot go together."""
        return configure(self.base, values, f"study {self.study}")

    def grid(self) -> tuple[dict[str, Any], ...]:
        """Every combination once; parameters that a combination leaves out do not multiply it."""
        points: list[dict[str, Any]] = [{}]
        for parameter in self.parameters:
            longer: list[dict[str, Any]] = []
            for point in points:
                if parameter.active(point):
                    longer += [{**point, parameter.name: value} for value in parameter.values()]
                else:
                    longer.append(point)
            points = longer
            if len(points) > LARGEST_GRID:
                raise RazError(self.source, f"the grid has more than {LARGEST_GRID} points", "use sampler: random")
        return tuple(points)

    @property
    def target(self) -> int:
        """Trials to do; a grid's may be fewer than its points, never more."""
        return min(self.trials, len(self.grid())) if self.sampler == "grid" else self.trials

    @property
    def threads(self) -> int:
        """CPU threads of the hungriest trial."""
        counts = [max(int(v) for v in p.values()) for p in self.parameters if p.name == "threads"]
        return max([self.base.threads, *counts])

    def meaning(self) -> dict[str, Any]:
        """What the study asks, flat. The number of trials is no part of it: a study may be extended."""
        out: dict[str, Any] = {
            "objective.metric": self.metric,
            "objective.direction": self.direction,
            "design.sampler": self.sampler,
            "design.seed": self.seed,
            "pruner.name": self.pruner,
            "pruner.warmup_steps": self.warmup_steps,
        }
        out.update({f"base.{name}": value for name, value in parameters(self.base).items()})
        out.update({f"parameters.{p.name}": p.meaning() for p in self.parameters})
        loaded: dict[str, Any] = json.loads(json.dumps(out))
        return loaded

    def digest(self) -> str:
        """sha256 (hex) of the meaning."""
        return hashlib.sha256(json.dumps(self.meaning(), sort_keys=True).encode()).hexdigest()


def label(value: Any) -> Any:
    """A choice as Optuna stores it."""
    return value if isinstance(value, (bool, int, float, str)) else json.dumps(value)


def _among(value: Any, legal: tuple[Any, ...]) -> bool:
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in legal)


def table_names() -> dict[str, tuple[str, ...]]:
    """Parameters whose legal words are the names in a table of the code."""
    from raz.data import DATASETS
    from raz.paper.fusion import RULES
    from raz.paper.zoom import ANCHOR_SETS

    anchors = tuple(ANCHOR_SETS)
    return {
        "dataset": tuple(DATASETS),
        "fusion.rule": tuple(RULES),
        "zooming.anchors": anchors,
        "raz.regions.anchors": anchors,
    }


def check_words(values: Mapping[str, Any], where: str = "settings") -> list[RazError]:
    """Faults of values that should be a name in one of the code's tables."""
    tables = table_names()
    return [
        RazError(
            where, f"{name} is {value!r}, expected one of {', '.join(tables[name])}", nearest(str(value), tables[name])
        )
        for name, value in values.items()
        if name in tables and value not in tables[name]
    ]


# ------------------------------------------------------------------------------------ reading


def load_space(path: Path, name: str = "", settings: Mapping[str, Any] | None = None) -> SearchSpace:
    """The search space in a file; `settings` (of `--set`) go on top of the file's base.

    Raises RazError(s) with `file:line`, all faults at once.
    """
    return parse_space(read(path, name, strict=False), settings)


def parse_space(document: Document, settings: Mapping[str, Any] | None = None) -> SearchSpace:
    """The search space of a document. See `load_space`."""
    data, faults = document.data, Faults(document)
    faults.keys(
        (), data, ("study", "base", "design", "objective", "pruner", "parameters"), ("study", "design", "parameters")
    )
    study = data.get("study")
    if "study" in data and not (isinstance(study, str) and STUDY_NAME.fullmatch(study)):
        faults.add(("study",), f"study is {kind(study)}, expected 1 to 64 of a-z, 0-9, _ and -", _plain_name(study))
    base = read_base(document, faults, settings or {})
    design = _section(data, "design", faults, ("sampler", "trials", "seed"))
    sampler = _word(design, ("design", "sampler"), SAMPLERS, "tpe", faults)
    seed = _whole(design, ("design", "seed"), 0, 0, 2**32 - 1, faults)
    if "design" in data and sampler != "grid" and "trials" not in design:
        faults.add(("design",), "design.trials is missing", "trials: 40")
    trials = _whole(design, ("design", "trials"), MOST_TRIALS, 1, MOST_TRIALS, faults)
    objective = _section(data, "objective", faults, ("metric", "direction"))
    metric = objective.get("metric", "val.mae")
    if not isinstance(metric, str) or not re.fullmatch(r"val\.[\w@.]+", metric):
        if isinstance(metric, str) and metric.startswith("test."):
            hint = f"val.{metric.removeprefix('test.')}: the test split is for the rows of a report only"
        else:
            hint = "val.mae"
        faults.add(
            ("objective", "metric"),
            f"objective.metric is {kind(metric)}, expected a metric of the validation split",
            hint,
        )
    direction = _word(objective, ("objective", "direction"), DIRECTIONS, "minimize", faults)
    pruning = _section(data, "pruner", faults, ("name", "warmup_steps"))
    pruner = _word(pruning, ("pruner", "name"), PRUNERS, "none", faults)
    warmup = _whole(pruning, ("pruner", "warmup_steps"), 0, 0, MOST_TRIALS, faults)
    found = _parameters(document, faults, base, sampler)
    for parameter in found:
        if parameter.name in (settings or {}):
            raise RazError(
                f"--set {parameter.name}", f"{document.name} searches it, so a trial would overwrite the value",
                f"set it in the file: {parameter.name}: {{choice: [{(settings or {})[parameter.name]}]}}",
            )  # fmt: skip
    faults.settle()
    space = SearchSpace(
        study=str(study), base=base, parameters=found, sampler=sampler, trials=trials, seed=seed, metric=str(metric),
        direction=direction, pruner=pruner, warmup_steps=warmup, source=document.name, comment=document.comment,
    )  # fmt: skip
    if sampler == "grid":
        try:
            space.grid()
        except RazError as error:
            raise RazError(document.where("design"), error.what, error.hint) from None
    return space


def read_base(
    document: Document, faults: Faults, settings: Mapping[str, Any], place: Place = ("base",), preset: str = "tiny"
) -> TrialConfig:
    """`base: {preset, dataset, set: {dotted name: value}}`, with the command line's settings on top."""
    base = document.data
    for part in place:
        base = base.get(str(part), {}) if isinstance(base, dict) else {}
    if not isinstance(base, dict):
        faults.add(place, f"{'.'.join(map(str, place))} is {kind(base)}, expected keys with values", "{preset: tiny}")
        base = {}
    prefix = "".join(f"{part}." for part in place)
    faults.keys(place, base, ("preset", "dataset", "set"))
    settings = dict(settings)
    name = settings.pop("preset", base.get("preset", preset))  # --set preset=small
    if name not in PRESETS:
        faults.add(
            (*place, "preset"), f"{prefix}preset is {kind(name)}, expected one of {', '.join(PRESETS)}",
            nearest(str(name), PRESETS),
        )  # fmt: skip
    config = PRESETS[name] if isinstance(name, str) and name in PRESETS else PRESETS["paper"]
    chosen = base.get("set", {})
    if not isinstance(chosen, dict):
        faults.add((*place, "set"), f"{prefix}set is {kind(chosen)}, expected dotted names with values", "seed: 1")
        chosen = {}
    given = {**({"dataset": base["dataset"]} if "dataset" in base else {}), **chosen}
    legal: dict[str, Any] = {}
    for key, value in given.items():
        where = (*place, "set", key) if key in chosen else (*place, "dataset")
        wrong = _faults_of(PRESETS["paper"], {key: value}, ranges=False)
        for fault in wrong:
            faults.add(where, fault.what, fault.hint)
        if not wrong:
            legal[key] = value
    try:
        config = configure(config, legal)
    except RazError as error:  # right one by one, and out of range together
        for fault in _each(error):
            culprit = next((key for key in legal if fault.what.startswith(f"{key} ")), None)
            faults.add((*place, "set", culprit) if culprit else place, fault.what, fault.hint)
    if settings:
        wrong = check_words(settings, "--set") if all(key in known_names() for key in settings) else []
        try:
            config = configure(config, settings, "--set")
        except RazError as error:
            wrong += _each(error)
        if wrong:  # the command line has no line to name, and is wrong whatever the file says
            raise RazErrors(wrong) if len(wrong) > 1 else wrong[0]
    return config


def _faults_of(base: TrialConfig, values: Mapping[str, Any], *, ranges: bool = True) -> list[RazError]:
    wrong = check_words(values)
    if wrong:
        return wrong
    try:
        if ranges:
            configure(base, values)
        else:
            hints = known_names()
            for name, value in values.items():
                if name not in hints:
                    return [RazError("", f"unknown parameter {name!r}", nearest(name, hints))]
                try:
                    cfg.coerce(hints[name], value)
                except ValueError as error:
                    return [RazError("", f"{name} is {kind(value)}, expected {error}")]
    except RazError as error:
        return _each(error)
    return []


def _each(error: RazError) -> list[RazError]:
    return list(error.faults) if isinstance(error, RazErrors) else [error]


def _parameters(document: Document, faults: Faults, base: TrialConfig, sampler: str) -> tuple[Parameter, ...]:
    raw = document.data.get("parameters", {})
    if not isinstance(raw, dict) or ("parameters" in document.data and not raw):
        faults.add(
            ("parameters",), f"parameters is {'empty' if raw == {} else kind(raw)}, expected dotted names with ranges",
            "depth: {choice: [1, 2, 3]}",
        )  # fmt: skip
        return ()
    hints = known_names()
    found: dict[str, Parameter] = {}
    for name, body in raw.items():
        if name not in hints:
            faults.add(("parameters", name), f"unknown parameter {name!r}", nearest(name, hints))
            continue
        parameter = _parameter(name, body, faults, sampler)
        if parameter is not None:
            found[name] = parameter
    for parameter in found.values():
        for other, legal in parameter.when:
            _condition(parameter.name, other, legal, raw, found, faults)
    ordered = _ordered(found, faults)
    for parameter in ordered:
        _try_values(parameter, found, base, faults)
    return ordered


def _parameter(name: str, body: Any, faults: Faults, sampler: str) -> Parameter | None:
    place: Place = ("parameters", name)
    before = len(faults.found)
    if not isinstance(body, dict):
        hint = f"{name}: {{choice: {json.dumps(body)}}}" if isinstance(body, list) else f"{name}: {{int: [1, 4]}}"
        faults.add(place, f"{name} is {kind(body)}, expected choice, int or float", hint)
        return None
    kinds = [key for key in KINDS if key in body]
    for key in body:
        if key not in (*KINDS, "log", "step", "when"):
            legal = (*KINDS, "log", "step", "when")
            faults.add((*place, key), f"unknown key {key!r} of {name}", nearest(key, legal))
    if len(kinds) != 1:
        got = " and ".join(kinds) if kinds else "no range"
        faults.add(place, f"{name} has {got}, expected one of choice, int and float", f"{name}: {{choice: [1, 2]}}")
        return None
    (chosen,) = kinds
    when = _when(name, body.get("when", {}), faults)
    log: Any = body.get("log", False)
    step: Any = body.get("step")
    if chosen == "choice":
        values = body["choice"]
        if not isinstance(values, list) or not values:
            faults.add(
                (*place, "choice"),
                f"{name}.choice is {kind(values) if values != [] else 'empty'}, expected a list",
                "[1, 2]",
            )
            return None
        for key in ("log", "step"):
            if key in body:
                faults.add((*place, key), f"{name} has {key} beside choice", f"leave {key} out, or give a range")
        seen: list[Any] = []
        for i, value in enumerate(values):
            if isinstance(value, dict) or value is None:
                faults.add((*place, "choice", i), f"{name}.choice has {kind(value)}, expected values")
            elif any(label(value) == other for other in seen):
                faults.add((*place, "choice", i), f"{name}.choice has {value!r} twice", "leave one out")
            seen.append(label(value))
        return Parameter(name, "choice", tuple(values), when=when) if len(faults.found) == before else None
    bounds = body[chosen]
    number = int if chosen == "int" else (int, float)
    word = "whole numbers" if chosen == "int" else "numbers"

    def is_number(value: Any) -> bool:
        return isinstance(value, number) and not isinstance(value, bool) and math.isfinite(value)

    if not (isinstance(bounds, list) and len(bounds) == 2 and all(map(is_number, bounds))):
        shown = json.dumps(bounds) if isinstance(bounds, list) else kind(bounds)
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
        faults.add((*place, "log"), f"{name}.log is {kind(log)}, expected true or false")
    elif log and low <= 0:
        faults.add(
            (*place, "log"), f"{name} has log: true and starts at {low}, expected more than 0", "a higher lowest value"
        )
    if "step" in body:
        if not is_number(step) or step <= 0:
            faults.add((*place, "step"), f"{name}.step is {kind(step)}, expected one of the {word} over 0")
        elif log is True:
            faults.add((*place, "step"), f"{name} has both step and log: true", "leave one out")
        elif abs((high - low) / step - round((high - low) / step)) > 1e-9:
            top = low + math.floor((high - low) / step) * step
            faults.add((*place, "step"), f"{name}.step {step} does not lead from {low} to {high}", f"[{low}, {top:g}]")
    elif chosen == "float" and sampler == "grid":
        faults.add(
            place, f"{name} is a range without steps, which a grid cannot go through", "step: 0.1, or choice: [...]"
        )
    if len(faults.found) > before:
        return None
    return Parameter(name, chosen, low=low, high=high, step=step, log=log, when=when)


def _when(name: str, raw: Any, faults: Faults) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    place: Place = ("parameters", name, "when")
    if not isinstance(raw, dict):
        faults.add(place, f"{name}.when is {kind(raw)}, expected parameters with values", "when: {fusion.rule: grid}")
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
    faults: Faults,
) -> None:
    place: Place = ("parameters", name, "when", other)
    if other not in raw:
        hint = f"add {other} to parameters" if other in known_names() else nearest(other, known_names())
        faults.add(place, f"{name} depends on {other!r}, which is no parameter of this file", hint)
        return
    if other not in found:
        return  # it has a fault of its own
    parent = found[other]
    if parent.kind == "float":
        faults.add(place, f"{name} depends on {other}, a range of floats, expected a choice or whole numbers")
        return
    for value in legal:
        if not _among(value, parent.values()):
            shown = parent.values() if len(parent.values()) <= 12 else (*parent.values()[:12], "…")
            faults.add(place, f"{name}.when: {other} is never {value!r}", "one of " + ", ".join(map(str, shown)))


def _ordered(found: dict[str, Parameter], faults: Faults) -> tuple[Parameter, ...]:
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


def _try_values(parameter: Parameter, found: Mapping[str, Parameter], base: TrialConfig, faults: Faults) -> None:
    """Sets every choice, or both ends of a range, on the base, beside values that make it active."""
    around: dict[str, Any] = {}
    todo = [parameter]
    while todo:
        for other, legal in todo.pop().when:
            if other in found and other not in around:
                around[other] = legal[0]
                todo.append(found[other])
    if any(_faults_of(base, {name: value}) for name, value in around.items()):
        return  # the parent is at fault, and says so
    ends = parameter.choices if parameter.kind == "choice" else (parameter.low, parameter.high)
    told = set()
    for i, value in enumerate(ends):
        for fault in _faults_of(base, {**around, parameter.name: value}):
            if fault.what not in told:
                told.add(fault.what)
                place: Place = ("parameters", parameter.name, parameter.kind, i)
                faults.add(place, fault.what, fault.hint)


def _section(data: Mapping[str, Any], name: str, faults: Faults, legal: tuple[str, ...]) -> dict[str, Any]:
    section = data.get(name, {})
    if not isinstance(section, dict):
        faults.add((name,), f"{name} is {kind(section)}, expected keys with values", f"{{{legal[0]}: …}}")
        return {}
    faults.keys((name,), section, legal)
    return section


def _word(section: Mapping[str, Any], place: Place, legal: tuple[str, ...], default: str, faults: Faults) -> str:
    value = section.get(str(place[-1]), default)
    if value not in legal:
        name = ".".join(map(str, place))
        faults.add(place, f"{name} is {kind(value)}, expected one of {', '.join(legal)}", nearest(str(value), legal))
        return default
    return str(value)


def _whole(section: Mapping[str, Any], place: Place, default: int, low: int, high: int, faults: Faults) -> int:
    value = section.get(str(place[-1]), default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        name = ".".join(map(str, place))
        faults.add(place, f"{name} is {kind(value)}, expected a whole number from {low} to {high}")
        return default
    return value


def _plain_name(study: Any) -> str:
    plain = re.sub(r"[^a-z0-9_-]+", "-", str(study).lower()).strip("-")[:64]
    return f"study: {plain or 'my-study'}"


def settings_of(pairs: list[str]) -> dict[str, Any]:
    """`--set key=value …` as dotted names and values. Raises RazError for a word without `=`."""
    from raz.study.yamlfile import scalar

    out: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise RazError("--set", f"{pair!r} has no value, expected key=value", "--set seed=1")
        out[name.strip()] = scalar(text, f"--set {name.strip()}")
    return out


def combinations(space: SearchSpace) -> int | None:
    """How many different trials the space has; None when a float has no steps."""
    if any(p.kind == "float" and p.step is None for p in space.parameters):
        return None
    if not any(p.when for p in space.parameters):
        return math.prod(len(p.values()) for p in space.parameters)
    return sum(1 for _ in itertools.islice(space.grid(), LARGEST_GRID))
