"""Schemas of YAML files: each kind accepts what it declares, and reports everything else with its line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest

from raz.errors import RazErrorGroup
from raz.utils.schema import (
    Anything,
    Either,
    Invalid,
    Keys,
    ListOf,
    Located,
    MapOf,
    Nothing,
    Record,
    Schema,
    WithPath,
    boolean,
    choice,
    integer,
    key,
    matching,
    number,
    read_or,
    text,
)
from raz.utils.yamlfile import Problems, parse

SPLIT = Either(lambda value: value is None, Nothing(), choice(("train", "test")))


def read(schema: Schema[Any], yaml: str) -> tuple[Any, list[str]]:
    """What `x: yaml` is read as, and all that is reported; '-' for a value that does not fit."""
    document = parse(f"# a file\nx: {yaml}\n", "f.yaml")
    problems = Problems(document)
    value = read_or(schema, document.data["x"], ("x",), problems, "-")
    return value, [str(fault).removeprefix("f.yaml:").replace("\n  try: ", " | ") for fault in problems.faults]


@pytest.mark.parametrize(
    ("schema", "yaml", "value", "faults"),
    [
        (text(), "a", "a", []),
        (text(), "''", "", []),
        (text(), "3", "-", ["2: x is 3, expected a text"]),
        (text("a name", "x: b"), "[a]", "-", ["2: x is a list, expected a name | x: b"]),
        (matching(re.compile("[a-c]+"), "a to c"), "cab", "cab", []),
        (matching(re.compile("[a-c]+"), "a to c"), "cabd", "-", ["2: x is 'cabd', expected a to c"]),
        (boolean(), "true", True, []),
        (boolean(), "false", False, []),
        (boolean(), "1", "-", ["2: x is 1, expected true or false"]),
        (choice(("fast", "slow")), "slow", "slow", []),
        (choice(("fast", "slow")), "slwo", "-",
         ["2: x is 'slwo', expected one of fast, slow | did you mean slow?"]),
        (choice(("fast", "slow")), "true", "-",
         ["2: x is true, expected one of fast, slow | legal are fast, slow"]),
        (integer(1, 3), "3", 3, []),
        (integer(1, 3), "4", "-", ["2: x is 4, expected a whole number from 1 to 3"]),
        (integer(0), "-1", "-", ["2: x is -1, expected a whole number from 0 on"]),
        (integer(), "true", "-", ["2: x is true, expected a whole number"]),
        (integer(), "1.0", "-", ["2: x is 1.0, expected a whole number"]),
        (number(0, 1), "1", 1, []),
        (number(0, 1), "0.25", 0.25, []),
        (number(0, 1), "1.5", "-", ["2: x is 1.5, expected a number from 0 to 1"]),
        (number(), ".nan", "-", ["2: x is nan, expected a number"]),
        (number(), ".inf", "-", ["2: x is inf, expected a number"]),
        (number(), "false", "-", ["2: x is false, expected a number"]),
        (Anything(), "{a: [1]}", {"a": [1]}, []),
        (Nothing(), "null", None, []),
        (Nothing(), "0", "-", ["2: x is 0, expected nothing"]),
        (SPLIT, "null", None, []),
        (SPLIT, "test", "test", []),
        (SPLIT, "tset", "-", ["2: x is 'tset', expected one of train, test | did you mean test?"]),
        (ListOf(integer()), "[1, 2]", (1, 2), []),
        (ListOf(integer()), "[]", (), []),
        (ListOf(integer()), "3", "-", ["2: x is 3, expected a list | […]"]),
        (ListOf(integer()), "[1, a, 1, b]", (1,), ["2: x has 'a', expected a whole number",
         "2: x has 1 twice | leave one out", "2: x has 'b', expected a whole number"]),
        (ListOf(integer(), repeats=True), "[1, 1]", (1, 1), []),
        (ListOf(integer(), "1 or 2 numbers", "[1]", fewest=1, most=2), "[]", "-",
         ["2: x is empty, expected 1 or 2 numbers | [1]"]),
        (ListOf(integer(), "1 or 2 numbers", "[1]", fewest=1, most=2), "[1, 2, 3]", "-",
         ["2: x is a list of 3, expected 1 or 2 numbers | [1]"]),
        (MapOf(integer()), "{a: 1, b: c, d: 2}", {"a": 1, "d": 2}, ["2: x.b is 'c', expected a whole number"]),
        (MapOf(integer(), keys=("left", "right"), noun="side"), "{letf: 1, right: 2}", {"right": 2},
         ["2: unknown side 'letf' | did you mean left?"]),
        (MapOf(integer(), "sides", "{left: 1}", may_be_empty=False), "{}", "-",
         ["2: x is empty, expected sides | {left: 1}"]),
        (MapOf(integer()), "[1]", "-", ["2: x is a list, expected keys with values"]),
        (Keys({"a": integer(), "b": text()}, required=("b",), also=("c",)), "{a: 1, c: 2, dd: 3}", {"a": 1},
         ["2: unknown key 'x.dd' | legal are a, b, c", "2: x.b is missing"]),
        (ListOf(WithPath(integer()), repeats=True), "[7, a, 8]",
         (Located(7, ("x", 0)), Located(8, ("x", 2))), ["2: x has 'a', expected a whole number"]),
    ],
)  # fmt: skip
def test_a_value_fits_its_schema_or_is_reported(
    schema: Schema[Any], yaml: str, value: object, faults: list[str]
) -> None:
    assert read(schema, yaml) == (value, faults)
    assert type(read(schema, yaml)[0]) is type(value)


@dataclass(frozen=True)
class Layer:
    """A part of a file, for the tests."""

    width: int = key(integer(1), default=8)
    kind: str = key(choice(("conv", "pool")), default="conv", required=True)


@dataclass(frozen=True)
class Net:
    """A file, for the tests."""

    layers: tuple[Layer, ...] = key(ListOf(Record(Layer), repeats=True), default=(), required=True)
    class_: str = key(text(), default="none", name="class")
    sizes: dict[str, int] = key(MapOf(integer()), default={})


def test_a_record_becomes_a_dataclass() -> None:
    document = parse("layers: [{kind: pool}, {kind: conv, width: 2}]\nclass: b\n", "f.yaml")
    problems = Problems(document)
    assert Record(Net).read(document.data, (), problems) == Net((Layer(8, "pool"), Layer(2, "conv")), "b")
    assert problems.faults == []


def test_all_faults_of_nested_records_are_reported_with_their_lines_and_the_rest_is_read() -> None:
    document = parse(
        "layers:\n- kind: pol\n- {width: 0, kind: conv}\n- wide: 3\n- 7\nclas: b\nsizes: {a: x}\n", "f.yaml"
    )
    problems = Problems(document)
    net = Record(Net).read(document.data, (), problems)
    with pytest.raises(RazErrorGroup) as caught:
        problems.raise_if_any()
    assert (
        str(caught.value)
        == """\
f.yaml:2: layers.0.kind is 'pol', expected one of conv, pool
  try: did you mean pool?
f.yaml:3: layers.1.width is 0, expected a whole number from 1 on
f.yaml:4: unknown key 'layers.2.wide'
  try: did you mean width or kind?
f.yaml:4: layers.2.kind is missing
f.yaml:5: layers has 7, expected keys with values
f.yaml:6: unknown key 'clas'
  try: did you mean class or layers?
f.yaml:7: sizes.a is 'x', expected a whole number"""
    )
    assert net == Net((Layer(), Layer(), Layer()))
    assert {fault.parameter for fault in caught.value.faults} == {
        "layers.0.kind", "layers.1.width", "layers.2.wide", "layers.2.kind", "layers.3", "clas", "sizes.a",
    }  # fmt: skip


def test_a_value_that_does_not_fit_is_an_exception_for_who_cannot_go_on() -> None:
    problems = Problems(parse("x: 1\n", "f.yaml"))
    with pytest.raises(Invalid):
        text().read(1, ("x",), problems)
    assert len(problems.faults) == 1
