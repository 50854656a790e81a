"""Where the trials of a run come from and where their outcomes go: the ledger of a search, or the list of a table.

An executor (this process, or Ray Tune) takes trials from a source and knows nothing else of searches and tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from raz.config import parameters
from raz.engine.events import TrialEvents
from raz.spec.ablation import TableTrial
from raz.spec.search_space import SEARCH_SPLITS
from raz.spec.stage_resources import Resources
from raz.study.ledger import Ledger
from raz.study.records import Outcome
from raz.study.trial_status import TrialStatus
from raz.utils.formatting import duration
from raz.utils.json_types import Json


@dataclass(frozen=True)
class NextTrial:
    """A trial that an executor is to run."""

    number: int
    labels: Mapping[str, Json]  # shown in progress lines
    config: Mapping[str, Json]  # the flat parameters of its TrialConfig


class TrialSource(Protocol):
    """What an executor needs to know of a search or a table."""

    @property
    def name(self) -> str: ...  # of the study or the table
    @property
    def splits(self) -> tuple[str, ...]: ...  # that its trials score
    @property
    def seeds(self) -> Sequence[int]: ...  # that each trial runs and averages; empty: its own seed
    @property
    def resources(self) -> Mapping[str, Resources]: ...  # stage -> its resources, unless the default
    @property
    def prunes(self) -> bool: ...  # whether `report` may ever return true
    @property
    def eager(self) -> bool: ...  # whether more trials may be alive than stages can be made at a time
    @property
    def left(self) -> int: ...  # trials that `ask` has not returned yet

    def ask(self) -> NextTrial | None:
        """The next trial to run, None when none is left."""

    def close(self) -> None:
        """Drops the remaining trials, since every one would meet the same error."""

    def report(self, number: int, steps: Iterable[tuple[int, float]], *, shared: bool) -> bool:
        """Records steps (step, value) of a running trial in their order, and returns whether to prune it. `shared`:
        another trial waits for the same stage, so no step prunes."""

    def finish(self, number: int, outcome: Outcome, events: TrialEvents) -> None:
        """Records how a trial ended, and reports it to `events`."""

    def requeue(self, number: int, events: TrialEvents) -> None:
        """Puts back a trial that a clean stop ended."""


class StudySource:
    """The trials that a search has left, drawn and recorded by its ledger."""

    def __init__(self, ledger: Ledger) -> None:
        space = ledger.space
        self.ledger = ledger
        self.name, self.splits, self.seeds = space.study, SEARCH_SPLITS, space.averaged_seeds
        self.resources, self.prunes, self.eager = space.resources, space.pruning.name != "none", space.overcommits

    @property
    def left(self) -> int:
        return self.ledger.left

    def ask(self) -> NextTrial | None:
        drawn = self.ledger.ask()
        return None if drawn is None else NextTrial(*drawn)

    def close(self) -> None:
        self.ledger.left = 0

    def report(self, number: int, steps: Iterable[tuple[int, float]], *, shared: bool) -> bool:
        return self.ledger.report_many(number, steps, shared=shared)

    def finish(self, number: int, outcome: Outcome, events: TrialEvents) -> None:
        events.finished(self.ledger.tell(number, outcome))

    def requeue(self, number: int, events: TrialEvents) -> None:
        self.ledger.requeue(number)
        events.done(number, f"trial {number}: stopped, and queued again")


class TableSource:
    """Some trials of a table, each by its index in `trials`. Outcomes are collected, since the store keeps all else."""

    seeds: Sequence[int] = ()
    resources: Mapping[str, Resources] = {}
    prunes = False
    eager = True

    def __init__(self, name: str, trials: Sequence[TableTrial], order: Iterable[int], splits: tuple[str, ...]) -> None:
        self.name, self.trials, self.splits = name, trials, splits
        self.outcomes: dict[int, Outcome] = {}
        self._queue = list(order)

    @property
    def left(self) -> int:
        return len(self._queue)

    def ask(self) -> NextTrial | None:
        if not self._queue:
            return None
        number = self._queue.pop(0)
        trial = self.trials[number]
        labels: dict[str, Json] = {"row": trial.row, "dataset": trial.dataset, "seed": trial.seed}
        return NextTrial(number, labels, parameters(trial.config))

    def close(self) -> None:
        self._queue.clear()

    def report(self, number: int, steps: Iterable[tuple[int, float]], *, shared: bool) -> bool:
        return False

    def finish(self, number: int, outcome: Outcome, events: TrialEvents) -> None:
        self.outcomes[number] = outcome
        events.done(number, _table_trial_line(self.trials[number], outcome), outcome)

    def requeue(self, number: int, events: TrialEvents) -> None:
        self._queue.insert(0, number)


def _table_trial_line(trial: TableTrial, outcome: Outcome) -> str:
    label = f"{trial.row}, {trial.dataset}, seed {trial.seed}"
    if outcome.state == TrialStatus.COMPLETE:
        shown = {name: (outcome.metrics or {}).get(name) for name in ("test.mae", "test.rmse")}
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in shown.items() if value is not None)
        return f"{label}: {numbers} ({duration(outcome.seconds)})"
    first = outcome.message.splitlines()[0] if outcome.message else ""
    return f"{label}: failed ({outcome.reason}) {first}"
