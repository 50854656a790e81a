"""Optuna's samplers for a search space, seeded so that a resumed search draws new values and no pickle is read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from raz.errors import RazError
from raz.planning.cost_aware import WorkTracker
from raz.spec.parameter import Parameter
from raz.spec.search_space import SearchSpace
from raz.study.optuna_internals import StatelessCmaEsSampler


def make_sampler(space: SearchSpace, drawn: int = 0) -> optuna.samplers.BaseSampler:
    """The sampler, seeded by the study's seed and how many trials were drawn before."""
    seed = (space.seed + 1_000_003 * drawn) % 2**32
    gridded = {p.name: p for p in space.parameters if p.grid}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        inner = _sampler(space, seed)
    inner = GridSnappingSampler(inner, gridded) if gridded else inner
    return CostAwareSampler(inner, space) if space.proposals > 1 else inner


def _sampler(space: SearchSpace, seed: int) -> optuna.samplers.BaseSampler:
    if space.sampler == "tpe":
        # group: parameters under one condition are drawn jointly, not each on its own
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
    if space.sampler == "cma-es":
        return StatelessCmaEsSampler(seed=seed, popsize=space.population, warn_independent_sampling=False)
    if space.sampler == "nsga-ii":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=space.population or 20)
    return optuna.samplers.RandomSampler(seed=seed)  # a design's points are queued, none is drawn


class SamplerWrapper(optuna.samplers.BaseSampler):
    """A sampler around another one, which draws."""

    inner: optuna.samplers.BaseSampler

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        found: dict[str, BaseDistribution] = self.inner.infer_relative_search_space(study, trial)
        return found

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.inner.before_trial(study, trial)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        self.inner.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        self.inner.reseed_rng()


class GridSnappingSampler(SamplerWrapper):
    """A sampler whose draws of some ranges go to the nearest place of their grid before Optuna writes them down."""

    def __init__(self, inner: optuna.samplers.BaseSampler, gridded: Mapping[str, Parameter]) -> None:
        self.inner, self.gridded = inner, gridded

    def _snap(self, name: str, value: Any) -> Any:
        return self.gridded[name].snap(value) if name in self.gridded else value

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        drawn = self.inner.sample_relative(study, trial, search_space)
        return {name: self._snap(name, value) for name, value in drawn.items()}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._snap(param_name, self.inner.sample_independent(study, trial, param_name, param_distribution))


class _Candidate:
    """Values of a trial that is not drawn yet: those that the sampler drew together, each other one on its own."""

    def __init__(
        self, sampler: optuna.samplers.BaseSampler, study: optuna.Study, trial: FrozenTrial, together: dict[str, Any]
    ) -> None:
        self.together, self.drawn = together, dict(together)
        self._ask = partial(sampler.sample_independent, study, trial)

    def _value(self, name: str, domain: BaseDistribution) -> Any:
        if name not in self.drawn:  # of a domain of one value Optuna asks no sampler either
            self.drawn[name] = _only(domain) if domain.single() else self._ask(name, domain)
        return self.drawn[name]

    def suggest_categorical(self, name: str, choices: Any, /) -> Any:
        return self._value(name, CategoricalDistribution(choices))

    def suggest_int(self, name: str, low: int, high: int, /, *, step: int = 1, log: bool = False) -> int:
        return int(self._value(name, IntDistribution(low, high, log, step)))

    def suggest_float(
        self, name: str, low: float, high: float, /, *, step: float | None = None, log: bool = False
    ) -> float:
        return float(self._value(name, FloatDistribution(low, high, log, step)))


def _only(domain: BaseDistribution) -> Any:
    if isinstance(domain, CategoricalDistribution):
        return domain.choices[0]
    assert isinstance(domain, FloatDistribution | IntDistribution)
    return domain.low


class CostAwareSampler(SamplerWrapper):
    """A sampler that is asked for several trials, of which the one that adds least work is drawn (`Thrift`).

    Work counts as begun when a trial that is complete or runs has it on its way. A trial that was pruned or failed
    leaves nothing that draws others to it.
    """

    def __init__(self, inner: optuna.samplers.BaseSampler, space: SearchSpace) -> None:
        self.inner, self.space = inner, space
        self._drawn: dict[str, Any] = {}  # of the trial that is drawn now: every value of the proposal
        self._known: dict[int, tuple[dict[str, Any], frozenset[str]]] = {}  # trial -> values, stages on its way

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        thrift = self._thrift(study, trial)
        proposals = []
        for _ in range(self.space.proposals):
            together = self.inner.sample_relative(study, trial, search_space)
            proposals.append(_Candidate(self.inner, study, trial, together))
        taken = proposals[thrift.cheapest_candidate([self.space.suggest(proposal) for proposal in proposals])]
        self._drawn = taken.drawn
        return taken.together

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if param_name in self._drawn:
            return self._drawn[param_name]
        # Beside a value that the trial was given: a retried trial, or one that a person queued.
        return self.inner.sample_independent(study, trial, param_name, param_distribution)

    def _thrift(self, study: optuna.Study, trial: FrozenTrial) -> WorkTracker:
        thrift = WorkTracker(self.space)
        for other in study.get_trials(deepcopy=False):
            if other.number == trial.number or "values" not in other.user_attrs:
                continue
            if other.number not in self._known:
                found = other.user_attrs["values"]
                way = frozenset[str]()
                with suppress(RazError):  # they cannot go together, whatever else is written of the trial
                    way = frozenset(thrift.stage_work(found))
                self._known[other.number] = found, way
            values, way = self._known[other.number]
            thrift.add_trial(values, way if other.state in (TrialState.RUNNING, TrialState.COMPLETE) else ())
        return thrift

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._drawn = {}
        super().before_trial(study, trial)
