"""Studies and trials in words: what was asked, and what came of it.

Each `..._document` gives JSON values for programs, each `..._lines` the same for people.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raz.errors import RazError
from raz.pipeline.graph import stage_of
from raz.store.cache import StageCache, stored_curve
from raz.store.inventory import KEY, check_store
from raz.store.paths import MANIFEST
from raz.study.index import StudySnapshot, base_parameters, read_study, trial_index
from raz.study.journal import study_names
from raz.study.records import TrialRecord
from raz.study.remaining import superseded
from raz.utils import formatting

UNKNOWN = "unknown"  # what an older record does not tell


def changed(base: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Names whose values differ from the base's. Without a base there is nothing to differ from."""
    if not base:
        return {}
    names = sorted(name for name in base.keys() | config.keys() if base.get(name) != config.get(name))
    return {name: {"base": base.get(name), "trial": config.get(name)} for name in names}


def iso(when: Any) -> str | None:
    return when.isoformat(timespec="seconds") if when is not None else None


# ------------------------------------------------------------------ all studies


def studies_document(store: Path) -> list[dict[str, Any]]:
    """Every study of the store; one whose journal cannot be read has its `trouble`.

    Raises RazError when there is no store.
    """
    check_store(store)
    out: list[dict[str, Any]] = []
    for name in study_names(store):
        try:
            study = read_study(store, name)
        except RazError as error:
            out.append({"study": name, "trouble": str(error)})
            continue
        best = study.best
        out.append(
            {
                "study": name,
                "running": study.running,
                "trials": study.counts(),
                "metric": study.metric,
                "directions": list(study.directions),
                "front": [trial.number for trial in study.front],
                "best": best and {"trial": best.number, "value": best.value, "values": dict(best.values)},
                "seconds": round(sum(trial.seconds for trial in study.trials), 3),
                "started": iso(min((t.started for t in study.trials if t.started), default=None)),
                "last": iso(max((t.finished or t.started for t in study.trials if t.started), default=None)),
            }
        )
    return out


def studies_lines(documents: Sequence[Mapping[str, Any]], store: Path) -> list[str]:
    """A line a study."""
    if not documents:
        return [f"{store} has no studies yet: raz-sweep run fusion"]
    lines, troubles = [], []
    for d in documents:
        if "trouble" in d:
            troubles.append(d["trouble"])
            continue
        best = d["best"]
        which = f"#{best['trial']}" if best else f"front of {len(d['front'])}" if d["front"] else "-"
        lines.append(
            (
                d["study"],
                formatting.format_states(d["trials"]),
                formatting.number(best["value"]) if best else "-",
                which,
                d["metric"],
                (d["last"] or "-").replace("T", " ")[:16],
                formatting.duration(d["seconds"]),
                "running" if d["running"] else "",
            )
        )
    header = ("study", "trials", "best", "trial", "metric", "last", "work", "")
    return [*(formatting.columns(header, lines, right=(2, 3)) if lines else []), *troubles]


# ------------------------------------------------------------------ a study


def study_document(study: StudySnapshot) -> dict[str, Any]:
    """What a study asks and found."""
    best, meaning = study.best, study.meaning
    asked = {k: v for k, v in meaning.items() if not k.startswith("base.")}
    held_out, front = study.attributes.get("held_out", {}), study.front
    again = superseded(study.trials)
    failed = [t for t in study.trials if t.state in ("failed", "lost") and t.number not in again]
    stages = [stage for trial in study.trials for stage in trial.stages]
    return {
        "study": study.name,
        "running": study.running,
        "asks": asked,
        "base": base_parameters(study),
        "trials": study.counts(),
        "reasons": dict(Counter(trial.reason or "error" for trial in failed)),
        "failures": [{"trial": t.number, "reason": t.reason, "message": t.message} for t in failed],
        "metric": study.metric,
        "directions": list(study.directions),
        "objectives": study.objectives,
        "best": best and trial_summary(study, best),
        "front": [trial_summary(study, trial) for trial in front],
        "held_out": dict(held_out.get("metrics", {})) if held_out.get("trial") in {t.number for t in front} else {},
        "held_out_of": held_out.get("trial"),
        "seconds": round(sum(trial.seconds for trial in study.trials), 3),
        "stages": {"used": len(stages), "from_store": sum(bool(stage.get("hit")) for stage in stages)},
        "started": iso(min((t.started for t in study.trials if t.started), default=None)),
        "last": iso(max((t.finished or t.started for t in study.trials if t.started), default=None)),
        "commits": sorted({str(t.versions.get("commit", UNKNOWN)) for t in study.trials}),
        "list": [trial_summary(study, trial) for trial in study.trials],
    }


