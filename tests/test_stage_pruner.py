"""Pruners: every one of Optuna's, each judging within one stage as Optuna alone would."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from raz.pipeline.events import StageUse
from raz.pipeline.graph import TRAINED, stage_of_step
from raz.spec.search_space import SearchSpace
from raz.spec.space_yaml import parse_space
from raz.study.ledger import Ledger, open_ledger
from raz.study.records import Outcome, read_records
from raz.utils.yamlfile import parse

N = 30
CAPS = {"counting": 8, "localization": 9, "attention": 3, "raz": 2, "raz_attention": 2}  # epochs of each stage
EPOCHS = {
    "counting": "counting.train", "localization": "localization.train", "attention": "attention.train",
    "raz": "raz.train", "raz_attention": "raz.attention_train",
}  # fmt: skip
PRUNERS = {
    "median": "{name: median, startup_trials: 3, warmup_steps: 1}",
    "percentile": "{name: percentile, percentile: 60, startup_trials: 3, interval_steps: 2, min_trials: 2}",
    "successive_halving": "{name: successive_halving, min_resource: 2, reduction_factor: 2}",
    "halving_auto": "{name: successive_halving}",
    "hyperband": "{name: hyperband, min_resource: 1, reduction_factor: 2}",
    "patient": "{name: patient, patience: 2, min_delta: 0.01, pruner: {name: median, startup_trials: 2}}",
    "patient_alone": "{name: patient, patience: 2}",
    "threshold": "{name: threshold, upper: 16, stages: [counting]}",
    "wilcoxon": "{name: wilcoxon, p_threshold: 0.2}",
}


def space_of(pruner: str, more: str = "", design: str = "{sampler: random, trials: 30}") -> SearchSpace:
    epochs = ", ".join(f"{EPOCHS[stage]}.epochs: {n}" for stage, n in CAPS.items())
    text = (
        f"study: p\nbase: {{preset: tiny, dataset: toy, set: {{{epochs}}}}}\ndesign: {design}\n"
        f"pruner: {pruner}\n{more}parameters:\n  zooming.theta_z: {{float: [0.001, 0.5]}}\n"
    )
    return parse_space(parse(text, "f.yaml", strict=False))


def curve(number: int) -> list[tuple[int, float]]:
    """Steps and values of a trial: noisy, each stage on a scale of its own, the later ones larger."""
    rng = np.random.default_rng([7, number])
    out, step = [], 0
    for i, (stage, epochs) in enumerate(CAPS.items()):
        if stage in ("counting", "localization"):
            level = (10 + 4 * rng.standard_normal()) * 100**i
            for epoch in range(1, epochs + 1):
                out.append((step + epoch, abs(level * (1 + 1 / epoch + 0.2 * rng.standard_normal()))))
        step += epochs
    return out


def run(ledger: Ledger, trials: int) -> dict[int, int | None]:
    """Number -> the step at which it was stopped."""
    stopped: dict[int, int | None] = {}
    ledger.recover(trials)
    while (asked := ledger.ask()) is not None:
        number = asked[0]
        stopped[number] = next((step for step, value in curve(number) if ledger.report(number, step, value)), None)
        state = "complete" if stopped[number] is None else "pruned"
        ledger.tell(number, Outcome(state, metrics={"val.mae": 1.0} if state == "complete" else None))
    return stopped


def optuna_alone(pruner: optuna.pruners.BasePruner, stages: tuple[str, ...]) -> dict[int, int | None]:
    """The same trials, each stage in a plain Optuna study: its own loop of ask, report, should_prune and tell."""
    studies = {s: optuna.create_study(study_name="p", direction="minimize", pruner=pruner) for s in stages}
    epochs = {f"{EPOCHS[stage]}.epochs": n for stage, n in CAPS.items()}
    stopped: dict[int, int | None] = {}
    for number in range(N):
        live = {stage: study.ask() for stage, study in studies.items()}
        values: dict[str, list[float]] = {stage: [] for stage in stages}
        stopped[number] = None
        for step, value in curve(number):
            stage, epoch = stage_of_step(epochs, step)
            if stage not in stages:
                continue
            live[stage].report(value, epoch - 1)
            values[stage].append(value)
            if live[stage].should_prune():
                stopped[number] = step
                studies[stage].tell(live[stage], state=TrialState.PRUNED)
                break
        for stage, study in studies.items():
            if study.trials[number].state == TrialState.RUNNING and values[stage]:
                study.tell(live[stage], min(values[stage]))
    return stopped


ALONE = {
    "median": lambda: optuna.pruners.MedianPruner(3, 1),
    "percentile": lambda: optuna.pruners.PercentilePruner(60.0, 3, 0, 2, n_min_trials=2),
    "successive_halving": lambda: optuna.pruners.SuccessiveHalvingPruner(2, 2),
    "hyperband": lambda: optuna.pruners.HyperbandPruner(1, 9, 2),
    "patient": lambda: optuna.pruners.PatientPruner(optuna.pruners.MedianPruner(2), 2, 0.01),
    "patient_alone": lambda: optuna.pruners.PatientPruner(None, 2),
    "threshold": lambda: optuna.pruners.ThresholdPruner(upper=16.0),
    "wilcoxon": lambda: optuna.pruners.WilcoxonPruner(p_threshold=0.2),
}


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.filterwarnings("ignore")
def test_each_pruner_stops_what_optuna_would_within_a_stage_and_the_study_says_so(tmp_path: Path, name: str) -> None:
    space = space_of(PRUNERS[name])
    with open_ledger(tmp_path, space) as ledger:
        stopped = run(ledger, N)
    if name in ALONE:
        assert stopped == optuna_alone(ALONE[name](), space.pruning.stages)
    records = read_records(tmp_path, "p")
    assert {r.number for r in records if r.state == "pruned"} == {n for n, step in stopped.items() if step is not None}
    assert {r.number for r in records if r.state == "complete"} == {n for n, step in stopped.items() if step is None}
    assert 0 < sum(step is not None for step in stopped.values()) < N
    for record in records:
        if record.state == "pruned":
            assert record.pruned_at == (stopped[record.number], dict(curve(record.number))[stopped[record.number]])


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.filterwarnings("ignore")
def test_a_search_in_pieces_prunes_as_one_that_went_through(tmp_path: Path, name: str) -> None:
    with open_ledger(tmp_path / "whole", space_of(PRUNERS[name])) as ledger:
        whole = run(ledger, N)
    pieces: dict[int, int | None] = {}
    for target in (2, 9, 17, N):
        with open_ledger(tmp_path / "pieces", space_of(PRUNERS[name])) as ledger:
            pieces |= run(ledger, target)
    assert pieces == whole


def values(ledger: Ledger, levels: list[float], step: int = 1) -> Iterator[bool]:
    ledger.recover(len(levels))
    for level in levels:
        asked = ledger.ask()
        assert asked is not None
        stop = ledger.report(asked[0], step, level)
        yield stop
        ledger.tell(asked[0], Outcome("pruned" if stop else "complete", metrics={"val.mae": level, "val.rmse": level}))


MEDIAN = "{name: median, startup_trials: 2}"


def test_nobody_is_pruned_in_a_stage_that_another_trial_shares(tmp_path: Path) -> None:
    with open_ledger(tmp_path, space_of(MEDIAN)) as ledger:
        assert list(values(ledger, [1.0, 1.0, 1.0])) == [False] * 3
        ledger.recover(5)
        shared = ledger.ask()
        alone = ledger.ask()
        assert shared is not None
        assert alone is not None
        assert not ledger.report(shared[0], 1, 9.0, shared=True)
        assert ledger.report(alone[0], 1, 9.0)
        assert not ledger.report(alone[0], 1, 9.0)  # a restarted trial reports it again: decided once
        assert ledger.record(shared[0]).steps == {1: 9.0}


def test_values_measured_in_another_way_are_not_compared(tmp_path: Path) -> None:
    """The localization loss grows with its weight gamma, so a trial is judged among those of its own gamma."""
    space = parse_space(
        parse(
            "study: p\nbase: {preset: tiny, dataset: toy}\ndesign: {sampler: grid}\n"
            f"pruner: {MEDIAN}\nparameters:\n  localization.gamma: {{choice: [1, 100]}}\n"
            "  fusion.cells: {int: [1, 6]}\n",
            "f.yaml",
        )
    )
    step = CAPS_OF_TINY + 1
    with open_ledger(tmp_path, space) as ledger:
        got = list(values(ledger, [1, 1, 1, 1, 1.1, 1, 100, 100, 100, 100, 110, 100], step))
        assert got == [False] * 4 + [True, False] + [False] * 4 + [True, False]
    with open_ledger(tmp_path / "counting", space) as ledger:  # a count's error is the same at any gamma
        assert list(values(ledger, [1] * 6 + [100] * 6)) == [False] * 6 + [True] * 6


CAPS_OF_TINY = 30  # epochs of the counting stage under the preset tiny


def test_steps_belong_to_stages_as_the_trial_tells_them() -> None:
    caps = {f"{EPOCHS[stage]}.epochs": n for stage, n in CAPS.items()}
    steps = [(stage, epoch) for stage in TRAINED for epoch in range(1, CAPS[stage] + 1)]
    assert [stage_of_step(caps, step) for step in range(1, len(steps) + 1)] == steps


def test_with_several_objectives_the_named_metric_s_stages_are_judged(tmp_path: Path) -> None:
    objective = "objective: [{metric: val.mae}, {metric: val.rmse}]\n"
    space = space_of(MEDIAN.replace("}", ", on: val.mae_density}"), objective)
    assert space.pruning.stages == ("counting",)
    with open_ledger(tmp_path, space) as ledger:
        assert list(values(ledger, [1, 1, 1, 9, 2, 0.5])) == [False] * 3 + [True, True, False]
        front = ledger.front()
    records = read_records(tmp_path, "p")
    assert [r.state for r in records] == ["complete"] * 3 + ["pruned"] * 2 + ["complete"]
    assert records[3].steps == {1: 9.0}
    assert records[5].objectives == {"val.mae": 0.5, "val.rmse": 0.5}
    assert [r.number for r in front] == [5]
    with open_ledger(tmp_path / "other", space) as ledger:  # not judged: the localization stage is not behind it
        assert list(values(ledger, [1, 1, 1, 9], CAPS["counting"] + 1)) == [False] * 4


def test_a_value_that_is_no_number_is_left_to_the_trial_to_tell(tmp_path: Path) -> None:
    with open_ledger(tmp_path, space_of(MEDIAN)) as ledger:
        assert list(values(ledger, [1.0, 1.0, 1.0])) == [False] * 3
        ledger.recover(4)
        asked = ledger.ask()
        assert asked is not None
        assert not ledger.report(asked[0], 1, math.nan)
        ledger.tell(asked[0], Outcome("failed", reason="nan", message="diverged"))
        assert ledger.record(asked[0]).reason == "nan"


def test_seeds_of_a_trial_are_compared_seed_by_seed(tmp_path: Path) -> None:
    from raz.study.seed_average import run_over_seeds

    space = space_of(MEDIAN, design="{sampler: random, trials: 30, seeds: [3, 8]}")
    level = {3: 1.0, 8: 100.0}

    def trial(config: dict[str, object], report: object, factor: float) -> Outcome:
        seed = config["seed"]
        assert isinstance(seed, int)
        assert callable(report)
        if report(1, level[seed] * factor):
            return Outcome("pruned", 1.0)
        return Outcome("complete", 1.0, {"val.mae": level[seed] * factor}, (StageUse("counting", "", False, 0.0),))

    with open_ledger(tmp_path, space) as ledger:
        ledger.recover(4)
        for factor, state, value in [(1.0, "complete", 50.5), (1.0, "complete", 50.5), (0.5, "complete", 25.25),
                                     (2.0, "pruned", None)]:  # fmt: skip
            asked = ledger.ask()
            assert asked is not None
            number = asked[0]
            outcome = run_over_seeds(
                lambda config, report, factor=factor: trial(dict(config), report, factor),
                asked.config, space.averaged_seeds,
                lambda step, value, number=number: ledger.report(number, step, value),
            )  # fmt: skip
            record = ledger.tell(number, outcome)
            assert (record.state, record.value) == (state, value)
            if state == "complete":
                assert record.seeds == {"3": {"val.mae": factor}, "8": {"val.mae": 100 * factor}}
                assert len(record.stages) == 2
                assert record.seconds == 2.0


def test_hyperband_sits_on_the_study_so_that_tpe_learns_within_a_bracket(tmp_path: Path) -> None:
    with open_ledger(tmp_path, space_of(PRUNERS["hyperband"])) as ledger:
        run(ledger, N)
        pruner = ledger.study.pruner
        assert isinstance(pruner, optuna.pruners.HyperbandPruner)
        brackets = {pruner._get_bracket_id(ledger.study, t) for t in ledger.study.get_trials(deepcopy=False)}
    assert len(brackets) > 1
