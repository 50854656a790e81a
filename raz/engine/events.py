"""What the person watching a run sees: a bar on a terminal, one line an event otherwise."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from raz.pipeline.told import StageEvent
from raz.study.ledger import TrialRecord


class Events(Protocol):
    """What an executor tells."""

    def started(self, number: int, values: Mapping[str, Any]) -> None: ...
    def step(self, number: int, step: int, value: float) -> None: ...
    def stage(self, number: int, event: StageEvent) -> None: ...
    def finished(self, record: TrialRecord) -> None: ...
    def done(self, number: int, text: str) -> None: ...
    def note(self, text: str) -> None: ...


def duration(seconds: float) -> str:
    """`4.2 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def short(values: Mapping[str, Any]) -> str:
    """`depth=2 fusion.rule=grid`"""
    return " ".join(f"{name}={_number(value)}" for name, value in values.items())


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def line(record: TrialRecord, metric: str) -> str:
    """A finished trial in one line."""
    head = f"trial {record.number}"
    tail = f"({duration(record.seconds)})  {short(record.values)}"
    if record.state == "complete":
        shared = sum(1 for stage in record.stages if stage.get("hit"))
        from_store = f", {shared} of {len(record.stages)} stages from the store" if record.stages else ""
        return f"{head}: {metric} {record.value:.4g}{from_store} {tail}"
    if record.state == "pruned" and record.pruned_at:
        step, value = record.pruned_at
        return f"{head}: pruned at step {step} ({value:.4g}) {tail}"
    message = record.message.splitlines()[0] if record.message else ""
    return f"{head}: {record.state}{f' ({record.reason})' if record.reason else ''} {message} {tail}"


class Watch:
    """Events on a rich console. Use as a context."""

    def __init__(self, console: Console, total: int, metric: str) -> None:
        self.console, self.metric = console, metric
        self._live = console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console,
            transient=True,
        )  # fmt: skip
        self._total = total
        self._task: TaskID | None = None
        self._running: dict[int, tuple[float, str]] = {}

    def __enter__(self) -> Self:
        if self._live:
            self._bar.start()
            self._task = self._bar.add_task("starting", total=self._total)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._live:
            self._bar.stop()

    def note(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def started(self, number: int, values: Mapping[str, Any]) -> None:
        self._running[number] = (time.monotonic(), "")
        if self._live:
            self._describe()
        else:
            self.note(f"trial {number}: started  {short(values)}")

    def step(self, number: int, step: int, value: float) -> None:
        if number in self._running and self._live:
            self._running[number] = (self._running[number][0], f" step {step}: {value:.4g}")
            self._describe()

    def stage(self, number: int, event: StageEvent) -> None:
        """Lines tell trials; a stage is for the screen."""

    def finished(self, record: TrialRecord) -> None:
        self.done(record.number, line(record, self.metric))

    def done(self, number: int, text: str) -> None:
        """One of the total is over, and this is how."""
        self._running.pop(number, None)
        self.note(text)
        if self._task is not None:
            self._bar.advance(self._task)
            self._describe()

    def _describe(self) -> None:
        if self._task is not None:
            running = ", ".join(f"{number}{said}" for number, (_, said) in sorted(self._running.items()))
            self._bar.update(self._task, description=f"trials {running}" if running else "waiting")


class Silent:
    """Events that nobody watches."""

    def started(self, number: int, values: Mapping[str, Any]) -> None: ...
    def step(self, number: int, step: int, value: float) -> None: ...
    def stage(self, number: int, event: StageEvent) -> None: ...
    def finished(self, record: TrialRecord) -> None: ...
    def done(self, number: int, text: str) -> None: ...
    def note(self, text: str) -> None: ...
