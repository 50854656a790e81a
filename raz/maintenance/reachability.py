"""Which stages of a store somebody can still ask for: studies, tables that were run, tables that are shipped.

A stage is reached by a key that a study recorded, by the configuration of a trial (running, waiting, lost, pruned and
failed trials record no keys, and the best trial's test images are predicted after the search), by a row of a table,
and as what another reached stage was made from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from raz.config import TrialConfig, configure, from_parameters, parameters
from raz.errors import RazError
from raz.pipeline.graph import STAGES, chain_key, stage_of
from raz.spec.derived import derive, parse_derived, topological_order
from raz.spec.designs import DESIGNS
from raz.spec.parameter import optuna_label
from raz.store.cache import StageKey, digest
from raz.store.inventory import StoredStage
from raz.store.paths import StorePaths
from raz.study.index import StudySnapshot, base_parameters, read_study
from raz.study.journal import study_names
from raz.study.table_runs import _remembered
from raz.utils.json_types import Json, as_int, as_list, as_object, get_list, get_object

if TYPE_CHECKING:
    from raz.spec.ablation import AblationTable

SPLITS = ("val", "test")


@dataclass
class Reachability:
    """Who can ask for what."""

    users: dict[tuple[str, str], set[str]] = field(default_factory=dict)  # (stage, key) -> studies and tables
    chains: set[tuple[str, str]] = field(default_factory=set)  # (stage, chain)
    closed: dict[str, str] = field(default_factory=dict)  # data set -> why its keys cannot be known
    _done: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)  # configuration -> its stages

    def add(self, stage: str, key: str, user: str) -> None:
        self.users.setdefault((stage, key), set()).add(user)


def compute_reachability(
    store: Path,
    artifacts: Sequence[StoredStage],
    *,
    data_root: Path | None = None,
    tables: Sequence[AblationTable] = (),
) -> Reachability:
    """Everything that a study of the store, a table run in it, or one of `tables` can ask for.

    A configuration whose data set cannot be opened is put down in `closed`. Raises RazError when a journal cannot
    be read: what it asks for cannot be known then.
    """
    found = Reachability()
    present = {str(a.manifest.config.get("dataset")) for a in artifacts if a.manifest}
    for name in study_names(store):
        _study(found, read_study(store, name), data_root)
    for path in sorted(StorePaths(store).tables.glob("*.json")):
        for title, config in _remembered(path):
            _mark(found, config, f"table {title}", data_root)
    for table in tables:
        for profile in table.profiles.values():
            if present.isdisjoint(profile.datasets):
                continue
            for trial in table.trials(profile):
                if trial.dataset in present:
                    _mark(found, trial.config, f"table {table.table}", data_root)
    _mark_transitively(found, artifacts)
    return found


def _study(found: Reachability, study: StudySnapshot, data_root: Path | None) -> None:
    best = {trial.number for trial in study.front}
    for trial, extra in zip(study.trials, study.extras, strict=True):
        for stage in trial.stages:
            found.add(stage_of(stage.stage), stage.key, study.name)
        if trial.state == "complete" and trial.stages and trial.number not in best:
            continue
        config = _config(study, trial.config, extra)
        if config is None:
            continue
        for seed in _seeds(study) or (config.seed,):
            _mark(found, replace(config, seed=seed), study.name, data_root)


def _seeds(study: StudySnapshot) -> tuple[int, ...]:
    """The seeds that every trial of the study runs; () where each trial has its own (SearchSpace.averaged_seeds)."""
    sampler = study.meaning.get("design.sampler")
    seeds = tuple(as_int(seed, "design.seeds") for seed in get_list(study.meaning, "design.seeds"))
    return seeds if sampler not in DESIGNS or sampler == "grid" else ()


def _config(study: StudySnapshot, config: Mapping[str, Json], extra: Mapping[str, Json]) -> TrialConfig | None:
    """The configuration of a trial; of a waiting trial, the base with the values that it was enqueued with.

    None where there is none: values that are invalid together, or names that this version does not have.
    """
    try:
        if config:
            return from_parameters(config)
        base = base_parameters(study)
        fixed = get_object(extra, "fixed")
        if not base or not fixed:
            return None
        settings: dict[str, Json] = {}
        for name, value in fixed.items():
            choices = get_object(study.meaning, f"parameters.{name}").get("choice", [])
            if isinstance(choices, dict):  # a named choice sets several parameters
                settings |= as_object(choices.get(str(value), {}), name)
            else:
                legal = as_list(choices, name)
                settings[name] = next((choice for choice in legal if optuna_label(choice) == value), value)
        where = f"study {study.name}"
        derived = {
            name.removeprefix("derive."): parse_derived(name.removeprefix("derive."), str(text))
            for name, text in study.meaning.items()
            if name.startswith("derive.")
        }
        return derive(configure(TrialConfig(), {**base, **settings}, where), topological_order(derived), where)
    except RazError:
        return None


def _mark(found: Reachability, config: TrialConfig, user: str, data_root: Path | None) -> None:
    from raz.pipeline.keys import stage_keys

    name = digest(parameters(config.resolved()))
    if name not in found._done:
        if config.dataset in found.closed:
            return
        try:
            keys = stage_keys(config, data_root=data_root, splits=SPLITS)
        except RazError as error:
            found.closed[config.dataset] = str(error)
            return
        found._done[name] = tuple((node.stage, key.key) for node, key in keys.items())
        found.chains |= {
            (node.stage, chain_key(key)) for node, key in keys.items() if STAGES[node.stage].kind == "trained"
        }
    for stage, key in found._done[name]:
        found.add(stage, key, user)


def _mark_transitively(found: Reachability, artifacts: Sequence[StoredStage]) -> None:
    """Adds what reached stages were made from, and the chains that they were trained in."""
    by_key = {(a.stage, a.key): a for a in artifacts}
    pending = list(found.users)
    while pending:
        place = pending.pop()
        artifact = by_key.get(place)
        if artifact is None or artifact.manifest is None:
            continue
        users = found.users[place]
        for node, key in artifact.needs.items():
            needed = (stage_of(node), key)
            if not users <= found.users.get(needed, set()):
                found.users.setdefault(needed, set()).update(users)
                pending.append(needed)
        known = STAGES.get(artifact.stage)
        if known is not None and known.kind == "trained":
            try:
                found.chains.add((artifact.stage, chain_key(StageKey.of_manifest(artifact.manifest))))
            except ValueError:  # a key of another layout
                continue
