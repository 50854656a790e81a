"""`--address`: its valid forms, and which cluster `auto` is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raz.cli.main import app
from raz.engine.ray_session import connected


@pytest.mark.parametrize("address", ["ray://x:1", "host", "10.0.0.1:", "a b:1"])
def test_an_address_of_another_form_is_told(address: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["run", "fusion", "--store", str(tmp_path / "s"), "--address", address])
    assert done.exit_code == 2
    assert "neither auto nor HOST:PORT" in done.output


def test_auto_is_the_cluster_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a job, where several Rays may run on the machine, RAY_ADDRESS names its own."""
    import ray

    asked: list[str] = []
    monkeypatch.setattr(ray, "init", lambda address, **options: asked.append(address))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    for before in ("10.0.0.1:6379", "auto", ""):
        monkeypatch.setenv("RAY_ADDRESS", before)
        with connected("auto"):
            asked.append(os.environ["RAY_ADDRESS"])
    assert asked == ["10.0.0.1:6379"] * 2 + ["auto"] * 4
