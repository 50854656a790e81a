"""How two studies, or two trials, differ: in what they set, and in what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raz.errors import RazError
from raz.study.index import parse_reference, read_study, trial_index
from raz.utils import formatting


def diff_document(store: Path, a: str, b: str) -> dict[str, Any]:
    """How two studies, or two trials, differ. Raises RazError for a study beside a trial."""
    (name_a, n_a), (name_b, n_b) = parse_reference(a), parse_reference(b)
    if (n_a is None) != (n_b is None):
        study, trial = (a, b) if n_a is None else (b, a)
        best = read_study(store, study).best
        hint = f"raz-sweep diff {study}#{best.number if best else 'N'} {trial}"
        raise RazError(f"{a} and {b}", "one is a study and one is a trial, expected two of a kind", hint)
    left, right = read_study(store, name_a), read_study(store, name_b)
    if n_a is not None and n_b is not None:
        one, two = left.trials[trial_index(left, n_a)], right.trials[trial_index(right, n_b)]
        shared = {str(s.get("key")) for s in one.stages} & {str(s.get("key")) for s in two.stages}
        return {
            "a": a, "b": b, "kind": "trials",
            "state": [one.state, two.state],
            "config": _differing(one.config, two.config),
            "metrics": _numbers(one.metrics, two.metrics),
            "stages": {
                "shared": [s.get("stage") for s in one.stages if s.get("key") in shared],
                "different": sorted({str(s.get("stage")) for t in (one, two) for s in t.stages
                                     if s.get("key") not in shared}),
            },
            "versions": _differing(one.versions, two.versions),
            "seconds": [round(one.seconds, 3), round(two.seconds, 3)],
        }  # fmt: skip
    best_a, best_b = left.best, right.best
    return {
        "a": a, "b": b, "kind": "studies",
        "trials": [left.counts(), right.counts()],
        "asks": _differing(left.meaning, right.meaning),
        "best": [best_a and best_a.number, best_b and best_b.number],
        "config": _differing(best_a.config, best_b.config) if best_a and best_b else {},
        "metrics": _numbers(best_a.metrics, best_b.metrics) if best_a and best_b else {},
        "seconds": [round(sum(t.seconds for t in s.trials), 3) for s in (left, right)],
    }  # fmt: skip


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {n: [a.get(n), b.get(n)] for n in sorted(a.keys() | b.keys()) if a.get(n) != b.get(n)}


def _numbers(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, list[float | None]]:
    """[a, b, b - a] of every metric that is not the same in both."""
    out: dict[str, list[float | None]] = {}
    for name, (x, y) in _differing(a, b).items():
        out[name] = [x, y, y - x if x is not None and y is not None else None]
    return out


def diff_lines(d: Mapping[str, Any]) -> list[str]:
    """The differences for people."""
    a, b = d["a"], d["b"]
    out: list[str] = []

    def block(title: str, pairs: Mapping[str, Sequence[Any]], same: str) -> None:
        if not pairs:
            out.append(same)
            return
        lines = [(n, json.dumps(pair[0]), json.dumps(pair[1])) for n, pair in pairs.items()]
        out.extend(["", *formatting.columns((title, a, b), lines)])

    if d["kind"] == "studies":
        out += [f"{a}: {formatting.format_states(d['trials'][0])}", f"{b}: {formatting.format_states(d['trials'][1])}"]
        block("asks", d["asks"], "both ask the same")
        if None in d["best"]:
            lacking = a if d["best"][0] is None else b
            return [*out, f"{lacking} has no best trial to compare"]
        out += ["", f"best trials: {a}#{d['best'][0]} and {b}#{d['best'][1]}"]
    else:
        out.append(f"{a}: {d['state'][0]}, {b}: {d['state'][1]}")
    block("configuration", d["config"], "the configuration is the same")
    shown = {n: v for n, v in d["metrics"].items() if not n.partition(".")[2].startswith(("theta_f_", "threshold_"))}
    if shown:
        lines = [(n, *(formatting.number(v) for v in three)) for n, three in shown.items()]
        out += ["", *formatting.columns(("metric", a, b, "B - A"), lines, right=(1, 2, 3))]
    else:
        out.append("the metrics are the same" if not d["metrics"] else "only fitted thresholds differ")
    if d["kind"] == "trials":
        stages = d["stages"]
        if stages["shared"]:
            out += ["", f"shared stages: {', '.join(map(str, stages['shared']))}"]
        if d["versions"]:
            block("versions", d["versions"], "")
    return out
