"""Optuna's samplers for a search space, seeded so that a resumed search draws new values. No pickle is read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import SupportsFloat, SupportsInt

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalChoiceType,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from raz.errors import RazError
from raz.planning.cost_aware import WorkTracker
from raz.spec.parameter import Parameter
from raz.spec.search_space import SearchSpace
from raz.study.attributes import TrialAttributes
from raz.study.optuna_internals import StatelessCmaEsSampler
from raz.utils.json_types import Json


def make_sampler(space: SearchSpace, drawn: int = 0) -> optuna.samplers.BaseSampler:
    """The sampler of the space. Its seed derives from the study's seed and `drawn`, the number of trials so far."""
    seed = (space.seed + 1_000_003 * drawn) % 2**32
    gridded = {p.name: p for p in space.parameters if p.grid}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        inner = _sampler(space, seed)
    inner = GridSnappingSampler(inner, gridded) if gridded else inner
    return CostAwareSampler(inner, space) if space.proposals > 1 else inner


def _sampler(space: SearchSpace, seed: int) -> optuna.samplers.BaseSampler:
    if space.sampler == "tpe":
        # group: parameters under one condition are sampled jointly
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
    if space.sampler == "cma-es":
        return StatelessCmaEsSampler(seed=seed, popsize=space.population, warn_independent_sampling=False)
    if space.sampler == "nsga-ii":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=space.population or 20)
    return optuna.samplers.RandomSampler(seed=seed)  # the points of a fixed design are enqueued, none is sampled


class SamplerWrapper(optuna.samplers.BaseSampler):
    """A sampler that delegates to another one."""

    inner: optuna.samplers.BaseSampler

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.inner.infer_relative_search_space(study, trial)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.inner.before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self.inner.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        self.inner.reseed_rng()


class GridSnappingSampler(SamplerWrapper):
    """Rounds sampled values of some parameters to the nearest point of their grid before Optuna records them."""

    def __init__(self, inner: optuna.samplers.BaseSampler, gridded: Mapping[str, Parameter]) -> None:
        self.inner, self.gridded = inner, gridded

    def _snap(self, name: str, value: Json) -> Json:
        if name not in self.gridded:
            return value
        assert isinstance(value, SupportsFloat)  # only ranges have a grid
        return self.gridded[name].snap(float(value))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Json]:
        drawn = self.inner.sample_relative(study, trial, search_space)
        return {name: self._snap(name, value) for name, value in drawn.items()}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Json:
        return self._snap(param_name, self.inner.sample_independent(study, trial, param_name, param_distribution))


class _Candidate:
    """Proposed values of a trial. `joint` were sampled jointly, the others are sampled when they are first read."""

    def __init__(
        self, sampler: optuna.samplers.BaseSampler, study: optuna.Study, trial: FrozenTrial, joint: dict[str, Json]
    ) -> None:
        self.joint, self.drawn = joint, dict(joint)
        self._sample = partial(sampler.sample_independent, study, trial)

    def _value(self, name: str, domain: BaseDistribution) -> Json:
        if name not in self.drawn:  # as in Optuna, a domain of one value needs no sampler
            self.drawn[name] = _single_value(domain) if domain.single() else self._sample(name, domain)
        return self.drawn[name]

    def suggest_categorical(self, name: str, choices: Sequence[CategoricalChoiceType], /) -> Json:
        return self._value(name, CategoricalDistribution(choices))

    def suggest_int(self, name: str, low: int, high: int, /, *, step: int = 1, log: bool = False) -> int:
        value = self._value(name, IntDistribution(low, high, log, step))
        assert isinstance(value, SupportsInt)
        return int(value)

    def suggest_float(
        self, name: str, low: float, high: float, /, *, step: float | None = None, log: bool = False
    ) -> float:
        value = self._value(name, FloatDistribution(low, high, log, step))
        assert isinstance(value, SupportsFloat)
        return float(value)


def _single_value(domain: BaseDistribution) -> Json:
    if isinstance(domain, CategoricalDistribution):
        return domain.choices[0]
    assert isinstance(domain, FloatDistribution | IntDistribution)
    return domain.low


class CostAwareSampler(SamplerWrapper):
    """Samples several candidates for each trial and takes the one that adds the least work (`WorkTracker`).

    Stages of complete and running trials add no work; those of pruned and failed trials do.
    """

    def __init__(self, inner: optuna.samplers.BaseSampler, space: SearchSpace) -> None:
        self.inner, self.space = inner, space
        self._drawn: dict[str, Json] = {}  # all values of the candidate taken for the current trial
        self._known: dict[int, tuple[Mapping[str, Json], frozenset[str]]] = {}  # trial number -> values, stages

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Json]:
        tracker = self._work_tracker(study, trial)
        candidates = []
        for _ in range(self.space.proposals):
            joint = self.inner.sample_relative(study, trial, search_space)
            candidates.append(_Candidate(self.inner, study, trial, joint))
        taken = candidates[tracker.cheapest_candidate([self.space.suggest(candidate) for candidate in candidates])]
        self._drawn = taken.drawn
        return taken.joint

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Json:
        if param_name in self._drawn:
            return self._drawn[param_name]
        # a free value of an enqueued trial (a retry, or enqueued by hand) whose other values are fixed
        value: Json = self.inner.sample_independent(study, trial, param_name, param_distribution)
        return value

    def _work_tracker(self, study: optuna.Study, trial: FrozenTrial) -> WorkTracker:
        """The work of every other trial of the study."""
        tracker = WorkTracker(self.space)
        for other in study.get_trials(deepcopy=False):
            if other.number == trial.number:
                continue
            if other.number not in self._known:
                values = TrialAttributes.parse(other.user_attrs).values
                if values is None:  # not started yet
                    continue
                stages = frozenset[str]()
                with suppress(RazError):  # values that are invalid together
                    stages = frozenset(tracker.stage_work(values))
                self._known[other.number] = values, stages
            values, stages = self._known[other.number]
            tracker.add_trial(values, stages if other.state in (TrialState.RUNNING, TrialState.COMPLETE) else ())
        return tracker

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._drawn = {}
        super().before_trial(study, trial)
