"""In which order ready stages start, and the schedule that follows, against closed forms and brute force."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raz.study.schedule import Ready, longest_paths, order, remaining


def test_the_longest_remaining_path_starts_first() -> None:
    ready = [Ready("a", 5, 9, 0), Ready("b", 20, 1, 1), Ready("c", 5, 1, 2), Ready("d", 5, 9, 3)]
    assert [stage.key for stage in order(ready)] == ["b", "a", "d", "c"]
    assert order(ready) == order(reversed(ready))


def test_what_is_left_of_a_trial_from_each_stage() -> None:
    assert remaining([3, 0, 2]) == [5, 2, 2]
    assert remaining([]) == []


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**32))
def test_the_longest_path_is_the_longest_of_all_paths(n: int, seed: int) -> None:
    chance = random.Random(seed)
    seconds = {str(i): float(chance.randint(0, 9)) for i in range(n)}
    needs = {str(i): [str(j) for j in range(i) if chance.random() < 0.4] for i in range(n)}

    def walk(key: str) -> float:  # every path, one by one
        return seconds[key] + max([walk(other) for other in needs if key in needs[other]], default=0)

    assert longest_paths(seconds, needs) == {key: walk(key) for key in seconds}


def test_a_circle_of_needs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"circle: \['a', 'b'\]"):
        longest_paths({"a": 1, "b": 1, "c": 1}, {"a": ["b"], "b": ["a"]})
