"""Searches that take the cheapest of several proposals: what a trial adds is counted here from the stages' own keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest

from raz.pipeline.tree import keys_of
from raz.study.ledger import Outcome, open_ledger
from raz.study.parse import parse_space
from raz.study.plan import drawn
from raz.study.space import SearchSpace
from raz.study.thrift import Thrift
from raz.yamlfile import parse

PARAMETERS = {
    "counting.beta": {"float": [0.05, 0.6], "log": True, "grid": 8},
    "localization.gamma": {"float": [10, 300], "log": True, "grid": 8},
    "zooming.k_z": {"choice": [4, 10]},
    "depth": {"choice": [1, 2, 3]},
    "fusion.rule": {"choice": ["grid", "average"]},
    "fusion.theta_f": {"choice": ["cell", "shared"], "when": {"fusion.rule": "grid"}},
}


def space(**design: Any) -> SearchSpace:
    body = {
        "study": "thrift", "base": {"preset": "tiny", "dataset": "toy"},
        "design": {"sampler": "tpe", "trials": 40, **design}, "parameters": PARAMETERS,
    }  # fmt: skip
    return parse_space(parse(json.dumps(body), "thrift.yaml"))


def trained(asked: SearchSpace, values: Mapping[str, Any]) -> set[str]:
    """The keys of the training stages of a trial."""
    keys = keys_of(asked.config(values), ("val",), lambda split: split, lambda weights: weights)
    return {key.key for node, key in keys.items() if not node.split}


def run(asked: SearchSpace, store: Path, most: int = 1000) -> list[dict[str, Any]]:
    """The values of a study's trials, two at a time, told an error that beta alone decides."""
    out, open_ = [], []
    with open_ledger(store, asked) as ledger:
        ledger.adopt(asked.target)
        while len(out) < most and (got := ledger.ask()) is not None:
            out.append(got[1])
            open_.append(got[:2])
            if len(open_) == 2:
                number, values = open_.pop(0)
                error = 20 * (values["counting.beta"] - 0.05)
                ledger.tell(number, Outcome("complete", metrics={"val.mae": error}))
        for number, values in open_:
            ledger.tell(number, Outcome("complete", metrics={"val.mae": 20 * (values["counting.beta"] - 0.05)}))
    return out


BEGUN = {"counting.beta": 0.05, "localization.gamma": 10.0, "zooming.k_z": 4, "depth": 2, "fusion.rule": "average"}


def test_the_cheapest_changes_what_comes_last():
    asked = space()
    thrift = Thrift(asked)
    thrift.note(BEGUN, thrift.way(BEGUN))
    other_counting = {**BEGUN, "counting.beta": 0.6}
    other_gamma = {**BEGUN, "localization.gamma": 300.0}
    other_zoom = {**BEGUN, "zooming.k_z": 10}
    deeper = {**BEGUN, "depth": 3}
    other_rule = {**BEGUN, "fusion.rule": "grid", "fusion.theta_f": "cell"}
    for dear, cheap in [
        (other_counting, other_gamma), (other_gamma, other_zoom), (other_gamma, deeper), (deeper, other_rule),
        (other_zoom, other_rule),
    ]:  # fmt: skip
        assert thrift.cheapest([dear, cheap]) == 1
        assert thrift.cheapest([cheap, dear]) == 0


def test_a_trial_that_was_drawn_before_or_cannot_be_is_taken_last():
    asked = space()
    thrift = Thrift(asked)
    thrift.note(BEGUN, thrift.way(BEGUN))
    invalid = {**BEGUN, "depth": 0}
    new = {**BEGUN, "counting.beta": 0.6}
    assert thrift.cheapest([BEGUN, invalid, new]) == 2
    assert thrift.cheapest([invalid, BEGUN]) == 0


