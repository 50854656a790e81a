"""`pull`: what was run elsewhere comes once, whole, and never over something else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from raz.errors import RazError
from raz.maintenance.pull import pull
from raz.remote.transfer import fetch_from_head
from raz.store.cache import StageCache, StageKey
from raz.store.manifest import Manifest
from raz.study.journal import journal_path
from raz.study.records import read_records
from tests.test_studies import call, run_again


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the study `mixed` and three stages that no trial recorded. Not to be written."""
    store = tmp_path_factory.mktemp("there")
    run_again(store)
    publish(store, "score", b"small")
    publish(store, "counting", b"weights")
    publish(store, "density", b"maps")
    return store


def publish(store: Path, stage: str, data: bytes) -> Path:
    key = StageKey(stage, 1, {"beta": 0.3}, {}, {})
    about = Manifest(stage=stage, seconds=1.0)
    return StageCache(store).publish(key, lambda folder: _write(folder / "file.bin", data), about).folder


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def everything(store: Path) -> dict[str, bytes]:
    files = [p for p in store.glob("st*/**/*") if p.is_file() and p.suffix not in (".lock", ".parquet")]
    return {str(p.relative_to(store)): p.read_bytes() for p in files}


def test_studies_and_scores_come_and_a_second_pull_changes_nothing(whole: Path, tmp_path: Path) -> None:
    store = tmp_path / "here"
    code, out, _ = call("pull", "--from", str(whole), "--store", str(store))
    assert (code, out.splitlines()[0]) == (0, "study mixed: 12 trials, new")
    assert read_records(store, "mixed") == read_records(whole, "mixed")
    assert [p.name for p in (store / "stages").iterdir()] == ["score"]
    before = everything(store)
    result = pull(whole, store)
    assert result.to_dict()["studies"] == [{"study": "mixed", "trials": 12, "state": "as it was"}]
    assert (result.stages, everything(store)) == (0, before)
    assert pull(whole, store, artifacts=True).stages == 2
    assert everything(store) == everything(whole)
    assert not [name for name in everything(store) if "import" in name]


def test_a_study_that_went_on_there_is_brought_up_to_date_and_one_that_went_on_here_stays(
    whole: Path, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(whole, there)
    lines = journal_path(whole, "mixed").read_bytes().splitlines(keepends=True)
    early = b"".join(lines[: len(lines) // 2])
    journal_path(there, "mixed").write_bytes(early + b'{"half a li')
    assert pull(there, here).studies[0].state == "new"
    assert journal_path(here, "mixed").read_bytes() == early
    assert pull(whole, here).studies[0].state == "gone on"
    assert pull(there, here).studies[0].state == "this store's is newer"
    assert read_records(here, "mixed") == read_records(whole, "mixed")
    journal_path(there, "mixed").write_bytes(early + lines[1])  # gone on in another way
    before = everything(here)
    with pytest.raises(RazError, match="each have records that the other lacks"):
        pull(there, here)
    assert everything(here) == before


def test_what_arrives_damaged_is_left_out_and_told(whole: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    shutil.copytree(whole, there)
    spoilt = next((there / "stages" / "counting").iterdir())
    (spoilt / "file.bin").write_bytes(b"weight5")
    result = pull(there, tmp_path / "here", artifacts=True)
    assert result.damaged == (f"counting/{spoilt.name}",)
    assert not list((tmp_path / "here" / "stages").glob("counting/*"))
    assert result.stages == 2
    journal = journal_path(there, "mixed")
    journal.write_bytes(b"nonsense\n" + journal.read_bytes())
    with pytest.raises(RazError, match="damaged"):
        pull(there, tmp_path / "other")
    assert not journal_path(tmp_path / "other", "mixed").exists()


def test_unknown_studies_and_sources_are_reported(whole: Path, tmp_path: Path) -> None:
    assert call("pull", "mixde", "--from", str(whole), "--store", str(tmp_path / "s"))[0] == 2
    assert call("pull", "--from", str(tmp_path / "none"), "--store", str(tmp_path / "s"))[0] == 2
    assert not (tmp_path / "s").exists()
    assert call("pull", "--store", str(tmp_path / "s"))[0] == 2


@pytest.mark.long
def test_from_a_cluster_by_the_commands_that_its_head_runs(whole: Path, tmp_path: Path) -> None:
    """Everything but SSH is real: a folder stands in for the head's home, a shell for `ray exec`."""
    home = tmp_path / "home"
    home.mkdir()
    ran: list[str] = []

    def run(words: Sequence[str]) -> None:
        ran.append(words[0])
        if words[0] == "exec":
            code = words[2].replace("raz-sweep", f"{sys.executable} -m raz.cli")
            env = {"HOME": str(home), "RAZ_STORE": str(whole), "PATH": "/usr/bin:/bin"}
            env["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
            subprocess.run(["bash", "-c", code], cwd=home, env=env, check=True, capture_output=True, timeout=200)
        else:
            shutil.copytree(home / words[2], words[3], dirs_exist_ok=True)

    place = tmp_path / "place"
    fetch_from_head(Path("x.yaml"), place, ["mixed"], None, False, run)
    assert ran == ["exec", "rsync-down", "exec"]
    assert not list(home.glob("raz-pull-*"))
    pull(place, tmp_path / "here", artifacts=True)
    assert read_records(tmp_path / "here", "mixed") == read_records(whole, "mixed")
