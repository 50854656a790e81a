"""Checked reads of JSON documents."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from raz.utils import json_types as jt

DOCUMENT = jt.parse_object('{"n": 3, "x": 0.5, "yes": true, "name": "a", "list": [1], "of": {"k": null}}')


def test_fields_are_read_with_their_type() -> None:
    assert jt.get_int(DOCUMENT, "n") == 3
    assert jt.get_float(DOCUMENT, "n") == 3.0
    assert isinstance(jt.get_float(DOCUMENT, "n"), float)
    assert jt.get_float(DOCUMENT, "x") == 0.5
    assert jt.get_str(DOCUMENT, "name") == "a"
    assert jt.get_list(DOCUMENT, "list") == [1]
    assert jt.get_object(DOCUMENT, "of") == {"k": None}
    assert jt.get_list(DOCUMENT, "none") == []
    assert jt.get_object(DOCUMENT, "none") == {}
    assert jt.get_str(DOCUMENT, "none", "b") == "b"


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda: jt.get_int(DOCUMENT, "yes"), "yes is true, expected a whole number"),
        (lambda: jt.get_int(DOCUMENT, "x"), "x is 0.5, expected a whole number"),
        (lambda: jt.get_float(DOCUMENT, "yes"), "yes is true, expected a number"),
        (lambda: jt.get_str(DOCUMENT, "gone"), "gone is null or missing, expected a string"),
        (lambda: jt.get_list(DOCUMENT, "of"), "of is an object, expected a list"),
        (lambda: jt.get_object(DOCUMENT, "list"), "list is a list, expected an object"),
        (lambda: jt.parse_object("[1]"), "the document is a list, expected an object"),
        (lambda: jt.parse_object("{"), "Expecting property name"),
    ],
)
def test_another_type_is_named(read: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read()
