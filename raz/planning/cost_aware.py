"""Cost-aware sampling: of several candidates for a trial, take the one that adds the least work to its study.

A trial that shares its first stages with others costs a fraction of one that shares none, and a sampler knows nothing
of cost. So a search may let its sampler propose several candidates and take the cheapest of those with the same
stages. Each candidate is one that the sampler could have drawn, and the sampler alone decides how many trials zoom and
how deep. (Cost-aware search divides the acquisition function by the cost: Snoek, Larochelle, Adams, "Practical Bayesian
Optimization of Machine Learning Algorithms", 2012, section 3.2. A choice among candidates needs no value of the
acquisition function, which Optuna's samplers do not give.) Work counts the
trials of this study alone, at nominal image sizes, so the contents of a store change nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence

from raz.config import TrialConfig
from raz.errors import RazError
from raz.pipeline.graph import Node, topological_order
from raz.planning.work_order import nominal_work
from raz.spec.search_space import SEARCH_SPLITS, SearchSpace
from raz.utils.json_types import Json


class WorkTracker:
    """The stages that the trials of a study have begun, and the work that a further trial would add."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self._begun: set[str] = set()  # keys of stages
        self._drawn: set[str] = set()  # values of trials, as JSON

    def add_trial(self, values: Mapping[str, Json], stages: Iterable[str]) -> None:
        """Adds a drawn trial and the keys of its stages; without stages if other trials cannot reuse them."""
        self._drawn.add(_canonical(values))
        self._begun.update(stages)

    def stage_work(self, values: Mapping[str, Json]) -> dict[str, float]:
        """The work in each stage of a trial, in GFLOP by key. Raises RazError for values that are invalid together."""
        return self._work(self.space.config(values))

    def _work(self, config: TrialConfig) -> dict[str, float]:
        return nominal_work(config, SEARCH_SPLITS, self.space.averaged_seeds)

    def cheapest_candidate(self, candidates: Sequence[Mapping[str, Json]]) -> int:
        """The index of the candidate that adds the least work; the first of several equals.

        Only candidates with the same stages as the first are compared, so that cost does not decide how deep a trial
        zooms. A candidate that repeats an earlier trial, adds no stage or is invalid is taken only if all do.
        """
        added = [self._marginal_work(values) for values in candidates]
        new = [(i, work) for i, work in enumerate(added) if work is not None]
        if not new:
            return 0
        _, (stages, _) = new[0]
        return min((work, i) for i, (own, work) in new if own == stages)[1]

    def _marginal_work(self, values: Mapping[str, Json]) -> tuple[list[Node], float] | None:
        """(stages, GFLOP of those that no trial has begun). None for a trial that is repeated, invalid or adds no
        stage."""
        if _canonical(values) in self._drawn:
            return None
        try:
            config = self.space.config(values)
        except RazError:
            return None
        new = [work for key, work in self._work(config).items() if key not in self._begun]
        return (topological_order(config.resolved(), SEARCH_SPLITS), math.fsum(new)) if new else None


def _canonical(values: Mapping[str, Json]) -> str:
    return json.dumps(values, sort_keys=True)
