"""Of several draws for a trial, the one that adds least work to what its study has begun.

A trial that shares its first stages costs a fraction of one that shares none, and a sampler knows nothing of cost. So a
search may have its sampler propose several trials and take the cheapest: each proposal is one the sampler could have
made, only which of them it is comes from the tree. (Cost-aware search divides the acquisition by the cost: Snoek,
Larochelle, Adams, "Practical Bayesian Optimization of Machine Learning Algorithms", 2012, §3.2. Choosing among draws
needs no value of the acquisition, which Optuna's samplers do not tell.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from raz.errors import RazError
from raz.study.space import SearchSpace
from raz.study.ways import nominal_way


class Thrift:
    """What the trials of a study have begun, and what a further one would add to it."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self._begun: set[str] = set()  # stages
        self._drawn: set[str] = set()  # values of trials

    def note(self, values: Mapping[str, Any], way: Iterable[str]) -> None:
        """A trial was drawn, and has these stages made: none where others will not find them."""
        self._drawn.add(_written(values))
        self._begun.update(way)

    def way(self, values: Mapping[str, Any]) -> dict[str, float]:
        """The stages of a trial and the work in each, GFLOP. Raises RazError for values that cannot go together."""
        return nominal_way(self.space.config(values), ("val",), self.space.mean_over)

    def cheapest(self, proposals: Sequence[Mapping[str, Any]]) -> int:
        """Which of these values of a trial adds least work; of equals the first.

        One that tells nothing new is taken only where all are such: values that were drawn before, that differ from
        them in what no stage of the trial reads, or that cannot go together.
        """

        def adds(values: Mapping[str, Any]) -> float:
            if _written(values) in self._drawn:
                return math.inf
            try:
                way = self.way(values)
            except RazError:
                return math.inf
            new = [work for key, work in way.items() if key not in self._begun]
            return math.fsum(new) if new else math.inf

        added = [adds(values) for values in proposals]
        return added.index(min(added))


def _written(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)
