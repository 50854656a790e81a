"""`pruner:` of a search space: Optuna's pruners by name, their options checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raz.config import TrialConfig
from raz.pipeline.graph import TRAINED
from raz.spec.metric_names import metric_names, stages_of_metric
from raz.spec.search_space import Objective, Pruning
from raz.utils.suggestions import did_you_mean
from raz.utils.yamlfile import Place, Problems, describe_value

Limits = tuple[type, float, float]  # int or float, least and most
MAX_OPTION = 1_000_000
_COUNT: Limits = (int, 0, MAX_OPTION)
_SOME: Limits = (int, 1, MAX_OPTION)
_WHEN = {"startup_trials": _COUNT, "warmup_steps": _COUNT, "interval_steps": _SOME, "min_trials": _SOME}
_HALVING = {"min_resource": _SOME, "reduction_factor": (int, 2, MAX_OPTION), "bootstrap_count": _COUNT}
OPTIONS: Mapping[str, Mapping[str, Limits]] = {
    "none": {},
    "median": _WHEN,
    "percentile": {"percentile": (float, 0, 100), **_WHEN},
    "successive_halving": {**_HALVING, "min_early_stopping_rate": _COUNT},
    "hyperband": {**_HALVING, "max_resource": _SOME},
    "patient": {"patience": _COUNT, "min_delta": (float, 0, 1e300)},
    "threshold": {
        "lower": (float, -1e300, 1e300), "upper": (float, -1e300, 1e300), "warmup_steps": _COUNT,
        "interval_steps": _SOME,
    },
    "wilcoxon": {"p_threshold": (float, 0, 1), "startup_steps": _COUNT},
}  # fmt: skip
REQUIRED = {"patient": ("patience",)}


def read_pruning(
    data: Mapping[str, Any], faults: Problems, base: TrialConfig, objectives: tuple[Objective, ...]
) -> Pruning:
    """`pruner: {name: median, warmup_steps: 3}`; its stages are those behind the metric it prunes `on`."""
    raw = data.get("pruner", {})
    if not isinstance(raw, dict):
        faults.add(("pruner",), f"pruner is {describe_value(raw)}, expected keys with values", "{name: median}")
        return Pruning()
    found = _pruner(raw, ("pruner",), faults, ("on", "stages"))
    stages = _stages(raw, found, faults, base, objectives)
    if found.name == "none":
        return found
    return Pruning(found.name, found.options, stages, found.inner)


def _pruner(raw: Mapping[str, Any], place: Place, faults: Problems, more: tuple[str, ...] = ()) -> Pruning:
    prefix = ".".join(map(str, place))
    name = raw.get("name", "none")
    name = "none" if name == "nop" else name  # as Optuna calls it
    if not isinstance(name, str) or name not in OPTIONS:
        names = ", ".join(OPTIONS)
        faults.add(
            (*place, "name"),
            f"{prefix}.name is {describe_value(name)}, expected one of {names}",
            did_you_mean(name, OPTIONS),
        )
        return Pruning()
    inner = ("pruner",) if name == "patient" else ()
    faults.keys(place, raw, ("name", *OPTIONS[name], *inner, *more), REQUIRED.get(name, ()))
    options: dict[str, Any] = {}
    for option, (number, low, high) in OPTIONS[name].items():
        if option not in raw:
            continue
        value = raw[option]
        right = isinstance(value, int if number is int else (int, float)) and not isinstance(value, bool)
        if not right or not low <= value <= high:
            span = f"from {low:g} to {high:g}" if high < MAX_OPTION else f"from {low:g} on" if low > -1e300 else ""
            what = f"expected {'a whole number' if number is int else 'a number'} {span}".rstrip()
            faults.add((*place, option), f"{prefix}.{option} is {describe_value(value)}, {what}")
        else:
            options[option] = value
    _check_combination(name, options, raw, place, faults)
    wrapped = None
    if inner and "pruner" in raw:
        if isinstance(raw["pruner"], dict):
            wrapped = _pruner(raw["pruner"], (*place, "pruner"), faults)
        else:
            faults.add((*place, "pruner"), f"{prefix}.pruner is {describe_value(raw['pruner'])}, expected a pruner",
                       "{name: median}")  # fmt: skip
    return Pruning(name, options, inner=wrapped)


def _check_combination(
    name: str, options: Mapping[str, Any], raw: Mapping[str, Any], place: Place, faults: Problems
) -> None:
    """What is right option by option and cannot be together."""
    if name == "threshold":
        if "lower" not in raw and "upper" not in raw:
            faults.add(place, "a threshold pruner needs lower, upper or both", "upper: 200")
        elif options.get("lower", -1e300) > options.get("upper", 1e300):
            faults.add((*place, "lower"), f"lower is {options['lower']}, above upper, which is {options['upper']}")
    if name == "successive_halving" and options.get("bootstrap_count") and "min_resource" not in raw:
        faults.add((*place, "bootstrap_count"), "bootstrap_count needs a min_resource", "min_resource: 1")
    if name == "hyperband" and options.get("max_resource", MAX_OPTION) < options.get("min_resource", 1):
        least = options.get("min_resource", 1)
        faults.add(
            (*place, "max_resource"), f"max_resource is {options['max_resource']}, below min_resource, which is {least}"
        )


def _stages(
    raw: Mapping[str, Any], found: Pruning, faults: Problems, base: TrialConfig, objectives: tuple[Objective, ...]
) -> tuple[str, ...]:
    if "stages" in raw:
        stages = raw["stages"]
        if "on" in raw:
            faults.add(("pruner", "on"), "the pruner has both on and stages", "leave one out")
        if not isinstance(stages, list) or not stages:
            faults.add(
                ("pruner", "stages"), f"pruner.stages is {describe_value(stages)}, expected a list", "[counting]"
            )
            return ()
        for i, stage in enumerate(stages):
            if stage not in TRAINED:
                what = f"pruner.stages has {describe_value(stage)}, expected one of {', '.join(TRAINED)}"
                faults.add(("pruner", "stages", i), what, did_you_mean(stage, TRAINED))
        return tuple(stage for stage in TRAINED if stage in stages)
    if found.name == "threshold" and "on" not in raw:
        what = "a threshold is one number, and each stage's validation value another quantity, expected pruner.stages"
        faults.add(("pruner",), what, "stages: [counting]")
    if "on" in raw:
        metric, legal = raw["on"], metric_names(base, "val")
        if metric not in legal:
            faults.add(
                ("pruner", "on"), f"pruner.on is {describe_value(metric)}, expected a metric of the validation split",
                did_you_mean(str(metric), legal),
            )  # fmt: skip
            return ()
        return stages_of_metric(str(metric))
    if len(objectives) > 1 and found.name != "none":
        what = "with several objectives a pruner needs the metric it prunes on"
        faults.add(("pruner",), what, f"on: {objectives[0].metric}")
    return stages_of_metric(objectives[0].metric)
