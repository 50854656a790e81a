"""A trial whose stages wait instead of computing: what is left is what an engine makes of them.

Imported in every process that makes a stage. Each stage takes its likely price (`raz.planning.cost_model`) times the
part that
`prepare` wrote into the store, and publishes an artifact with what later stages and the engine read of it: a curve,
metrics that follow from the configuration. All else (keys, leases, cache, broker, Tune) is the product's own code.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import time
from contextlib import suppress
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from raz.config import TrialConfig, from_parameters, parameters
from raz.engine.trial_runner import import_function
from raz.pipeline import trial
from raz.pipeline.events import StageEvent
from raz.pipeline.executor import StageExecutor
from raz.pipeline.graph import STAGES, Node, dependency_closure, inputs_of
from raz.planning.cost_model import CostModel, DatasetSizes
from raz.store.cache import Artifact, StageKey, digest, write_json
from raz.store.lease import Lease
from raz.utils.json_types import as_int

RUN, BUILDER = "_waiting:run_trial", "_waiting:make_stages"
EVENTS = 3  # epochs of a stage that are reported, evenly spread: at a small part all of them would be too frequent


class Stated(CostModel):
    """A cost model of priors alone, for data set sizes that were looked up once."""

    def __init__(self, sizes: DatasetSizes) -> None:
        super().__init__(Path(os.devnull), device="cpu")
        self._stated = sizes

    def sizes(self, config: TrialConfig) -> DatasetSizes:
        return self._stated


def prepare(folder: Path, part: float, sizes: DatasetSizes) -> None:
    """Write down the duration of stages, for all processes that work in this store, or in a store in it."""
    write_json(folder / "waiting.json", {"part": part, **asdict(sizes)})


@lru_cache(maxsize=4)
def _prepared(store: Path) -> tuple[float, CostModel]:
    """What `prepare` wrote: the part of its expected duration that a stage waits, and the cost model."""
    folder = next(folder for folder in (store, store.parent) if (folder / "waiting.json").exists())
    document = json.loads((folder / "waiting.json").read_text())
    return float(document["part"]), Stated(DatasetSizes(document["images"], document["megapixels"]))


def _begin(store: Path) -> None:
    """Record when the first stage of the store began."""
    with suppress(FileExistsError), (store / "begun").open("x"):
        pass


def first_stage(store: Path) -> float:
    """Seconds since the epoch when the first stage of this store began; 0 where none has."""
    mark = store / "begun"
    return mark.stat().st_mtime if mark.exists() else 0.0


def seconds(store: Path, config: TrialConfig, node: Node) -> float:
    """How long a stage waits: a part of its expected duration; 0 for a score."""
    part, costs = _prepared(store)
    return 0.0 if node.stage == "score" else part * costs.seconds(config, node)[0].likely


def _value(config: TrialConfig, node: Node) -> float:
    """A validation error to which the value of each parameter that it or a stage before it reads adds its own share:
    a sampler has what to learn, and what shares the stage has the same."""
    resolved = config.resolved()
    values, before = parameters(resolved), dict.fromkeys(each.stage for each in dependency_closure(resolved, [node]))
    read = {name: value for stage in before for name, value in inputs_of(values, stage).items()}
    return 20 + math.fsum(int(digest([name, value])[:8], 16) / 16**8 for name, value in read.items())


def _trained(self: StageExecutor, node: Node, key: StageKey, lease: Lease) -> Artifact:
    took, value = seconds(self.state.cache.store, self.state.config, node), _value(self.state.config, node)
    _begin(self.state.cache.store)
    epochs = as_int(parameters(self.state.config)[STAGES[node.stage].epochs])
    curve = []
    for number in range(1, EVENTS + 1):
        time.sleep(took / EVENTS)
        lease.check()
        epoch = max(1, epochs * number // EVENTS)
        point = {"epoch": epoch, "loss": 1 / epoch, "value": value, "seconds": took / EVENTS}
        curve.append(point)
        event = StageEvent("epoch", str(node), key.key, epoch=epoch, epochs=epochs, value=value)
        self.state.log(event)
        self._epoch_callback(node)(epoch, value)
    about = replace(self._manifest(node), seconds=took)
    return self.state.cache.publish(key, lambda folder: write_json(folder / "curve.json", curve), about, lease)


def _other(self: StageExecutor, node: Node, key: StageKey, lease: Lease) -> Artifact:
    took = seconds(self.state.cache.store, self.state.config, node)
    time.sleep(took)
    found, about = {"mae": _value(self.state.config, node)}, replace(self._manifest(node), seconds=took)
    return self.state.cache.publish(key, lambda folder: write_json(folder / "metrics.json", found), about, lease)


def _waited(self: StageExecutor, node: Node, key: StageKey, lease: Lease) -> Artifact:
    if node.stage != "score":
        importlib.import_module("raz.pipeline.making")  # PyTorch, as a process that computes loads it
    return (_trained if STAGES[node.stage].kind == "trained" else _other)(self, node, key, lease)


def run_trial(config: TrialConfig, store: Path, *, make: Any = None, **options: Any) -> Any:
    StageExecutor._make = _waited  # type: ignore[method-assign]
    if make is not None:
        make.builder = BUILDER
    return trial.run_trial(config, store, make=make, **options)


def make_stages(*given: Any, **options: Any) -> None:
    StageExecutor._make = _waited  # type: ignore[method-assign]
    trial.build_stages(*given, **options)


def alone(given: dict[str, Any]) -> None:
    """A trial of plain Ray Tune: all its stages in its own process, in a store of its own or in one for all trials,
    where leases let each stage be made once."""
    from ray import tune

    config = from_parameters(json.loads(given["configs"])[given["trial"]])
    store = Path(given["store"]) / ("shared" if given["shared"] else f"trial-{given['trial']}")
    found = import_function(given["run_trial"])(config, store).metrics
    tune.report({"mae": found["val.mae"], "found": json.dumps(found)})
