"""`submit` and `job`: errors are reported before anything is sent, and a job goes on without its sender."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raz.cli.main import app
from raz.study.index import read_study
from tests.heads import Head, free_ports, head, raz

SPACE = """
study: sent
base: {preset: tiny, dataset: toy, set: {depth: 1, counting.train.epochs: 1, localization.train.epochs: 1}}
design: {sampler: grid}
objective: {metric: val.mae}
parameters:
  fusion.rule: {choice: [density, average]}
"""


def say(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(words))
    return done.exit_code, done.output


def test_faults_of_a_file_are_told_together_and_before_anybody_is_asked(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(SPACE.replace("val.mae", "val.mea").replace("sampler: grid", "sampler: gird"))
    code, out = say("submit", str(file), "--address", f"http://127.0.0.1:{free_ports(1)[0]}")
    assert code == 2
    assert f"{file}:4" in out
    assert f"{file}:5" in out
    assert "127.0.0.1" not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["submit", "fusion"], "no cluster file was given"),
        (["submit", "fusion", "--cluster", "nowhere.yaml"], "no file nowhere.yaml"),
        (["submit", "fusion", "--cluster", "cluster/gpu.yaml"], "FILL_IN is not filled in"),
        (["submit", "fusion", "--address", "10.0.0.1:8265"], "is no URL"),
        (["submit", "recurrence", "--trials", "3", "--address", "http://127.0.0.1:1"], "is a table"),
        (["submit", "fusion", "--profile", "papr", "--address", "http://127.0.0.1:1"], "has no profile 'papr'"),
        (["job", "logs", "x", "--address", "http://127.0.0.1:1"], "http://127.0.0.1:1"),
    ],
)
def test_what_cannot_be_sent_is_reported(words: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[1])
    monkeypatch.delenv("RAZ_CLUSTER", raising=False)
    code, out = say(*words)
    assert code == 2, out
    assert message in out
    assert "Traceback" not in out


def test_no_way_to_a_head_that_is_not_there(tmp_path: Path) -> None:
    file = tmp_path / "local.yaml"
    file.write_text("cluster_name: none\nprovider: {type: nonsense}\n")
    code, out = say("job", "list", "--cluster", str(file))
    assert code == 2
    assert "cannot reach the cluster's head" in out


# ------------------------------------------------------------------ a real head

real = pytest.mark.skipif(importlib.util.find_spec("aiohttp") is None, reason="needs ray[default]")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Head, Path]]:
    store = tmp_path_factory.mktemp("there") / "store"
    with head(2, dashboard=True, RAZ_STORE=str(store)) as up:
        yield up, store


@pytest.mark.slow
@pytest.mark.ray
@real
@pytest.mark.timeout(1500)
def test_a_job_goes_on_without_its_sender(cluster: tuple[Head, Path], tmp_path: Path) -> None:
    up, store = cluster
    file = tmp_path / "mine.yaml"
    file.write_text(SPACE)
    at = ("--address", up.url)
    sent = raz("submit", file, *at, "--json", env=up.environment)
    assert sent.returncode == 0, sent.stderr
    job = json.loads(sent.stdout)["job"]
    assert job.startswith("sent-")
    file.unlink()  # it has travelled
    followed = raz("job", "logs", job, *at, "--follow", env=up.environment, timeout=600)
    assert followed.returncode == 0, followed.stdout + followed.stderr
    assert "study sent: 2 complete" in followed.stdout
    assert [trial.state for trial in read_study(store, "sent").trials] == ["complete"] * 2
    listed = json.loads(raz("job", "list", *at, "--json", env=up.environment).stdout)
    assert [(each["job"], each["state"], each["exit_code"]) for each in listed] == [(job, "SUCCEEDED", 0)]
    assert raz("job", "status", "nobody", *at, env=up.environment).returncode == 2


@pytest.mark.slow
@pytest.mark.ray
@real
@pytest.mark.timeout(1500)
def test_a_stopped_job_keeps_its_epochs(cluster: tuple[Head, Path], tmp_path: Path) -> None:
    up, store = cluster
    file = tmp_path / "long.yaml"
    file.write_text(SPACE.replace("sent", "long").replace("counting.train.epochs: 1", "counting.train.epochs: 900"))
    long = ("submit", file, "--address", up.url, "--set", "seed=5", "--set", "counting.train.stop=900")
    before = set(store.glob("chains/counting/*/checkpoint.pt"))
    job = json.loads(raz(*long, "--json", env=up.environment).stdout)["job"]
    end = time.monotonic() + 300
    while not set(store.glob("chains/counting/*/checkpoint.pt")) - before:
        assert time.monotonic() < end, raz("job", "logs", job, "--address", up.url, env=up.environment).stdout
        time.sleep(0.5)
    assert raz("job", "stop", job, "--address", up.url, env=up.environment).returncode == 0
    over = raz("job", "logs", job, "--address", up.url, "--follow", env=up.environment)
    assert over.returncode == 130, over.stdout
    states = {trial.state for trial in read_study(store, "long").trials}
    assert "running" not in states


@pytest.mark.slow
@pytest.mark.ray
@real
@pytest.mark.timeout(600)
def test_a_sender_without_the_token_is_refused(cluster: tuple[Head, Path]) -> None:
    up, _ = cluster
    for wrong in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
        refused = raz("submit", "fusion", "--address", up.url, env={**up.environment, **wrong})
        assert refused.returncode == 2, refused.stdout
        assert "token" in refused.stderr
        assert "Traceback" not in refused.stderr
