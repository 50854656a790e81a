"""Searches that take the cheapest of several proposals: what a trial adds is counted here from the stages' own keys."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from raz.pipeline.graph import node_keys
from raz.planning.cost_aware import WorkTracker
from raz.planning.plan import draw_trials
from raz.spec.search_space import Objective, SearchSpace
from raz.spec.space_yaml import parse_space
from raz.study.ledger import open_ledger
from raz.study.records import Outcome
from raz.study.samplers import CostAwareSampler
from raz.utils.yamlfile import parse

PARAMETERS = {
    "counting.beta": {"float": [0.05, 0.6], "log": True, "grid": 8},
    "localization.gamma": {"float": [10, 300], "log": True, "grid": 8},
    "zooming.k_z": {"choice": [4, 10]},
    "depth": {"choice": [1, 2, 3]},
    "fusion.rule": {"choice": ["grid", "average"]},
    "fusion.theta_f": {"choice": ["cell", "shared"], "when": {"fusion.rule": "grid"}},
}


def space(parameters: dict[str, Any] = PARAMETERS, **design: Any) -> SearchSpace:
    body = {
        "study": "cost-aware", "base": {"preset": "tiny", "dataset": "toy"},
        "design": {"sampler": "tpe", "trials": 40, **design}, "parameters": parameters,
    }  # fmt: skip
    return parse_space(parse(json.dumps(body), "cost-aware.yaml"))


def trained(asked: SearchSpace, values: Mapping[str, Any]) -> set[str]:
    """The keys of the training stages of a trial."""
    keys = node_keys(asked.config(values), ("val",), lambda split: split, lambda backbone: backbone.weights)
    return {key.key for node, key in keys.items() if not node.split}


def work(asked: SearchSpace, trials: list[dict[str, Any]]) -> float:
    """GFLOP of the distinct stages of these trials."""
    return sum(
        {key: gflop for values in trials for key, gflop in WorkTracker(asked).stage_work(values).items()}.values()
    )


def run(asked: SearchSpace, store: Path, most: int = 1000, slope: float = 20.0) -> list[dict[str, Any]]:
    """The values of a study's trials, two at a time; their error depends on beta alone."""
    out, open_ = [], []

    def tell(number: int, values: Mapping[str, Any]) -> None:
        error = slope * (values["counting.beta"] - 0.05)
        ledger.tell(number, Outcome("complete", metrics={"val.mae": error}))

    with open_ledger(store, asked) as ledger:
        ledger.recover(asked.target)
        while len(out) < most and (got := ledger.ask()) is not None:
            out.append(got[1])
            open_.append(got[:2])
            if len(open_) == 2:
                tell(*open_.pop(0))
        for one in open_:
            tell(*one)
    return out


BEGUN = {"counting.beta": 0.05, "localization.gamma": 10.0, "zooming.k_z": 4, "depth": 2, "fusion.rule": "average"}


def after(values: dict[str, Any]) -> WorkTracker:
    """The work tracker after one trial has begun."""
    tracker = WorkTracker(space())
    tracker.add_trial(values, tracker.stage_work(values))
    return tracker


def test_the_cheapest_changes_what_comes_last():
    tracker = after(BEGUN)
    other_counting = {**BEGUN, "counting.beta": 0.6}
    other_gamma = {**BEGUN, "localization.gamma": 300.0}
    other_zoom = {**BEGUN, "zooming.k_z": 10}
    other_rule = {**BEGUN, "fusion.rule": "grid", "fusion.theta_f": "cell"}
    for dear, cheap in [
        (other_counting, other_gamma), (other_gamma, other_zoom), (other_gamma, other_rule), (other_zoom, other_rule),
    ]:  # fmt: skip
        assert tracker.cheapest_candidate([dear, cheap]) == 1
        assert tracker.cheapest_candidate([cheap, dear]) == 0


