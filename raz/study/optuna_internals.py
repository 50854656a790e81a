"""Every private name of Optuna that raz-sweep uses, and why. Other modules use Optuna's public names only.

Each private name has a case in `tests/test_internals.py`, which fails by that name when Optuna changes it.

- The id of a trial in its storage (`Trial._trial_id`), the storage of a study (`Study._storage`: read and write one
  trial) and `Trial(study, id)`. The ledger changes the state of a waiting trial, and the pruner compares trials of
  several processes; `Study` and `Trial` offer neither.
- Two names among a trial's system attributes: `fixed_params` (values it was enqueued with) and `completed_rung_*`
  (values of halving pruners).
- The operation codes of a journal's lines, and the backend and the lock of `JournalStorage`. The attributes and steps
  of a trial are written in one append, and the dashboard merges several journals.
- The optimizer of `CmaEsSampler`, which Optuna would store in the study as a pickle, and the search space transform
  that the optimizer works in.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import TYPE_CHECKING

import optuna
from optuna._transform import _SearchSpaceTransform
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal._storage import JournalOperation
from optuna.trial import FrozenTrial, TrialState

from raz.utils.json_types import Json

if TYPE_CHECKING:
    from optuna.samplers._cmaes import CmaClass

# ------------------------------------------------------------------ trials and their storage

RUNG = "completed_rung_"  # prefix of the attributes in which halving pruners store the value at each rung
FIXED = "fixed_params"  # attribute with the values that a trial was enqueued with


def trial_id(trial: optuna.Trial | FrozenTrial) -> int:
    """Id of the trial in its storage, which differs from its number in the study."""
    number: int = trial._trial_id
    return number


def trial_in(study: optuna.Study, trial_id: int) -> optuna.Trial:
    """A running trial of the study by its storage id, open for `report` and `tell`."""
    return optuna.Trial(study, trial_id)


def frozen_trial(study: optuna.Study, trial_id: int) -> FrozenTrial:
    """Current state of a trial by its storage id."""
    return study._storage.get_trial(trial_id)


def trial_numbered(study: optuna.Study, number: int) -> FrozenTrial:
    """Current state of a trial by its number in the study. Raises KeyError for an unknown number."""
    storage = study._storage
    return storage.get_trial(storage.get_trial_id_from_study_id_trial_number(study._study_id, number))


def set_state(storage: BaseStorage, trial_id: int, state: TrialState) -> None:
    """Changes a trial from WAITING to RUNNING or back. `Study.tell` only sets final states."""
    storage.set_trial_state_values(trial_id, state=state)


def fixed_values(trial: FrozenTrial) -> dict[str, Json]:
    """Parameter -> value that the trial was enqueued with; {} for a sampled trial."""
    values: dict[str, Json] = trial.system_attrs.get(FIXED, {})
    return dict(values)


def rungs(trial: FrozenTrial) -> dict[str, float]:
    """Values that halving pruners stored in the trial: name of the rung -> value."""
    return {name: value for name, value in trial.system_attrs.items() if name.startswith(RUNG)}


def set_rungs(study: optuna.Study, trial_id: int, reached: Mapping[str, float]) -> None:
    """Stores rung values, as `rungs` returns them, in a running trial."""
    for name, value in reached.items():
        study._storage.set_trial_system_attr(trial_id, name, value)


# ------------------------------------------------------------------ journals

CREATE_STUDY = int(JournalOperation.CREATE_STUDY)
CREATE_TRIAL = int(JournalOperation.CREATE_TRIAL)
SET_STATE = int(JournalOperation.SET_TRIAL_STATE_VALUES)
SET_ATTRIBUTE = int(JournalOperation.SET_TRIAL_USER_ATTR)
SET_STEP = int(JournalOperation.SET_TRIAL_INTERMEDIATE_VALUE)


def append(storage: JournalStorage, trial_id: int, attributes: Mapping[str, Json], steps: Mapping[int, float]) -> None:
    """Writes user attributes and intermediate values of a running trial in one append; nothing if both are empty.

    Optuna's own calls append and sync once for each attribute and each value.
    """
    origin = {"worker_id": storage._replay_result.worker_id, "trial_id": trial_id}
    logs = [{"op_code": SET_ATTRIBUTE, **origin, "user_attr": {name: value}} for name, value in attributes.items()]
    logs += [{"op_code": SET_STEP, **origin, "step": step, "intermediate_value": v} for step, v in steps.items()]
    if logs:
        with storage._thread_lock:
            storage._backend.append_logs(logs)
            storage._sync_with_backend()


# ------------------------------------------------------------------ CMA-ES


class StatelessCmaEsSampler(optuna.samplers.CmaEsSampler):
    """Optuna's CMA-ES, which stores no pickle in the study and reads none from it.

    The optimizer's state stays in this process. A resumed search computes it again from the finished trials,
    generation by generation.
    """

    _optimizer: str | None = None  # the pickle, in hexadecimal digits, that Optuna would store in the study

    def _split_optimizer_str(self, optimizer_str: str) -> dict[str, str]:
        self._optimizer = optimizer_str
        return {}

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> CmaClass | None:
        if self._optimizer is None:
            return None
        optimizer: CmaClass = pickle.loads(bytes.fromhex(self._optimizer))  # made by this process
        return optimizer

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Json]:
        completed = self._get_trials(study)
        if self._optimizer is None and search_space and completed:
            self._replay_generations(study, search_space, completed)
        drawn: dict[str, Json] = super().sample_relative(study, trial, search_space)
        return drawn

    def _replay_generations(
        self, study: optuna.Study, search_space: dict[str, BaseDistribution], completed: list[FrozenTrial]
    ) -> None:
        space = _SearchSpaceTransform(search_space, transform_step=True, transform_0_1=True)
        optimizer = self._init_optimizer(space, study.direction)
        sign = 1 if study.direction == optuna.study.StudyDirection.MINIMIZE else -1
        while len(trials := self._get_solution_trials(completed, optimizer.generation)) >= optimizer.population_size:
            trials = trials[: optimizer.population_size]
            values = [(t.params, t.value) for t in trials if t.value is not None]  # complete trials all have one
            optimizer.tell([(space.transform(params), sign * value) for params, value in values])
        self._optimizer = pickle.dumps(optimizer).hex()
