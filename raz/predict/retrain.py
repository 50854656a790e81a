"""`raz-sweep train`: one configuration trained once, or the best one of a search trained again on all it may see.

`--final` takes the best trial of the file's study and trains its networks anew on the training *and* the validation
images, each for as many epochs as the search found best. What the search fitted on validation images (thresholds,
theta_f) is kept, since these images are no longer unseen. For the same reason the result has no honest validation
score: what is known of its quality is the search's. The stages stand in the store beside the ordinary ones, under keys
of their own: both the data set's name (`NAME+val`) and its fingerprint differ.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raz.config import TrialConfig, configure, parameters
from raz.errors import RazError
from raz.predict.model_source import model_of_trial, select_trial
from raz.store.paths import WEIGHTS

if TYPE_CHECKING:
    from raz.pipeline.events import EventCallback
    from raz.pipeline.model import Model
    from raz.spec.search_space import SearchSpace


def retrain_config(config: TrialConfig, best_epochs: dict[str, int]) -> TrialConfig:
    """The configuration of the last training: the epochs found best, none of them left out by an early stop."""
    from raz.pipeline.graph import STAGES
    from raz.pipeline.keys import WITH_VALIDATION

    settings: dict[str, Any] = {}
    for stage, epochs in best_epochs.items():
        name = STAGES[stage].epochs
        if epochs:  # 0: there was nothing to learn from, and the number does not matter
            settings |= {name: epochs, f"{name.removesuffix('epochs')}stop": epochs}
    return replace(configure(config, settings), dataset=config.dataset + WITH_VALIDATION)


def train_final(
    space: SearchSpace, store: Path, data_root: Path | None, log: EventCallback
) -> tuple[Model, dict[str, Any]]:
    """The model of the last training, and what to say of it. Raises RazError when the study has no complete trial."""
    from raz.pipeline.assembly import TrainedStage
    from raz.pipeline.builders import read_state
    from raz.pipeline.graph import Node, declared_inputs
    from raz.pipeline.keys import open_cached, stage_keys
    from raz.pipeline.model import Model
    from raz.pipeline.trial import build_stages
    from raz.store.cache import StageCache

    record = select_trial(store, [space.study], f"{store}#{space.study}")
    found = model_of_trial(store, record)
    cache = StageCache(store)
    best: dict[str, int] = {}
    for stage, trained in found.trained.items():
        artifact = cache.get(stage, trained.key)
        if artifact is None:
            raise RazError(f"store {store}", f"stage {stage} {trained.key[:12]} is gone", "run the study again")
        best[stage] = artifact.manifest.best_epoch or 0
    config = retrain_config(found.config, best)
    nodes = [Node(stage) for stage in found.trained]
    build_stages(config, store, nodes, data_root=data_root, log=log)
    keys = stage_keys(config, data_root=data_root, splits=("val",))
    stages = {}
    for node in nodes:
        artifact = cache.find(keys[node])
        if artifact is None:
            raise RazError(f"store {store}", f"{node} was made and is gone", "the same command makes it again")
        weights = read_state(artifact.folder / WEIGHTS)
        stages[node.stage] = TrainedStage(keys[node].key, declared_inputs(config, node.stage), weights)
    items = open_cached(config.dataset, data_root).items
    about = {
        **found.about, "final": True, "epochs": best, "images": len(items["train"]),
        "search": found.about["stages"], "stages": {stage: trained.key for stage, trained in stages.items()},
    }  # fmt: skip
    return Model(config, stages, found.fitted, about), about


def train_once(config: TrialConfig, store: Path, data_root: Path | None, log: EventCallback) -> dict[str, Any]:
    """One trial of one configuration: its validation metrics, and the key of its score to predict from."""
    from raz.pipeline.trial import run_trial

    result = run_trial(config, store, data_root=data_root, splits=("val",), log=log)
    score = next(use.key for use in result.stages if use.stage == "score@val")
    return {"metrics": result.metrics, "score": score, "seconds": result.seconds, "config": parameters(config)}
