"""The screen of a run: its state summed over events, and the drawing of it.

Several trials may wait for one stage, and each reports its events. So stages are identified by their keys, and an epoch
counts once.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raz.pipeline.events import StageEvent, StageUse
from raz.study.records import Outcome, TrialRecord
from raz.study.trial_status import TrialStatus
from raz.utils.formatting import assignments, duration
from raz.utils.json_types import Json

MAX_STAGE_LINES = 8  # running stages that are shown
MAX_PRUNED_SHOWN = 3  # pruned trials that are shown, the last ones
RECENT_EPOCHS = 5  # epochs whose mean duration predicts that of the next ones


@dataclass
class RunningStage:
    """A stage that is being built."""

    name: str
    began: float  # by the view's clock
    epoch: int = 0
    epochs: int = 0
    loss: float | None = None
    value: float | None = None
    seconds: list[float] = field(default_factory=list)  # of the last RECENT_EPOCHS
    trials: set[int] = field(default_factory=set)  # that wait for it

    def left(self, now: float) -> float | None:
        """Seconds until the last epoch, if it does not stop early; None before the first epoch or image."""
        if not self.epoch:
            return None
        per_epoch = sum(self.seconds) / len(self.seconds) if self.seconds else (now - self.began) / self.epoch
        return per_epoch * (self.epochs - self.epoch)


class ProgressView:
    """The state of a run, updated by the methods of TrialEvents. `clock()` returns seconds."""

    def __init__(
        self, title: str, total: int, metric: str, direction: str = "minimize",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.title, self.total, self.metric, self.direction = title, total, metric, direction
        self.clock, self.began = clock, clock()
        self.trials: dict[int, Mapping[str, Json]] = {}  # running trials and their values
        self.running: dict[str, RunningStage] = {}
        self.waiting: dict[str, set[int]] = {}  # key -> trials
        self.made: set[str] = set()
        self.stored: set[str] = set()  # found in the store, and not made in this run
        self.ended = 0  # trials
        self.best: TrialRecord | None = None
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.pruned: list[str] = []
        self.failed: list[str] = []
        self.spent = self.saved = 0.0
        self.stopping = ""

    # ------------------------------------------------------------------ events

    def started(self, number: int, values: Mapping[str, Json]) -> None:
        self.trials[number] = values

    def stage(self, number: int, event: StageEvent) -> None:
        key = event.key
        if event.kind == "waiting":
            if key not in self.running and key not in self.made:
                self.waiting.setdefault(key, set()).add(number)
        elif event.kind == "hit":
            self._leave(key, number)
            if key not in self.made and key not in self.running:
                self.stored.add(key)
        elif event.kind in ("started", "epoch", "images"):
            if key in self.made:
                return  # the late event of a trial that waited for it
            stage = self.running.get(key)
            if stage is None:
                stage = self.running[key] = RunningStage(event.stage, self.clock())
                stage.trials |= self.waiting.pop(key, set())
            stage.trials.add(number)
            if event.kind != "started" and event.epoch > stage.epoch:
                stage.epoch, stage.epochs, stage.loss, stage.value = event.epoch, event.epochs, event.loss, event.value
                if event.kind == "epoch":
                    stage.seconds = [*stage.seconds, event.seconds][-RECENT_EPOCHS:]
        elif event.kind == "finished":
            self.running.pop(key, None)
            self.waiting.pop(key, None)
            self.made.add(key)
        elif event.kind in ("stopped", "failed"):
            self.running.pop(key, None)

    def finished(self, record: TrialRecord) -> None:
        self.counts[record.state] += 1
        if record.state == TrialStatus.COMPLETE and record.value is not None:
            sign = 1 if self.direction == "minimize" else -1
            if self.best is None or self.best.value is None or sign * record.value < sign * self.best.value:
                self.best = record
        elif record.state == TrialStatus.PRUNED:
            at = f" at step {record.pruned_at[0]} ({record.pruned_at[1]:.4g})" if record.pruned_at else ""
            self.pruned.append(f"trial {record.number}{at}")
        elif record.state == TrialStatus.FAILED:
            self.reasons[record.reason] += 1
            first = record.message.splitlines()[0] if record.message else ""
            self.failed.append(f"trial {record.number}: {record.reason} {first}")
        self._add_compute(record.stages)
        self.done(record.number)

    def table_trial_finished(self, text: str, outcome: Outcome) -> None:
        """How a trial of a table ended; `text` is its line."""
        self.counts[outcome.state] += 1
        if outcome.state == TrialStatus.FAILED:
            self.reasons[outcome.reason] += 1
            self.failed.append(text)
        self._add_compute(outcome.stages)

    def _add_compute(self, stages: Sequence[StageUse]) -> None:
        spent, saved = spent_and_saved_seconds(stages)
        self.spent += spent
        self.saved += saved

    def done(self, number: int) -> None:
        self.ended += 1
        self.trials.pop(number, None)
        for key in [*self.waiting, *self.running]:
            self._leave(key, number)

    def _leave(self, key: str, number: int) -> None:
        """Removes a trial from a stage. A stage without trials is no longer stage."""
        for trials in (self.waiting.get(key), self.running[key].trials if key in self.running else None):
            if trials is not None:
                trials.discard(number)
        if key in self.waiting and not self.waiting[key]:
            del self.waiting[key]
        if key in self.running and not self.running[key].trials:
            del self.running[key]

    # ------------------------------------------------------------------ the screen

    def __rich__(self) -> RenderableType:
        now = self.clock()
        parts: list[RenderableType] = [self._head(now)]
        if self.running:
            parts.append(self._stages(now))
        elif not (self.waiting or self.made or self.stored or self.ended):
            # Under Ray about ten processes import torch first: seconds, on a busy machine a minute.
            parts.append(Text("  starting: no stage has begun yet", style="dim"))
        parts.append(self._facts())
        if self.stopping:
            parts.append(Text(self.stopping, style="yellow"))
        return Group(*parts)

    def _head(self, now: float) -> RenderableType:
        grid = Table.grid(padding=(0, 1), expand=False)
        counts = f"{self.ended}/{self.total} trials"
        if self.trials:
            counts += f", {len(self.trials)} running"
        grid.add_row(
            Text(self.title, style="bold"), ProgressBar(total=max(1, self.total), completed=self.ended, width=24),
            Text(counts), Text(duration(now - self.began), style="dim"),
        )  # fmt: skip
        return grid

    def _stages(self, now: float) -> RenderableType:
        grid = Table.grid(padding=(0, 1), expand=False)
        for _ in range(5):
            grid.add_column(no_wrap=True)
        for stage in list(self.running.values())[:MAX_STAGE_LINES]:
            bar = ProgressBar(total=max(1, stage.epochs), completed=stage.epoch, width=16)
            curve = [f"loss {stage.loss:.4g}"] if stage.loss is not None else []
            curve += [f"val {stage.value:.4g}"] if stage.value is not None else []
            left = stage.left(now)
            about = f"{duration(left)} left" if left is not None else f"for {duration(now - stage.began)}"
            count = len(stage.trials)
            numbers = ", ".join(map(str, sorted(stage.trials)[:3]))
            trials = f"{'trial' if count == 1 else 'trials'} {numbers}{' …' if count > 3 else ''}"
            epochs = f"{stage.epoch}/{stage.epochs}" if stage.epochs else ""
            grid.add_row(f"  {stage.name}", bar, epochs, Text("  ".join([*curve, about])), Text(trials, style="dim"))
        if len(self.running) > MAX_STAGE_LINES:
            grid.add_row(f"  and {len(self.running) - MAX_STAGE_LINES} more")
        return grid

    def _facts(self) -> RenderableType:
        grid = Table.grid(padding=(0, 2), expand=False)
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        grid.add_row(
            "stages",
            f"{len(self.made)} made, {len(self.running)} running, {len(self.waiting)} waiting,"
            f" {len(self.stored)} from the store",
        )
        if self.best is not None and self.best.value is not None:
            best = f"trial {self.best.number}, {self.metric} {self.best.value:.4g}  {assignments(self.best.values)}"
            grid.add_row("best", Text(best, style="green"))
        if self.pruned:
            grid.add_row("pruned", _last(self.pruned))
        if self.failed:
            reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(self.reasons.items()))
            grid.add_row("failed", Text(f"{reasons}: {self.failed[-1]}", style="red"))
        grid.add_row("compute", spent_and_saved(self.spent, self.saved))
        return grid


def _last(lines: list[str]) -> str:
    return f"{len(lines)}: " + ", ".join(lines[-MAX_PRUNED_SHOWN:])


def spent_and_saved_seconds(stages: Sequence[StageUse]) -> tuple[float, float]:
    """Seconds spent on a trial's stages, and seconds saved by stages that other trials had made."""
    return sum(use.spent for use in stages), sum(use.seconds for use in stages if use.hit)


def spent_and_saved(spent: float, saved: float) -> str:
    """`2 min 20 s spent, 1 h 18 min saved by sharing (34 times less)`"""
    times = f" ({(spent + saved) / spent:.1f} times less)" if saved and spent else ""
    return f"{duration(spent)} spent, {duration(saved)} saved by sharing{times}"
