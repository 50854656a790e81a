"""Which trials of a study or of a table are finished, and which ones the next run starts.

Runs, dry runs and reports all use these functions, so that they agree. A trial of a study is finished when it is
complete, pruned or failed for good: a trial that was lost with its process is run again, MAX_ATTEMPTS times in all. A
trial of a table is finished when the store holds the scores that the table shows, whatever study or table made them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from raz.config import TrialConfig, from_parameters
from raz.errors import FailureReason, RazError
from raz.pipeline.keys import score_keys
from raz.planning.work_order import trial_order
from raz.spec.ablation import TableTrial
from raz.spec.search_space import SEARCH_SPLITS, SearchSpace
from raz.store.cache import StageCache
from raz.store.paths import StorePaths
from raz.study.attributes import TrialAttributes
from raz.study.trial_status import STATUS_OF_STATE, TrialStatus

if TYPE_CHECKING:  # Optuna imports slowly, and a study that does not exist yet needs none of it
    from optuna.trial import FrozenTrial

    from raz.study.records import TrialRecord

MAX_ATTEMPTS = 3  # of one trial whose process or machine is lost

Scores = TypeVar("Scores")


# ------------------------------------------------------------------ studies


class TrialProgress(Protocol):
    """How far one trial of a study is. A TrialRecord has these fields, too."""

    @property
    def number(self) -> int: ...
    @property
    def state(self) -> TrialStatus: ...
    @property
    def reason(self) -> str: ...  # of a failure
    @property
    def retry_of(self) -> int | None: ...  # the trial that it runs again


@dataclass(frozen=True)
class RecordedTrial:
    """The TrialProgress of a trial in Optuna's storage."""

    number: int
    state: TrialStatus
    reason: str
    retry_of: int | None

    @staticmethod
    def of(trial: FrozenTrial) -> RecordedTrial:
        """Of a trial in a study that no other process writes, so that a RUNNING trial has lost its process."""
        attributes = TrialAttributes.parse(trial.user_attrs)
        status = STATUS_OF_STATE[trial.state.name]
        state = TrialStatus.LOST if status == TrialStatus.RUNNING else status
        return RecordedTrial(trial.number, state, attributes.reason or "", attributes.retry_of)


@dataclass(frozen=True)
class StudyProgress:
    """The numbers of a study's trials by what a run does with them, without trials that another trial retries."""

    finished: tuple[int, ...]
    waiting: tuple[int, ...]  # in the queue
    retried: tuple[int, ...]  # failed or lost; a run enqueues them again

    def left(self, target: int) -> int:
        """Number of trials that a run starts until `target` are finished."""
        return max(0, target - len(self.finished))


def superseded(trials: Iterable[TrialProgress]) -> frozenset[int]:
    """The numbers of trials that another trial retries, whose result replaces theirs."""
    return frozenset(trial.retry_of for trial in trials if trial.retry_of is not None)


def study_progress(trials: Iterable[TrialProgress], *, retry: bool = False) -> StudyProgress:
    """Sorts the trials of a study. With `retry`, all failed trials are retried, not only lost ones."""
    by_number = {trial.number: trial for trial in trials}
    replaced = superseded(by_number.values())
    finished, waiting, retried = [], [], []
    for number, trial in sorted(by_number.items()):
        if number in replaced or trial.state == TrialStatus.RUNNING:  # running: in another run
            continue
        failed = trial.state in (TrialStatus.FAILED, TrialStatus.LOST)
        lost = trial.state == TrialStatus.LOST or (failed and trial.reason == FailureReason.LOST)
        if trial.state == TrialStatus.WAITING:
            waiting.append(number)
        elif (lost and _attempts(trial, by_number) < MAX_ATTEMPTS) or (retry and failed):
            retried.append(number)
        else:
            finished.append(number)
    return StudyProgress(tuple(finished), tuple(waiting), tuple(retried))


def _attempts(trial: TrialProgress, by_number: Mapping[int, TrialProgress]) -> int:
    attempts = 1
    while trial.retry_of is not None:
        trial, attempts = by_number[trial.retry_of], attempts + 1
    return attempts


def run_target(space: SearchSpace, trials: int | None = None) -> int:
    """Number of finished trials that a run of the study aims at: `trials` (default: the file's), and for a fixed design
    at most the number of its points."""
    target = space.target if trials is None else trials
    return min(target, space.target) if space.fixed else target


def queue_order(
    space: SearchSpace, waiting: Sequence[int | None], begun: Sequence[bool], complete: Iterable[int | None]
) -> list[int]:
    """The order in which parallel slots start the waiting trials of a fixed design, as indices into `waiting`: trials
    that had started before, then those that share least (`trial_order`).

    `waiting` and `complete` have the index of each trial's point; None for a trial that is no point of the design.
    """
    done = [config for point in complete if (config := _config_at(space, point)) is not None]
    order = trial_order([_config_at(space, point) for point in waiting], SEARCH_SPLITS, space.averaged_seeds, done)
    return sorted(order, key=lambda i: not begun[i])  # stable