@pytest.mark.long
def test_what_a_trial_costs_does_not_decide_how_deep_it_zooms():
    tracker = after(BEGUN)
    new = {**BEGUN, "counting.beta": 0.6}
    known, shallow = {**BEGUN, "fusion.rule": "grid", "fusion.theta_f": "cell"}, {**BEGUN, "depth": 1}
    assert tracker.cheapest_candidate([new, shallow, known]) == 2
    assert tracker.cheapest_candidate([new, shallow]) == 0
    depths = [Counter(c.depth for c in draw_trials(space(proposals=n), 400, 0)[0]) for n in (1, 8)]
    for depth in (1, 2, 3):  # each a third: within four standard deviations
        assert all(abs(found[depth] - 133) < 4 * (400 * 2 / 9) ** 0.5 for found in depths)


def test_a_trial_that_was_drawn_before_or_cannot_be_is_taken_last():
    tracker = after(BEGUN)
    invalid = {**BEGUN, "depth": 0}
    new = {**BEGUN, "counting.beta": 0.6}
    assert tracker.cheapest_candidate([BEGUN, invalid, new]) == 2
    assert tracker.cheapest_candidate([invalid, BEGUN]) == 0  # nothing new: the first


def test_a_trial_that_differs_in_what_nothing_reads_is_taken_last():
    shallow = {**BEGUN, "depth": 1}
    tracker = after(shallow)
    assert tracker.cheapest_candidate([{**shallow, "zooming.k_z": 10}, {**BEGUN, "counting.beta": 0.6}]) == 1


def test_what_was_pruned_draws_no_others_to_it(tmp_path):
    """One trial of each state, then the same proposals: only a complete one makes its like cheap."""
    asked = space(proposals=2)
    like, other = {**BEGUN, "zooming.k_z": 10}, {**BEGUN, "counting.beta": 0.6}
    for state, taken in (("complete", like), ("pruned", other), ("failed", other)):
        store = tmp_path / state
        with open_ledger(store, asked) as ledger:
            ledger.recover(40)
            ledger.study.enqueue_trial(dict(BEGUN))
            number, values, _ = ledger.ask() or pytest.fail("no trial")
            assert values == BEGUN
            ledger.tell(number, Outcome(state, metrics={"val.mae": 1.0}, reason="nan" if state == "failed" else ""))
            ledger.study.sampler = CostAwareSampler(GivenTrials([other, like]), asked)
            assert (ledger.ask() or pytest.fail("no trial"))[1] == taken
            third = {**BEGUN, "localization.gamma": 300.0}
            ledger.study.sampler = CostAwareSampler(GivenTrials([BEGUN, third]), asked)
            assert (ledger.ask() or pytest.fail("no trial"))[1] == third  # not what was drawn before, however it ended


class GivenTrials(optuna.samplers.BaseSampler):
    """Draws the given trials, one after the other."""

    def __init__(self, trials: list[dict[str, Any]]) -> None:
        self.trials = iter(trials)

    def infer_relative_search_space(self, study: optuna.Study, trial: Any) -> dict[str, Any]:
        return dict(study.get_trials(deepcopy=False)[0].distributions)

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        return dict(next(self.trials))

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        raise AssertionError(param_name)


def test_a_range_of_one_value_is_no_question_to_a_sampler(tmp_path):
    parameters = {**PARAMETERS, "localization.gamma": {"float": [10, 10]}}
    asked = space(proposals=4, trials=20, parameters=parameters)
    assert {values["localization.gamma"] for values in run(asked, tmp_path)} == {10.0}


def test_a_killed_driver_leaves_values_that_cannot_go_together(tmp_path):
    """Killed between writing the values and the reason down: the next run goes on."""
    asked = space(proposals=4, trials=6)
    with open_ledger(tmp_path, asked) as ledger:
        ledger.recover(6)
        trial = ledger.study.ask()
        trial.set_user_attr("values", {**BEGUN, "depth": 0})
    assert len(run(asked, tmp_path)) >= 5


