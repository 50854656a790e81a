"""A trial: its stages found or made, each once per key, and its metrics. Runs in a plain Python shell.

`run_trial(config, store)` is all that engines call. A stage is made under its lease: whoever waits for it finds
the artifact when the lease is free, and a killed maker's training is continued from its last epoch. An engine
that has other processes make the stages gives `make`, and these call `make_stages`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch

from raz.config import TrialConfig
from raz.pipeline.context import TrialState
from raz.pipeline.events import EventCallback, StageUse
from raz.pipeline.executor import StageExecutor, StageProvider
from raz.pipeline.graph import STAGES, Node, dependency_closure, topological_order
from raz.pipeline.keys import stage_keys
from raz.pipeline.malloc import keep_freed_memory
from raz.pipeline.training_loop import Progress
from raz.store.cache import Artifact, StageCache
from raz.store.paths import METRICS


@dataclass(frozen=True)
class TrialResult:
    """Metrics by dotted name (`val.mae`, `test.ap50@40` …), the stages behind them, the trial's own seconds."""

    metrics: dict[str, float]
    stages: tuple[StageUse, ...]
    seconds: float
    device: str = ""  # on which its networks were trained and run, wherever the trial itself was
    data: Mapping[str, str] = field(default_factory=dict)  # split -> fingerprint of what was read


def run_trial(
    config: TrialConfig,
    store: Path,
    *,
    data_root: Path | None = None,
    splits: tuple[str, ...] = ("val",),
    progress: Progress | None = None,
    log: EventCallback | None = None,
    make: StageProvider | None = None,
) -> TrialResult:
    """Make what is missing of a trial and return its metrics.

    `progress(step, value) -> stop?` hears each epoch of each trained stage, steps cumulated over the stages'
    epoch caps, also those of stages found in the store. `log` hears what happens to each stage; `print` will do.
    Raises Pruned when it says stop, TrialFailure with
    its reason when the trial cannot give a number, RazError for what the user can put right.
    """
    began = time.monotonic()
    state = _trial_state(config, store, data_root, log)
    executor = StageExecutor(state, make)
    if progress is not None:
        executor.on_epoch = lambda node, epoch, value: progress(executor.step_before(node) + epoch, value)
    with _threads(config.threads):
        executor.path = topological_order(state.config, splits)
        if make is not None:
            make.begin({node: state.keys[node] for node in executor.path})
        uses = [executor.get_or_make(node) for node in executor.path]
        metrics: dict[str, float] = {}
        for split in splits:
            metrics |= _read_metrics(state.artifacts[Node("score", split)], split)
    data = {split: value for node in state.artifacts for split, value in state.keys[node].data.items()}
    return TrialResult(metrics, tuple(uses), time.monotonic() - began, devices_of(state.artifacts), data)


def devices_of(artifacts: Mapping[Node, Artifact]) -> str:
    """Where the networks of a trial were trained and run, as its stages tell; a score runs wherever it is asked for."""
    devices = {a.manifest.device for node, a in artifacts.items() if STAGES[node.stage].kind != "computed"}
    return ", ".join(sorted(devices - {""}))


def build_stages(
    config: TrialConfig,
    store: Path,
    nodes: Sequence[Node],
    *,
    data_root: Path | None = None,
    tell: Callable[[Node, int, float], bool] | None = None,
    made: Callable[[Node], None] | None = None,
    log: EventCallback | None = None,
) -> None:
    """Make these stages of a trial, in order, and what is missing of their needs.

    `tell(node, epoch, value) -> stop?` hears each epoch of those that are trained, `made(node)` when each is in
    the store. Raises as `run_trial`.
    """
    state = _trial_state(config, store, data_root, log)
    executor = StageExecutor(state)
    with _threads(config.threads):
        for node in dependency_closure(state.config, nodes):
            executor.on_epoch = tell if node in nodes else None
            executor.get_or_make(node)
            if made is not None and node in nodes:
                made(node)


def forget_failures(
    config: TrialConfig, store: Path, *, data_root: Path | None = None, splits: tuple[str, ...] = ("val",)
) -> int:
    """Lets the stages of a trial that failed by their own fault be tried again; how many there were."""
    cache = _cache(Path(store))
    return sum(cache.clear_failure(key) for key in stage_keys(config, data_root=data_root, splits=splits).values())


def _trial_state(config: TrialConfig, store: Path, data_root: Path | None, log: EventCallback | None) -> TrialState:
    return TrialState(config.resolved(), _cache(Path(store)), data_root, log or (lambda _: None))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=4)
def _cache(store: Path) -> StageCache:
    """One a process, so that an artifact is read through once, not once a trial."""
    return StageCache(store)


def _read_metrics(artifact: Artifact, split: str) -> dict[str, float]:
    values = json.loads((artifact.folder / METRICS).read_text(encoding="utf-8"))
    return {f"{split}.{name}": float(value) for name, value in values.items()}