def trial_summary(study: StudySnapshot, trial: TrialRecord) -> dict[str, Any]:
    """A trial in a few words."""
    return {
        "trial": trial.number, "state": trial.state, "reason": trial.reason, "value": trial.value,
        "objectives": dict(trial.objectives),
        "values": dict(trial.values), "seconds": round(trial.seconds, 3), "retry_of": trial.retry_of,
        "changed": changed(base_parameters(study), trial.config) if trial.config else {},
    }  # fmt: skip


MOST_LISTED = 40  # trials shown to people; --json has all


def study_lines(d: Mapping[str, Any], store: Path) -> list[str]:
    """A study for people: the question, the states, the best, the trials from best to worst."""
    asks, out = d["asks"], []
    running = " (running now)" if d["running"] else ""
    out.append(f"study {d['study']}{running}: {formatting.format_states(d['trials'])}")
    design = ", ".join(
        f"{k.partition('.')[2]} {formatting.number(v)}" for k, v in asks.items() if k.startswith("design.")
    )
    pruner = ", ".join(
        f"{k.partition('.')[2]} {formatting.number(v)}" for k, v in asks.items() if k.startswith("pruner.")
    )
    objectives = ", ".join(f"{way} {metric}" for metric, way in d["objectives"].items())
    out.append(f"asks: {objectives}; {design}; pruner {pruner.removeprefix('name ')}")
    for name, meaning in asks.items():
        if name.startswith("parameters."):
            out.append(f"  {name.removeprefix('parameters.')}: {_meaning(meaning)}")
    used = d["stages"]
    shared = f"; {used['from_store']} of {used['used']} stages from the store" if used["used"] else ""
    when = f"{(d['started'] or '-').replace('T', ' ')[:16]} to {(d['last'] or '-').replace('T', ' ')[:16]}"
    out.append(f"when: {when}, {formatting.duration(d['seconds'])} of trials{shared}")
    out.append(f"commit: {', '.join(_short_commit(c) for c in d['commits']) or UNKNOWN}")
    if d["best"]:
        best = d["best"]
        out.append(f"best: trial {best['trial']}, {d['metric']} {formatting.number(best['value'])}")
        out += _changes(best["changed"]) or ["  the base itself"]
    elif d["front"]:
        out.append(f"front: {len(d['front'])} trials that no other beats in every objective")
        names = list(d["objectives"])
        rows = [
            (
                f"#{t['trial']}",
                *(formatting.number(t["objectives"][n]) for n in names),
                formatting.assignments(t["values"]),
            )
            for t in d["front"]
        ]
        out += [
            f"  {row}" for row in formatting.columns(("trial", *names, "values"), rows, right=range(len(names) + 1))
        ]
    shown = {k: v for k, v in sorted(d["held_out"].items()) if k in ("test.mae", "test.rmse")}
    if shown:
        of = "" if d["best"] else f" (trial {d['held_out_of']})"
        out.append(f"held out{of}: " + "  ".join(f"{k} {formatting.number(v)}" for k, v in shown.items()))
    if d["reasons"]:
        out.append("failures: " + ", ".join(f"{reason} {n}" for reason, n in sorted(d["reasons"].items())))
    if d["list"]:
        out += ["", *_ranked(d)]
    return [*out, "", f"next: raz-sweep show {d['study']}#N{_store(store)}"]


