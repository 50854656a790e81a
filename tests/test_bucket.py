"""A store and images in S3, against a real server: whole or not there, whatever the server does meanwhile."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raz.errors import RazError
from raz.store import s3 as s3_store
from raz.store.cache import StageCache, StageKey
from raz.store.manifest import Manifest
from raz.store.s3 import Bucket, bucket_for, local_mirror_path, mirror
from raz.store.s3_journals import download_journals
from raz.store.s3_tier import tier_for
from raz.study.bucket_sync import sync_to_bucket
from tests.buckets import BUCKET, S3, s3_server, variables
from tests.heads import HERE, raz

server = pytest.mark.skipif(importlib.util.find_spec("flask") is None, reason="needs moto[server]")
KEY = StageKey("counting", 1, {"beta": 0.3}, {}, {})
ABOUT = Manifest(stage="counting", seconds=1.0)


@pytest.mark.parametrize(
    "url", ["s3://", "s3://UPPER/x", "s3://key:secret@bucket/x", "s3://bucket/x?scheme=http", "s3://bucket/../x"]
)
def test_what_is_no_bucket_is_told_without_its_secret(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAZ_CACHE", "/tmp/x")
    with pytest.raises(RazError) as error:
        local_mirror_path(Path(url))
    assert "secret" not in str(error.value).replace("without keys", "")


def test_a_url_has_one_folder_and_the_folder_knows_its_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAZ_CACHE", str(tmp_path))
    folder = local_mirror_path(Path("s3://my-bucket/team/store/"))
    assert folder == local_mirror_path(Path("s3://my-bucket/team/store"))
    assert folder.parent == tmp_path
    found = bucket_for(folder)
    assert found is not None
    assert found.url == "s3://my-bucket/team/store"
    assert local_mirror_path(tmp_path / "x") == tmp_path / "x"
    assert bucket_for(tmp_path / "x") is None


# ------------------------------------------------------------------ a real server


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with s3_server() as up:
        yield up


@pytest.fixture
def here(s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A machine: the folder that stands for a store of this test alone."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAZ_CACHE", str(tmp_path / "one"))
    monkeypatch.setenv("RAZ_S3_SECONDS", "60")
    s3_store._bucket.cache_clear()
    yield local_mirror_path(Path(f"s3://{BUCKET}/{tmp_path.name}"))
    s3.delay = s3.faulty = 0.0
    s3_store._bucket.cache_clear()


def other(folder: Path, name: str) -> Path:
    """The same store on another machine."""
    return folder.parent.parent / name / folder.name


def publish(store: Path, data: bytes = b"weights") -> None:
    def write(folder: Path) -> None:
        (folder / "weights.bin").write_bytes(data)

    StageCache(store).publish(KEY, write, ABOUT)


@pytest.mark.slow
@server
def test_what_one_machine_made_another_finds_and_damage_is_a_miss(here: Path, s3: S3) -> None:
    assert StageCache(here).find(KEY) is None
    publish(here)
    found = StageCache(other(here, "two")).find(KEY)
    assert found is not None
    assert (found.folder / "weights.bin").read_bytes() == b"weights"
    (found.folder / "weights.bin").write_bytes(b"damaged")
    again = StageCache(other(here, "two")).find(KEY)
    assert again is not None
    assert (again.folder / "weights.bin").read_bytes() == b"weights"
    store = bucket_for(here)
    assert store is not None
    name = next(n for n in store.names("stages") if not n.endswith("manifest.json"))
    store.write(name, b"weight5")
    assert StageCache(other(here, "three")).find(KEY) is None
    assert not list(other(here, "three").glob("stages/*/*"))
    store.remove(name)
    assert StageCache(other(here, "three")).find(KEY) is None
    publish(other(here, "three"))  # made again, it is whole for all
    assert StageCache(other(here, "four")).find(KEY) is not None


@pytest.mark.slow
@server
def test_a_full_cache_drops_what_was_longest_unused_and_brings_it_again(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [StageKey("counting", 1, {"beta": beta}, {}, {}) for beta in (0.1, 0.2, 0.3)]
    cache = StageCache(here)
    for age, key in zip((300, 200, 100), keys, strict=True):
        folder = cache.publish(key, lambda f: (f / "w").write_bytes(bytes(1 << 20)) and None, ABOUT).folder
        os.utime(folder / "manifest.json", (time.time() - age, (folder / "manifest.json").stat().st_mtime))
    monkeypatch.setenv("RAZ_CACHE_GB", str(2.5 / 1024))
    tier = tier_for(here)
    assert tier is not None
    assert tier.evict() == 0  # all were asked for just now
    assert tier.evict(recent=0.0) > 1 << 20
    assert [cache.paths.stage(k.stage, k.key).exists() for k in keys] == [False, True, True]
    assert cache.find(keys[0]) is not None


@pytest.mark.slow
@server
def test_faults_that_pass_are_waited_for_and_others_are_told(
    here: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = bucket_for(here)
    assert store is not None
    s3.faulty, before = 0.3, s3.refused
    for i in range(20):
        store.write(f"x/{i}", str(i).encode())
        assert store.read(f"x/{i}") == str(i).encode()
    s3.faulty = 0.0
    assert s3.refused > before
    assert sorted(store.names("x")) == sorted(f"x/{i}" for i in range(20))
    with pytest.raises(OSError, match="NO_SUCH_BUCKET") as error:
        Bucket("s3://no-such-bucket/x").write("y", b"")
    assert error.value.errno == errno.EACCES
    monkeypatch.setenv("RAZ_S3_SECONDS", "1")
    s3.faulty = 1.0
    with pytest.raises(OSError, match="does not answer") as error:
        store.read("x/1")
    assert error.value.errno == errno.EHOSTUNREACH


@pytest.mark.slow
@server
def test_images_are_mirrored_checked_and_kept_up(here: Path) -> None:
    store = bucket_for(here)
    assert store is not None
    store.write("part_A/a.jpg", b"a")
    store.write("part_A/b.jpg", b"b")
    assert {p.name for p in (mirror(here) / "part_A").iterdir()} == {"a.jpg", "b.jpg"}
    store.write("part_A/b.jpg", b"bb")
    store.remove("part_A/a.jpg")
    (here / "part_A" / "b.jpg").unlink()
    mirror.cache_clear()
    assert [p.read_bytes() for p in (mirror(here) / "part_A").iterdir()] == [b"bb"]
    store.write("SHA256SUMS", f"{'0' * 64}  part_A/c.jpg\n".encode())
    store.write("part_A/c.jpg", b"c")
    mirror.cache_clear()
    with pytest.raises(RazError, match="is not what SHA256SUMS says"):
        mirror(here)
    assert not (here / "part_A" / "c.jpg").exists()
    mirror.cache_clear()


@pytest.mark.slow
@server
def test_a_journal_is_sent_in_parts_and_comes_as_one(here: Path, s3: S3) -> None:
    store = bucket_for(here)
    assert store is not None
    journal = here / "studies" / "s.journal"
    journal.parent.mkdir(parents=True)
    journal.write_text("first\n" * 2000)
    s3.faulty = 0.2
    with sync_to_bucket(here):  # copies at its end
        pass
    for _ in range(6):
        with journal.open("a") as file:
            file.write("more\n" * 100)
        with sync_to_bucket(here):  # another process each time
            pass
    s3.faulty = 0.0
    names = store.names("studies")
    assert len(names) > 1
    assert names["studies/s.journal"][0] == 12_000
    download_journals(other(here, "two"))
    assert (other(here, "two") / "studies" / "s.journal").read_bytes() == journal.read_bytes()
    with journal.open("a") as file:
        file.write("many\n" * 5000)
    with sync_to_bucket(here):
        pass
    assert list(store.names("studies")) == ["studies/s.journal"]
    download_journals(other(here, "two"))
    assert (other(here, "two") / "studies" / "s.journal").read_bytes() == journal.read_bytes()


# ------------------------------------------------------------------ whole sweeps

SPACE = """
study: far
base: {preset: tiny, dataset: toy, set: {depth: 1, counting.train.epochs: 3, localization.train.epochs: 2}}
design: {sampler: grid}
objective: {metric: val.mae}
parameters:
  fusion.rule: {choice: [density, average]}
  counting.beta: {choice: [0.2, 0.3]}
