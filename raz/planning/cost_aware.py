"""Of several draws for a trial, the one that adds least work to what its study has begun.

A trial that shares its first stages costs a fraction of one that shares none, and a sampler knows nothing of cost. So a
search may have its sampler propose several trials and take the cheapest of those with the same stages: each proposal is
one the sampler could have made, and how many zoom, how deep, is as the sampler has it. (Cost-aware search divides the
acquisition by the cost: Snoek, Larochelle, Adams, "Practical Bayesian Optimization of Machine Learning Algorithms",
2012, §3.2. Choosing among draws needs no value of the acquisition, which Optuna's samplers do not tell.) Work counts
against this study's trials, at the sizes of no data set: what a store holds besides makes no difference.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from raz.config import TrialConfig
from raz.errors import RazError
from raz.pipeline.graph import Node, topological_order
from raz.planning.work_order import nominal_work
from raz.spec.search_space import SPLITS, SearchSpace


class WorkTracker:
    """What the trials of a study have begun, and what a further one would add to it."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self._begun: set[str] = set()  # stages
        self._drawn: set[str] = set()  # values of trials

    def add_trial(self, values: Mapping[str, Any], way: Iterable[str]) -> None:
        """A trial was drawn, and has these stages made: none where others will not find them."""
        self._drawn.add(_canonical(values))
        self._begun.update(way)

    def stage_work(self, values: Mapping[str, Any]) -> dict[str, float]:
        """The stages of a trial and the work in each, GFLOP. Raises RazError for values that cannot go together."""
        return self._way(self.space.config(values))

    def _way(self, config: TrialConfig) -> dict[str, float]:
        return nominal_work(config, SPLITS, self.space.averaged_seeds)

    def cheapest_candidate(self, proposals: Sequence[Mapping[str, Any]]) -> int:
        """Which of these values of a trial adds least work; of equals the first.

        Compared are those that have the stages of the first: what a trial costs must not decide how deep it zooms. One
        that tells nothing new is taken only where all are such: values that were drawn before, that differ from them in
        what no stage of the trial reads, or that cannot go together.
        """
        added = [self._marginal_work(values) for values in proposals]
        new = [(i, found) for i, found in enumerate(added) if found is not None]
        if not new:
            return 0
        _, (stages, _) = new[0]
        return min((work, i) for i, (own, work) in new if own == stages)[1]

    def _marginal_work(self, values: Mapping[str, Any]) -> tuple[list[Node], float] | None:
        """The stages of a trial, and the work in those that no trial has begun; None where it tells nothing new."""
        if _canonical(values) in self._drawn:
            return None
        try:
            config = self.space.config(values)
        except RazError:
            return None
        new = [work for key, work in self._way(config).items() if key not in self._begun]
        return (topological_order(config.resolved(), SPLITS), math.fsum(new)) if new else None


def _canonical(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)
