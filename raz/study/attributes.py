"""Typed views of the user attributes that raz-sweep records in Optuna's studies and trials.

A journal may come from an older raz-sweep or from another tool. A field that is missing, or of another type than
raz-sweep writes, reads as if it had not been recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from raz.pipeline.events import StageUse
from raz.utils.json_types import Json


@dataclass(frozen=True)
class TrialAttributes:
    """User attributes of a trial. `changed` and `parameters` are None where the trial has no such attribute."""

    values: Mapping[str, Json] | None = None  # searched parameters that are active: dotted name -> value
    changed: Mapping[str, Json] | None = None  # parameters that differ from the study's base
    without: tuple[str, ...] = ()  # names of the base that the trial does not have
    parameters: Mapping[str, Json] | None = None  # all of them, as older versions recorded a trial
    metrics: Mapping[str, float] = field(default_factory=dict)
    seeds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # seed -> metrics
    stages: tuple[StageUse, ...] = ()
    device: str = ""
    data: Mapping[str, str] = field(default_factory=dict)  # split -> fingerprint
    reason: str | None = None
    message: str = ""
    rungs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # lane -> rung -> value, of halving pruners
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)
    retry_of: int | None = None  # number of the trial that this one repeats
    point: int | None = None  # index into the points of a fixed design

    @staticmethod
    def parse(attributes: Mapping[str, Json]) -> TrialAttributes:
        """From a trial's `user_attrs`."""
        return TrialAttributes(
            values=_object(attributes, "values"),
            changed=_object(attributes, "changed"),
            without=tuple(str(name) for name in _list(attributes, "without")),
            parameters=_object(attributes, "parameters"),
            metrics=_floats(attributes.get("metrics")),
            seeds=_float_tables(attributes.get("seeds")),
            stages=tuple(parse_stage_use(use) for use in _list(attributes, "stages") if isinstance(use, Mapping)),
            device=_str(attributes, "device") or "",
            data=_strings(attributes.get("data")),
            reason=_str(attributes, "reason"),
            message=_str(attributes, "message") or "",
            rungs=_float_tables(attributes.get("rungs")),
            seconds=_float(attributes.get("seconds")),
            versions=_strings(attributes.get("versions")),
            retry_of=_int(attributes, "retry_of"),
            point=_int(attributes, "point"),
        )


@dataclass(frozen=True)
class HeldOut:
    """The test metrics of a study's best trial, which are computed once, after the search."""

    trial: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class StudyAttributes:
    """User attributes of a study."""

    meaning: Mapping[str, Json] | None = None  # SearchSpace.meaning(); None in a journal of another tool
    command: str = ""  # the command line that last ran it
    held_out: HeldOut | None = None
    # data set -> baseline (median, ridge) -> errors
    baselines: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)

    @staticmethod
    def parse(attributes: Mapping[str, Json]) -> StudyAttributes:
        """From a study's `user_attrs`."""
        held_out = _object(attributes, "held_out") or {}
        trial = _int(held_out, "trial")
        baselines = _object(attributes, "baselines") or {}
        return StudyAttributes(
            meaning=_object(attributes, "meaning"),
            command=_str(attributes, "command") or "",
            held_out=None if trial is None else HeldOut(trial, _floats(held_out.get("metrics"))),
            baselines={name: _float_tables(errors) for name, errors in baselines.items()},
        )


def objectives_in(meaning: Mapping[str, Json]) -> tuple[str, ...]:
    """The metrics of a study's objectives, the first one first; () where its meaning names none."""
    first = meaning.get("objective.metric")
    others = [pair[0] for pair in _list(meaning, "objective.others") if isinstance(pair, list) and pair]
    return tuple(name for name in (first, *others) if isinstance(name, str))


def parse_stage_use(use: Mapping[str, Json]) -> StageUse:
    """A stage as a trial recorded it: `{stage, key, hit, seconds, spent}`."""
    return StageUse(
        stage=_str(use, "stage") or "", key=_str(use, "key") or "", hit=bool(use.get("hit")),
        seconds=_float(use.get("seconds")), spent=_float(use.get("spent")),
    )  # fmt: skip


def _object(attributes: Mapping[str, Json], name: str) -> Mapping[str, Json] | None:
    value = attributes.get(name)
    return value if isinstance(value, Mapping) else None


def _list(attributes: Mapping[str, Json], name: str) -> list[Json]:
    value = attributes.get(name)
    return value if isinstance(value, list) else []


def _str(attributes: Mapping[str, Json], name: str) -> str | None:
    value = attributes.get(name)
    return value if isinstance(value, str) else None


def _int(attributes: Mapping[str, Json], name: str) -> int | None:
    value = attributes.get(name)
    return value if isinstance(value, int) else None


def _float(value: Json) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def _floats(value: Json) -> dict[str, float]:
    pairs = value.items() if isinstance(value, Mapping) else ()
    return {name: number for name, number in pairs if isinstance(number, (int, float))}


def _float_tables(value: Json) -> dict[str, dict[str, float]]:
    pairs = value.items() if isinstance(value, Mapping) else ()
    return {name: _floats(table) for name, table in pairs}


def _strings(value: Json) -> dict[str, str]:
    pairs = value.items() if isinstance(value, Mapping) else ()
    return {name: text for name, text in pairs if isinstance(text, str)}
