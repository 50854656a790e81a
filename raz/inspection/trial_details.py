"""`raz-sweep show STUDY#TRIAL`: everything that the store knows about one trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from raz.inspection.study_details import UNKNOWN, TrialSummary, changes_lines
from raz.inspection.study_list import iso
from raz.pipeline.events import StageUse
from raz.pipeline.graph import stage_of
from raz.pipeline.weights import weights_text
from raz.store.cache import StageCache, stored_curve
from raz.store.inventory import KEY
from raz.store.manifest import Manifest, read_manifest
from raz.study.index import StudySnapshot, trial_index
from raz.study.records import TrialRecord
from raz.utils import formatting
from raz.utils.json_types import Json, JsonLike

FITTED_METRICS = ("theta_f_", "threshold_")  # fitted parameters among the metrics, which text leaves out


@dataclass(frozen=True)
class StageDetails:
    """A stage of the trial. `curve` has a point per epoch (`value`: validation value; lower is better)."""

    use: StageUse
    in_store: bool
    curve: tuple[Mapping[str, float], ...]

    def to_dict(self) -> dict[str, JsonLike]:
        """The JSON document."""
        return {**self.use.to_dict(), "in_store": self.in_store, "curve": self.curve}


@dataclass(frozen=True)
class Provenance:
    """The code, versions, device, seed and data of the trial; `unknown` where an older record lacks them."""

    commit: str
    dirty: bool | str  # whether the checkout had uncommitted changes
    versions: Mapping[str, str] | str
    device: Json  # one, or a list of several
    seed: Json
    threads: Json
    data: Mapping[str, Json] | str  # split -> fingerprint
    weights: str  # the pretrained weights, and whether in half precision; empty where there are none or none is known
    others: Mapping[str, Json]  # other fields of the trial's own record

    def to_dict(self) -> dict[str, JsonLike]:
        """The JSON document."""
        return {
            "commit": self.commit, "dirty": self.dirty, "versions": self.versions, "device": self.device,
            "seed": self.seed, "threads": self.threads, "data": self.data,
            **({"weights": self.weights} if self.weights else {}), **self.others,
        }  # fmt: skip

    def lines(self) -> list[str]:
        """Lines for a terminal."""
        versions = self.versions if isinstance(self.versions, str) else formatting.assignments(self.versions)
        dirty = ", with changes" if self.commit != UNKNOWN and self.dirty is True else ""
        data = self.data
        if not isinstance(data, str):
            data = ", ".join(f"{split} {str(fingerprint)[:16]}" for split, fingerprint in sorted(data.items()))
        device = ", ".join(map(str, self.device)) if isinstance(self.device, list) else self.device
        return [
            f"commit: {self.commit}{dirty}", f"versions: {versions}",
            f"device: {device}, seed {self.seed}, threads {self.threads}", f"data: {data}",
            *([f"pretrained weights: {self.weights}"] if self.weights else []),
        ]  # fmt: skip


@dataclass(frozen=True)
class TrialDetails:
    """A trial with its configuration, stages, curves, failure and provenance."""

    summary: TrialSummary
    study: str
    config: Mapping[str, Json]
    metric: str
    metrics: Mapping[str, float]
    message: str
    trace: str
    started: datetime | None
    finished: datetime | None
    stages: tuple[StageDetails, ...]
    steps: Mapping[int, float]
    pruned_at: tuple[int, float] | None  # step, value
    provenance: Provenance

    def to_dict(self) -> dict[str, JsonLike]:
        """The JSON document."""
        return {
            **self.summary.to_dict(),
            "study": self.study,
            "config": self.config,
            "metric": self.metric,
            "metrics": self.metrics,
            "message": self.message,
            "trace": self.trace,
            "started": iso(self.started),
            "finished": iso(self.finished),
            "stages": [stage.to_dict() for stage in self.stages],
            "steps": {str(step): value for step, value in self.steps.items()},
            "pruned_at": {"step": self.pruned_at[0], "value": self.pruned_at[1]} if self.pruned_at else None,
            "provenance": self.provenance.to_dict(),
        }

    def to_text(self) -> str:
        """Lines for a terminal."""
        trial = self.summary
        reason = f" ({trial.reason})" if trial.reason else ""
        value = f", {self.metric} {formatting.number(trial.value)}" if trial.value is not None else ""
        duration = formatting.duration(trial.seconds)
        out = [f"trial {self.study}#{trial.number}: {trial.state}{reason}{value}, {duration}"]
        out.append(f"when: {_second(self.started)} to {_second(self.finished)}")
        if trial.retry_of is not None:
            out.append(f"runs trial {trial.retry_of} again")
        out += ["configuration, where it differs from the base:", *changes_lines(trial.changed)]
        for title, text in (("message", self.message), ("trace", self.trace)):
            if text:
                out += [f"{title}:", *(f"  {line}" for line in text.splitlines())]
        if self.pruned_at:
            out.append(f"pruned at step {self.pruned_at[0]}: {formatting.number(self.pruned_at[1])}")
        out += self._stage_lines()
        shown = {n: v for n, v in self.metrics.items() if not n.partition(".")[2].startswith(FITTED_METRICS)}
        if shown:
            out += ["", "metrics:", *(f"  {name}: {formatting.number(v)}" for name, v in sorted(shown.items()))]
        return "\n".join([*out, "", *self.provenance.lines()])

    def _stage_lines(self) -> list[str]:
        if self.stages:
            curves = [stage for stage in self.stages if stage.curve]
            return ["", *_stage_table(self.stages), *(["", *_curve_table(curves)] if curves else [])]
        if not self.steps:
            return []
        values = list(self.steps.values())
        first, last = formatting.number(values[0]), formatting.number(values[-1])
        return [f"steps: {formatting.sparkline(values)}  {first} to {last}"]


def describe_trial(study: StudySnapshot, number: int) -> TrialDetails:
    """The details of a trial, with curves and manifests from the study's store.

    Raises RazError when the study has no such trial.
    """
    index = trial_index(study, number)
    trial, extra = study.trials[index], study.extras[index]
    folders = [_folder(StageCache(study.store), use) for use in trial.stages]
    manifests = [_manifest(folder) for folder in folders]
    stages = tuple(
        StageDetails(use, bool(manifest), tuple(stored_curve(folder)) if folder else ())
        for use, folder, manifest in zip(trial.stages, folders, manifests, strict=True)
    )
    return TrialDetails(
        summary=TrialSummary.of(study, trial),
        study=study.name,
        config=trial.config,
        metric=study.metric,
        metrics=trial.metrics,
        message=trial.message,
        trace=str(extra.get("trace", "")),
        started=trial.started,
        finished=trial.finished,
        stages=stages,
        steps=dict(sorted(trial.steps.items())),
        pruned_at=trial.pruned_at,
        provenance=_provenance(trial, extra, [manifest for manifest in manifests if manifest]),
    )


def _second(time: datetime | None) -> str:
    return (iso(time) or "-").replace("T", " ")


def _folder(cache: StageCache, use: StageUse) -> Path | None:
    """The folder of a recorded stage. Names from a journal are checked before they become a path."""
    stage = stage_of(use.stage)
    return cache.paths.stage(stage, use.key) if stage and KEY.fullmatch(use.key) else None


def _manifest(folder: Path | None) -> Manifest | None:
    """The manifest of a stage; None where the artifact is missing or damaged."""
    try:
        return read_manifest(folder) if folder else None
    except (OSError, ValueError):
        return None


def _provenance(trial: TrialRecord, extra: Mapping[str, Json], manifests: Sequence[Manifest]) -> Provenance:
    """The provenance from the trial's own record, completed from the manifests of its stages."""
    recorded = extra.get("provenance")
    own = recorded if isinstance(recorded, dict) else {}
    commit, plus, _ = trial.versions.get("commit", "").partition("+")
    devices: list[Json] = [*sorted({manifest.device for manifest in manifests if manifest.device})]
    data: dict[str, Json] = {}
    for manifest in manifests:
        data |= manifest.data
    own_data = own.get("data")
    return Provenance(
        commit=commit or UNKNOWN,
        dirty=bool(plus) if commit else UNKNOWN,
        versions={name: version for name, version in trial.versions.items() if name != "commit"} or UNKNOWN,
        device=own.get("device") or (devices[0] if len(devices) == 1 else devices) or UNKNOWN,
        seed=trial.config.get("seed", UNKNOWN),
        threads=trial.config.get("threads", UNKNOWN),
        data=(own_data if isinstance(own_data, dict) else {}) or data or UNKNOWN,
        weights=", ".join(sorted({text for m in manifests if (text := weights_text(m.weights))})),
        others={name: value for name, value in own.items() if name not in ("device", "data")},
    )


def _stage_table(stages: Sequence[StageDetails]) -> list[str]:
    rows = [
        (
            stage.use.stage,
            stage.use.key[:12],
            formatting.duration(stage.use.seconds),
            ("from the store" if stage.use.hit else "made") + ("" if stage.in_store else ", no longer there"),
        )
        for stage in stages
    ]
    return formatting.columns(("stage", "key", "seconds", ""), rows, right=(2,))


def _curve_table(stages: Sequence[StageDetails]) -> list[str]:
    """The validation value of each epoch; lower is better."""
    rows = []
    for stage in stages:
        values = [float(point.get("value", float("nan"))) for point in stage.curve]
        first, best, last = values[0], min(values), values[-1]
        numbers = f"{formatting.number(first)} -> {formatting.number(last)}, best {formatting.number(best)}"
        rows.append((stage.use.stage, str(len(values)), formatting.sparkline(values), numbers))
    return formatting.columns(("curve", "epochs", "", "validation value"), rows, right=(1,))