def test_a_trial_that_differs_in_what_nothing_reads_is_taken_last():
    asked = space()
    thrift = Thrift(asked)
    shallow = {**BEGUN, "depth": 1}
    thrift.note(shallow, thrift.way(shallow))
    assert thrift.cheapest([{**shallow, "zooming.k_z": 10}, {**BEGUN, "counting.beta": 0.6}]) == 1


def test_what_was_pruned_draws_no_others_to_it():
    asked = space()
    thrift = Thrift(asked)
    thrift.note(BEGUN, ())
    assert thrift.cheapest([{**BEGUN, "zooming.k_z": 10}, {**BEGUN, "counting.beta": 0.6, "depth": 1}]) == 1


def test_proposals_share_more_of_the_training(tmp_path):
    def stages(proposals: int, seed: int) -> int:
        asked = space(proposals=proposals, seed=seed)
        trials = run(asked, tmp_path / f"{proposals}-{seed}")
        assert len(trials) == 40
        places = next(p.values() for p in asked.parameters if p.name == "counting.beta")
        assert all(values["counting.beta"] in places for values in trials)
        assert all(("fusion.theta_f" in values) == (values["fusion.rule"] == "grid") for values in trials)
        return len(set().union(*(trained(asked, values) for values in trials)))

    plain, thrifty = [sum(stages(n, seed) for seed in range(3)) for n in (1, 4)]
    assert thrifty < 0.75 * plain


def test_a_search_still_learns(tmp_path):
    trials = run(space(proposals=4, trials=60), tmp_path)
    late = [values["counting.beta"] for values in trials[30:]]
    assert sum(beta < 0.11 for beta in late) > 0.6 * len(late)  # 3 of 8 places; the error grows with beta


def test_no_trial_is_drawn_twice_while_others_are_left(tmp_path):
    trials = [json.dumps(values, sort_keys=True) for values in run(space(proposals=8), tmp_path)]
    assert len(set(trials)) == len(trials)


def test_a_resumed_search_knows_what_was_drawn(tmp_path):
    asked = space(proposals=8)
    first = run(asked, tmp_path, most=20)
    second = run(asked, tmp_path)
    assert len(second) == 20
    assert not {json.dumps(v, sort_keys=True) for v in first} & {json.dumps(v, sort_keys=True) for v in second}


def test_a_lost_trial_keeps_its_values(tmp_path):
    asked = space(proposals=4, trials=6)
    with open_ledger(tmp_path, asked) as ledger:
        ledger.adopt(6)
        lost = ledger.ask()
    assert lost is not None
    with open_ledger(tmp_path, asked) as ledger:
        ledger.adopt(6)
        again = ledger.ask()
    assert again is not None
    assert again[1] == lost[1]


def test_a_queued_value_stands_beside_proposed_ones(tmp_path):
    asked = space(proposals=4)
    with open_ledger(tmp_path, asked) as ledger:
        ledger.adopt(40)
        ledger.study.enqueue_trial({"zooming.k_z": 10, "fusion.rule": "grid"})
        got = ledger.ask()
    assert got is not None
    assert (got[1]["zooming.k_z"], got[1]["fusion.rule"]) == (10, "grid")
    assert "fusion.theta_f" in got[1]


def test_random_draws_take_the_cheapest_too(tmp_path):
    asked = space(sampler="random", proposals=4)
    assert len(run(asked, tmp_path)) == 40


def test_a_plan_expects_what_proposals_share():
    def stages(proposals: int) -> int:
        asked = space(proposals=proposals)
        configs, skipped = drawn(asked, 40, 0)
        assert not skipped
        keys = [keys_of(config, ("val",), lambda split: split, lambda weights: weights) for config in configs]
        return len({key.key for way in keys for node, key in way.items() if not node.split})

    assert stages(4) < 0.75 * stages(1)


def test_one_proposal_is_what_the_study_asked_before(tmp_path):
    assert space(proposals=1).meaning() == space().meaning()
    assert "design.proposals" in space(proposals=2).meaning()


@pytest.fixture(autouse=True)
def quiet():
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)
