"""A machine remembers its images: the same digests without reading them, and never those of a changed file."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

import raz.data
from raz.data import image_memo, image_pairs, open_dataset
from raz.data.contract import Dataset
from raz.errors import RazError
from tests.datasets import shanghaitech


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAZ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(image_memo, "SETTLED", -1.0)
    shanghaitech(tmp_path / "data", "A")
    return tmp_path / "data"


def opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Dataset, int]:
    """The data set as a new process opens it, and how many images were read for it."""
    read: list[Path] = []

    def counted(path: Path, faults: list[RazError]) -> bytes | None:
        read.extend([path] if path.suffix == ".jpg" else [])
        return path.read_bytes()

    monkeypatch.setattr(image_pairs, "_read_bytes", counted)
    raz.data._OPEN_DATASETS.clear()
    return open_dataset("shanghaitech_a", root), len(read)


def fingerprints(dataset: Dataset) -> list[tuple[str, str, tuple[int, int] | None]]:
    return [(item.id, item.digest, item.size) for items in dataset.items.values() for item in items]


def test_a_second_process_reads_no_image_and_finds_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, read = opened(root, monkeypatch)
    assert read == len(fingerprints(first)) > 0
    again, read = opened(root, monkeypatch)
    assert read == 0
    assert fingerprints(again) == fingerprints(first)
    for a, b in zip(again.items["train"], first.items["train"], strict=True):
        assert (a.load_pixels() == b.load_pixels()).all()  # compares the file's sha256 with what is remembered


def test_a_changed_image_is_read_again_even_with_its_old_size_and_time(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = opened(root, monkeypatch)
    path = next(root.rglob("train_data/images/*.jpg"))
    before, data = path.stat(), bytearray(path.read_bytes())
    data[-3] ^= 1
    time.sleep(0.05)  # more than a tick of the clock of file systems
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    again, read = opened(root, monkeypatch)
    assert read == 1
    changed = set(fingerprints(again)) ^ set(fingerprints(first))
    assert {name for name, _, _ in changed} == {f"train/{path.stem}"}


def test_a_changed_annotation_changes_the_digest(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = opened(root, monkeypatch)
    one, other = sorted(root.rglob("train_data/ground*/*.mat"))[:2]
    one.write_bytes(other.read_bytes())
    again, read = opened(root, monkeypatch)
    assert read == 1
    assert len(set(fingerprints(again)) ^ set(fingerprints(first))) == 2


def test_an_image_that_was_written_just_now_is_not_remembered(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_memo, "SETTLED", 3600.0)
    _, first = opened(root, monkeypatch)
    _, again = opened(root, monkeypatch)
    assert first == again > 0


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"version": 1, "images": {"a": [1, 2, 3, 4, 5]}}', '{"version": 0}']
)
def test_a_damaged_memo_is_a_miss(content: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, read = opened(root, monkeypatch)
    (memo,) = root.parent.glob("cache/images/*.json")
    memo.write_text(content)
    again, second = opened(root, monkeypatch)
    assert second == read
    assert fingerprints(again) == fingerprints(first)