def _config_at(space: SearchSpace, point: int | None) -> TrialConfig | None:
    """The configuration of a design's point; None where there is no such point, or its values are invalid together."""
    if point is None:
        return None
    try:
        return space.config(space.points[point])
    except (RazError, IndexError):
        return None


@dataclass(frozen=True)
class UpcomingTrials:
    """What the next run of a study does."""

    finished: int
    left: int  # trials that it starts
    known: tuple[TrialConfig, ...]  # those that are known before it samples any, in the order of the run
    invalid: int  # number of known trials whose values are invalid together


def upcoming_trials(
    space: SearchSpace, store: Path, target: int, *, slots: int = 1, retry: bool = False
) -> UpcomingTrials:
    """The trials that a run of the study in the store starts, ordered as by `Ledger.recover` and `Ledger.order_queue`.
    Writes nothing. `slots`: number of stages that are made at a time.

    Raises RazError when the study's journal is damaged.
    """
    trials: Mapping[int, FrozenTrial] = {}
    records: Mapping[int, TrialRecord] = {}
    if StorePaths(store).journal(space.study).is_file():
        from raz.study.records import is_running, load_optuna_study
        from raz.study.records import records as records_of

        alive = is_running(store, space.study)
        study = load_optuna_study(store, space.study)
        trials = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
        records = {record.number: record for record in records_of(study, alive=alive)}
    progress = study_progress(records.values(), retry=retry)
    left = progress.left(target)
    queue = [*progress.waiting, *progress.retried]
    if not space.fixed:
        configs = [config for number in queue[:left] if (config := _config_of(records, number)) is not None]
        return UpcomingTrials(len(progress.finished), left, tuple(configs), 0)
    points = {number: TrialAttributes.parse(trial.user_attrs).point for number, trial in trials.items()}
    recorded = set(points.values())
    unrecorded = [point for point in range(min(target, len(space.points))) if point not in recorded]
    upcoming = [*(points[number] for number in queue), *unrecorded]
    if min(left, slots) > 1:
        begun = [bool(trials[number].intermediate_values) for number in progress.waiting]
        begun += [False] * (len(upcoming) - len(begun))
        complete = [points[number] for number, record in records.items() if record.state == TrialStatus.COMPLETE]
        upcoming = [upcoming[i] for i in queue_order(space, upcoming, begun, complete)]
    planned = [_config_at(space, point) for point in upcoming[:left]]
    return UpcomingTrials(
        len(progress.finished), left, tuple(config for config in planned if config is not None), planned.count(None)
    )


def _config_of(records: Mapping[int, TrialRecord], number: int) -> TrialConfig | None:
    """The configuration of a sampled trial, or of the one that it retries; None where none was recorded."""
    record = records[number]
    while not record.config and record.retry_of is not None:
        record = records[record.retry_of]
    try:
        return from_parameters(record.config) if record.config else None
    except RazError:
        return None


# ------------------------------------------------------------------ tables


def finished_seeds(
    config: TrialConfig,
    seeds: Sequence[int],
    find: Callable[[Mapping[str, str]], Scores | None],
    *,
    store: Path,
    data_root: Path | None,
    splits: tuple[str, ...],
) -> dict[int, Scores]:
    """The seeds for which a table's trial is finished, each with what `find` returns for the keys of its scores.

    `find` takes {split: key of the score} and returns None unless the store holds each of them. The data set is not
    opened for a store without scores. Raises RazError when the data set cannot be opened.
    """
    if not (StorePaths(store).stages / "score").is_dir():
        return {}
    keys = score_keys(replace(config, seed=0), seeds, data_root=data_root, splits=splits)
    scores_of = {seed: find(keys[seed]) for seed in seeds}
    return {seed: scores for seed, scores in scores_of.items() if scores is not None}


def finished_table_trials(
    trials: Sequence[TableTrial], store: Path, *, data_root: Path | None, splits: tuple[str, ...]
) -> frozenset[int]:
    """The indices of those trials of a table whose scores of all these splits are in the store, undamaged. Raises
    RazError when a data set cannot be opened."""
    cache = StageCache(store)

    def find(keys: Mapping[str, str]) -> bool | None:
        return True if all(cache.get("score", key) is not None for key in keys.values()) else None

    cells: dict[tuple[str, str], dict[int, int]] = {}  # (row, data set) -> seed -> index
    for i, trial in enumerate(trials):
        cells.setdefault((trial.row, trial.dataset), {})[trial.seed] = i
    out: set[int] = set()
    for cell in cells.values():
        config = trials[next(iter(cell.values()))].config
        done = finished_seeds(config, list(cell), find, store=store, data_root=data_root, splits=splits)
        out |= {cell[seed] for seed in done}
    return frozenset(out)
