"""A trial's stages, each found or made once per key, under its lease.

Whoever waits for a stage finds the artifact when its lease is free, and a killed maker's training is continued from
its last epoch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors.torch import save
from torch import Tensor, nn

from raz.config import TrialConfig, parameters
from raz.errors import TrialFailure
from raz.pipeline.context import TrialState
from raz.pipeline.events import Kind, StageEvent, StageUse
from raz.pipeline.failures import DEVICE_OOM, classify
from raz.pipeline.graph import STAGES, Node, chain_key, step_offset
from raz.pipeline.predict_stages import PREDICTORS, score
from raz.pipeline.train_stages import TASKS
from raz.pipeline.training_loop import Checkpoint, TrainedChain, TrialPruned, train
from raz.store.cache import Artifact, StageKey, store_errors, write_json
from raz.store.lease import Lease, LeaseLost
from raz.store.manifest import Manifest
from raz.store.paths import ARRAYS, CURVE, FITTED, METRICS, PER_IMAGE, WEIGHTS
from raz.utils.provenance import environment_versions

EpochCallback = Callable[[int, float], bool]  # (epoch, validation value) of a trained stage -> stop?


@dataclass(frozen=True)
class StageRequest:
    """What a trial lacks next: a trained stage, or a run of inferred ones that may share a process."""

    config: TrialConfig
    nodes: tuple[Node, ...]  # the trial waits for the first
    keys: tuple[StageKey, ...]
    path: tuple[Node, ...]  # all that the trial still has before it, these first
    data_root: Path | None


class StageProvider(Protocol):
    """An engine that has other processes make stages."""

    def begin(self, path: Mapping[Node, StageKey]) -> None:
        """What the trial has before it, in order."""

    def __call__(self, missing: StageRequest, hear: EpochCallback) -> bool | None:
        """Returns when the first of the missing is in the store: whether this trial was the first to ask for it. None:
        make it here. Calls `hear` for the epochs as they are trained; raises as `run_trial`."""


@dataclass
class StageExecutor:
    """The stages of one trial, found or made in order."""

    at: TrialState
    make: StageProvider | None = None
    tell: Callable[[Node, int, float], bool] | None = None
    path: Sequence[Node] = ()
    heard: dict[Node, int] = field(default_factory=dict)  # the last epoch that was told of each stage
    spent: dict[Node, float] = field(default_factory=dict)  # seconds worked for this trial on what it lacked

    def get_or_make(self, node: Node) -> StageUse:
        key = self.at.keys[node]
        found, hit = self.at.cache.find(key), True
        while found is None:
            failure = self.at.cache.failure(key, self.at.device_name)
            if failure is not None:
                raise failure
            paid = self.make(self._missing(node), self._epoch_callback(node)) if self.make is not None else None
            if paid is None:
                found, hit = self._make_locally(node, key)
            else:
                found, hit = self.at.cache.find(key), not paid
                if found is not None and paid:
                    self.spent[node] = found.seconds
        self.at.artifacts[node] = found
        if hit:
            self.at.log(StageEvent("hit", str(node), key.key, seconds=found.seconds))
        if STAGES[node.stage].kind == "trained":
            self._replay(node, found)
        return StageUse(str(node), key.key, hit, found.seconds, self.spent.get(node, 0.0))

    def _make_locally(self, node: Node, key: StageKey) -> tuple[Artifact | None, bool]:
        """The artifact and whether another process made it; None when another has taken over the making."""
        trained = STAGES[node.stage].kind == "trained"
        name = chain_key(key) if trained else key.key
        places = [self.at.cache.paths.stage(node.stage, key.key).parent]
        if trained:
            places.append(self.at.cache.paths.chain(node.stage, name))
        with self.at.cache.lease(f"{node.stage}-{name}", places, self._waiting(node)) as lease:
            found = self.at.cache.find(key)
            if found is not None:
                return found, True
            failure = self.at.cache.failure(key, self.at.device_name)
            if failure is not None:
                raise failure
            self._refetch_evicted()
            try:
                with self._logged(node, key), store_errors(self.at.cache.store), _oom_as_failure(f"stage {node}"):
                    found = self._make_trained(node, key, lease) if trained else self._make(node, key, lease)
            except LeaseLost:
                return None, True
            except TrialFailure as error:
                with store_errors(self.at.cache.store):
                    self.at.cache.record_failure(key, error, self.at.device_name)
                raise
            spent = self.spent.get(node, 0.0)
            self.at.log(StageEvent("finished", str(node), key.key, seconds=found.seconds, spent=spent))
            return found, False

    def _refetch_evicted(self) -> None:
        """What the stage may read, where room was made of it since it was found: it lies in the bucket."""
        if self.at.cache.tier is not None:
            for node in self.at.artifacts:
                self.at.cache.find(self.at.keys[node])

    @contextmanager
    def _logged(self, node: Node, key: StageKey) -> Iterator[None]:
        """Around the making of a stage: tells that it starts and why it stops short, and adds up the seconds spent."""
        began = time.monotonic()
        self.at.log(StageEvent("started", str(node), key.key))
        kind: Kind = "finished"
        reason = ""
        try:
            yield
        except TrialPruned as stop:
            kind, reason = "stopped", f"step {stop.step}"
            raise
        except LeaseLost:
            kind, reason = "stopped", "another process has taken over"
            raise
        except Exception as error:
            kind, reason = "failed", getattr(error, "reason", "") or type(error).__name__
            raise
        finally:
            spent = time.monotonic() - began
            self.spent[node] = self.spent.get(node, 0.0) + spent
            if kind != "finished":
                self.at.log(StageEvent(kind, str(node), key.key, spent=spent, reason=reason))

    def _missing(self, node: Node) -> StageRequest:
        rest = tuple(self.path[self.path.index(node) :])
        nodes = [node]
        if STAGES[node.stage].kind == "inferred":
            for other in rest[1:]:
                if STAGES[other.stage].kind != "inferred":
                    break
                if self.at.cache.find(self.at.keys[other]) is None:
                    nodes.append(other)
        return StageRequest(
            self.at.config, tuple(nodes), tuple(self.at.keys[n] for n in nodes), rest, self.at.data_root
        )

    def _epoch_callback(self, node: Node) -> EpochCallback:
        """Each epoch is told once, whether it is heard live, from a checkpoint or from the store."""

        def hear(epoch: int, value: float) -> bool:
            if self.tell is None or epoch <= self.heard.get(node, 0):
                return False
            self.heard[node] = epoch
            return self.tell(node, epoch, value)

        return hear

    def _waiting(self, node: Node) -> Callable[[], None]:
        told: list[bool] = []

        def wait() -> None:
            if not told:
                self.at.log(StageEvent("waiting", str(node), self.at.keys[node].key))
                told.append(True)

        return wait

    @cached_property
    def _settings(self) -> dict[str, Any]:
        return parameters(self.at.config)  # asked for at every epoch of a curve

    def step(self, node: Node) -> int:
        """Epoch caps of the trained stages before this one, so that steps align among trials."""
        return step_offset(self._settings, node.stage)

    def _replay(self, node: Node, artifact: Artifact) -> None:
        if self.tell is None:
            return
        hear = self._epoch_callback(node)
        for point in json.loads((artifact.folder / CURVE).read_text(encoding="utf-8")):
            if hear(int(point["epoch"]), float(point["value"])):
                raise TrialPruned(self.step(node) + int(point["epoch"]), float(point["value"]))

    def _manifest(self, node: Node, seconds: float, read: Iterable[str] = ()) -> Manifest:
        return Manifest(
            stage=str(node),
            seconds=seconds,
            device=self.at.device_name,
            versions=environment_versions(),
            config=self._settings,
            read=tuple(sorted(read)),
        )

    def _make_trained(self, node: Node, key: StageKey, lease: Lease) -> Artifact:
        path = self.at.cache.paths.checkpoint(node.stage, chain_key(key))
        checkpoint = Checkpoint(path, lease, self.at.cache.tier)

        def heard(point: Mapping[str, float]) -> None:
            self.at.log(
                StageEvent(
                    "epoch", str(node), key.key, epoch=int(point["epoch"]), epochs=config.epochs, loss=point["loss"],
                    value=point["value"], seconds=point["seconds"],
                )
            )  # fmt: skip

        bench = self.at.workbench(node)
        task, config = TASKS[node.stage](bench, bench.given)
        if task is None:  # nothing to learn from: the copy of Main-Net stays as it is
            outcome = TrainedChain(_state(config), 0, 0.0, [])
        else:
            try:
                outcome = train(task, config, checkpoint, self.at.device, self._epoch_callback(node), heard)
            except TrialPruned as stop:
                raise TrialPruned(self.step(node) + stop.step, stop.value) from stop

        def write(folder: Path) -> None:
            weights = {name: value.detach().cpu().contiguous() for name, value in outcome.weights.items()}
            (folder / WEIGHTS).write_bytes(save(weights))
            write_json(folder / CURVE, outcome.curve)

        seconds = sum(point["seconds"] for point in outcome.curve)
        about = replace(
            self._manifest(node, seconds, bench.read), best_epoch=outcome.best_epoch, best_value=outcome.best_value
        )
        return self.at.cache.publish(key, write, about, lease)

    def _make(self, node: Node, key: StageKey, lease: Lease) -> Artifact:
        began = time.monotonic()
        bench = self.at.workbench(node)
        if node.stage == "score":
            scores = score(bench, node, bench.given)

            def write(folder: Path) -> None:
                write_json(folder / METRICS, scores.metrics)
                write_json(folder / FITTED, scores.fitted.as_json())
                # Not compressed: that would take four times as long as writing it, and save a third of the space.
                np.savez(folder / PER_IMAGE, allow_pickle=False, **scores.per_image)
        else:
            arrays = PREDICTORS[node.stage](bench, node, bench.given)

            def write(folder: Path) -> None:
                np.savez(folder / ARRAYS, allow_pickle=False, **arrays)

        cheap = STAGES[node.stage].kind == "computed"  # waiting for the disk would take longer than making it again
        about = self._manifest(node, time.monotonic() - began, bench.read)
        return self.at.cache.publish(key, write, about, lease, durable=not cheap)


@contextmanager
def _oom_as_failure(where: str) -> Iterator[None]:
    """Raises a TrialFailure, which the store notes, where the device's memory ran out."""
    try:
        yield
    except Exception as error:
        if isinstance(error, TrialFailure) or classify(error) != DEVICE_OOM:
            raise
        hint = "set a smaller batch, crop or input.scale"
        raise TrialFailure(where, "the device's memory is full", hint, reason="oom") from error


def _state(modules: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in modules.state_dict().items()}
