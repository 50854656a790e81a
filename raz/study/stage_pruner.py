"""Pruning per stage: Optuna's pruners, applied only to values that can be compared.

The curve of a trial runs through the stages it trains, and the validation value of each stage is another quantity.
Optuna's pruners look at a whole curve (the median pruner at its best value so far) and would compare one stage's error
with another's. So each lane (one stage of one seed, with one `comparability_key`) is an Optuna study in this process,
with its own Optuna pruner. In a lane, steps are the stage's epochs from 0, the direction is always minimize, and a
trial is COMPLETE once it has left the stage.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from raz.config import parameters as flat
from raz.pipeline.graph import STAGES, comparability_key, stage_of_step
from raz.spec.search_space import Pruning, SearchSpace
from raz.study.optuna_internals import frozen_trial, rungs, set_rungs, trial_id, trial_in
from raz.study.seed_average import seed_of_step
from raz.utils.json_types import Json, as_int


@dataclass
class StageStudy:
    """The study of one lane."""

    study: optuna.Study
    ids: dict[int, int] = field(default_factory=dict)  # number in the real study -> storage id here
    # number in the real study -> its trial here; only of running ones, since an optuna.Trial is large
    running: dict[int, optuna.Trial] = field(default_factory=dict)


LaneEpoch = tuple[str, int]  # name of the lane, epoch from 0


class StagePruner:
    """Decides which trials of a study to prune. Every step and every end of a trial must be reported to it. It keeps no
    state on disk."""

    def __init__(self, space: SearchSpace) -> None:
        self.space, self.pruning = space, space.pruning
        self._make = pruner_factory(space)
        # TPE looks for Hyperband in the study itself, to learn only from trials of the same bracket.
        self.on_study = self._make() if self.pruning.name == "hyperband" else optuna.pruners.NopPruner()
        self._lanes: dict[str, StageStudy] = {}
        self._configs: dict[int, Mapping[str, Json]] = {}  # number -> parameters
        self._measures: dict[int, dict[str, str]] = {}  # number -> stage -> digest of how its value is measured
        self._lane_of: dict[int, str] = {}  # number -> its current lane

    @property
    def enabled(self) -> bool:
        return self.pruning.name != "none"

    def begin(self, number: int, config: Mapping[str, Json]) -> None:
        """A trial starts. `config`: dotted name -> value."""
        if self.enabled:
            self._configs[number], self._measures[number] = config, {}

    def report(self, number: int, step: int, value: float, *, ask: bool = True) -> bool:
        """Records a step of a trial and returns whether to prune it; always False without `ask`.

        A non-finite value never prunes: the trial itself fails with reason `nan`.
        """
        lane_epoch = self._lane_epoch(number, step) if number in self._configs else None
        if lane_epoch is None or not math.isfinite(value):
            return False
        name, epoch = lane_epoch
        lane = self._lane(name)
        before = self._lane_of.get(number)
        if before is not None and before != name:
            self._leave(number, before, TrialState.COMPLETE)
        self._lane_of[number] = name
        trial = self._trial(lane, number)
        if epoch in frozen_trial(lane.study, trial_id(trial)).intermediate_values:
            return False
        trial.report(value, epoch)
        with warnings.catch_warnings():  # a pruner warns of values that it cannot use, and keeps the trial
            warnings.simplefilter("ignore")
            return ask and bool(trial.should_prune())

    def pause(self, number: int) -> None:
        """A trial stops and is queued again. Its steps are kept."""
        self._configs.pop(number, None)
        self._measures.pop(number, None)

    def end(self, number: int, state: TrialState) -> dict[str, dict[str, float]]:
        """A trial ends. Returns the rung values of halving pruners, for `remember`: lane -> rung -> value."""
        if self._configs.pop(number, None) is None:
            return {}
        self._measures.pop(number)
        if number in self._lane_of:
            self._leave(number, self._lane_of.pop(number), state)
        reached = {
            name: rungs(frozen_trial(lane.study, lane.ids[number]))
            for name, lane in self._lanes.items()
            if number in lane.ids
        }
        return {name: values for name, values in reached.items() if values}

    def remember(
        self, trial: FrozenTrial, config: Mapping[str, Json], reached: Mapping[str, Mapping[str, float]]
    ) -> None:
        """Adds a finished trial of an earlier run; `reached` as `end` returned it."""
        if not self.enabled or not trial.state.is_finished() or not trial.intermediate_values:
            return
        self.begin(trial.number, config)
        for name, rung_values in reached.items():
            lane = self._lane(name)
            set_rungs(lane.study, trial_id(self._trial(lane, trial.number)), rung_values)
        for step in sorted(trial.intermediate_values):
            self.report(trial.number, step, trial.intermediate_values[step], ask=False)
        self.end(trial.number, trial.state)

    # ------------------------------------------------------------------ lanes

    def _lane_epoch(self, number: int, step: int) -> LaneEpoch | None:
        """The lane and epoch of a step; None if nothing is pruned in its stage."""
        config = self._configs[number]
        seed, step = seed_of_step(config, step)
        stage, epoch = stage_of_step(config, step)
        if stage not in self.pruning.stages:
            return None
        measures = self._measures[number]
        if stage not in measures:
            text = json.dumps(comparability_key(config, stage), sort_keys=True)
            measures[stage] = hashlib.sha256(text.encode()).hexdigest()[:16]
        return f"{seed}/{stage}/{measures[stage]}", epoch - 1

    def _lane(self, name: str) -> StageStudy:
        if name not in self._lanes:
            study = optuna.create_study(
                study_name=self.space.study, direction="minimize", pruner=self._make(),
                sampler=optuna.samplers.RandomSampler(seed=0),
            )  # fmt: skip
            self._lanes[name] = StageStudy(study)
        return self._lanes[name]

    def _trial(self, lane: StageStudy, number: int) -> optuna.Trial:
        """The trial in the lane. Hyperband assigns brackets by number, so in its lanes trials keep their numbers."""
        if uses_hyperband(self.pruning):
            while len(lane.ids) <= number:
                lane.ids[len(lane.ids)] = trial_id(lane.study.ask())
        if number not in lane.ids:
            lane.running[number] = lane.study.ask()
            lane.ids[number] = trial_id(lane.running[number])
        if number not in lane.running:
            lane.running[number] = trial_in(lane.study, lane.ids[number])
        return lane.running[number]

    def _leave(self, number: int, name: str, state: TrialState) -> None:
        lane = self._lanes[name]
        trial = self._trial(lane, number)
        del lane.running[number]
        values = frozen_trial(lane.study, trial_id(trial)).intermediate_values
        best = min(values.values(), default=None)
        if state == TrialState.COMPLETE and best is not None:
            lane.study.tell(trial, best)
        else:
            lane.study.tell(trial, state=TrialState.PRUNED if state == TrialState.PRUNED else TrialState.FAIL)


# ------------------------------------------------------------------ Optuna's pruners

ARGUMENTS = {  # name in YAML files -> name in Optuna
    "startup_trials": "n_startup_trials",
    "warmup_steps": "n_warmup_steps",
    "min_trials": "n_min_trials",
    "startup_steps": "n_startup_steps",
}


def pruner_factory(space: SearchSpace) -> Callable[[], optuna.pruners.BasePruner]:
    """A function that makes the pruner of a lane. With Hyperband all lanes share one, so that a trial is in the same
    bracket in each."""
    epochs = dict(flat(space.base))
    longest = max((as_int(epochs[STAGES[stage].epochs]) for stage in space.pruning.stages), default=1)
    if uses_hyperband(space.pruning):
        shared = make_pruner(space.pruning, longest)
        return lambda: shared
    return lambda: make_pruner(space.pruning, longest)


def make_pruner(pruning: Pruning, longest: int) -> optuna.pruners.BasePruner:
    """The pruner named in raz.spec.pruner_yaml.OPTIONS. `longest`: epoch cap of the longest stage it prunes in."""
    options: dict[str, Any] = {  # each of the type that its pruner takes
        ARGUMENTS.get(name, name): value for name, value in pruning.options.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if pruning.name == "patient":
            inner = None if pruning.inner is None else make_pruner(pruning.inner, longest)
            return optuna.pruners.PatientPruner(inner, **options)
        if pruning.name == "hyperband":
            least = options.get("min_resource", 1)
            return optuna.pruners.HyperbandPruner(**{"max_resource": max(least, longest), **options})
        if pruning.name == "percentile":
            return optuna.pruners.PercentilePruner(**{"percentile": 25.0, **options})
        return PRUNERS[pruning.name](**options)


PRUNERS: dict[str, Callable[..., optuna.pruners.BasePruner]] = {
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "successive_halving": optuna.pruners.SuccessiveHalvingPruner,
    "threshold": optuna.pruners.ThresholdPruner,
    "wilcoxon": optuna.pruners.WilcoxonPruner,
}


def uses_hyperband(pruning: Pruning) -> bool:
    """Whether the pruner is Hyperband, or wraps it."""
    return pruning.name == "hyperband" or (pruning.inner is not None and uses_hyperband(pruning.inner))
