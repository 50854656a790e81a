"""`doctor --cluster` against a real Ray head, and the arithmetic of clocks."""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from raz.remote.cluster_doctor import NodeFacts, check_clock, check_images, check_same_store
from tests.heads import Head, head, raz
from tests.test_studies import call


@pytest.mark.parametrize(
    ("began", "ended", "status", "off"),
    [
        (103.0, 105.0, "ok", ""),
        (101.0, 109.0, "ok", ""),
        (113.0, 115.0, "warn", "at least 5 s ahead"),
        (90.0, 91.0, "warn", "at least 10 s behind"),
        (5000.0, 5001.0, "fail", "ahead"),
    ],
)
def test_a_clock_is_wrong_only_when_no_delay_explains_it(began: float, ended: float, status: str, off: str) -> None:
    found = check_clock(NodeFacts((), {}, began, ended), sent=100.0, received=110.0)
    assert found.status == status
    assert off in found.found


def test_another_folder_is_no_shared_store(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / ".raz-doctor-x").touch()
    assert check_same_store(tmp_path / "a", ".raz-doctor-x").status == "ok"
    assert check_same_store(tmp_path / "b", ".raz-doctor-x").status == "fail"
    assert check_images(tmp_path).status == "ok"
    assert check_images(tmp_path / "b").status == "fail"
    assert check_images(tmp_path / "none").status == "fail"


def test_no_ray_is_told() -> None:
    code, _, err = call("doctor", "--cluster", "--address", "nonsense")
    assert (code, "neither auto nor HOST:PORT" in err) == (2, True)
    assert call("doctor", "--cluster", "--backbone-weights", "x.pt")[0] == 2


SPACE = {
    "study": "secrets",
    "base": {
        "preset": "tiny", "dataset": "toy",
        "set": {"depth": 1, "counting.train.epochs": 1, "localization.train.epochs": 1},
    },
    "design": {"sampler": "grid"}, "parameters": {"fusion.rule": {"choice": ["density"]}},
}  # fmt: skip


@pytest.fixture(scope="module")
def up() -> Iterator[Head]:
    with head(1) as found:
        yield found


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_every_node_of_a_real_head_is_asked(up: Head, tmp_path: Path) -> None:
    told = raz("doctor", "--cluster", "--address", up.address, "--store", tmp_path / "s", "--json", env=up.environment)
    assert told.returncode == 0, told.stdout + told.stderr
    [node] = json.loads(told.stdout)["nodes"]
    assert node["host"] == socket.gethostname()
    states = {check["name"]: check["status"] for check in node["checks"]}
    expected = {
        "devices",
        "memory",
        "shared memory",
        "store",
        "same store",
        "sees files of",
        "versions",
        "clock",
        "ray",
    }
    assert expected <= states.keys()
    assert "fail" not in states.values()
    assert not list((tmp_path / "s").iterdir())  # the mark is gone
    with tempfile.TemporaryDirectory() as root:
        empty = raz("doctor", "--cluster", "--address", up.address, "--store", tmp_path / "s", "--data-root", root,
                    env=up.environment)  # fmt: skip
    assert empty.returncode == 1
    assert "fail  images" in empty.stdout


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_client_without_the_token_is_refused_and_nothing_keeps_it(up: Head, tmp_path: Path) -> None:
    """A run with the token and a key in its environment: neither is in its store, its output or its report."""
    key = "a-key-that-nobody-may-see"
    secret = {**up.environment, "AWS_SECRET_ACCESS_KEY": key}
    file = tmp_path / "secrets.yaml"
    file.write_text(json.dumps(SPACE))
    words = ("run", file)
    store = tmp_path / "served"
    served = raz(*words, "--store", store, "--address", up.address, env=secret, timeout=600)
    assert served.returncode == 0, served.stderr
    page = raz("report", "secrets", "--store", store, "--out", tmp_path / "page.html", env=secret)
    assert page.returncode == 0, page.stderr
    shown = raz("show", "secrets#0", "--store", store, "--json", env=secret)
    told = served.stdout + served.stderr + page.stdout + shown.stdout + (tmp_path / "page.html").read_text()
    written = [path.read_bytes() for path in store.rglob("*") if path.is_file()]
    assert len(written) > 10
    for word in (up.token, key):
        assert word not in told
        assert not [data for data in written if word.encode() in data]
    for wrong in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
        refused = raz(*words, "--store", tmp_path / "refused", "--address", up.address, env={**up.environment, **wrong})
        assert refused.returncode == 2, refused.stderr
        assert "--address" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert not (tmp_path / "refused").exists()  # nothing was begun
