"""Designs, samplers, named choices, derived values: which trials a study has, against brute force."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest

from raz.config import configure
from raz.errors import RazError
from raz.spec.derived import parse_derived
from raz.spec.search_space import SearchSpace
from raz.spec.space_yaml import parse_space
from raz.study.ledger import open_ledger
from raz.study.records import Outcome, read_records
from raz.utils.yamlfile import parse

HEAD = "study: s\nbase: {preset: tiny, dataset: toy}\n"
FIVE = """\
parameters:
  depth: {choice: [2, 1, 3]}
  fusion.rule: {choice: [grid, average, density]}
  fusion.theta_f: {choice: [cell, shared, image], when: {fusion.rule: grid}}
  zooming.k_z: {int: [2, 6], step: 2, when: {depth: [2, 3]}}
  counting.kernel: {choice: [raz, csrnet]}
"""


def space_of(text: str) -> SearchSpace:
    return parse_space(parse(text, "f.yaml", strict=False))


def design(name: str, more: str = "", parameters: str = FIVE) -> SearchSpace:
    return space_of(f"{HEAD}design: {{sampler: {name}{more}}}\n{parameters}")


def legal(space: SearchSpace) -> list[dict[str, Any]]:
    """Every combination that obeys the conditions, by brute force over all values."""
    everything = itertools.product(*[[(p.name, v) for v in p.values()] for p in space.parameters])
    out = []
    for combination in everything:
        point: dict[str, Any] = {}
        for (name, value), parameter in zip(combination, space.parameters, strict=True):
            if parameter.active(point):
                point[name] = value
        if point not in out:
            out.append(point)
    return out


def test_factorial_is_every_legal_combination_for_each_seed() -> None:
    space = design("factorial", ", seeds: [4, 9]")
    assert [p for p in space.points if p["seed"] == 4] == [p | {"seed": 4} for p in legal(space)]
    assert len(space.points) == 2 * len(legal(space)) == space.target
    assert space.averaged_seeds == ()


def test_one_factor_at_a_time_leaves_the_base_in_one_value_only() -> None:
    space = space_of(
        HEAD.replace("toy}", "toy, set: {zooming.k_z: 4, fusion.theta_f: shared}}") + "design: {sampler: ofat}\n" + FIVE
    )
    base, *others = (space.config(point) for point in space.points)
    assert base == space.base
    changed = [sum(a != b for a, b in zip(_values(space, c), _values(space, base), strict=True)) for c in others]
    assert changed == [1] * (2 + 2 + 2 + 2 + 1)  # every other value of the five, once
    assert len(set(others)) == len(others)


def _values(space: SearchSpace, config: Any) -> list[Any]:
    from raz.config import parameters

    return [parameters(config)[p.name] for p in space.parameters]


def test_leaving_one_out_starts_from_the_first_values() -> None:
    space = design(
        "loo", ", seeds: 2",
        "parameters:\n  depth: {choice: [3, 1]}\n  zooming: {choice: {whole: {zooming.sampling: attention}, "
        "blind: {zooming.sampling: uniform, zooming.k_z: 3}}}\n",
    )  # fmt: skip
    assert space.points == tuple(
        {"depth": d, "zooming": z, "seed": s} for s in (0, 1) for d, z in [(3, "whole"), (1, "whole"), (3, "blind")]
    )
    left_out = space.config(space.points[2])
    assert left_out == configure(space.base, {"depth": 3, "zooming.sampling": "uniform", "zooming.k_z": 3, "seed": 0})


@pytest.mark.parametrize("seed", range(6))
def test_pairs_cover_every_pair_that_can_meet_in_few_points(seed: int) -> None:
    import random

    rng = random.Random(seed)
    names = ["counting.kernel", "fusion.cells", "fusion.folds", "depth", "attention.channels", "localization.gamma"]
    sizes = [2, *(rng.randint(2, 4) for _ in names[1:])]
    lines = [f"  counting.kernel: {{choice: [{rng.choice(['raz, csrnet', 'csrnet, raz'])}]}}"]
    for name, size in zip(names[1:], sizes[1:], strict=True):
        when = f", when: {{counting.kernel: {rng.choice(['raz', 'csrnet'])}}}" if rng.random() < 0.4 else ""
        lines.append(f"  {name}: {{choice: {list(range(2, 2 + size))}{when}}}")
    space = design("pairs", "", "parameters:\n" + "\n".join(lines) + "\n")
    wanted = {pair for point in legal(space) for pair in itertools.combinations(point.items(), 2)}
    got = {pair for point in space.points for pair in itertools.combinations(point.items(), 2)}
    assert got == wanted
    assert all(point in legal(space) for point in space.points)
    # No design can have fewer points than two parameters have pairs of values, under either kernel.
    floor = 0
    for kernel in ("raz", "csrnet"):
        under = [list(point.items())[1:] for point in legal(space) if point["counting.kernel"] == kernel]
        met = Counter((a[0], b[0]) for a, b in {q for p in under for q in itertools.combinations(p, 2)})
        floor += max(met.values(), default=1)
    assert len(space.points) <= 2 * floor
    assert len(space.points) < len(legal(space))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ofat", "f.yaml:5: depth: the base's value is none of its values, and the base is the centre of ofat\n"
                 "  try: add 2, or sampler: loo\n"
                 "f.yaml:6: zooming.k_z: the base's value is none of its values, and the base is the centre of ofat\n"
                 "  try: add 10, or sampler: loo"),
        ("loo", "f.yaml:6: zooming.k_z is left out where the others are at their centre (depth: 1)\n"
                "  try: sampler: factorial, or drop its `when`"),
    ],
)  # fmt: skip
def test_designs_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(RazError) as caught:
        _ = design(
            text, "", "parameters:\n  depth: {choice: [1, 3]}\n  zooming.k_z: {choice: [2, 4], when: {depth: 3}}\n"
        )
    assert str(caught.value) == message


# ------------------------------------------------------------------ grids on ranges


def test_a_grid_on_a_range_has_places_at_equal_steps_of_its_domain() -> None:
    space = space_of(
        HEAD + "design: {sampler: tpe, trials: 9}\nparameters:\n  counting.beta: {float: [0.01, 1], log: true, grid: 5}"
        "\n  attention.sigma_z: {float: [1, 8], grid: 8}\n  zooming.k_z: {int: [1, 100], log: true, grid: 3}\n"
    )
    beta, sigma, k = (p.values() for p in space.parameters)
    assert beta == pytest.approx([10 ** (-2 + i / 2) for i in range(5)], rel=1e-5)
    assert sigma == tuple(range(1, 9))
    assert k == (1, 10, 100)


@pytest.mark.parametrize("sampler", ["tpe", "random", "cma-es", "nsga-ii"])
def test_gridded_draws_are_places_in_the_study_too_and_all_are_reached(tmp_path: Path, sampler: str) -> None:
    space = space_of(
        HEAD + f"design: {{sampler: {sampler}, trials: 40}}\nparameters:\n"
        "  counting.beta: {float: [0.01, 1], log: true, grid: 4}\n  attention.sigma_z: {float: [1, 8]}\n"
    )
    with open_ledger(tmp_path, space) as ledger:
        ledger.recover(40)
        while (asked := ledger.ask()) is not None:
            number, values, config = asked
            assert config["counting.beta"] == values["counting.beta"]
            ledger.tell(number, Outcome("complete", metrics={"val.mae": abs(math.log10(values["counting.beta"]) + 1)}))
        drawn = [t.params["counting.beta"] for t in ledger.study.get_trials(deepcopy=False)]
    places = space.parameters[0].values()
    assert set(drawn) <= set(places)
    assert len(set(drawn)) >= (2 if sampler == "cma-es" else 3)  # which closes in on the two nearest to 0.1


# ------------------------------------------------------------------ samplers


def bowl(values: dict[str, Any]) -> float:
    return (math.log10(values["localization.gamma"]) - 2) ** 2 + (values["attention.sigma_z"] - 3) ** 2


@pytest.mark.parametrize("sampler", ["tpe", "random", "cma-es", "nsga-ii"])
def test_a_search_in_pieces_draws_nothing_twice_and_closes_in(tmp_path: Path, sampler: str) -> None:
    space = space_of(
        HEAD + f"design: {{sampler: {sampler}, trials: 60}}\nparameters:\n"
        "  localization.gamma: {float: [1, 1000], log: true}\n  attention.sigma_z: {float: [1, 8]}\n"
    )
    for target in (7, 20, 33, 60):
        with open_ledger(tmp_path, space) as ledger:
            ledger.recover(target)
            while (asked := ledger.ask()) is not None:
                ledger.tell(asked[0], Outcome("complete", metrics={"val.mae": bowl(asked[1])}))
    records = read_records(tmp_path, "s")
    assert len(records) == 60
    distinct = len({tuple(r.values.values()) for r in records})
    assert distinct == 60 if sampler != "nsga-ii" else distinct > 45  # whose children may be their parents' twins
    if sampler != "random":
        first, last = (sorted(bowl(dict(r.values)) for r in part)[10] for part in (records[:20], records[40:]))
        assert last < first


def test_cma_es_resumes_as_if_it_had_never_stopped_and_leaves_no_pickle(tmp_path: Path) -> None:
    """Its state is computed again from the trials, and is in the same generation as before."""
    from raz.study.optuna_internals import StatelessCmaEsSampler

    space = space_of(
        HEAD + "design: {sampler: cma-es, trials: 40, population: 6}\nparameters:\n"
        "  localization.gamma: {float: [1, 1000], log: true}\n  attention.sigma_z: {float: [1, 8]}\n"
    )
    with open_ledger(tmp_path, space) as ledger:
        ledger.recover(40)
        while (asked := ledger.ask()) is not None:
            ledger.tell(asked[0], Outcome("complete", metrics={"val.mae": bowl(asked[1])}))
        kept = ledger.study.sampler._restore_optimizer([])
    with open_ledger(tmp_path, space) as ledger:
        assert isinstance(ledger.study.sampler, StatelessCmaEsSampler)
        ledger.recover(41)
        assert ledger.ask() is not None
        again = ledger.study.sampler._restore_optimizer([])
        assert again.generation == kept.generation >= 5
        assert again.mean == pytest.approx(kept.mean)
        assert pytest.approx(kept._C) == again._C
    assert "cma:optimizer" not in (tmp_path / "studies" / "s.journal").read_text()


# ------------------------------------------------------------------ named choices and derived values


def test_named_choices_set_several_parameters_and_conditions_name_them(tmp_path: Path) -> None:
    space = space_of(
        HEAD + "design: {sampler: grid}\nparameters:\n"
        "  width:\n    choice:\n      narrow: {counting.channels: [16], localization.channels: [8]}\n"
        "      wide: {counting.channels: [64, 64]}\n"
        "  localization.upsample: {choice: {thin: [8, 8, 8], fat: [32, 16, 8]}, when: {width: narrow}}\n"
    )
    assert space.points == (
        {"width": "narrow", "localization.upsample": "thin"},
        {"width": "narrow", "localization.upsample": "fat"},
        {"width": "wide"},
    )
    narrow, wide = space.config(space.points[1]), space.config(space.points[2])
    assert (narrow.counting.channels, narrow.localization.channels) == ((16,), (8,))
    assert narrow.localization.upsample == (32, 16, 8)
    assert (wide.counting.channels, wide.localization) == ((64, 64), space.base.localization)
    with open_ledger(tmp_path, space) as ledger:
        ledger.recover(3)
        drawn = [ledger.ask() for _ in range(3)]
    assert [asked[1] for asked in drawn if asked] == list(space.points)


DERIVED = {"counting.train.lr": 0.002, "counting.train.epochs": 30, "localization.gamma": 100.0, "depth": 3}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("localization.train.lr", "counting.train.lr * 0.5", 0.001),
        ("localization.train.lr", "-counting.train.lr + 1", 0.998),
        ("localization.train.epochs", "counting.train.epochs / 2", 15),
        ("localization.train.epochs", "max(5, counting.train.epochs // 4, depth)", 7),
        ("localization.train.epochs", "round(counting.train.epochs ** 0.5)", 5),
        ("localization.gamma", "10 ** (depth % 2 + 1)", 100.0),
        ("localization.gamma", "log10(localization.gamma) + sqrt(depth + 1)", 4.0),
        ("depth", "depth", 3),
    ],
)
def test_arithmetic(name: str, text: str, value: float) -> None:
    got = parse_derived(name, text).evaluate(DERIVED)
    assert got == pytest.approx(value)
    assert type(got) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('echo')", "counting.train.lr.__class__", "(lambda: 1)()", "[1][0]", "'a' * 10",
        "True", "1 if depth else 2", "1 < 2", "depth := 1", "f'{depth}'", "open('x')", "min(1)", "max(*[1, 2])",
        "1j", "depth @ 2", "not depth", "~depth", "1 +", "", "round(depth, ndigits=1)", "sqrt", "kz",
        "-" * 300 + "1", "1 +" * 300 + "1",
    ],
)  # fmt: skip
def test_what_is_no_arithmetic_is_refused_before_anything_is_computed(text: str) -> None:
    with pytest.raises(RazError):
        parse_derived("localization.gamma", text)


@pytest.mark.parametrize(
    "text", ["1 / (depth - 3)", "9 ** 9 ** 9", "log(depth - 3)", "sqrt(-depth)", "(-depth) ** 0.5", "exp(1000)",
             "1e308 * 10", "fusion.rule * 2", "1 % (depth - 3)"],
)  # fmt: skip
def test_what_cannot_be_computed_is_reported(text: str) -> None:
    with pytest.raises(ValueError):
        parse_derived("localization.gamma", text).evaluate(DERIVED | {"fusion.rule": "grid"})


def test_derived_values_follow_each_trial_and_one_another() -> None:
    space = space_of(
        HEAD + "design: {sampler: random, trials: 5}\nparameters:\n"
        "  counting.train.lr: {float: [1.0e-4, 1.0e-2], log: true}\n"
        "derive:\n  attention.train.lr: localization.train.lr * 0.5\n  localization.train.lr: counting.train.lr * 0.5\n"
        "  raz.regions.anchors: zooming.anchors\n"
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(5):
        config = space.config(space.suggest(study.ask()))
        assert config.attention.train.lr == config.localization.train.lr * 0.5 == config.counting.train.lr * 0.25
    underived = HEAD + "design: {sampler: random, trials: 5}\nparameters:\n"
    underived += "  counting.train.lr: {float: [1.0e-4, 1.0e-2], log: true}\n"
    assert space.digest() != space_of(underived).digest()
