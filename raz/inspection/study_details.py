"""`raz-sweep show STUDY`: what a study searches, the states of its trials, its best trials."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from raz.inspection.study_list import first_start, iso, last_activity, minute
from raz.study.index import StudySnapshot, base_parameters
from raz.study.records import TrialRecord
from raz.study.remaining import superseded
from raz.study.trial_status import TrialStatus
from raz.utils import formatting
from raz.utils.json_types import Json, JsonLike

UNKNOWN = "unknown"  # a value that an older record lacks
MAX_LISTED = 40  # trials in the text; --json has all
SHOWN_HELD_OUT = ("test.mae", "test.rmse")


@dataclass(frozen=True)
class Change:
    """A parameter that differs from the base; None where one side lacks it."""

    base: Json
    trial: Json


Changes = Mapping[str, Change]  # dotted name -> values


def changes_of(base: Mapping[str, Json], config: Mapping[str, Json]) -> Changes:
    """The parameters of `config` that differ from `base`; {} without a base."""
    if not base:
        return {}
    names = sorted(name for name in base.keys() | config.keys() if base.get(name) != config.get(name))
    return {name: Change(base.get(name), config.get(name)) for name in names}


def changes_lines(changes: Changes) -> list[str]:
    """A line per change; a trial without changes is the base itself."""
    lines = [f"  {name}: {json.dumps(c.trial)}  (base {json.dumps(c.base)})" for name, c in sorted(changes.items())]
    return lines or ["  the base itself"]


@dataclass(frozen=True)
class TrialSummary:
    """A trial in one line."""

    number: int
    state: TrialStatus
    reason: str
    value: float | None
    objectives: Mapping[str, float]
    values: Mapping[str, Json]
    seconds: float
    retry_of: int | None
    changed: Changes

    @staticmethod
    def of(study: StudySnapshot, trial: TrialRecord) -> TrialSummary:
        """The summary of a trial of the study."""
        changed = changes_of(base_parameters(study), trial.config) if trial.config else {}
        return TrialSummary(
            trial.number, trial.state, trial.reason, trial.value, trial.objectives, trial.values,
            round(trial.seconds, 3), trial.retry_of, changed,
        )  # fmt: skip

    def to_dict(self) -> dict[str, JsonLike]:
        """The JSON document."""
        return {
            "trial": self.number, "state": self.state, "reason": self.reason, "value": self.value,
            "objectives": self.objectives,
            "values": self.values, "seconds": self.seconds, "retry_of": self.retry_of,
            "changed": {name: {"base": c.base, "trial": c.trial} for name, c in self.changed.items()},
        }  # fmt: skip


@dataclass(frozen=True)
class FailedTrial:
    """A failed or lost trial that was not retried."""

    trial: int
    reason: str
    message: str


@dataclass(frozen=True)
class StudyDetails:
    """A study: what it searches, and the results of its trials."""

    store: Path
    name: str
    running: bool
    meaning: Mapping[str, Json]  # the search space, sampler and pruner as recorded, without the base
    base: Mapping[str, Json]
    counts: Mapping[str, int]  # number of trials by state
    failures: tuple[FailedTrial, ...]
    metric: str
    directions: tuple[str, ...]
    objectives: Mapping[str, str]  # metric -> direction
    best: TrialSummary | None  # None for several objectives
    front: tuple[TrialSummary, ...]  # the Pareto front
    held_out: Mapping[str, float]  # test metrics; {} where they are of a trial that is not in the front
    held_out_of: int | None  # the trial with these test metrics
    seconds: float  # of all trials
    stages_used: int
    stages_from_store: int
    started: datetime | None
    last: datetime | None
    commits: tuple[str, ...]
    trials: tuple[TrialSummary, ...]

    @property
    def reasons(self) -> dict[str, int]:
        """Number of failures by reason."""
        return dict(Counter(failure.reason or "error" for failure in self.failures))

    def to_dict(self) -> dict[str, JsonLike]:
        """The JSON document."""
        return {
            "study": self.name,
            "running": self.running,
            "asks": self.meaning,
            "base": self.base,
            "trials": self.counts,
            "reasons": self.reasons,
            "failures": [{"trial": f.trial, "reason": f.reason, "message": f.message} for f in self.failures],
            "metric": self.metric,
            "directions": self.directions,
            "objectives": self.objectives,
            "best": self.best.to_dict() if self.best else None,
            "front": [trial.to_dict() for trial in self.front],
            "held_out": self.held_out,
            "held_out_of": self.held_out_of,
            "seconds": self.seconds,
            "stages": {"used": self.stages_used, "from_store": self.stages_from_store},
            "started": iso(self.started),
            "last": iso(self.last),
            "commits": self.commits,
            "list": [trial.to_dict() for trial in self.trials],
        }

    def to_text(self) -> str:
        """States, search space, best trials, then all trials from best to worst, for a terminal."""
        running = " (running now)" if self.running else ""
        out = [f"study {self.name}{running}: {formatting.format_states(self.counts)}"]
        out += self._search_space()
        shared = f"; {self.stages_from_store} of {self.stages_used} stages from the store" if self.stages_used else ""
        when = f"{minute(self.started)} to {minute(self.last)}"
        out.append(f"when: {when}, {formatting.duration(self.seconds)} of trials{shared}")
        out.append(f"commit: {', '.join(map(_short_commit, self.commits)) or UNKNOWN}")
        out += self._best()
        if self.reasons:
            out.append("failures: " + ", ".join(f"{reason} {n}" for reason, n in sorted(self.reasons.items())))
        if self.trials:
            out += ["", *self._ranking()]
        store = f" --store {self.store}" if str(self.store) != "raz-store" else ""
        return "\n".join([*out, "", f"next: raz-sweep show {self.name}#N{store}"])

    def _search_space(self) -> list[str]:
        def settings(prefix: str) -> str:
            pairs = [
                (name.removeprefix(prefix), value) for name, value in self.meaning.items() if name.startswith(prefix)
            ]
            return ", ".join(f"{name} {formatting.number(value)}" for name, value in pairs)

        objectives = ", ".join(f"{direction} {metric}" for metric, direction in self.objectives.items())
        pruner = settings("pruner.").removeprefix("name ")
        lines = [f"asks: {objectives}; {settings('design.')}; pruner {pruner}"]
        for name, meaning in self.meaning.items():
            if name.startswith("parameters."):
                lines.append(f"  {name.removeprefix('parameters.')}: {_parameter_text(meaning)}")
        return lines

    def _best(self) -> list[str]:
        """The best trial or the Pareto front, and the test metrics."""
        out: list[str] = []
        if self.best:
            out.append(f"best: trial {self.best.number}, {self.metric} {formatting.number(self.best.value)}")
            out += changes_lines(self.best.changed)
        elif self.front:
            out.append(f"front: {len(self.front)} trials that no other beats in every objective")
            names = list(self.objectives)
            rows = [
                (
                    f"#{trial.number}",
                    *(formatting.number(trial.objectives[name]) for name in names),
                    formatting.assignments(trial.values),
                )
                for trial in self.front
            ]
            table = formatting.columns(("trial", *names, "values"), rows, right=range(len(names) + 1))
            out += [f"  {row}" for row in table]
        shown = {name: value for name, value in sorted(self.held_out.items()) if name in SHOWN_HELD_OUT}
        if shown:
            of = "" if self.best else f" (trial {self.held_out_of})"
            out.append(f"held out{of}: " + "  ".join(f"{k} {formatting.number(v)}" for k, v in shown.items()))
        return out

    def _ranking(self) -> list[str]:
        """Complete trials from best to worst (by number for several objectives), then the others."""
        sign = -1 if self.directions == ("maximize",) else 1
        single = len(self.directions) == 1

        def order(trial: TrialSummary) -> tuple[int, float, int]:
            if single and trial.state == TrialStatus.COMPLETE and trial.value is not None:
                return 0, sign * trial.value, trial.number
            return 1, 0.0, trial.number

        ranked = sorted(self.trials, key=order)
        rows = [
            (
                f"#{t.number}", t.state + (f" ({t.reason})" if t.reason else ""), formatting.number(t.value),
                formatting.duration(t.seconds), formatting.assignments(t.values),
            )
            for t in ranked[:MAX_LISTED]
        ]  # fmt: skip
        out = formatting.columns(("trial", "state", self.metric, "seconds", "values"), rows, right=(0, 2, 3))
        if len(ranked) > MAX_LISTED:
            more = len(ranked) - MAX_LISTED
            out.append(f"… and {more} more: --json, or raz-sweep export {self.name} --out trials.csv")
        return out


def describe_study(study: StudySnapshot) -> StudyDetails:
    """The details of a study."""
    retried = superseded(study.trials)
    failed = [
        trial
        for trial in study.trials
        if trial.state in (TrialStatus.FAILED, TrialStatus.LOST) and trial.number not in retried
    ]
    stages = [use for trial in study.trials for use in trial.stages]
    held_out = study.recorded.held_out
    in_front = held_out is not None and held_out.trial in {trial.number for trial in study.front}
    return StudyDetails(
        store=study.store,
        name=study.name,
        running=study.running,
        meaning={name: value for name, value in study.meaning.items() if not name.startswith("base.")},
        base=base_parameters(study),
        counts=study.counts(),
        failures=tuple(FailedTrial(trial.number, trial.reason, trial.message) for trial in failed),
        metric=study.metric,
        directions=study.directions,
        objectives=study.objectives,
        best=TrialSummary.of(study, study.best) if study.best else None,
        front=tuple(TrialSummary.of(study, trial) for trial in study.front),
        held_out=held_out.metrics if held_out and in_front else {},
        held_out_of=held_out.trial if held_out else None,
        seconds=round(sum(trial.seconds for trial in study.trials), 3),
        stages_used=len(stages),
        stages_from_store=sum(use.hit for use in stages),
        started=first_start(study),
        last=last_activity(study),
        commits=tuple(sorted({trial.versions.get("commit", UNKNOWN) for trial in study.trials})),
        trials=tuple(TrialSummary.of(study, trial) for trial in study.trials),
    )


def _parameter_text(meaning: Json) -> str:
    """A searched parameter as the study's meaning records it (`Parameter.meaning`)."""
    if not isinstance(meaning, dict):
        return formatting.number(meaning)
    parts = []
    for key, value in meaning.items():
        if key == "choice" and isinstance(value, list):
            parts.append("one of " + ", ".join(map(formatting.number, value)))
        elif key in ("int", "float") and isinstance(value, list):
            parts.append(f"{key} {formatting.number(value[0])} to {formatting.number(value[1])}")
        elif key == "when" and isinstance(value, dict):
            conditions = [f"{name} is {_alternatives(legal)}" for name, legal in value.items()]
            parts.append("when " + " and ".join(conditions))
        else:
            parts.append("on a log scale" if (key, value) == ("log", True) else f"{key} {formatting.number(value)}")
    return ", ".join(parts)


def _alternatives(values: Json) -> str:
    return " or ".join(map(formatting.number, values if isinstance(values, list) else [values]))


def _short_commit(commit: str) -> str:
    sha, plus, _ = commit.partition("+")
    return f"{sha[:12]} with changes" if plus else sha[:12]
