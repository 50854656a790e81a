"""`--address`: what it may be."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from raz.cli import app


@pytest.mark.parametrize("address", ["ray://x:1", "host", "10.0.0.1:", "a b:1"])
def test_an_address_of_another_form_is_told(address: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["run", "fusion", "--store", str(tmp_path / "s"), "--address", address])
    assert done.exit_code == 2
    assert "neither auto nor HOST:PORT" in done.output
