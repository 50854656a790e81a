"""The stages of a trial: each is found in the store, or made once under its lease.

A process that waits for a stage finds its artifact once the lease is released. If a process is killed while it trains,
the next one resumes from the last epoch. A process that has others run its networks imports no torch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from raz.config import TrialConfig, parameters
from raz.errors import FailureReason, TrialFailure
from raz.pipeline.device import memory_is_shared
from raz.pipeline.device_memory import WHOLE_IMAGES, full_memory_as_failure
from raz.pipeline.events import EventKind, StageEvent, StageUse, TrialPruned
from raz.pipeline.graph import STAGES, Node, chain_key, step_offset
from raz.pipeline.score_stage import score
from raz.pipeline.stage_context import TrialState
from raz.store.cache import Artifact, StageKey, store_errors, write_json
from raz.store.failures import Device
from raz.store.lease import Lease, LeaseLost
from raz.store.manifest import Manifest
from raz.store.paths import CURVE, FITTED, METRICS, PER_IMAGE
from raz.utils.json_types import Json
from raz.utils.provenance import environment_versions

EpochCallback = Callable[[int, float], bool]  # (epoch, validation value) of a trained stage -> stop?


@dataclass(frozen=True)
class StageRequest:
    """The stages that a trial needs next: a trained stage, or consecutive inferred stages that may share a process."""

    config: TrialConfig
    nodes: tuple[Node, ...]  # the trial waits for the first
    keys: tuple[StageKey, ...]  # of `nodes`
    path: tuple[Node, ...]  # every stage that the trial still needs, `nodes` first
    data_root: Path | None


class StageProvider(Protocol):
    """An engine that has other processes make stages."""

    def begin(self, path: Mapping[Node, StageKey], /) -> None:
        """Called once with every stage of the trial, in order."""

    def __call__(self, request: StageRequest, on_epoch: EpochCallback, /) -> bool | None:
        """Return when the first node of the request is in the store.

        Returns whether this trial was the first to request it; None where this process is to make it. Calls
        `on_epoch` for each epoch that is trained meanwhile. Raises as `raz.pipeline.trial.run_trial`.
        """


@dataclass
class StageExecutor:
    """Finds or makes the stages of one trial, in order."""

    state: TrialState
    provider: StageProvider | None = None
    on_epoch: Callable[[Node, int, float], bool] | None = None  # (node, epoch, validation value) -> stop?
    path: Sequence[Node] = ()  # every stage of the trial, in order; for a provider
    last_epoch: dict[Node, int] = field(default_factory=dict)  # the last epoch that `on_epoch` was called for
    spent: dict[Node, float] = field(default_factory=dict)  # seconds of work on stages that the store lacked
    batched: set[Node] = field(default_factory=set)  # requested from the provider together with a stage before them

    def get_or_make(self, node: Node, *, announced: bool = False) -> StageUse:
        """Find the stage or make it, and put its artifact into `state.artifacts`. Raises as `run_trial`.

        announced: another process said that it has made the stage; one that this machine sees late is waited for.
        """
        cache, key = self.state.cache, self.state.keys[node]
        artifact, hit = cache.find_announced(key) if announced else cache.find(key), True
        if artifact is not None and node in self.batched:  # made meanwhile: the provider knows for whom
            hit = not self._request_from_provider(node)
            if not hit:
                self.spent[node] = artifact.seconds
        # What a provider's processes run on is known there; this process may see other devices, or none.
        elsewhere = self.provider is not None and STAGES[node.stage].kind != "computed"
        while artifact is None:
            self._raise_known_failure(key, None if elsewhere else self.state.hardware)
            first = self._request_from_provider(node)
            if first is None:
                artifact, hit = self._make_locally(node, key)
                continue
            artifact, hit = cache.find_announced(key), not first
            if artifact is not None and first:
                self.spent[node] = artifact.seconds
        self.state.artifacts[node] = artifact
        if hit:
            self.state.log(StageEvent("hit", str(node), key.key, seconds=artifact.seconds))
        if STAGES[node.stage].kind == "trained":
            self._replay(node, artifact)
        return StageUse(str(node), key.key, hit, artifact.seconds, self.spent.get(node, 0.0))

    def _request_from_provider(self, node: Node) -> bool | None:
        """What the provider answers to a request for the node (see StageProvider); None without a provider."""
        if self.provider is None:
            return None
        request = self._request(node)
        self.batched.update(request.nodes[1:])
        return self.provider(request, self._epoch_callback(node))

    def step_before(self, node: Node) -> int:
        """The trial's step before a trained stage's first epoch: the epoch caps of the stages before it."""
        return step_offset(self._parameters, node.stage)

    # ------------------------------------------------------------------ making a stage in this process

    def _make_locally(self, node: Node, key: StageKey) -> tuple[Artifact | None, bool]:
        """The artifact, and whether another process made it. The artifact is None if this process lost the lease."""
        cache, trained = self.state.cache, STAGES[node.stage].kind == "trained"
        name = chain_key(key) if trained else key.key
        folders = [cache.paths.stage(node.stage, key.key).parent]
        if trained:
            folders.append(cache.paths.chain(node.stage, name))
        with cache.lease(f"{node.stage}-{name}", folders, self._waiting_callback(node)) as lease:
            artifact = cache.find_fresh(key)
            if artifact is not None:
                return artifact, True
            self._raise_known_failure(key, self.state.hardware)
            self._refetch_evicted()
            hint = "set a smaller batch, crop or input.scale" if trained else f"{WHOLE_IMAGES}; or predict.scale"
            try:
                with self._logged(node, key), store_errors(cache.store), full_memory_as_failure(f"stage {node}", hint):
                    artifact = self._make(node, key, lease)
            except LeaseLost:
                return None, True
            except TrialFailure as error:
                if error.reason != FailureReason.OOM or not memory_is_shared():  # else it may fit when they have ended
                    with store_errors(cache.store):
                        cache.record_failure(key, error, self.state.hardware)
                raise
            spent = self.spent.get(node, 0.0)
            self.state.log(StageEvent("finished", str(node), key.key, seconds=artifact.seconds, spent=spent))
            return artifact, False

    def _make(self, node: Node, key: StageKey, lease: Lease) -> Artifact:
        """Run the stage's function, and publish what it made."""
        kind, manifest = STAGES[node.stage].kind, self._manifest(node)
        if kind == "computed":
            return self._make_score(node, key, lease, manifest)
        from raz.pipeline import making  # imports torch

        if kind == "inferred":
            return making.make_inferred(self.state, node, key, lease, manifest)
        offset = self.step_before(node)
        return making.make_trained(self.state, node, key, lease, manifest, self._epoch_callback(node), offset)

    def _make_score(self, node: Node, key: StageKey, lease: Lease, manifest: Manifest) -> Artifact:
        began = time.monotonic()
        context = self.state.context(node)
        scores = score(context)

        def write(folder: Path) -> None:
            write_json(folder / METRICS, scores.metrics)
            write_json(folder / FITTED, scores.fitted.as_json())
            # Compressing takes four times as long as writing, and saves a third of the space.
            np.savez(folder / PER_IMAGE, allow_pickle=False, **scores.per_image)

        manifest = replace(
            manifest, seconds=time.monotonic() - began, read=tuple(sorted(context.read)),
            # For reports: a pull brings scores without the stages that they were made from.
            devices={str(n): self.state.artifacts[n].manifest.device for n in context.folders},
        )  # fmt: skip
        # Not flushed to disk, which takes longer than making it again.
        return self.state.cache.publish(key, write, manifest, lease, durable=False)

    def _manifest(self, node: Node) -> Manifest:
        """What is known of a stage before it is made."""
        return Manifest(
            stage=str(node), device=self.state.device_name, versions=environment_versions(), config=self._parameters
        )

    def _raise_known_failure(self, key: StageKey, device: Device | None) -> None:
        failure = self.state.cache.failure(key, device)
        if failure is not None:
            raise failure

    def _refetch_evicted(self) -> None:
        """Fetch again any artifact that cache eviction removed after it was found."""
        if self.state.cache.tier is not None:
            for node in self.state.artifacts:
                self.state.cache.find(self.state.keys[node])

    # ------------------------------------------------------------------ requests and events

    def _request(self, node: Node) -> StageRequest:
        """What to ask the provider for: the node, and the inferred stages right after it that the store lacks."""
        state = self.state
        rest = tuple(self.path[self.path.index(node) :])
        nodes = [node]
        if STAGES[node.stage].kind == "inferred":
            for other in rest[1:]:
                if STAGES[other.stage].kind != "inferred":
                    break
                if state.cache.find(state.keys[other]) is None:
                    nodes.append(other)
        return StageRequest(state.config, tuple(nodes), tuple(state.keys[n] for n in nodes), rest, state.data_root)

    @contextmanager
    def _logged(self, node: Node, key: StageKey) -> Iterator[None]:
        """Log that a stage starts, and why it ends early; add the seconds to `spent`."""
        began = time.monotonic()
        self.state.log(StageEvent("started", str(node), key.key))
        kind: EventKind = "finished"
        reason = ""
        try:
            yield
        except TrialPruned as pruned:
            kind, reason = "stopped", f"step {pruned.step}"
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
                self.state.log(StageEvent(kind, str(node), key.key, spent=spent, reason=reason))

    def _epoch_callback(self, node: Node) -> EpochCallback:
        """A callback that reports each epoch once, whether it is trained now or read from a checkpoint or the store."""

        def on_epoch(epoch: int, value: float) -> bool:
            if self.on_epoch is None or epoch <= self.last_epoch.get(node, 0):
                return False
            self.last_epoch[node] = epoch
            return self.on_epoch(node, epoch, value)

        return on_epoch

    def _waiting_callback(self, node: Node) -> Callable[[], None]:
        """A callback that logs once that another process holds the lease."""
        logged = False

        def on_wait() -> None:
            nonlocal logged
            if not logged:
                self.state.log(StageEvent("waiting", str(node), self.state.keys[node].key))
                logged = True

        return on_wait

    def _replay(self, node: Node, artifact: Artifact) -> None:
        """Report the epochs of a stage that came from the store. Raises TrialPruned if `on_epoch` returns True."""
        if self.on_epoch is None:
            return
        on_epoch = self._epoch_callback(node)
        for point in json.loads((artifact.folder / CURVE).read_text(encoding="utf-8")):
            if on_epoch(int(point["epoch"]), float(point["value"])):
                raise TrialPruned(self.step_before(node) + int(point["epoch"]), float(point["value"]))

    @cached_property
    def _parameters(self) -> dict[str, Json]:
        return parameters(self.state.config)  # cached: `step_before` is called for every epoch
