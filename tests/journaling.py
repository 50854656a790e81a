"""The real pipeline, which also appends each event of each process to STORE/journal.jsonl."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raz.config import TrialConfig
from raz.pipeline import trial
from raz.pipeline.events import StageEvent

BUILDER = "tests.journaling:build_stages"
PIPELINE = "tests.journaling:run_trial"


def _writing(store: Path, log: Callable[[StageEvent], None] | None) -> Callable[[StageEvent], None]:
    def write(event: StageEvent) -> None:
        store.mkdir(parents=True, exist_ok=True)
        line = json.dumps(
            {"pid": os.getpid(), "kind": event.kind, "stage": event.stage, "key": event.key, "epoch": event.epoch}
        )
        with (store / "journal.jsonl").open("a") as file:  # short enough to be appended in one piece
            file.write(line + "\n")
        if log is not None:
            log(event)

    return write


def run_trial(config: TrialConfig, store: Path, *, log: Any = None, make: Any = None, **options: Any) -> Any:
    if make is not None:
        make.builder = BUILDER
    return trial.run_trial(config, store, log=_writing(store, log), make=make, **options)


def build_stages(config: TrialConfig, store: Path, nodes: Any, *, log: Any = None, **options: Any) -> None:
    trial.build_stages(config, store, nodes, log=_writing(store, log), **options)


def journal(store: Path) -> list[dict[str, Any]]:
    """The events, without a line that a kill has cut off."""
    out = []
    for line in (store / "journal.jsonl").read_text().splitlines():
        try:
            out.append(json.loads(line))
        except ValueError:
            continue
    return out


def times(store: Path, kind: str) -> Counter[tuple[str, str, int]]:
    """How often each (stage, key, epoch) was logged as `kind`."""
    return Counter((e["stage"], e["key"], e["epoch"]) for e in journal(store) if e["kind"] == kind)
