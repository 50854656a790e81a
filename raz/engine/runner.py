"""Runs the trials of a search or of a table, in this process or on Ray."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from raz.config import PAPER_BACKBONE, BackboneConfig, TrialConfig
from raz.engine.events import TrialEvents
from raz.engine.inline import run_inline
from raz.engine.interrupt import STOPPING, StopRequest
from raz.engine.ray_session import parallel_slots, session, set_ray_environment
from raz.engine.trial_runner import DEFAULT_RUN_TRIAL
from raz.engine.trial_source import TrialSource
from raz.spec.search_space import SearchSpace


@dataclass(frozen=True)
class Execution:
    """Where and how the trials of a run are executed."""

    store: Path
    data_root: Path | None = None
    run_trial: str = DEFAULT_RUN_TRIAL  # dotted name of the function that runs one
    slots: int = 1  # stages that are made at a time
    threads: int = 1  # CPUs of one stage
    inline: bool = False  # in this process, one trial after the other, without Ray
    cpus: int | None = None  # of a local session; None: those of `slots` stages


def parallel_trials(space: SearchSpace, jobs: int | None = None) -> int:
    """Stages of a search that may run at a time: `jobs` of them, else as `parallel_slots`."""
    return jobs if jobs is not None else parallel_slots(space.threads, space.resources)


@contextmanager
def engine_session(execution: Execution) -> Iterator[None]:
    """Ray is up within the context, and what runs there shares it. Does nothing where trials run in this process."""
    if execution.inline:
        yield
        return
    set_ray_environment()  # before the imports in the thread, at which Ray reads it
    loading = threading.Thread(target=_load_tune, daemon=True)
    loading.start()
    with session(execution.cpus or execution.slots * execution.threads):
        loading.join()
        yield


def _load_tune() -> None:
    """Import what runs trials on Ray while Ray's processes start: both take seconds."""
    with suppress(ImportError):  # raised again where it is imported next
        importlib.import_module("raz.engine.tune_runner")


def run_trials(source: TrialSource, execution: Execution, events: TrialEvents, stop: StopRequest | None = None) -> None:
    """Runs the trials that the source has left, until a stop is requested.

    Raises OSError for an error that every trial would meet, such as a full disk; RunInterrupted as `handle_signals`.
    """
    if not source.left:
        return
    if stop is not None:
        stop.on_signal = lambda: events.stopping(STOPPING)
    if execution.inline:
        run_inline(
            source, execution.store, data_root=execution.data_root, run_trial=execution.run_trial, events=events,
            stop=stop,
        )  # fmt: skip
        return
    set_ray_environment()  # before the import below, at which Ray reads it
    from raz.engine.tune_runner import run_tuned

    run_tuned(
        source, execution.store, data_root=execution.data_root, run_trial=execution.run_trial, events=events,
        jobs=min(execution.slots, source.left), threads=execution.threads, stop=stop,
    )  # fmt: skip


def check_data(config: TrialConfig, data_root: Path | None) -> None:
    """Raises RazError when the data set or the backbone cannot be opened, before any trial runs."""
    from raz.data import open_dataset

    open_dataset(config.dataset, data_root)
    check_backbone(config.backbone)


def check_backbone(config: BackboneConfig) -> None:
    """Raises RazError for a backbone that is not there, or whose weights are missing or wrong: it would fail every
    trial."""
    if config.weights != "none" or config.name != PAPER_BACKBONE:
        from raz.pipeline.backbones import build_backbone  # imports torch

        build_backbone(config, seed=0)


def check_searched_backbones(space: SearchSpace) -> None:
    """Raises RazError for a name of a backbone that a search space may draw and that is none."""
    for parameter in space.parameters:
        for value in parameter.choices:
            name = (parameter.settings(value) if parameter.sets else {parameter.name: value}).get("backbone.name")
            if isinstance(name, str):
                check_backbone(BackboneConfig(name, weights="none"))
