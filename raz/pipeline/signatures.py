"""Types of the functions that run a trial and build its stages. Engines and tests can replace these functions.
Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from raz.config import TrialConfig
from raz.pipeline.events import EventCallback, Progress
from raz.pipeline.graph import Node

if TYPE_CHECKING:  # these take a while to import
    from raz.pipeline.executor import StageProvider
    from raz.pipeline.trial import TrialResult


class RunTrial(Protocol):
    """A function with the signature of `raz.pipeline.trial.run_trial`."""

    def __call__(
        self,
        config: TrialConfig,
        store: Path,
        *,
        data_root: Path | None = None,
        splits: tuple[str, ...] = ("val",),
        progress: Progress | None = None,
        log: EventCallback | None = None,
        make: StageProvider | None = None,
    ) -> TrialResult: ...


class BuildStages(Protocol):
    """A function with the signature of `raz.pipeline.trial.build_stages`."""

    def __call__(
        self,
        config: TrialConfig,
        store: Path,
        nodes: Sequence[Node],
        *,
        data_root: Path | None = None,
        on_epoch: Callable[[Node, int, float], bool] | None = None,
        on_made: Callable[[Node], None] | None = None,
        log: EventCallback | None = None,
        needs_made: bool = False,
    ) -> None: ...
