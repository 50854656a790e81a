"""Notes on results that no longer count: scores of the table's trials by older code, or of other data.

A stage's key changes with the version of its meaning, with its inputs and with its data. After such a change a full
table is empty. The manifests of the old results tell which change it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from raz.config import TrialConfig, parameters
from raz.pipeline.graph import Node, inputs_of, topological_order
from raz.pipeline.keys import stage_keys
from raz.report.fill import FilledTable
from raz.report.score_index import StoredScore, manifest_of
from raz.store.cache import StageKey
from raz.utils.json_types import Json, object_or_empty

MAX_CHECKED = 60  # empty cells of a data set that are checked; their notes stand for the others


def stale_notes(filled: FilledTable, data_root: Path | None) -> Iterator[str]:
    """One note for each data set and reason why stored results of empty cells do not count now."""
    if not filled.missing or not filled.stored:
        return
    for dataset in filled.profile.datasets:
        if dataset in filled.problems:
            continue
        reasons: Counter[str] = Counter()
        checked = 0
        for row in filled.table.run_rows:
            cell = filled.cells[row.name, dataset]
            for seed in filled.profile.seeds:
                if seed in cell.scores or cell.config is None or checked >= MAX_CHECKED:
                    continue
                checked += 1
                reason = _reason(filled, replace(cell.config, seed=seed), data_root)
                if reason:
                    reasons[reason] += 1
        for reason, trials in reasons.items():
            yield (
                f"{filled.title(dataset)}: the store has results of {trials} of the missing trials that no longer"
                f" count: {reason}."
            )


def _reason(filled: FilledTable, config: TrialConfig, data_root: Path | None) -> str:
    """Why stored results of this trial do not count now; '' where the store has none."""
    split = filled.table.splits[-1]
    as_written, resolved = parameters(config), parameters(config.resolved())
    stages = dict.fromkeys(node.stage for node in topological_order(config, (split,)))
    inputs = {name: (value, as_written[name]) for stage in stages for name, value in inputs_of(resolved, stage).items()}
    for score in filled.stored:
        if score.split == split and _same_trial(score.config, inputs):
            return _first_change(filled.store, score, stage_keys(config, data_root=data_root, splits=(split,)), split)
    return ""


def _same_trial(config: Mapping[str, Json], inputs: Mapping[str, tuple[Json, Json]]) -> bool:
    """Whether a stored configuration has these inputs: name -> (value resolved, value as written).

    Names that it lacks are ignored: they may be newer than the result.
    """
    return bool(config) and all(config[name] in values for name, values in inputs.items() if name in config)


def _first_change(store: Path, score: StoredScore, keys: Mapping[Node, StageKey], split: str) -> str:
    """The first stage in topological order whose own version, data or inputs changed, as the end of a sentence."""
    stored = dict(_key_contents(store, f"score@{split}", score.key))
    for node, now in keys.items():
        old = stored.get(str(node))
        if old is None:
            continue
        if old.get("version") != now.version:
            return f"they were made by version {old.get('version')} of stage {node.stage}, which is {now.version} now"
        old_data = object_or_empty(old.get("data"))
        if old_data != dict(now.data):
            changed = ", ".join(sorted(s for s, fingerprint in now.data.items() if old_data.get(s) != fingerprint))
            return f"they are of other data ({changed} images)"
        names = _changed_names(object_or_empty(old.get("inputs")), now.inputs)
        if names:
            return f"stage {node.stage} had other settings then ({', '.join(names)})"
    return "they were made by other code"


def _changed_names(old: Mapping[str, Json], now: Mapping[str, Json]) -> list[str]:
    """At most four names that only one of them has, or whose values differ."""
    return sorted(name for name in old.keys() | now.keys() if old.get(name) != now.get(name))[:4]


def _key_contents(store: Path, name: str, key: str) -> Iterator[tuple[str, Mapping[str, Json]]]:
    """(node, the content of its key) of a score and of all its needs that are still in the store."""
    pending, visited = [(name, key)], set()
    while pending:
        node, node_key = pending.pop()
        if node_key in visited:
            continue
        visited.add(node_key)
        manifest = manifest_of(store, node, node_key)
        if manifest is not None:
            yield node, manifest.key
            pending += manifest.needs.items()
