"""What the doctor says of machines that are not well, each made so for the test."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from torch import ones
from typer.testing import CliRunner

from raz.cli.main import app
from raz.inspection import machine_checks
from raz.paper.networks import VggBackbone
from tests.crowds import write_crowd


def test_packages_are_held_against_what_is_asked_for() -> None:
    checks = machine_checks.check_packages(
        ["numpy>=1.0", "numpy>=99.1", "no-such-package>=1", "nothing>=1; extra == 'dev'"]
    )
    assert [(c.name, c.status) for c in checks] == [("packages", "ok"), ("numpy", "fail"), ("no-such-package", "fail")]
    assert "expected 99.1 or newer" in checks[1].found
    assert checks[2].hint == "pip install 'no-such-package>=1'"


@pytest.mark.parametrize(
    ("free", "allowed", "status"),
    [(8 << 20, "max", "ok"), (1 << 20, "max", "warn"), (8 << 20, str(1 << 30), "warn"), (8 << 20, None, "ok")],
)
def test_memory_counts_what_a_container_allows(free: int, allowed: str | None, status: str, tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(f"MemTotal: {16 << 20} kB\nMemAvailable: {free} kB\n")
    if allowed is not None:
        (tmp_path / "limit").write_text(allowed)
    assert machine_checks.check_memory(tmp_path / "meminfo", tmp_path / "limit").status == status
    assert machine_checks.check_memory(tmp_path / "none", tmp_path / "none").status == "warn"


def test_cores_say_when_others_use_them() -> None:
    assert machine_checks.check_cores(2, 0.1).status == "ok"
    busy = machine_checks.check_cores(2, 8.0)
    assert (busy.status, "2 cores, load 8.0" in busy.found) == ("warn", True)


def test_a_store_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    (check,) = machine_checks.check_disk(tmp_path / "not" / "yet")
    assert check.status in ("ok", "warn")  # by how much room this disk has
    assert "not there yet" in check.found
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    (check,) = machine_checks.check_disk(tmp_path / "file")
    assert (check.status, "is a file" in check.found) == ("fail", True)
    (check,) = machine_checks.check_disk(Path("/proc/raz"))  # a place where nobody may write
    assert check.status == "fail"


def test_weights_are_looked_into(tmp_path: Path) -> None:
    good, other = tmp_path / "good.safetensors", tmp_path / "other.safetensors"
    save_file({k: v.contiguous() for k, v in VggBackbone().state_dict().items()}, good)
    save_file({"features.0.weight": ones(3, 3)}, other)
    assert machine_checks.check_backbone(str(good)).status == "ok"
    check = machine_checks.check_backbone(str(other))
    assert (check.status, "features.0.weight is (3, 3)" in check.found) == ("fail", True)
    assert machine_checks.check_backbone(str(tmp_path / "none")).status == "fail"


def test_data_sets_that_are_found_are_named(tmp_path: Path) -> None:
    write_crowd(tmp_path / "data", train=2, test=1)
    checks = {c.name: c for c in machine_checks.check_datasets(tmp_path / "data")}
    assert checks["data shanghaitech_a"].found.endswith("part_A")
    assert "shanghaitech_b" in checks["data"].found
    assert machine_checks.check_datasets(tmp_path / "nowhere")[0].status == "fail"


def test_ray_is_asked_in_a_process_of_its_own() -> None:
    def fails(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", "Traceback\nImportError: libfoo")

    def hangs(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        raise subprocess.TimeoutExpired("python", 120)

    assert machine_checks.check_ray(fails).found == "cannot be imported: ImportError: libfoo"
    assert machine_checks.check_ray(fails).status == "fail"
    assert machine_checks.check_ray(hangs).status == "warn"


def test_the_command_prints_a_line_a_check_and_exits_by_the_worst(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_checks, "check_ray", lambda: machine_checks.Check("ray", "ok", "2.60 can be imported"))
    done = CliRunner().invoke(app, ["doctor", "--store", str(tmp_path / "s"), "--json"])
    got = json.loads(done.stdout)
    assert {c["name"] for c in got["checks"]} >= {"python", "packages", "devices", "cores", "memory", "store", "ray"}
    assert all(set(c) == {"name", "status", "found", "hint"} for c in got["checks"])
    assert done.exit_code == 0
    bad = CliRunner().invoke(
        app, ["doctor", "--store", str(tmp_path / "s"), "--backbone-weights", str(tmp_path / "none.pt")]
    )
    assert bad.exit_code == 1
    line = next(x for x in bad.stdout.splitlines() if x.startswith("fail"))
    assert "weights" in line
    assert "try:" in bad.stdout
    alone = CliRunner().invoke(app, ["doctor", "--address", "10.0.0.1:6379"])
    assert alone.exit_code == 2
    assert "--address: only this machine is checked" in alone.stderr
