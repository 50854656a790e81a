"""`raz-sweep train`: train one configuration, or retrain the best trial of a study on training and validation images.

`--final` retrains the networks of the study's best trial on the training *and* validation images, each for the number
of epochs that was best in the search. Thresholds and theta_f that the search fitted on validation images are kept,
since these images are now training images. For the same reason the new model has no validation score; the search's
score is the best estimate of its quality. Its stages are stored under keys of their own, since the data set's name
(`NAME+val`) and fingerprint differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from raz.config import TrialConfig, configure, parameters
from raz.errors import RazError
from raz.predict.model_source import model_of_trial, select_trial
from raz.store.paths import WEIGHTS
from raz.utils.json_types import Json, JsonObject

if TYPE_CHECKING:
    from raz.pipeline.events import EventCallback
    from raz.pipeline.executor import StageProvider
    from raz.pipeline.model import Model
    from raz.spec.search_space import SearchSpace


@dataclass(frozen=True)
class FinalModel:
    """A model that was trained on training and validation images."""

    model: Model
    study: str
    trial: int  # number of the trial whose configuration was used
    epochs: Mapping[str, int]  # stage -> epochs it was trained for
    images: int  # training and validation images


@dataclass(frozen=True)
class TrainedTrial:
    """A trial that was run once, without a study."""

    metrics: Mapping[str, float]  # on validation images
    score: str  # key of its score, from which models are loaded
    seconds: float
    config: Mapping[str, Json]  # hyperparameter -> value

    def as_json(self) -> JsonObject:
        """The document of `--json`."""
        return {
            "metrics": dict(self.metrics), "score": self.score, "seconds": self.seconds, "config": dict(self.config),
        }  # fmt: skip


def retrain_config(config: TrialConfig, best_epochs: Mapping[str, int]) -> TrialConfig:
    """The configuration with validation images for training, and each stage's best number of epochs (no early stop)."""
    from raz.pipeline.graph import STAGES
    from raz.pipeline.keys import WITH_VALIDATION

    settings: dict[str, int] = {}
    for stage, epochs in best_epochs.items():
        name = STAGES[stage].epochs
        if epochs:  # 0: the stage had no training images, so its number of epochs does not matter
            settings |= {name: epochs, f"{name.removesuffix('epochs')}stop": epochs}
    return replace(configure(config, settings), dataset=config.dataset + WITH_VALIDATION)


def train_final(
    space: SearchSpace, store: Path, data_root: Path | None, log: EventCallback, make: StageProvider | None = None
) -> FinalModel:
    """Retrain the best trial of the space's study; `make` has other processes train. Raises RazError if the study has
    no complete trial."""
    from raz.pipeline.assembly import TrainedStage
    from raz.pipeline.builders import read_state
    from raz.pipeline.graph import Node, declared_inputs
    from raz.pipeline.keys import open_cached, stage_keys
    from raz.pipeline.model import Model
    from raz.pipeline.trial import build_stages
    from raz.store.cache import StageCache

    record = select_trial(store, [space.study], f"{store}#{space.study}")
    searched = model_of_trial(store, record)
    cache = StageCache(store)
    best: dict[str, int] = {}
    for stage, trained in searched.trained.items():
        artifact = cache.get(stage, trained.key)
        if artifact is None:
            raise RazError(f"store {store}", f"stage {stage} {trained.key[:12]} is missing", "run the study again")
        best[stage] = artifact.manifest.best_epoch or 0
    config = retrain_config(searched.config, best)
    nodes = [Node(stage) for stage in searched.trained]
    build_stages(config, store, nodes, data_root=data_root, log=log, make=make)
    keys = stage_keys(config, data_root=data_root, splits=("val",))
    stages = {}
    for node in nodes:
        artifact = cache.find(keys[node])
        if artifact is None:
            raise RazError(f"store {store}", f"{node} was removed after it was made", "run the same command again")
        weights = read_state(artifact.folder / WEIGHTS)
        stages[node.stage] = TrainedStage(keys[node].key, declared_inputs(config, node.stage), weights)
    items = open_cached(config.dataset, data_root).items
    about: JsonObject = {
        **searched.about, "final": True, "epochs": {**best}, "images": len(items["train"]),
        "search": searched.about["stages"], "stages": {stage: trained.key for stage, trained in stages.items()},
    }  # fmt: skip
    model = Model(config, stages, searched.fitted, about)
    return FinalModel(model, record.study, record.number, best, len(items["train"]))


def train_once(
    config: TrialConfig, store: Path, data_root: Path | None, log: EventCallback, make: StageProvider | None = None
) -> TrainedTrial:
    """Run one trial of a configuration without a study; `make` has other processes make its stages."""
    from raz.pipeline.trial import run_trial

    result = run_trial(config, store, data_root=data_root, splits=("val",), log=log, make=make)
    score = next(use.key for use in result.stages if use.stage == "score@val")
    return TrainedTrial(result.metrics, score, result.seconds, parameters(config))
