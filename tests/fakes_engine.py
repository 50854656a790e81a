"""A stand-in for the pipeline: a trial of milliseconds with a known optimum, importable in any process.

Truth, known in closed form: `val.mae` is 10 |depth - 3| + |log10(gamma) - 2| + seed, and the curve falls onto it as
(1 + 4 / (step + 1)) times it. Files in the store, which every process reads, set what else a trial does:
`sleep` (seconds a step), `count` (a line is added for each trial run).
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raz.config import TrialConfig
from raz.errors import TrialFailure
from raz.pipeline.events import StageEvent, StageUse

if TYPE_CHECKING:
    import pytest

STEPS = 4


@dataclass(frozen=True)
class FakeResult:
    metrics: dict[str, float]
    stages: tuple[StageUse, ...]
    seconds: float
    device: str = "cpu"
    data: dict[str, str] = field(default_factory=lambda: {"val": "f00d"})


def truth(config: TrialConfig) -> float:
    return 10 * abs(config.depth - 3) + abs(math.log10(config.localization.gamma) - 2) + config.seed


def _sleep(store: Path) -> float:
    """Seconds a step. Of several in the file the n-th trial that begins takes the n-th, all after them the last."""
    if not (store / "sleep").exists():
        return 0.0
    each = (store / "sleep").read_text().split()
    begun = len((store / "count").read_text().splitlines()) if (store / "count").exists() else 0
    return float(each[min(begun, len(each) - 1)])


def run_trial(
    config: TrialConfig,
    store: Path,
    *,
    data_root: Path | None = None,
    splits: tuple[str, ...] = ("val",),
    progress: Any = None,
    log: Any = None,
    make: Any = None,
) -> FakeResult:
    sleep = _sleep(store)
    with (store / "count").open("a") as file:
        file.write(f"{config.depth} {config.localization.gamma} {config.seed} {'+'.join(splits)} {os.getpid()}\n")
    if config.seed == 13:
        raise TrialFailure("localization", "the loss is not a number at epoch 2", "a lower rate", reason="nan")
    if config.seed == 14:
        raise ZeroDivisionError("an unexpected error")
    if config.seed == 15:
        os.kill(os.getpid(), 9)
    if config.seed == 16:
        raise OSError(28, "No space left on device", str(store))
    value = truth(config)
    for step in range(STEPS):
        time.sleep(sleep)
        if progress is not None and progress(step, value * (1 + 4 / (step + 1))):
            raise RuntimeError("stopped by the pruner")
    metrics = {f"{split}.{name}": value * factor for split in splits for name, factor in (("mae", 1.0), ("rmse", 1.5))}
    return FakeResult(metrics, (StageUse("localization", "ab12", True, 0.0),), 0.01)


def telling(config: TrialConfig, store: Path, *, log: Any = None, **options: Any) -> FakeResult:
    """As `run_trial`, and logs events of a stage of its depth."""
    for kind in ("started", "epoch", "finished"):
        log(StageEvent(kind, "localization", f"key {config.depth}", epoch=1, epochs=1))
    return run_trial(config, store, log=log, **options)


def use_stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands of this process run the stand-in's trials, in a folder of one's own, without this shell's store and
    data."""
    from raz.cli.run import run_file

    monkeypatch.setitem(run_file.__kwdefaults__, "run_trial", "tests.fakes_engine:run_trial")
    monkeypatch.chdir(folder)
    for name in ("RAZ_STORE", "RAZ_DATA_ROOT"):
        monkeypatch.delenv(name, raising=False)
