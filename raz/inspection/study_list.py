"""`raz-sweep studies`: one line per study of a store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from raz.errors import RazError
from raz.store.inventory import check_store
from raz.study.index import StudySnapshot, read_study
from raz.study.journal import study_names
from raz.utils import formatting
from raz.utils.json_types import Json, JsonLike


def iso(time: datetime | None) -> str | None:
    """The time in ISO format to the second."""
    return time.isoformat(timespec="seconds") if time is not None else None


def minute(time: datetime | None) -> str:
    """The time to the minute for a terminal, `-` for None."""
    return time.strftime("%Y-%m-%d %H:%M") if time is not None else "-"


def first_start(study: StudySnapshot) -> datetime | None:
    """When the first trial of the study started; None if none has."""
    return min((trial.started for trial in study.trials if trial.started), default=None)


def last_activity(study: StudySnapshot) -> datetime | None:
    """The latest end of a trial, or start of one that runs; None if none has started."""
    return max((trial.finished or trial.started for trial in study.trials if trial.started), default=None)


@dataclass(frozen=True)
class BestTrial:
    """The best trial of a study with one objective."""

    number: int
    value: float | None
    values: Mapping[str, Json]  # searched parameters


@dataclass(frozen=True)
class StudyOverview:
    """A study in one line."""

    name: str
    running: bool
    counts: Mapping[str, int]  # number of trials by state
    metric: str
    directions: tuple[str, ...]
    front: tuple[int, ...]  # numbers of the trials of the Pareto front
    best: BestTrial | None  # None for several objectives
    seconds: float  # of all trials
    started: datetime | None
    last: datetime | None

    @staticmethod
    def of(study: StudySnapshot) -> StudyOverview:
        """The overview of a study."""
        best = study.best
        return StudyOverview(
            study.name, study.running, study.counts(), study.metric, study.directions,
            front=tuple(trial.number for trial in study.front),
            best=BestTrial(best.number, best.value, best.values) if best else None,
            seconds=round(sum(trial.seconds for trial in study.trials), 3),
            started=first_start(study), last=last_activity(study),
        )  # fmt: skip

    def to_dict(self) -> dict[str, JsonLike]:
        """The JSON document."""
        best = self.best
        return {
            "study": self.name,
            "running": self.running,
            "trials": self.counts,
            "metric": self.metric,
            "directions": self.directions,
            "front": self.front,
            "best": {"trial": best.number, "value": best.value, "values": best.values} if best else None,
            "seconds": self.seconds,
            "started": iso(self.started),
            "last": iso(self.last),
        }

    def cells(self) -> tuple[str, ...]:
        """The row of the table for people."""
        value, which = "-", f"front of {len(self.front)}" if self.front else "-"
        if self.best:
            value, which = formatting.number(self.best.value), f"#{self.best.number}"
        return (
            self.name, formatting.format_states(self.counts), value, which, self.metric, minute(self.last),
            formatting.duration(self.seconds), "running" if self.running else "",
        )  # fmt: skip


@dataclass(frozen=True)
class UnreadableStudy:
    """A study whose journal cannot be read."""

    name: str
    trouble: str

    def to_dict(self) -> dict[str, JsonLike]:
        """The JSON document."""
        return {"study": self.name, "trouble": self.trouble}


@dataclass(frozen=True)
class StudyList:
    """The studies of a store by name."""

    store: Path
    studies: tuple[StudyOverview | UnreadableStudy, ...]

    def to_list(self) -> list[dict[str, JsonLike]]:
        """The JSON document."""
        return [study.to_dict() for study in self.studies]

    def to_text(self) -> str:
        """A table of the studies, then the errors of those that cannot be read."""
        if not self.studies:
            return f"{self.store} has no studies yet: raz-sweep run fusion"
        rows = [study.cells() for study in self.studies if isinstance(study, StudyOverview)]
        header = ("study", "trials", "best", "trial", "metric", "last", "work", "")
        table = formatting.columns(header, rows, right=(2, 3)) if rows else []
        return "\n".join([*table, *(study.trouble for study in self.studies if isinstance(study, UnreadableStudy))])


def list_studies(store: Path) -> StudyList:
    """All studies of the store. Raises RazError when there is no store."""
    check_store(store)
    return StudyList(store, tuple(_overview(store, name) for name in study_names(store)))


def _overview(store: Path, name: str) -> StudyOverview | UnreadableStudy:
    try:
        return StudyOverview.of(read_study(store, name))
    except RazError as error:
        return UnreadableStudy(name, str(error))
