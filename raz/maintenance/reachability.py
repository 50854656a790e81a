"""Reachability: which stages of a store its studies and tables can still use.

A stage is reached by a key that a study recorded; by the configuration of a trial (running, waiting, lost, pruned and
failed trials record no keys, and the best trial's test images are predicted after the search); by a row of a table that
was run in the store or is shipped; and as an input of another reached stage.
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
from raz.study.table_runs import read_table_run
from raz.study.trial_status import TrialStatus
from raz.utils.json_types import Json, as_int, as_list, as_object, get_list, get_object

if TYPE_CHECKING:
    from raz.spec.ablation import AblationTable

SPLITS = ("val", "test")
StageId = tuple[str, str]  # stage, key


@dataclass
class Reachability:
    """The reached stages and chains of a store."""

    users: dict[StageId, set[str]] = field(default_factory=dict)  # stage -> studies and tables that reach it
    chains: set[tuple[str, str]] = field(default_factory=set)  # (stage, chain)
    unreadable: dict[str, str] = field(default_factory=dict)  # data set -> why the keys of its stages are unknown
    _stages: dict[str, tuple[StageId, ...]] = field(default_factory=dict)  # digest of a configuration -> its stages

    def add(self, stage: str, key: str, user: str) -> None:
        """Records that a study or table reaches a stage."""
        self.users.setdefault((stage, key), set()).add(user)


def compute_reachability(
    store: Path,
    artifacts: Sequence[StoredStage],
    *,
    data_root: Path | None = None,
    tables: Sequence[AblationTable] = (),
) -> Reachability:
    """Everything that the studies of the store, the tables run in it, and `tables` reach.

    Data sets that cannot be opened are listed in `unreadable`. Raises RazError when a journal or a note of a table
    cannot be read, since the stages that it reaches are then unknown.
    """
    reached = Reachability()
    present = {str(a.manifest.config.get("dataset")) for a in artifacts if a.manifest}
    for name in study_names(store):
        _add_study(reached, read_study(store, name), data_root)
    for path in sorted(StorePaths(store).tables.glob("*.json")):
        run = read_table_run(path)
        for config in run.configs:
            _add_config(reached, config, f"table {run.table}", data_root)
    for table in tables:
        for profile in table.profiles.values():
            if present.isdisjoint(profile.datasets):
                continue
            for trial in table.trials(profile):
                if trial.dataset in present:
                    _add_config(reached, trial.config, f"table {table.table}", data_root)
    _add_inputs(reached, artifacts)
    return reached


def _add_study(reached: Reachability, study: StudySnapshot, data_root: Path | None) -> None:
    best = {trial.number for trial in study.front}
    for trial, extra in zip(study.trials, study.extras, strict=True):
        for stage in trial.stages:
            reached.add(stage_of(stage.stage), stage.key, study.name)
        if trial.state == TrialStatus.COMPLETE and trial.stages and trial.number not in best:
            continue
        config = _config(study, trial.config, extra)
        if config is None:
            continue
        for seed in _seeds(study) or (config.seed,):
            _add_config(reached, replace(config, seed=seed), study.name, data_root)


def _seeds(study: StudySnapshot) -> tuple[int, ...]:
    """The seeds that every trial of the study runs; () where each trial has its own (SearchSpace.averaged_seeds)."""
    sampler = study.meaning.get("design.sampler")
    seeds = tuple(as_int(seed, "design.seeds") for seed in get_list(study.meaning, "design.seeds"))
    return seeds if sampler not in DESIGNS or sampler == "grid" else ()


def _config(study: StudySnapshot, config: Mapping[str, Json], extra: Mapping[str, Json]) -> TrialConfig | None:
    """The configuration of a trial; of a waiting trial, the base with the values that it was enqueued with.

    None where it cannot be built: values that are invalid together, or names that this version does not have.
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


def _add_config(reached: Reachability, config: TrialConfig, user: str, data_root: Path | None) -> None:
    """Adds all stages of a configuration for the user; keys of equal configurations are computed once."""
    from raz.pipeline.keys import stage_keys

    config_id = digest(parameters(config.resolved()))
    if config_id not in reached._stages:
        if config.dataset in reached.unreadable:
            return
        try:
            keys = stage_keys(config, data_root=data_root, splits=SPLITS)
        except RazError as error:
            reached.unreadable[config.dataset] = str(error)
            return
        reached._stages[config_id] = tuple((node.stage, key.key) for node, key in keys.items())
        reached.chains |= {
            (node.stage, chain_key(key)) for node, key in keys.items() if STAGES[node.stage].kind == "trained"
        }
    for stage, key in reached._stages[config_id]:
        reached.add(stage, key, user)


def _add_inputs(reached: Reachability, artifacts: Sequence[StoredStage]) -> None:
    """Adds the inputs of reached stages, transitively, and the chains that they were trained in."""
    by_key = {(a.stage, a.key): a for a in artifacts}
    pending = list(reached.users)
    while pending:
        stage_id = pending.pop()
        artifact = by_key.get(stage_id)
        if artifact is None or artifact.manifest is None:
            continue
        users = reached.users[stage_id]
        for node, key in artifact.needs.items():
            needed = (stage_of(node), key)
            if not users <= reached.users.get(needed, set()):
                reached.users.setdefault(needed, set()).update(users)
                pending.append(needed)
        spec = STAGES.get(artifact.stage)
        if spec is not None and spec.kind == "trained":
            try:
                reached.chains.add((artifact.stage, chain_key(StageKey.of_manifest(artifact.manifest))))
            except ValueError:  # a key of another layout
                continue
