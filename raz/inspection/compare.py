"""The differences between two studies, or between two trials: settings and results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from raz.errors import RazError
from raz.inspection.trial_details import FITTED_METRICS
from raz.study.index import StudySnapshot, parse_reference, read_study, trial_index
from raz.study.records import TrialRecord
from raz.utils import formatting
from raz.utils.json_types import Json, JsonLike

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class ValuePair(Generic[T_co]):
    """A value of each side; None where that side lacks it."""

    a: T_co
    b: T_co

    def to_list(self) -> list[T_co]:
        """[a, b], as in the JSON document."""
        return [self.a, self.b]


SettingPairs = Mapping[str, ValuePair[Json]]  # name -> values, where they differ
MetricPairs = Mapping[str, ValuePair[float | None]]


@dataclass(frozen=True)
class StudyDifference:
    """Two studies: the differences between their search spaces, and between their best trials."""

    a: str
    b: str
    trials: ValuePair[Mapping[str, int]]  # number of trials by state
    meaning: SettingPairs
    best: ValuePair[int | None]  # number of the best trial
    config: SettingPairs
    metrics: MetricPairs
    seconds: ValuePair[float]

    def to_dict(self) -> dict[str, JsonLike]:
        """The JSON document."""
        return {
            "a": self.a, "b": self.b, "kind": "studies",
            "trials": self.trials.to_list(),
            "asks": _settings_dict(self.meaning),
            "best": self.best.to_list(),
            "config": _settings_dict(self.config),
            "metrics": _metrics_dict(self.metrics),
            "seconds": self.seconds.to_list(),
        }  # fmt: skip

    def to_text(self) -> str:
        """Lines for a terminal."""
        out = [f"{name}: {formatting.format_states(counts)}"
               for name, counts in ((self.a, self.trials.a), (self.b, self.trials.b))]  # fmt: skip
        out += _settings_lines(("asks", self.a, self.b), self.meaning, "both ask the same")
        if self.best.a is None or self.best.b is None:
            missing = self.a if self.best.a is None else self.b
            return "\n".join([*out, f"{missing} has no best trial to compare"])
        out += ["", f"best trials: {self.a}#{self.best.a} and {self.b}#{self.best.b}"]
        out += _settings_lines(("configuration", self.a, self.b), self.config, "the configuration is the same")
        return "\n".join([*out, *_metrics_lines(self.a, self.b, self.metrics)])


@dataclass(frozen=True)
class TrialDifference:
    """Two trials: what differs in their configurations, results and stages."""

    a: str
    b: str
    state: ValuePair[str]
    config: SettingPairs
    metrics: MetricPairs
    shared: tuple[str, ...]  # stages with the same key in both
    different: tuple[str, ...]  # the other stages
    versions: Mapping[str, ValuePair[str | None]]
    seconds: ValuePair[float]

    def to_dict(self) -> dict[str, JsonLike]:
        """The JSON document."""
        return {
            "a": self.a, "b": self.b, "kind": "trials",
            "state": self.state.to_list(),
            "config": _settings_dict(self.config),
            "metrics": _metrics_dict(self.metrics),
            "stages": {"shared": self.shared, "different": self.different},
            "versions": {name: pair.to_list() for name, pair in self.versions.items()},
            "seconds": self.seconds.to_list(),
        }  # fmt: skip

    def to_text(self) -> str:
        """Lines for a terminal."""
        out = [f"{self.a}: {self.state.a}, {self.b}: {self.state.b}"]
        out += _settings_lines(("configuration", self.a, self.b), self.config, "the configuration is the same")
        out += _metrics_lines(self.a, self.b, self.metrics)
        if self.shared:
            out += ["", f"shared stages: {', '.join(self.shared)}"]
        if self.versions:
            out += _settings_lines(("versions", self.a, self.b), self.versions, "")
        return "\n".join(out)


def compare(store: Path, a: str, b: str) -> StudyDifference | TrialDifference:
    """The differences between two studies (`fusion`) or two trials (`fusion#3`) of a store.

    Raises RazError for an unknown study or trial, and for a study compared with a trial.
    """
    (name_a, number_a), (name_b, number_b) = parse_reference(a), parse_reference(b)
    if (number_a is None) != (number_b is None):
        study, trial = (a, b) if number_a is None else (b, a)
        best = read_study(store, study).best
        hint = f"raz-sweep diff {study}#{best.number if best else 'N'} {trial}"
        raise RazError(f"{a} and {b}", "one is a study and one is a trial, expected two of a kind", hint)
    left, right = read_study(store, name_a), read_study(store, name_b)
    if number_a is None or number_b is None:
        return _compare_studies(left, right)
    one, two = left.trials[trial_index(left, number_a)], right.trials[trial_index(right, number_b)]
    return _compare_trials(a, b, one, two)


def _compare_studies(a: StudySnapshot, b: StudySnapshot) -> StudyDifference:
    best_a, best_b = a.best, b.best
    return StudyDifference(
        a.name, b.name,
        trials=ValuePair(a.counts(), b.counts()),
        meaning=_differing(a.meaning, b.meaning),
        best=ValuePair(best_a.number if best_a else None, best_b.number if best_b else None),
        config=_differing(best_a.config, best_b.config) if best_a and best_b else {},
        metrics=_differing(best_a.metrics, best_b.metrics) if best_a and best_b else {},
        seconds=ValuePair(*(round(sum(trial.seconds for trial in study.trials), 3) for study in (a, b))),
    )  # fmt: skip


def _compare_trials(a: str, b: str, one: TrialRecord, two: TrialRecord) -> TrialDifference:
    shared = {stage.key for stage in one.stages} & {stage.key for stage in two.stages}
    return TrialDifference(
        a, b,
        state=ValuePair(one.state, two.state),
        config=_differing(one.config, two.config),
        metrics=_differing(one.metrics, two.metrics),
        shared=tuple(stage.stage for stage in one.stages if stage.key in shared),
        different=tuple(sorted({s.stage for t in (one, two) for s in t.stages if s.key not in shared})),
        versions=_differing(one.versions, two.versions),
        seconds=ValuePair(round(one.seconds, 3), round(two.seconds, 3)),
    )  # fmt: skip


def _differing(a: Mapping[str, T], b: Mapping[str, T]) -> dict[str, ValuePair[T | None]]:
    """The values of both sides by name, where they differ; sorted by name."""
    names = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
    return {name: ValuePair(a.get(name), b.get(name)) for name in names}


def _settings_dict(settings: SettingPairs) -> dict[str, JsonLike]:
    return {name: pair.to_list() for name, pair in settings.items()}


def _change(pair: ValuePair[float | None]) -> float | None:
    return pair.b - pair.a if pair.a is not None and pair.b is not None else None


def _metrics_dict(metrics: MetricPairs) -> dict[str, JsonLike]:
    """Metric -> [a, b, b - a]."""
    return {name: [*pair.to_list(), _change(pair)] for name, pair in metrics.items()}


def _settings_lines(header: tuple[str, str, str], settings: SettingPairs, same: str) -> list[str]:
    """A table of the settings that differ; the line `same` where there are none."""
    if not settings:
        return [same]
    lines = [(name, json.dumps(pair.a), json.dumps(pair.b)) for name, pair in settings.items()]
    return ["", *formatting.columns(header, lines)]


def _metrics_lines(a: str, b: str, metrics: MetricPairs) -> list[str]:
    """A table of the metrics that differ, without fitted parameters."""
    shown = {name: pair for name, pair in metrics.items() if not name.partition(".")[2].startswith(FITTED_METRICS)}
    if not shown:
        return ["only fitted thresholds differ" if metrics else "the metrics are the same"]
    lines = [(name, *map(formatting.number, (*pair.to_list(), _change(pair)))) for name, pair in shown.items()]
    return ["", *formatting.columns(("metric", a, b, "B - A"), lines, right=(1, 2, 3))]