def _ranked(d: Mapping[str, Any]) -> list[str]:
    """Complete trials from best to worst (in the order of their numbers with several objectives), then the others."""
    sign = -1 if d["directions"] == ["maximize"] else 1
    alone = len(d["directions"]) == 1

    def order(trial: Mapping[str, Any]) -> tuple[Any, ...]:
        done = alone and trial["state"] == "complete" and trial["value"] is not None
        return (0, sign * trial["value"], trial["trial"]) if done else (1, 0.0, trial["trial"])

    rows = sorted(d["list"], key=order)
    lines = [
        (
            f"#{t['trial']}", t["state"] + (f" ({t['reason']})" if t["reason"] else ""), formatting.number(t["value"]),
            formatting.duration(t["seconds"]), formatting.assignments(t["values"]),
        )
        for t in rows[:MOST_LISTED]
    ]  # fmt: skip
    out = formatting.columns(("trial", "state", d["metric"], "seconds", "values"), lines, right=(0, 2, 3))
    if len(rows) > MOST_LISTED:
        out.append(f"… and {len(rows) - MOST_LISTED} more: --json, or raz-sweep export {d['study']} --out trials.csv")
    return out


def _meaning(meaning: Any) -> str:
    if not isinstance(meaning, Mapping):
        return formatting.number(meaning)
    parts = []
    for key, value in meaning.items():
        if key == "choice" and isinstance(value, list):
            parts.append("one of " + ", ".join(formatting.number(v) for v in value))
        elif key in ("int", "float") and isinstance(value, list):
            parts.append(f"{key} {formatting.number(value[0])} to {formatting.number(value[1])}")
        elif key == "when" and isinstance(value, Mapping):
            parts.append(
                "when " + " and ".join(f"{n} is {' or '.join(map(formatting.number, v))}" for n, v in value.items())
            )
        else:
            parts.append("on a log scale" if (key, value) == ("log", True) else f"{key} {formatting.number(value)}")
    return ", ".join(parts)


