"""Results that a table would have, had nothing changed: scores of the same trials by older code, or of other data.

A stage's key changes with the version of its meaning, with what it reads and with the data, so after such a change a
full table is empty. What made it so can be told from the manifests that the old results left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from raz.config import TrialConfig, parameters
from raz.pipeline.graph import Node, inputs_of, topological_order
from raz.pipeline.keys import stage_keys
from raz.report.fill import FilledTable
from raz.report.score_index import StoredScore, manifest_of
from raz.store.cache import StageKey

MOST = 60  # empty cells that are looked into; what is said of these holds for the rest


def stale_notes(filled: FilledTable, data_root: Path | None) -> Iterator[str]:
    """A line a data set and reason, where empty cells have results that the code or the data of now cannot use."""
    if not filled.missing or not filled.kept:
        return
    for dataset in filled.profile.datasets:
        if dataset in filled.troubles:
            continue
        reasons: Counter[str] = Counter()
        looked = 0
        for row in filled.table.run_rows:
            cell = filled.cells[row.name, dataset]
            for seed in filled.table.seeds:
                if seed in cell.found or cell.config is None or looked >= MOST:
                    continue
                looked += 1
                why = _reason(filled, replace(cell.config, seed=seed), data_root)
                if why:
                    reasons[why] += 1
        for why, trials in reasons.items():
            yield (
                f"{filled.title(dataset)}: the store has results of {trials} of the missing trials that no longer"
                f" count: {why}."
            )


def _reason(filled: FilledTable, config: TrialConfig, data_root: Path | None) -> str:
    """Why results that the store has of this trial do not count now; nothing where it has none."""
    split = filled.table.splits[-1]
    given, values = parameters(config), parameters(config.resolved())
    stages = dict.fromkeys(node.stage for node in topological_order(config, (split,)))
    read = {name: (value, given[name]) for stage in stages for name, value in inputs_of(values, stage).items()}
    for kept in filled.kept:
        if kept.split == split and _same(kept.config, read):
            return _difference(filled.store, kept, stage_keys(config, data_root=data_root, splits=(split,)), split)
    return ""


def _same(config: Mapping[str, Any], read: Mapping[str, tuple[Any, Any]]) -> bool:
    """Whether a trial had these settings (resolved, as given), as far as both know them: a setting may be newer."""
    return bool(config) and all(config[name] in values for name, values in read.items() if name in config)


def _difference(store: Path, kept: StoredScore, keys: Mapping[Node, StageKey], split: str) -> str:
    """The first stage, in order of need, whose key changed by itself: by its version, its settings or its data."""
    found = dict(_manifests(store, f"score@{split}", kept.key))
    for node, now in keys.items():
        old = found.get(str(node))
        if old is None:
            continue
        if old.get("version") != now.version:
            return f"they were made by version {old.get('version')} of stage {node.stage}, which is {now.version} now"
        if dict(old.get("data", {})) != dict(now.data):
            changed = ", ".join(sorted(s for s, of in now.data.items() if old.get("data", {}).get(s) != of))
            return f"they are of other data ({changed} images)"
        settings = _settings(old.get("inputs", {}), now.inputs)
        if settings:
            return f"stage {node.stage} had other settings then ({', '.join(settings)})"
    return "they were made by other code"


def _settings(old: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names that only one of both has, or whose values differ."""
    return sorted(name for name in old.keys() | now.keys() if old.get(name) != now.get(name))[:4]


def _manifests(store: Path, name: str, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(node, what its key was made of) of a score and all that it needed, as far as that is still there."""
    waiting, seen = [(name, key)], set()
    while waiting:
        node, one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        manifest = manifest_of(store, node, one)
        if manifest is not None:
            yield node, manifest.key
            waiting += manifest.needs.items()
