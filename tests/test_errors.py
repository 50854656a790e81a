"""Errors keep all that they say when they cross a process border, and name the parameter that they are about."""

from __future__ import annotations

import pickle

import pytest

from raz.config import PRESETS, configure
from raz.errors import RazError, RazErrorGroup, TrialFailure, flatten_errors
from raz.spec.space_yaml import parse_space
from raz.utils.yamlfile import parse


@pytest.mark.parametrize(
    "error",
    [
        RazError("f.yaml:3", "depth is 9, expected 1 to 8", "depth: 2", "depth"),
        RazError("f.yaml:3", "the file is empty"),
        TrialFailure("trial 3", "loss is nan", "a lower rate", "nan"),
        RazErrorGroup([RazError("a", "b", "c", "d"), TrialFailure("e", "f", reason="oom")]),
    ],
)
def test_an_error_survives_a_process_border(error: RazError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    for one, other in zip(flatten_errors(error), flatten_errors(copy), strict=True):
        assert vars(one) == vars(other)


def test_an_error_of_a_configuration_names_its_parameter() -> None:
    with pytest.raises(RazErrorGroup) as caught:
        configure(PRESETS["tiny"], {"depth": "two", "zooming.kz": 1})
    assert [fault.parameter for fault in caught.value.faults] == ["depth", "zooming.kz"]
    with pytest.raises(RazError) as out_of_range:  # a parameter that was not set, but does not go with one that was
        configure(PRESETS["tiny"], {"counting.train.crop": 0})
    assert out_of_range.value.parameter == "counting.train.batch"


def test_an_error_of_a_file_names_its_key() -> None:
    text = "study: s\ndesign: {sampler: tpe, trials: 0, tirals: 3}\nparameters: {depth: {choice: [1]}}\n"
    with pytest.raises(RazErrorGroup) as caught:
        parse_space(parse(text, "f.yaml", strict=False))
    assert {fault.parameter for fault in caught.value.faults} == {"design.trials", "design.tirals"}
    with pytest.raises(RazErrorGroup) as missing:
        parse_space(parse("study: s\n", "f.yaml", strict=False))
    assert {fault.parameter for fault in missing.value.faults} == {"design", "parameters"}


def test_a_parameter_that_makes_another_wrong_is_found_by_its_own_line() -> None:
    """The message is about the batch, which the file does not set: the fault is the base's."""
    text = "study: s\ndesign: {sampler: grid}\nbase:\n  set:\n    counting.train.crop: 0\n    counting.train.batch: 2\n"
    with pytest.raises(RazError) as caught:
        parse_space(parse(text + "parameters: {depth: {choice: [1]}}\n", "f.yaml", strict=False))
    assert str(caught.value).startswith("f.yaml:6: counting.train.batch is 2, expected 1 with whole images")