def _changes(changes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [f"  {n}: {json.dumps(c['trial'])}  (base {json.dumps(c['base'])})" for n, c in sorted(changes.items())]


def _short_commit(commit: str) -> str:
    sha, plus, _ = commit.partition("+")
    return f"{sha[:12]} with changes" if plus else sha[:12]


def _store(store: Path) -> str:
    return f" --store {store}" if str(store) != "raz-store" else ""


# ------------------------------------------------------------------ a trial


def trial_document(study: StudySnapshot, number: int) -> dict[str, Any]:
    """Everything the store tells of one trial."""
    place = trial_index(study, number)
    trial, extra = study.trials[place], study.extras[place]
    cache = StageCache(study.store)
    manifests = {str(stage.get("key")): _manifest(cache, stage) for stage in trial.stages}
    return {
        **trial_summary(study, trial),
        "study": study.name,
        "config": dict(trial.config),
        "metric": study.metric,
        "metrics": dict(trial.metrics),
        "message": trial.message,
        "trace": str(extra.get("trace", "")),
        "started": iso(trial.started),
        "finished": iso(trial.finished),
        "stages": [
            {
                **stage,
                "in_store": bool(manifests[str(stage.get("key"))]),
                "curve": _curve(cache, stage),
            }
            for stage in trial.stages
        ],
        "steps": {str(step): value for step, value in sorted(trial.steps.items())},
        "pruned_at": trial.pruned_at and {"step": trial.pruned_at[0], "value": trial.pruned_at[1]},
        "provenance": _provenance(trial, extra, [m for m in manifests.values() if m]),
    }


def _manifest(cache: StageCache, stage: Mapping[str, Any]) -> Mapping[str, Any]:
    """The manifest of a recorded stage; empty where the artifact is gone or damaged."""
    folder = _folder(cache, stage)
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8")) if folder else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, Mapping) else {}


def _folder(cache: StageCache, stage: Mapping[str, Any]) -> Path | None:
    """Where a recorded stage lies. What a journal names is checked before it becomes a path."""
    kind, key = stage_of(str(stage.get("stage", ""))), str(stage.get("key", ""))
    return cache.paths.stage(kind, key) if kind and KEY.fullmatch(key) else None


def _curve(cache: StageCache, stage: Mapping[str, Any]) -> list[dict[str, float]]:
    folder = _folder(cache, stage)
    return stored_curve(folder) if folder else []


def _provenance(trial: TrialRecord, extra: Mapping[str, Any], manifests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the trial ran on. Its own record comes first, then the manifests of its stages, else `unknown`."""
    own = extra.get("provenance", {})
    own = own if isinstance(own, Mapping) else {}
    commit, plus, _ = str(trial.versions.get("commit", "")).partition("+")
    devices = sorted({str(m["device"]) for m in manifests if m.get("device")})
    data: dict[str, Any] = {}
    for manifest in manifests:
        key = manifest.get("key", {})
        data |= key.get("data", {}) if isinstance(key, Mapping) else {}
    return {
        "commit": commit or UNKNOWN,
        "dirty": bool(plus) if commit else UNKNOWN,
        "versions": {k: v for k, v in trial.versions.items() if k != "commit"} or UNKNOWN,
        "device": own.get("device") or (devices[0] if len(devices) == 1 else devices) or UNKNOWN,
        "seed": trial.config.get("seed", UNKNOWN),
        "threads": trial.config.get("threads", UNKNOWN),
        "data": own.get("data") or data or UNKNOWN,
        **{k: v for k, v in own.items() if k not in ("device", "data")},
    }


def trial_lines(d: Mapping[str, Any]) -> list[str]:
    """A trial for people."""
    reason = f" ({d['reason']})" if d["reason"] else ""
    value = f", {d['metric']} {formatting.number(d['value'])}" if d["value"] is not None else ""
    out = [f"trial {d['study']}#{d['trial']}: {d['state']}{reason}{value}, {formatting.duration(d['seconds'])}"]
    out.append(f"when: {(d['started'] or '-').replace('T', ' ')} to {(d['finished'] or '-').replace('T', ' ')}")
    if d["retry_of"] is not None:
        out.append(f"runs trial {d['retry_of']} again")
    out += ["configuration, where it differs from the base:", *(_changes(d["changed"]) or ["  the base itself"])]
    if d["message"]:
        out += ["message:", *(f"  {line}" for line in d["message"].splitlines())]
    if d["trace"]:
        out += ["trace:", *(f"  {line}" for line in d["trace"].splitlines())]
    if d["pruned_at"]:
        out.append(f"pruned at step {d['pruned_at']['step']}: {formatting.number(d['pruned_at']['value'])}")
    if d["stages"]:
        out += ["", *_stage_table(d["stages"])]
        curves = [stage for stage in d["stages"] if stage["curve"]]
        out += ["", *_curve_table(curves)] if curves else []
    elif d["steps"]:
        values = list(d["steps"].values())
        out.append(
            f"steps: {formatting.sparkline(values)}  {formatting.number(values[0])} to {formatting.number(values[-1])}"
        )
    own = {k: v for k, v in d["metrics"].items() if not k.partition(".")[2].startswith(("theta_f_", "threshold_"))}
    if own:
        out += ["", "metrics:", *(f"  {name}: {formatting.number(v)}" for name, v in sorted(own.items()))]
    p = d["provenance"]
    versions = formatting.assignments(p["versions"]) if isinstance(p["versions"], Mapping) else p["versions"]
    dirty = {True: ", with changes", False: ""}.get(p["dirty"], "") if p["commit"] != UNKNOWN else ""
    data = p["data"]
    shown = ", ".join(f"{k} {str(v)[:16]}" for k, v in sorted(data.items())) if isinstance(data, Mapping) else data
    device = ", ".join(p["device"]) if isinstance(p["device"], list) else p["device"]
    return [
        *out, "",
        f"commit: {p['commit']}{dirty}", f"versions: {versions}",
        f"device: {device}, seed {p['seed']}, threads {p['threads']}", f"data: {shown}",
    ]  # fmt: skip


def _stage_table(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        (
            str(stage.get("stage", "")),
            str(stage.get("key", ""))[:12],
            formatting.duration(float(stage.get("seconds", 0))),
            ("from the store" if stage.get("hit") else "made") + ("" if stage["in_store"] else ", no longer there"),
        )
        for stage in stages
    ]
    return formatting.columns(("stage", "key", "seconds", ""), lines, right=(2,))


def _curve_table(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """The validation value (lower is better) of each epoch."""
    lines = []
    for stage in stages:
        values = [float(point.get("value", float("nan"))) for point in stage["curve"]]
        first, best, last = values[0], min(values), values[-1]
        numbers = f"{formatting.number(first)} -> {formatting.number(last)}, best {formatting.number(best)}"
        lines.append((str(stage["stage"]), str(len(values)), formatting.sparkline(values), numbers))
    return formatting.columns(("curve", "epochs", "", "validation value"), lines, right=(1,))