"""


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """The file, and what a run on this machine alone makes of it."""
    folder = tmp_path_factory.mktemp("local")
    (folder / "far.yaml").write_text(SPACE)
    done = raz(
        "run", folder / "far.yaml", "--store", folder / "s", "--inline", "--json", env=dict(os.environ), timeout=900
    )
    assert done.returncode == 0, done.stderr
    return folder / "far.yaml", outcome(done.stdout)


def outcome(text: str) -> dict[str, object]:
    document = json.loads(text)
    best = document["best"]
    return {"trials": document["trials"], "value": best["value"], "val": best["validation"], "test": best["test"]}


def trials(store: str, environment: dict[str, str]) -> list[object]:
    done = raz("show", "far", "--store", store, "--json", env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["list"]
    return sorted(json.dumps([trial[name] for name in ("trial", "state", "values", "value")]) for trial in found)


@pytest.mark.slow
@server
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("fault", ["killed", "slow", "faulty"])
def test_a_sweep_on_a_bad_server_ends_as_on_this_machine(
    fault: str, local: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    file, expected = local
    url = f"s3://{BUCKET}/sweep"
    with s3_server() as s3:
        s3.delay, s3.faulty = (0.5 if fault == "slow" else 0.0), (0.1 if fault == "faulty" else 0.0)
        words = [sys.executable, "-m", "raz.cli", "run", str(file), "--store", url, "--json", "--jobs", "2"]
        environment = variables(s3, tmp_path / "one")
        run = subprocess.Popen(
            words, env=environment, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        if fault == "killed":
            assert _until(lambda: any("checkpoint.pt" in name for name in s3.names()) or run.poll() is not None)
            s3.kill()
            assert run.poll() is None
            threading.Timer(5.0, s3.start).start()
        out, err = run.communicate(timeout=1800)
        assert run.returncode == 0, err
        assert outcome(out) == expected
        if fault == "faulty":
            assert s3.refused > 0
        s3.delay = s3.faulty = 0.0
        assert not any(b"a-secret-of-this-test" in (body or b"") for body in s3.objects.values())
        assert "a-secret-of-this-test" not in out + err
        # Another machine finds all of it, and makes nothing.
        elsewhere = variables(s3, tmp_path / "two")
        again = raz("run", file, "--store", url, "--inline", "--json", env=elsewhere, timeout=600)
        assert again.returncode == 0, again.stderr
        assert json.loads(again.stdout)["compute"]["spent_seconds"] == 0
        assert outcome(again.stdout) == expected
        assert trials(url, elsewhere) == trials(str(file.parent / "s"), elsewhere)
        brought = raz("pull", "--from", url, "--store", tmp_path / "three", "--artifacts", env=elsewhere)
        assert brought.returncode == 0, brought.stderr
        assert trials(str(tmp_path / "three"), elsewhere) == trials(url, elsewhere)


def _until(met: object, seconds: float = 600.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if met():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False
