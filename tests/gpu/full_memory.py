"""A builder for Ray sessions, in whose processes the device's memory holds two windows of a batch of counting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raz.config import TrialConfig
from raz.pipeline import trial
from tests.gpu.test_half_batches import FullMemory


def run_trial(config: TrialConfig, store: Path, *, make: Any = None, **options: Any) -> Any:
    if make is not None:
        make.builder = "tests.gpu.full_memory:build_stages"
    return trial.run_trial(config, store, make=make, **options)


def build_stages(config: TrialConfig, store: Path, nodes: Any, **options: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        FullMemory("counting", limit=2).install(patch)
        trial.build_stages(config, store, nodes, **options)
