"""Recomputes a trial outside Ray, in a store of its own, and says whether the numbers agree bit for bit."""

from __future__ import annotations

import math
import shutil
import struct
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raz.config import from_parameters
from raz.errors import RazError, TrialFailure
from raz.inspection.describe import UNKNOWN
from raz.pipeline.events import EventCallback
from raz.store.cache import StageCache
from raz.study.index import StudySnapshot, trial_index
from raz.utils import formatting
from raz.utils.provenance import environment_versions

COMPARABLE = ("complete", "pruned", "failed")


def rerun(
    study: StudySnapshot,
    number: int,
    *,
    data_root: Path | None = None,
    from_store: bool = False,
    log: EventCallback | None = None,
    run_trial: Callable[..., Any] | None = None,
) -> dict[str, Any]:
    """Runs the trial again and compares what came of it with the record; JSON values.

    A complete trial is compared by its metrics and its curve, a pruned one by its curve up to the step at which it
    was stopped, a failed one by its reason. With `from_store` its trained networks are taken from the store, and
    only what they predict and the scores are computed again. Raises RazError for a trial that has nothing to compare
    with, and for what meets every trial (a data set that is not there).
    """
    trial = study.trials[trial_index(study, number)]
    where = f"{study.name}#{number}"
    if trial.state not in COMPARABLE or (trial.state == "failed" and trial.reason in ("lost", "error", "oom")):
        shown = trial.state + (f" ({trial.reason})" if trial.reason else "")
        raise RazError(where, f"is {shown}, so there is no number to compare with", "rerun a complete or a pruned one")
    if not trial.config:
        raise RazError(where, "its configuration was not recorded", "rerun another trial")
    stop_at = trial.pruned_at[0] if trial.pruned_at else None
    run = run_trial
    if run is None:
        from raz.pipeline import trial as pipeline

        run = pipeline.run_trial
    steps: dict[int, float] = {}
    stages: list[dict[str, Any]] = []
    metrics: Mapping[str, float] = {}
    state, reason, message = "complete", "", ""

    def progress(step: int, value: float) -> bool:
        steps.setdefault(step, float(value))
        return step == stop_at

    with tempfile.TemporaryDirectory(prefix="raz-rerun-") as name:
        place = Path(name)
        if from_store:
            _copy_trained_stages(study.store, place, trial.stages)
        try:
            config = from_parameters(trial.config)
            result = run(config, place, data_root=data_root, splits=("val",), progress=progress, log=log)
            metrics, stages = dict(result.metrics), [asdict(stage) for stage in result.stages]
        except Exception as error:
            if stop_at is not None and stop_at in steps:  # however the trial took the word to stop
                state = "pruned"
            elif isinstance(error, TrialFailure):
                state, reason, message = "failed", error.reason, str(error)
            elif isinstance(error, RazError) and trial.reason == "invalid":
                state, reason, message = "failed", "invalid", str(error)
            else:
                raise
    differences = {
        **_differences("", trial.metrics, metrics if state == "complete" else {}),
        **_differences("step ", {str(s): v for s, v in trial.steps.items()}, {str(s): v for s, v in steps.items()}),
    }
    if stop_at is not None and state == "complete":
        state = "complete (it was not stopped)"
    # What the study did not hear of (a stage that others shared is not reported) is nothing to differ from.
    differences = {name: pair for name, pair in differences.items() if pair["recorded"] is not None}
    then, now = {str(s.get("stage")): s.get("key") for s in trial.stages}, {s["stage"]: s["key"] for s in stages}
    today = environment_versions()
    return {
        "trial": where,
        "agrees": state == trial.state and reason == trial.reason and not differences,
        "state": {"recorded": trial.state, "now": state},
        "reason": {"recorded": trial.reason, "now": reason},
        "message": message,
        "compared": {"metrics": len(trial.metrics), "steps": len(trial.steps)},
        "differences": differences,
        "keys": sorted(stage for stage in then.keys() & now.keys() if then[stage] != now[stage]),
        "versions": {
            name: {"recorded": trial.versions.get(name, UNKNOWN), "now": today.get(name, UNKNOWN)}
            for name in sorted(trial.versions.keys() | today.keys())
            if trial.versions.get(name) != today.get(name)
        },
    }


def _copy_trained_stages(store: Path, place: Path, stages: Any) -> None:
    """Copies a trial's trained stages from the store. One that is missing there is trained again."""
    from raz.pipeline.graph import TRAINED
    from raz.store.inventory import KEY

    cache, copy = StageCache(store), StageCache(place)
    for stage in stages:
        name, key = str(stage.get("stage")), str(stage.get("key"))
        if name in TRAINED and KEY.fullmatch(key) and cache.paths.stage(name, key).is_dir():
            shutil.copytree(cache.paths.stage(name, key), copy.paths.stage(name, key))


def _differences(prefix: str, recorded: Mapping[str, float], now: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Names whose values are not the same 64 bits. What the ledger does not keep (no finite number) is none."""
    finite = {name: float(value) for name, value in now.items() if math.isfinite(value)}
    out = {}
    for name in sorted(recorded.keys() | finite.keys()):
        a, b = recorded.get(name), finite.get(name)
        if a is None or b is None or struct.pack("<d", a) != struct.pack("<d", b):
            out[f"{prefix}{name}"] = {"recorded": a, "now": b}
    return out


def rerun_lines(d: Mapping[str, Any]) -> list[str]:
    """The verdict for people."""
    compared = f"{d['compared']['metrics']} metrics and {d['compared']['steps']} steps"
    if d["agrees"]:
        reason = f", {d['reason']['now']}" if d["reason"]["now"] else ""
        return [f"{d['trial']} agrees bit for bit: {compared} compared ({d['state']['now']}{reason})"]
    out = [f"{d['trial']} does not agree: {len(d['differences'])} of {compared} differ"]
    if d["state"]["recorded"] != d["state"]["now"] or d["reason"]["recorded"] != d["reason"]["now"]:
        then, now = (" ".join(filter(None, (d["state"][k], d["reason"][k]))) for k in ("recorded", "now"))
        out.append(f"it was {then}, and is {now} now{': ' + d['message'] if d['message'] else ''}")
    if d["differences"]:
        lines = []
        for name, pair in d["differences"].items():
            a, b = pair["recorded"], pair["now"]
            lines.append((name, repr(a), "-" if b is None else repr(b), "-" if b is None else f"{b - a:.3g}"))
        out += formatting.columns(("number", "recorded", "now", "difference"), lines, right=(1, 2, 3))
    if d["keys"]:
        out.append(f"asked for other stages than then (the data or a stage's meaning changed): {', '.join(d['keys'])}")
    for name, pair in d["versions"].items():
        out.append(f"{name} was {pair['recorded']}, is {pair['now']}")
    return out
