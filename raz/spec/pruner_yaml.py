"""`pruner:` of a search space: a pruner of Optuna by name. Its options are checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping

from raz.config import TrialConfig
from raz.pipeline.graph import TRAINED
from raz.spec.metric_names import metric_names, stages_of_metric
from raz.spec.search_space import Objective, Pruning
from raz.utils.json_types import Json
from raz.utils.schema import Invalid, Keys, ListOf, Scalar, choice, integer, number, read_or
from raz.utils.yamlfile import Problems, YamlPath, describe_value

MAX_OPTION = 1_000_000


def _whole(low: int) -> Scalar[int]:
    return integer(low, MAX_OPTION, f"a whole number from {low} on")


_FROM_0, _FROM_1, _NUMBER = _whole(0), _whole(1), number(-1e300, 1e300, "a number")
_MEDIAN = {"startup_trials": _FROM_0, "warmup_steps": _FROM_0, "interval_steps": _FROM_1, "min_trials": _FROM_1}
_HALVING = {"min_resource": _FROM_1, "reduction_factor": _whole(2), "bootstrap_count": _FROM_0}
OPTIONS: Mapping[str, Mapping[str, Scalar[int] | Scalar[float]]] = {
    "none": {},
    "median": _MEDIAN,
    "percentile": {"percentile": number(0, 100), **_MEDIAN},
    "successive_halving": {**_HALVING, "min_early_stopping_rate": _FROM_0},
    "hyperband": {**_HALVING, "max_resource": _FROM_1},
    "patient": {"patience": _FROM_0, "min_delta": number(0, 1e300, "a number from 0 on")},
    "threshold": {"lower": _NUMBER, "upper": _NUMBER, "warmup_steps": _FROM_0, "interval_steps": _FROM_1},
    "wilcoxon": {"p_threshold": number(0, 1), "startup_steps": _FROM_0},
}
REQUIRED = {"patient": ("patience",)}
_NAME = choice(OPTIONS)
_STAGES = ListOf(choice(TRAINED), hint="[counting]", fewest=1, repeats=True)


def read_pruning(raw: Json, problems: Problems, base: TrialConfig, objectives: tuple[Objective, ...]) -> Pruning:
    """`pruner: {name: median, warmup_steps: 3}`. Its stages are those that the metric in `on` depends on."""
    try:
        pruning = _pruner(raw, ("pruner",), problems, ("on", "stages"), "keys with values")
    except Invalid:
        return Pruning()
    assert isinstance(raw, dict)
    stages = _stages(raw, pruning, problems, base, objectives)
    return pruning if pruning.name == "none" else Pruning(pruning.name, pruning.options, stages, pruning.inner)


def _pruner(
    raw: Json, path: YamlPath, problems: Problems, also: tuple[str, ...] = (), expected: str = "a pruner"
) -> Pruning:
    if not isinstance(raw, dict):
        problems.wrong(path, describe_value(raw), expected, "{name: median}")
        raise Invalid
    raw_name = raw.get("name", "none")
    if raw_name == "nop":  # as Optuna calls it
        raw_name = "none"
    name = _NAME.read(raw_name, (*path, "name"), problems)
    inner = ("pruner",) if name == "patient" else ()
    options = Keys(OPTIONS[name], REQUIRED.get(name, ()), ("name", *inner, *also)).read(raw, path, problems)
    _check_combination(name, options, raw, path, problems)
    wrapped = None
    if inner and "pruner" in raw:
        try:
            wrapped = _pruner(raw["pruner"], (*path, "pruner"), problems)
        except Invalid:  # noted; without it the rest is still checked
            wrapped = None
    return Pruning(name, options, inner=wrapped)


def _check_combination(
    name: str, options: Mapping[str, float], raw: Mapping[str, Json], path: YamlPath, problems: Problems
) -> None:
    """Note options that are legal one by one and not together."""
    if name == "threshold":
        if "lower" not in raw and "upper" not in raw:
            problems.add(path, "a threshold pruner needs lower, upper or both", "upper: 200")
        elif options.get("lower", -1e300) > options.get("upper", 1e300):
            problems.add((*path, "lower"), f"lower is {options['lower']}, above upper, which is {options['upper']}")
    if name == "successive_halving" and options.get("bootstrap_count") and "min_resource" not in raw:
        problems.add((*path, "bootstrap_count"), "bootstrap_count needs a min_resource", "min_resource: 1")
    if name == "hyperband" and options.get("max_resource", MAX_OPTION) < options.get("min_resource", 1):
        least = options.get("min_resource", 1)
        what = f"max_resource is {options['max_resource']}, below min_resource, which is {least}"
        problems.add((*path, "max_resource"), what)


def _stages(
    raw: Mapping[str, Json],
    pruning: Pruning,
    problems: Problems,
    base: TrialConfig,
    objectives: tuple[Objective, ...],
) -> tuple[str, ...]:
    """The trained stages whose validation values the pruner compares."""
    if "stages" in raw:
        if "on" in raw:
            problems.add(("pruner", "on"), "the pruner has both on and stages", "leave one out")
        stages = read_or(_STAGES, raw["stages"], ("pruner", "stages"), problems, ())
        return tuple(stage for stage in TRAINED if stage in stages)
    if pruning.name == "threshold" and "on" not in raw:
        what = "a threshold is one number, and each stage's validation value another quantity, expected pruner.stages"
        problems.add(("pruner",), what, "stages: [counting]")
    if "on" in raw:
        metric = choice(metric_names(base, "val"), "a metric of the validation split")
        try:
            return stages_of_metric(metric.read(raw["on"], ("pruner", "on"), problems))
        except Invalid:
            return ()
    if len(objectives) > 1 and pruning.name != "none":
        what = "with several objectives a pruner needs the metric it prunes on"
        problems.add(("pruner",), what, f"on: {objectives[0].metric}")
    return stages_of_metric(objectives[0].metric)
