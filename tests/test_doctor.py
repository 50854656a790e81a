"""What the doctor says of machines that are not well, each made so for the test."""

from __future__ import annotations

import http.server
import json
import socket
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
from safetensors.torch import save_file
from torch import ones
from typer.testing import CliRunner

from raz.cli.main import app
from raz.inspection import machine_checks, photograph_checks
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


# ------------------------------------------------------------------ photographs

LITE = "tf_efficientnet_lite0"


def test_weights_are_looked_into(tmp_path: Path) -> None:
    names = photograph_checks.preset_backbones()
    assert names == (LITE, "vgg16")
    good, timms, other = (tmp_path / f"{name}.safetensors" for name in ("good", "timms", "other"))
    save_file({k: v.contiguous() for k, v in VggBackbone().state_dict().items()}, good)
    save_file({k: v.contiguous() for k, v in timm.create_model(LITE).state_dict().items()}, timms)
    save_file({"features.0.weight": ones(3, 3)}, other)
    check = photograph_checks.check_weights_file(str(good), names)
    assert (check.status, check.found) == ("ok", f"{good}: vgg16 (preset paper)")
    check = photograph_checks.check_weights_file(str(timms), names)
    assert (check.status, check.found) == ("ok", f"{timms}: {LITE} (preset small)")
    assert photograph_checks.check_weights_file(str(timms), ("resnet18",)).status == "fail"
    check = photograph_checks.check_weights_file(str(other), names)
    assert (check.status, "features.0.weight is (3, 3)" in check.found) == ("fail", True)
    assert photograph_checks.check_weights_file(str(tmp_path / "none"), names).status == "fail"


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches of torch and of the hub, below one folder."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "host", "file"),
    [
        ("vgg16", "https://download.pytorch.org", "https://download.pytorch.org/models/vgg16-397923af.pth"),
        (LITE, "https://huggingface.co", f"model.safetensors of https://huggingface.co/timm/{LITE}.in1k"),
    ],
)
def test_weights_are_here_or_to_be_fetched_or_to_be_brought(name: str, host: str, file: str, caches: Path) -> None:
    asked: list[str] = []
    check = photograph_checks.check_weights(name, lambda url: bool(asked.append(url)))
    assert (check.status, asked) == ("warn", [host])
    assert f"not here, and {host} does not answer (preset " in check.found
    assert check.hint == f"bring {file} to this machine and --set backbone.weights=FILE"
    check = photograph_checks.check_weights(name, lambda url: True)
    assert (check.status, f"fetched from {host} at first use" in check.found) == ("ok", True)
    snapshot = caches / "hub" / f"models--timm--{LITE}.in1k" / "snapshots" / "0123"
    kept = caches / "torch" / "hub" / "checkpoints" / "vgg16-397923af.pth"
    kept = kept if name == "vgg16" else snapshot / "model.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"")
    if name != "vgg16":
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / "main").write_text("0123")
    check = photograph_checks.check_weights(name, lambda url: pytest.fail("it is here"))
    assert (check.status, check.found.startswith(f"{kept} (preset")) == ("ok", True)


def test_where_fetching_is_forbidden_nobody_is_asked(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    check = photograph_checks.check_weights("resnet18", lambda url: pytest.fail("nobody is to be asked"))
    assert (check.status, check.found) == ("warn", "not here, and HF_HUB_OFFLINE is set")


def test_unknown_networks_are_told(caches: Path) -> None:
    check = photograph_checks.check_weights("no_such_network", lambda url: True)
    assert (check.status, "is no network of timm" in check.found) == ("fail", True)
    assert photograph_checks.check_network("no_such_network").status == "fail"
    check = photograph_checks.check_network("resnet18")
    assert (check.status, check.found) == ("ok", "resnet18: 384 channels of features")  # 128 + 256
    check = photograph_checks.check_network("test_vit")  # without feature maps of falling size
    assert check.status == "fail"
    assert "expected 8 and 16" in check.found


def test_a_host_answers_refuses_or_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)  # 501 to everything
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_port
    assert photograph_checks.host_answers(f"http://127.0.0.1:{port}")
    server.shutdown()
    server.server_close()
    assert not photograph_checks.host_answers(f"http://127.0.0.1:{port}")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and says nothing
        assert not photograph_checks.host_answers(f"http://127.0.0.1:{silent.getsockname()[1]}", patience=0.3)


def test_packages_of_photographs_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    check = photograph_checks.check_package("timm")
    assert (check.status, check.found) == ("ok", f"{metadata.version('timm')} can be imported (networks but VGG-16)")
    monkeypatch.setitem(sys.modules, "schedulefree", None)  # importing it raises
    check = photograph_checks.check_package("schedulefree")
    assert check.status == "fail"
    assert check.found.startswith("cannot be imported: ")
    assert check.hint == "pip install --force-reinstall schedulefree"


def test_photographs_are_looked_for(tmp_path: Path) -> None:
    toy = machine_checks.Check("data toy", "ok", "generated")
    check = photograph_checks.check_photographs([toy], None)
    assert (check.status, check.found) == ("warn", "no folder given to look in")
    assert check.hint.startswith("--data-root DIR, a folder with part_A/")
    assert "(from its authors' repository" in check.hint
    assert photograph_checks.check_photographs([toy], tmp_path).found == f"none in {tmp_path}"
    write_crowd(tmp_path, train=2, test=1)
    check = photograph_checks.check_photographs(machine_checks.check_datasets(tmp_path), tmp_path)
    assert (check.status, check.found) == ("ok", "shanghaitech_a")


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
    monkeypatch.setattr(photograph_checks, "host_answers", lambda url: False)
    monkeypatch.setattr(machine_checks, "check_ray", lambda: machine_checks.Check("ray", "ok", "2.60 can be imported"))
    done = CliRunner().invoke(app, ["doctor", "--store", str(tmp_path / "s"), "--json"])
    got = json.loads(done.stdout)
    assert {c["name"] for c in got["checks"]} >= {
        "python",
        "packages",
        "devices",
        "cores",
        "memory",
        "store",
        "ray",
        "timm",
        "schedulefree",
        f"weights {LITE}",
        "weights vgg16",
        "photographs",
    }
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
