"""What is running in a store now, from the store alone: drivers, leases, and how far the training behind them is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raz.store.inventory import KEY, check_store, entries
from raz.store.lease import holder_alive
from raz.store.paths import LEASE_SUFFIX, StorePaths
from raz.study.index import read_study
from raz.study.journal import study_names
from raz.study.records import is_running
from raz.utils import formatting


def status_document(store: Path) -> dict[str, Any]:
    """The studies with a driver, and what is being made. Raises RazError when there is no store."""
    check_store(store)
    studies = []
    for name in study_names(store):
        if is_running(store, name):
            study = read_study(store, name)
            best = study.best
            running = [
                {"trial": t.number, "values": dict(t.values), "step": max(t.steps, default=None)}
                for t in study.trials
                if t.state == "running"
            ]
            studies.append(
                {
                    "study": name, "trials": study.counts(), "metric": study.metric, "running": running,
                    "best": best and {"trial": best.number, "value": best.value},
                }
            )  # fmt: skip
    making = []
    paths = StorePaths(store)
    for entry in entries(paths.leases):
        path = Path(entry.path)
        if path.suffix != LEASE_SUFFIX or not entry.is_file(follow_symlinks=False):
            continue
        alive = holder_alive(path)
        stage, _, key = path.stem.rpartition("-")
        if alive is not False and KEY.fullmatch(key):
            since = max(0.0, time.time() - path.stat().st_mtime)
            making.append(
                {
                    "stage": stage, "key": key, "here": alive is True, "heartbeat": round(since, 1),
                    **_progress(paths.checkpoint(stage, key)),
                }
            )  # fmt: skip
    return {"studies": studies, "making": making}


def _progress(checkpoint: Path) -> dict[str, Any]:
    """Epoch and values of the last checkpoint of a chain; empty where there is none yet."""
    if not checkpoint.is_file() or checkpoint.is_symlink():
        return {}
    import torch

    try:  # mapped, so that the weights are not read
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        curve = [float(point["value"]) for point in state["curve"]]
        loss = float(state["curve"][-1]["loss"])
        return {"epoch": int(state["epoch"]), "loss": loss, "value": curve[-1], "best": min(curve), "curve": curve}
    except Exception as error:  # torch raises what its reader met: zip, pickle, EOF, runtime errors
        return {"trouble": f"the checkpoint cannot be read: {type(error).__name__}"}


def status_lines(d: Mapping[str, Any], store: Path) -> list[str]:
    """The same for people."""
    if not d["studies"] and not d["making"]:
        return [f"nothing is running in {store}"]
    out = []
    for study in d["studies"]:
        best = study["best"]
        tail = f"; best trial {best['trial']}, {study['metric']} {formatting.number(best['value'])}" if best else ""
        out.append(f"study {study['study']}: {formatting.format_states(study['trials'])}{tail}")
        for trial in study["running"]:
            at = f" at step {trial['step']}" if trial["step"] is not None else ""
            out.append(f"  trial {trial['trial']}{at}  {formatting.assignments(trial['values'])}")
    lines = []
    for stage in d["making"]:
        where = "" if stage["here"] else "on another machine"
        epoch, curve = str(stage.get("epoch", "-")), formatting.sparkline(stage.get("curve", []))
        value = formatting.number(stage.get("value"))
        best = formatting.number(stage.get("best"))
        heartbeat = formatting.duration(stage["heartbeat"])
        lines.append((stage["stage"], stage["key"][:12], epoch, value, best, curve, heartbeat, where))
    if lines:
        header = ("being made", "key", "epoch", "value", "best", "curve", "heartbeat", "")
        out += [*([""] if out else []), *formatting.columns(header, lines, right=(2, 3, 4, 6))]
    return out
