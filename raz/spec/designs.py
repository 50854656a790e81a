"""Fixed designs: samplers whose points are known before the study runs.

| design | points |
|---|---|
| grid, factorial | every combination; an inactive parameter does not multiply the points |
| loo | every first value (the complete method), then each other value of one parameter at a time |
| ofat | the base, then each other value of one parameter at a time |
| pairs | few points in which every two values of any two parameters meet at least once |

With `seeds`, every point of factorial, loo, ofat and pairs is one trial per seed. A point of a grid is one trial, and
its objective is the mean over the seeds, as in a search.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

from raz.errors import RazError
from raz.spec.parameter import Parameter, Point, contains_exactly
from raz.utils.json_types import Json

LARGEST_GRID = 100_000


def grid(parameters: Sequence[Parameter]) -> list[Point]:
    """Every combination once, the last parameter changing fastest. Raises RazError above LARGEST_GRID points."""
    points: list[Point] = [{}]
    for parameter in parameters:
        longer: list[Point] = []
        for point in points:
            if parameter.active(point):
                longer += [{**point, parameter.name: value} for value in parameter.values()]
            else:
                longer.append(point)
        points = longer
        if len(points) > LARGEST_GRID:
            raise RazError("design", f"the grid has more than {LARGEST_GRID} points", "use sampler: random")
    return points


def one_at_a_time(parameters: Sequence[Parameter], centre: Mapping[str, Json]) -> list[Point]:
    """The centre, then each other value of one parameter at a time.

    centre: a value of every parameter. A parameter that becomes active with a change takes its value from it.

    Raises RazError for a parameter that is inactive at the centre, since it could never be varied alone.
    """
    points = [complete_point(parameters, {}, centre)]
    for parameter in parameters:
        if parameter.name not in points[0]:
            conditions = ", ".join(f"{name}: {centre[name]}" for name, _ in parameter.when)
            raise RazError(
                parameter.name, f"{parameter.name} is left out where the others are at their centre ({conditions})",
                "sampler: factorial, or drop its `when`", parameter.name,
            )  # fmt: skip
        for value in parameter.values():
            if not contains_exactly(value, (centre[parameter.name],)):
                points.append(complete_point(parameters, {parameter.name: value}, centre))
    return points


def complete_point(parameters: Sequence[Parameter], chosen: Mapping[str, Json], default: Mapping[str, Json]) -> Point:
    """The point with the chosen values and defaults elsewhere, without inactive parameters."""
    point: Point = {}
    for parameter in parameters:
        if parameter.active(point):
            point[parameter.name] = chosen.get(parameter.name, default[parameter.name])
    return point


def pairwise_covering(parameters: Sequence[Parameter]) -> list[Point]:
    """Points that cover every possible pair of values of two parameters. Greedy: few points, not always the fewest.

    Each point starts from an uncovered pair and takes, parameter by parameter, the value that covers the most new
    pairs. Deterministic.
    """
    uncovered = _all_pairs(parameters)
    points: list[Point] = []
    while uncovered:
        fixed = _with_parents(parameters, dict(next(iter(uncovered)))) or {}
        point: Point = {}
        for parameter in parameters:
            if not parameter.active(point):
                continue
            values = parameter.values()
            if parameter.name in fixed:
                index = fixed[parameter.name]
            else:
                chosen = _indices(parameters, point)
                gains = [sum((other, (parameter.name, i)) in uncovered for other in chosen) for i in range(len(values))]
                index = gains.index(max(gains))
            point[parameter.name] = values[index]
        for pair in itertools.combinations(_indices(parameters, point), 2):
            uncovered.pop(pair, None)
        points.append(point)
    return points or grid(parameters)


Pair = tuple[tuple[str, int], tuple[str, int]]  # (parameter, index of its value), twice


def _all_pairs(parameters: Sequence[Parameter]) -> dict[Pair, None]:
    """Every pair of values of two parameters that can occur together, in the order of the file."""
    out: dict[Pair, None] = {}
    for i, one in enumerate(parameters):
        for other in parameters[i + 1 :]:
            for a in range(len(one.values())):
                for b in range(len(other.values())):
                    if _with_parents(parameters, {one.name: a, other.name: b}) is not None:
                        out[((one.name, a), (other.name, b))] = None
    return out


def _with_parents(parameters: Sequence[Parameter], fixed: Mapping[str, int]) -> dict[str, int] | None:
    """These value indices, and those of the parents that make them active; None where they cannot occur together."""
    by_name = {p.name: p for p in parameters}
    needed: dict[str, list[int]] = {name: [index] for name, index in fixed.items()}
    todo = list(fixed)
    while todo:
        for parent, legal in by_name[todo.pop()].when:
            values = by_name[parent].values()
            allowed = [i for i, value in enumerate(values) if contains_exactly(value, legal)]
            before = needed.get(parent)
            needed[parent] = allowed if before is None else [i for i in before if i in allowed]
            if not needed[parent]:
                return None
            if before is None:
                todo.append(parent)
    return {name: indices[0] for name, indices in needed.items()}


def _indices(parameters: Sequence[Parameter], point: Point) -> list[tuple[str, int]]:
    """(name, index of its value) of each parameter in the point."""
    return [(p.name, _index(p, point[p.name])) for p in parameters if p.name in point]


def _index(parameter: Parameter, value: Json) -> int:
    return next(i for i, other in enumerate(parameter.values()) if contains_exactly(value, (other,)))


def reference_point(parameters: Sequence[Parameter]) -> Point:
    """Every parameter's first value: the complete method, from which `loo` leaves out one part at a time."""
    return {parameter.name: parameter.values()[0] for parameter in parameters}


# Name -> points of the parameters; the second argument is the base as a point.
DESIGNS: dict[str, Callable[[Sequence[Parameter], Mapping[str, Json]], list[Point]]] = {
    "grid": lambda parameters, _: grid(parameters),
    "loo": lambda parameters, _: one_at_a_time(parameters, reference_point(parameters)),
    "ofat": one_at_a_time,
    "factorial": lambda parameters, _: grid(parameters),
    "pairs": lambda parameters, _: pairwise_covering(parameters),
}


def points_of(
    design: str, parameters: Sequence[Parameter], centre: Mapping[str, Json], seeds: Sequence[int]
) -> tuple[Point, ...]:
    """The points of a design, all of one seed before those of the next, so that a study that stops early is balanced.

    With several slots, a run first starts the points that share the least work
    (`raz.planning.schedule.order_by_new_work`).
    """
    points = DESIGNS[design](parameters, centre)
    if design == "grid" or not seeds:
        return tuple(points)
    return tuple({**point, "seed": seed} for seed in seeds for point in points)