def test_several_objectives_and_seeds(tmp_path):
    asked = replace(space(proposals=4, trials=14, seeds=2), objectives=(Objective("val.mae"), Objective("val.rmse")))
    with open_ledger(tmp_path, asked) as ledger:
        ledger.recover(14)
        seen = []
        while (got := ledger.ask()) is not None:
            seen.append(got[1])
            ledger.tell(got[0], Outcome("complete", metrics={"val.mae": 1.0, "val.rmse": got[1]["depth"]}))
    assert len({json.dumps(values, sort_keys=True) for values in seen}) == 14


@pytest.mark.long
def test_proposals_share_more_of_the_training(tmp_path):
    def paid(proposals: int, seed: int) -> float:
        asked = space(proposals=proposals, seed=seed)
        trials = run(asked, tmp_path / f"{proposals}-{seed}", slope=0.0)  # nothing to learn, so it draws widely
        assert len(trials) == 40
        places = next(p.values() for p in asked.parameters if p.name == "counting.beta")
        assert all(values["counting.beta"] in places for values in trials)
        assert all(("fusion.theta_f" in values) == (values["fusion.rule"] == "grid") for values in trials)
        return work(asked, trials)

    plain, cheapest = [sum(paid(n, seed) for seed in range(3)) for n in (1, 8)]
    assert cheapest < 0.95 * plain


@pytest.mark.long
def test_a_search_still_learns(tmp_path):
    trials = run(space(proposals=4, trials=60), tmp_path)
    late = [values["counting.beta"] for values in trials[30:]]
    assert sum(beta < 0.11 for beta in late) > 0.6 * len(late)  # 3 of 8 places; the error grows with beta


@pytest.mark.long
def test_no_trial_is_drawn_twice_while_others_are_left(tmp_path):
    trials = [json.dumps(values, sort_keys=True) for values in run(space(proposals=8), tmp_path)]
    assert len(set(trials)) == len(trials)


@pytest.mark.long
def test_a_resumed_search_knows_what_was_drawn(tmp_path):
    asked = space(proposals=8)
    first = run(asked, tmp_path, most=20)
    second = run(asked, tmp_path)
    assert len(second) == 20
    assert not {json.dumps(v, sort_keys=True) for v in first} & {json.dumps(v, sort_keys=True) for v in second}


def test_a_lost_trial_keeps_its_values(tmp_path):
    asked = space(proposals=4, trials=6)
    with open_ledger(tmp_path, asked) as ledger:
        ledger.recover(6)
        lost = ledger.ask()
    assert lost is not None
    with open_ledger(tmp_path, asked) as ledger:
        ledger.recover(6)
        again = ledger.ask()
    assert again is not None
    assert again[1] == lost[1]


def test_a_queued_value_stands_beside_proposed_ones(tmp_path):
    asked = space(proposals=4)
    with open_ledger(tmp_path, asked) as ledger:
        ledger.recover(40)
        ledger.study.enqueue_trial({"zooming.k_z": 10, "fusion.rule": "grid"})
        got = ledger.ask()
    assert got is not None
    assert (got[1]["zooming.k_z"], got[1]["fusion.rule"]) == (10, "grid")
    assert "fusion.theta_f" in got[1]


@pytest.mark.long
def test_random_draws_take_the_cheapest_too(tmp_path):
    def stages(proposals: int) -> int:
        asked = space(sampler="random", proposals=proposals)
        trials = run(asked, tmp_path / str(proposals))
        assert len(trials) == 40
        return len(set().union(*(trained(asked, values) for values in trials)))

    assert stages(8) < 0.85 * stages(1)


def test_a_plan_expects_what_proposals_share():
    def stages(proposals: int) -> int:
        asked = space(proposals=proposals)
        configs, skipped = draw_trials(asked, 40, 0)
        assert not skipped
        keys = [
            node_keys(config, ("val",), lambda split: split, lambda backbone: backbone.weights) for config in configs
        ]
        return len({key.key for way in keys for node, key in way.items() if not node.split})

    assert stages(8) < 0.85 * stages(1)


def test_one_proposal_is_what_the_study_asked_before(tmp_path):
    assert space(proposals=1).meaning() == space().meaning()
    assert "design.proposals" in space(proposals=2).meaning()


@pytest.fixture(autouse=True)
def quiet():
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)
