"""What is borrowed from inside Optuna, all of it, and why. Other modules use Optuna's public names alone.

Each borrowed thing has a case in `tests/test_internals.py`, which fails by its name when Optuna changes it.

- Numbers of trials in a storage (`Trial._trial_id`), the storage behind a study (`Study._storage`, its reading and
  writing of one trial) and `Trial(study, id)`: the ledger writes a trial that waits, and pruners compare trials of
  several processes, neither of which `Study` and `Trial` offer.
- Two names among a trial's system attributes: `fixed_params` (values it was queued with) and `completed_rung_*` (what
  halving pruners remember).
- The codes of a journal's lines, and the backend and lock of `JournalStorage`: a trial's attributes and steps are
  written as one append, several journals are shown as one.
- `CmaEsSampler`'s optimizer, which Optuna would pickle into the study and read from there; and the transform of a
  search space that the optimizer is told in.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import optuna
from optuna._transform import _SearchSpaceTransform
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal._storage import JournalOperation
from optuna.trial import FrozenTrial, TrialState

# ------------------------------------------------------------------ trials and their storage

RUNG = "completed_rung_"  # how Optuna's halving pruners remember in a trial what it reached
FIXED = "fixed_params"  # where a queued trial has the values that it must take


def trial_id(trial: optuna.Trial | FrozenTrial) -> int:
    """The trial's number in its storage, which is not its number in the study."""
    number: int = trial._trial_id
    return number


def trial_in(study: optuna.Study, trial_id: int) -> optuna.Trial:
    """A trial of the study that others have begun, so that it can be reported to and told."""
    return optuna.Trial(study, trial_id)


def frozen_trial(study: optuna.Study, trial_id: int) -> FrozenTrial:
    """The trial as the study's storage has it now."""
    return study._storage.get_trial(trial_id)


def trial_numbered(study: optuna.Study, number: int) -> FrozenTrial:
    """The trial by its number in the study. Raises KeyError when there is none."""
    storage = study._storage
    return storage.get_trial(storage.get_trial_id_from_study_id_trial_number(study._study_id, number))


def set_state(storage: BaseStorage, trial_id: int, state: TrialState) -> None:
    """Makes a waiting trial run, or a running one wait; `Study.tell` only ends them."""
    storage.set_trial_state_values(trial_id, state=state)


def fixed_values(trial: FrozenTrial) -> dict[str, Any]:
    """Parameter -> value that the trial was queued with; empty of one that was drawn."""
    return dict(trial.system_attrs.get(FIXED, {}))


def rungs(trial: FrozenTrial) -> dict[str, float]:
    """What halving pruners remember of the trial: name of the rung -> value there."""
    return {name: value for name, value in trial.system_attrs.items() if name.startswith(RUNG)}


def set_rungs(study: optuna.Study, trial_id: int, reached: Mapping[str, float]) -> None:
    """Has halving pruners remember them of a running trial, as `rungs` gives them."""
    for name, value in reached.items():
        study._storage.set_trial_system_attr(trial_id, name, value)


# ------------------------------------------------------------------ journals

CREATE_STUDY = int(JournalOperation.CREATE_STUDY)
CREATE_TRIAL = int(JournalOperation.CREATE_TRIAL)
SET_STATE = int(JournalOperation.SET_TRIAL_STATE_VALUES)
SET_ATTRIBUTE = int(JournalOperation.SET_TRIAL_USER_ATTR)
SET_STEP = int(JournalOperation.SET_TRIAL_INTERMEDIATE_VALUE)


def append(storage: JournalStorage, trial_id: int, attributes: Mapping[str, Any], steps: Mapping[int, float]) -> None:
    """Writes user attributes and intermediate values of a running trial as one append; of nothing, nothing.

    Optuna's own calls append, and wait for the disk, once for each of them.
    """
    me = {"worker_id": storage._replay_result.worker_id, "trial_id": trial_id}
    logs = [{"op_code": SET_ATTRIBUTE, **me, "user_attr": {name: value}} for name, value in attributes.items()]
    logs += [{"op_code": SET_STEP, **me, "step": step, "intermediate_value": v} for step, v in steps.items()]
    if logs:
        with storage._thread_lock:
            storage._backend.append_logs(logs)
            storage._sync_with_backend()


# ------------------------------------------------------------------ CMA-ES


class StatelessCmaEsSampler(optuna.samplers.CmaEsSampler):
    """Optuna's CMA-ES without its pickles: it would keep its state in the study as one, and read it from there.

    Here the state stays in this process; a resumed search computes it again from the trials, generation by
    generation, as they were told the first time.
    """

    _kept: str | None = None  # what Optuna would have written into the study

    def _split_optimizer_str(self, optimizer_str: str) -> dict[str, str]:
        self._kept = optimizer_str
        return {}

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> Any:
        return None if self._kept is None else pickle.loads(bytes.fromhex(self._kept))  # made by this process

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        completed = self._get_trials(study)
        if self._kept is None and search_space and completed:
            self._replay_generations(study, search_space, completed)
        drawn: dict[str, Any] = super().sample_relative(study, trial, search_space)
        return drawn

    def _replay_generations(
        self, study: optuna.Study, search_space: dict[str, BaseDistribution], completed: list[FrozenTrial]
    ) -> None:
        space = _SearchSpaceTransform(search_space, transform_step=True, transform_0_1=True)
        optimizer = self._init_optimizer(space, study.direction)
        sign = 1 if study.direction == optuna.study.StudyDirection.MINIMIZE else -1
        while len(told := self._get_solution_trials(completed, optimizer.generation)) >= optimizer.population_size:
            told = told[: optimizer.population_size]
            values = [(t.params, t.value) for t in told if t.value is not None]  # as every complete one has
            optimizer.tell([(space.transform(params), sign * value) for params, value in values])
        self._kept = pickle.dumps(optimizer).hex()
