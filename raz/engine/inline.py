"""Trials one after the other in this process, without Ray."""

from __future__ import annotations

from pathlib import Path

from raz.engine.events import Events
from raz.engine.trial import attempt, resolve
from raz.study.ledger import Ledger


def run_inline(ledger: Ledger, store: Path, *, data_root: Path | None = None, run_trial: str, events: Events) -> None:
    """Runs what the ledger still has to ask for."""
    function = resolve(run_trial)
    while (asked := ledger.ask()) is not None:
        number, values, config = asked
        events.started(number, values)

        def progress(step: int, value: float, number: int = number) -> bool:
            events.step(number, step, value)
            return ledger.report(number, step, value)

        outcome = attempt(function, config, store, data_root=data_root, progress=progress)
        events.finished(ledger.tell(number, outcome))
