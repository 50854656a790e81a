"""User attributes of studies and trials: what raz-sweep writes comes back, and what others write reads as missing."""

from __future__ import annotations

from raz.pipeline.events import StageUse
from raz.study.attributes import HeldOut, StudyAttributes, TrialAttributes, objectives_in


def test_a_trial_comes_back_as_it_was_recorded() -> None:
    use = StageUse("zoom2@val", "ab12", hit=False, seconds=3.0, spent=1.5)
    attributes = TrialAttributes.parse(
        {
            "values": {"depth": 2}, "changed": {"fusion.rule": "grid"}, "without": ["zooming.k_z"],
            "metrics": {"val.mae": 7}, "seeds": {"1": {"val.mae": 7.0}}, "stages": [use.to_dict()],
            "data": {"val": "f00d"}, "reason": "", "rungs": {"0/counting/ab": {"completed_rung_0": 4.0}},
            "seconds": 5, "versions": {"torch": "2.9"}, "retry_of": 3, "point": 0,
        }
    )  # fmt: skip
    assert attributes.stages == (use,)
    assert (attributes.values, attributes.changed, attributes.parameters) == (
        {"depth": 2},
        {"fusion.rule": "grid"},
        None,
    )
    assert (attributes.without, attributes.metrics, attributes.seeds) == (
        ("zooming.k_z",), {"val.mae": 7}, {"1": {"val.mae": 7.0}},
    )  # fmt: skip
    assert (attributes.reason, attributes.seconds, attributes.retry_of, attributes.point) == ("", 5.0, 3, 0)
    assert attributes.rungs == {"0/counting/ab": {"completed_rung_0": 4.0}}


def test_missing_and_foreign_fields_of_a_trial_read_as_not_recorded() -> None:
    foreign = {
        "values": 3, "changed": [1], "without": "x", "metrics": {"val.mae": "low", "val.rmse": 9.0}, "stages": [4, {}],
        "device": 0, "data": {"val": None}, "reason": 1, "seconds": "long", "versions": [], "retry_of": "2",
    }  # fmt: skip
    attributes = TrialAttributes.parse(foreign)
    assert attributes.metrics == {"val.rmse": 9.0}
    assert attributes.stages == (StageUse("", "", hit=False, seconds=0.0),)
    assert (
        TrialAttributes.parse({**foreign, "metrics": 1, "stages": {}}) == TrialAttributes() == TrialAttributes.parse({})
    )


def test_a_stage_of_an_older_record_was_paid_for_by_nobody() -> None:
    (use,) = TrialAttributes.parse({"stages": [{"stage": "counting", "key": "k", "hit": True, "seconds": 2.0}]}).stages
    assert use == StageUse("counting", "k", hit=True, seconds=2.0, spent=0.0)


def test_attributes_of_a_study() -> None:
    attributes = StudyAttributes.parse(
        {
            "meaning": {"objective.metric": "val.mae", "objective.others": [["val.rmse", "minimize"]]},
            "held_out": {"trial": 4, "metrics": {"test.mae": 8.0}},
            "baselines": {"toy": {"median": {"mae": 70.0}}},
        }
    )
    assert attributes.held_out == HeldOut(4, {"test.mae": 8.0})
    assert attributes.baselines == {"toy": {"median": {"mae": 70.0}}}
    assert objectives_in(attributes.meaning or {}) == ("val.mae", "val.rmse")
    assert StudyAttributes.parse({"meaning": "?", "held_out": {"metrics": {}}, "baselines": 0}) == StudyAttributes()
    assert objectives_in({}) == ()
