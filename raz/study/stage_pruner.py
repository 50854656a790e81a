"""When a trial is not worth going on: Optuna's pruners, each comparing like with like.

A trial's curve runs through the stages it trains, and each stage's validation value is another quantity. Optuna's
pruners look at a whole curve (the median pruner at its best value so far), which would set one stage's error against
another's. So each lane (one stage, of one seed, measured in one way) is a study of its own in this process: its
trials are named and numbered as the real ones, its steps are the stage's epochs from 0, less is better whatever the
objective's direction, and a trial is COMPLETE there once it has left the stage. A real Optuna pruner judges in there.
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
from raz.utils.json_types import as_int


@dataclass
class StageStudy:
    """The study of one stage, one seed, one way to measure."""

    study: optuna.Study
    # Both by the number in the real study. A Trial of Optuna's carries a copy of all it is, so only living ones stay.
    ids: dict[int, int] = field(default_factory=dict)
    living: dict[int, optuna.Trial] = field(default_factory=dict)


Place = tuple[str, int]  # lane, epoch from 0


class StagePruner:
    """Judges the trials of a study. Tell it every step and every end; it keeps nothing on disk."""

    def __init__(self, space: SearchSpace) -> None:
        self.space, self.pruning = space, space.pruning
        self._make = pruner_factory(space)
        # TPE looks for Hyperband on the study itself, to learn from a trial's own bracket only.
        self.on_study = self._make() if self.pruning.name == "hyperband" else optuna.pruners.NopPruner()
        self._lanes: dict[str, StageStudy] = {}
        self._live: dict[int, Mapping[str, Any]] = {}  # number -> flat parameters
        self._measures: dict[int, dict[str, str]] = {}  # number -> stage -> how it is measured
        self._at: dict[int, str] = {}  # number -> the lane it is in

    @property
    def enabled(self) -> bool:
        return self.pruning.name != "none"

    def begin(self, number: int, config: Mapping[str, Any]) -> None:
        """A trial starts; `config` are its flat parameters."""
        if self.enabled:
            self._live[number], self._measures[number] = config, {}

    def report(self, number: int, step: int, value: float, *, ask: bool = True) -> bool:
        """A step of a trial; whether to prune it. Without `ask` the step is only remembered.

        A value that is no number is no reason to prune: the trial fails of it, and says so.
        """
        place = self._place(number, step) if number in self._live else None
        if place is None or not math.isfinite(value):
            return False
        name, epoch = place
        lane = self._lane(name)
        before = self._at.get(number)
        if before is not None and before != name:
            self._leave(number, before, TrialState.COMPLETE)
        self._at[number] = name
        trial = self._trial(lane, number)
        if epoch in frozen_trial(lane.study, trial_id(trial)).intermediate_values:
            return False
        trial.report(value, epoch)
        with warnings.catch_warnings():  # of a pruner that would rather have seen other values: it then keeps the trial
            warnings.simplefilter("ignore")
            return ask and bool(trial.should_prune())

    def pause(self, number: int) -> None:
        """A trial waits to be begun again; what it told is not forgotten."""
        self._live.pop(number, None)
        self._measures.pop(number, None)

    def end(self, number: int, state: TrialState) -> dict[str, dict[str, float]]:
        """A trial is over. Returns what halving pruners must remember of it: lane -> rung -> value."""
        if self._live.pop(number, None) is None:
            return {}
        self._measures.pop(number)
        if number in self._at:
            self._leave(number, self._at.pop(number), state)
        found = {
            name: rungs(frozen_trial(lane.study, lane.ids[number]))
            for name, lane in self._lanes.items()
            if number in lane.ids
        }
        return {name: reached for name, reached in found.items() if reached}

    def remember(
        self, trial: FrozenTrial, config: Mapping[str, Any], reached: Mapping[str, Mapping[str, float]]
    ) -> None:
        """A finished trial of an earlier run, as `end` left it."""
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

    def _place(self, number: int, step: int) -> Place | None:
        config = self._live[number]
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
        """The trial in the lane. Hyperband deals out its brackets by number, so there the numbers must agree."""
        if uses_hyperband(self.pruning):
            while len(lane.ids) <= number:
                lane.ids[len(lane.ids)] = trial_id(lane.study.ask())
        if number not in lane.ids:
            lane.living[number] = lane.study.ask()
            lane.ids[number] = trial_id(lane.living[number])
        if number not in lane.living:
            lane.living[number] = trial_in(lane.study, lane.ids[number])
        return lane.living[number]

    def _leave(self, number: int, name: str, state: TrialState) -> None:
        lane = self._lanes[name]
        trial = self._trial(lane, number)
        del lane.living[number]
        values = frozen_trial(lane.study, trial_id(trial)).intermediate_values
        best = min(values.values(), default=None)
        if state == TrialState.COMPLETE and best is not None:
            lane.study.tell(trial, best)
        else:
            lane.study.tell(trial, state=TrialState.PRUNED if state == TrialState.PRUNED else TrialState.FAIL)


# ------------------------------------------------------------------ Optuna's pruners

ARGUMENTS = {  # as files name them -> as Optuna does
    "startup_trials": "n_startup_trials",
    "warmup_steps": "n_warmup_steps",
    "min_trials": "n_min_trials",
    "startup_steps": "n_startup_steps",
}


def pruner_factory(space: SearchSpace) -> Callable[[], optuna.pruners.BasePruner]:
    """What makes a lane's pruner. Hyperband is one for all lanes, so that a trial is in one bracket everywhere."""
    epochs = dict(flat(space.base))
    longest = max((as_int(epochs[STAGES[stage].epochs]) for stage in space.pruning.stages), default=1)
    if uses_hyperband(space.pruning):
        one = make_pruner(space.pruning, longest)
        return lambda: one
    return lambda: make_pruner(space.pruning, longest)


def make_pruner(pruning: Pruning, longest: int) -> optuna.pruners.BasePruner:
    """The pruner by its name in raz.spec.pruner_yaml.OPTIONS; `longest` is the epoch cap of its longest stage."""
    given: dict[str, Any] = {ARGUMENTS.get(name, name): value for name, value in pruning.options.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if pruning.name == "patient":
            inner = None if pruning.inner is None else make_pruner(pruning.inner, longest)
            return optuna.pruners.PatientPruner(inner, **given)
        if pruning.name == "hyperband":
            least = given.get("min_resource", 1)
            return optuna.pruners.HyperbandPruner(**{"max_resource": max(least, longest), **given})
        if pruning.name == "percentile":
            return optuna.pruners.PercentilePruner(**{"percentile": 25.0, **given})
        return PRUNERS[pruning.name](**given)


PRUNERS: dict[str, Callable[..., optuna.pruners.BasePruner]] = {
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "successive_halving": optuna.pruners.SuccessiveHalvingPruner,
    "threshold": optuna.pruners.ThresholdPruner,
    "wilcoxon": optuna.pruners.WilcoxonPruner,
}


def uses_hyperband(pruning: Pruning) -> bool:
    """Whether it is Hyperband, or has it inside."""
    return pruning.name == "hyperband" or (pruning.inner is not None and uses_hyperband(pruning.inner))
