"""Run a trial: find or make each of its stages, and read its metrics. Needs no engine.

Engines call `run_trial`. An engine that has other processes make the stages passes `make`; those processes call
`build_stages`. With `make` no torch is imported.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from raz.config import TrialConfig
from raz.pipeline.events import EventCallback, Progress, StageEvent, StageUse
from raz.pipeline.executor import StageExecutor, StageProvider
from raz.pipeline.graph import STAGES, Node, dependency_closure, topological_order
from raz.pipeline.keys import open_cached, stage_keys
from raz.pipeline.malloc import keep_freed_memory
from raz.pipeline.scoring import check_validation_images
from raz.pipeline.stage_context import TrialState
from raz.store.cache import Artifact, StageCache
from raz.store.paths import METRICS


@dataclass(frozen=True)
class TrialResult:
    """What a finished trial gives."""

    metrics: dict[str, float]  # by dotted name: `val.mae`, `test.ap50@40`
    stages: tuple[StageUse, ...]  # in topological order
    seconds: float  # wall-clock time, waiting included
    device: str = ""  # see `devices_of`
    data: Mapping[str, str] = field(default_factory=dict)  # split -> fingerprint of its images


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
    """Find or make every stage of a trial, and return its metrics.

    progress: called with (step, validation value) of each epoch of each trained stage, also of stages from the store;
        steps count the epoch caps of the stages before. True stops the trial.
    log: called with each event of a stage; `print` will do.
    make: has other processes make the stages.
    Raises TrialPruned when `progress` stops, TrialFailure with its reason when the trial gives no score, RazError for
    what the user can correct.
    """
    began = time.monotonic()
    state = _trial_state(config, store, data_root, log, make)
    executor = StageExecutor(state, make)
    if progress is not None:
        executor.on_epoch = lambda node, epoch, value: progress(executor.step_before(node) + epoch, value)
    _check_scores(state, splits)
    with _threads(config.threads) if make is None else nullcontext():
        executor.path = topological_order(state.config, splits)
        if make is not None:
            make.begin({node: state.keys[node] for node in executor.path})
        uses = [executor.get_or_make(node) for node in executor.path]
        metrics: dict[str, float] = {}
        for split in splits:
            metrics |= _read_metrics(state.artifacts[Node("score", split)], split)
    data = {split: value for node in state.artifacts for split, value in state.keys[node].data.items()}
    return TrialResult(metrics, tuple(uses), time.monotonic() - began, devices_of(state.artifacts), data)


def stored_trial(
    config: TrialConfig,
    store: Path,
    *,
    data_root: Path | None = None,
    splits: tuple[str, ...] = ("val",),
    progress: Progress | None = None,
    log: EventCallback | None = None,
    make: StageProvider | None = None,
) -> TrialResult:
    """`run_trial` of a trial whose scores are in the store: reads them, and makes nothing that they were made from,
    since a pull brings no weights. Its stages are those that the store holds. A trial without its scores is run."""
    began = time.monotonic()
    state = _trial_state(config, store, data_root, log)
    nodes = topological_order(state.config, splits)
    artifacts = {node: artifact for node in nodes if (artifact := state.cache.find(state.keys[node])) is not None}
    if any(Node("score", split) not in artifacts for split in splits):
        return run_trial(
            config, store, data_root=data_root, splits=splits, progress=progress, log=log, make=make
        )  # fmt: skip
    uses = []
    for node, artifact in artifacts.items():
        key = state.keys[node].key
        state.log(StageEvent("hit", str(node), key, seconds=artifact.seconds))
        uses.append(StageUse(str(node), key, True, artifact.seconds))
    metrics: dict[str, float] = {}
    for split in splits:
        metrics |= _read_metrics(artifacts[Node("score", split)], split)
    data = {split: value for node in nodes for split, value in state.keys[node].data.items()}
    return TrialResult(metrics, tuple(uses), time.monotonic() - began, devices_of(artifacts), data)


def devices_of(artifacts: Mapping[Node, Artifact]) -> str:
    """The devices that trained and ran the networks, from the manifests, joined by `, `. A score uses no network, and
    names the devices of those that it was made from."""
    devices = {a.manifest.device for node, a in artifacts.items() if STAGES[node.stage].kind != "computed"}
    devices |= {device for artifact in artifacts.values() for device in artifact.manifest.devices.values()}
    return ", ".join(sorted(devices - {""}))


def build_stages(
    config: TrialConfig,
    store: Path,
    nodes: Sequence[Node],
    *,
    data_root: Path | None = None,
    on_epoch: Callable[[Node, int, float], bool] | None = None,
    on_made: Callable[[Node], None] | None = None,
    log: EventCallback | None = None,
    needs_made: bool = False,
    make: StageProvider | None = None,
) -> None:
    """Find or make these stages of a trial, in order, and the stages that they need.

    needs_made: other processes have made the stages that these need, perhaps a moment ago on another machine.
    on_epoch: called with (node, epoch, validation value) of each epoch of `nodes`; True stops the trial.
    on_made: called with each of `nodes` when it is in the store.
    make: has other processes make the stages.
    Raises as `run_trial`.
    """
    state = _trial_state(config, store, data_root, log, make)
    executor = StageExecutor(state, make, path=dependency_closure(state.config, nodes))
    if make is not None:
        make.begin({node: state.keys[node] for node in executor.path})
    with _threads(config.threads) if make is None else nullcontext():
        for node in executor.path:
            executor.on_epoch = on_epoch if node in nodes else None
            executor.get_or_make(node, announced=needs_made and node not in nodes)
            if on_made is not None and node in nodes:
                on_made(node)


def forget_failures(
    config: TrialConfig, store: Path, *, data_root: Path | None = None, splits: tuple[str, ...] = ("val",)
) -> int:
    """Delete the recorded failures of a trial's stages, so that they are tried again. Returns their number."""
    cache = _cache(Path(store))
    return sum(cache.clear_failure(key) for key in stage_keys(config, data_root=data_root, splits=splits).values())


def _trial_state(
    config: TrialConfig,
    store: Path,
    data_root: Path | None,
    log: EventCallback | None,
    make: StageProvider | None = None,
) -> TrialState:
    log = log or (lambda _: None)
    return TrialState(config.resolved(), _cache(Path(store)), data_root, log, scores_only=make is not None)


def _check_scores(state: TrialState, splits: tuple[str, ...]) -> None:
    """Raise TrialFailure for a score that there are too few validation images for, before anything is trained."""
    config, images = state.config, len(open_cached(state.config.dataset, state.data_root).items["val"])
    for split in splits:
        check_validation_images(split, images, config.peaks, config.fusion, with_train=True)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Set torch's number of threads, and restore it at the end."""
    import torch

    keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=4)
def _cache(store: Path) -> StageCache:
    """One per process, so that an artifact is verified once, not once per trial."""
    return StageCache(store)


def _read_metrics(artifact: Artifact, split: str) -> dict[str, float]:
    values = json.loads((artifact.folder / METRICS).read_text(encoding="utf-8"))
    return {f"{split}.{name}": float(value) for name, value in values.items()}
