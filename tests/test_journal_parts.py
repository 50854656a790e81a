"""Journals in a bucket: what was added is sent, what is read is a journal, and two drivers are found out."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from raz.errors import RazError
from raz.store import s3_journals
from raz.store.s3 import Bucket
from raz.store.s3_journals import (
    download_journals,
    journal_objects,
    length_of,
    parts_of,
    read_parts,
)
from raz.study.bucket_sync import _Uploader
from raz.study.journal import read_journal

NAME = "studies/s.journal"


class Memory(Bucket):
    """A bucket in memory. `before` is called before each request, with its kind and the object's name."""

    def __init__(self) -> None:
        super().__init__("s3://memory/x")
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.sent = self.received = self.clock = 0
        self.before: Callable[[str, str], None] = lambda kind, name: None

    def read(self, name: str) -> bytes | None:
        self.before("read", name)
        data = self.objects.get(name, (None, 0))[0]
        self.received += len(data or b"")
        return data

    def write(self, name: str, data: bytes) -> None:
        self.before("write", name)
        self.clock += 1
        self.sent += len(data)
        self.objects[name] = (data, self.clock)

    def remove(self, name: str) -> None:
        self.before("remove", name)
        self.objects.pop(name, None)

    def names(self, below: str = "") -> dict[str, tuple[int, int]]:
        return {name: (len(data), at) for name, (data, at) in self.objects.items() if name.startswith(below)}


class Driver:
    """A machine that writes study `s`, and copies it."""

    def __init__(self, bucket: Memory, folder: Path) -> None:
        self.bucket, self.store = bucket, folder
        self.path = folder / NAME
        self.path.parent.mkdir(parents=True)
        self.uploader = _Uploader(folder, bucket)

    def add(self, text: str) -> None:
        with self.path.open("a") as file:
            file.write(text)

    def copy(self) -> None:
        self.uploader.upload()


def joined(bucket: Memory) -> bytes:
    return read_parts(bucket, NAME, journal_objects(bucket.names("studies")).get(NAME, {}))


def lines(rng: random.Random, most: int) -> str:
    return "".join(f"{rng.random()}{'x' * rng.randrange(200)}\n" for _ in range(rng.randint(1, most)))


@pytest.mark.parametrize("seed", range(4))
def test_only_what_was_added_is_sent_and_few_parts_are_kept(seed: int, tmp_path: Path) -> None:
    rng, bucket = random.Random(seed), Memory()
    driver, read = Driver(bucket, tmp_path), 0
    for copies in range(300):
        driver.add(lines(rng, 30 if copies % 50 == 0 else 4) + "half a line")
        before = bucket.received
        driver.copy()
        driver.copy()  # nothing was added
        read += bucket.received - before
        whole = read_journal(driver.path)
        assert joined(bucket) == whole
        assert all(data.endswith(b"\n") for data, _ in bucket.objects.values())
        assert len(bucket.objects) <= 1 + math.log2(len(whole))
        driver.add("\n")
    assert bucket.sent < 12 * len(whole)  # the whole of it each time would be 150 times as much
    assert read == 0  # a driver knows what it has written


def test_a_journal_that_was_copied_whole_is_continued(tmp_path: Path) -> None:
    bucket, driver = Memory(), None
    driver = Driver(bucket, tmp_path)
    driver.add("old\n" * 1000)
    bucket.write(NAME, driver.path.read_bytes())
    driver.copy()
    assert list(bucket.objects) == [NAME]
    driver.add("new\n")
    driver.copy()
    assert sorted(bucket.objects) == [NAME, f"{NAME}.parts/0000000000004000"]
    assert bucket.sent == 4004
    assert joined(bucket) == driver.path.read_bytes()


@pytest.mark.parametrize("seed", range(6))
def test_a_copy_that_is_cut_short_loses_nothing(seed: int, tmp_path: Path) -> None:
    """Each request may fail, and a driver may be another process each time: what can be read is a journal up to a line,
    never less than after the last whole copy, and the next whole copy has all."""
    rng, bucket = random.Random(seed), Memory()
    driver, faults, copied = Driver(bucket, tmp_path), 0, b""

    def fail(kind: str, name: str) -> None:
        if rng.random() < 0.3:
            raise OSError("no answer")

    for _ in range(200):
        driver.add(lines(rng, 8))
        if rng.random() < 0.2:
            driver.uploader = _Uploader(tmp_path, bucket)
        bucket.before = fail
        try:
            driver.copy()
        except OSError:
            faults += 1
        bucket.before = lambda kind, name: None
        there = joined(bucket)
        assert driver.path.read_bytes().startswith(there)
        assert len(there) >= len(copied)
        if rng.random() < 0.3:
            driver.copy()
            assert joined(bucket) == driver.path.read_bytes()
        copied = joined(bucket)
    driver.add("last\n")
    driver.copy()
    assert joined(bucket) == driver.path.read_bytes()
    assert faults > 20


def test_who_reads_while_parts_are_joined_reads_a_journal(tmp_path: Path) -> None:
    rng, bucket = random.Random(0), Memory()
    driver, read = Driver(bucket, tmp_path), 0
    seen: list[bytes] = []

    def look(kind: str, name: str) -> None:
        """Between any two requests of a copy."""
        bucket.before = lambda kind, name: None
        seen.append(joined(bucket))
        bucket.before = look

    for _ in range(60):
        driver.add(lines(rng, 6))
        driver.copy()
        whole = driver.path.read_bytes()
        seen.clear()
        driver.add(lines(rng, 6))
        bucket.before = look
        driver.copy()
        bucket.before = lambda kind, name: None
        assert all(driver.path.read_bytes().startswith(data) and len(data) >= len(whole) for data in seen)
        read += len(seen)
    assert read > 80


@pytest.mark.parametrize("at", ["first", "second"])
@pytest.mark.parametrize("deletes", [True, False])
def test_parts_that_are_joined_during_a_reading(at: str, deletes: bool, tmp_path: Path) -> None:
    """Between the reader's listing and its reading of a part all are taken in; those may still be there."""
    bucket = Memory()
    driver = Driver(bucket, tmp_path)
    for text in ("a" * 1000 + "\n", "b" * 100 + "\n"):
        driver.add(text)
        driver.copy()
    objects = journal_objects(bucket.names("studies"))[NAME]
    assert len(objects) == 2

    def refuse(kind: str, name: str) -> None:
        if kind == "remove" and not deletes:
            raise OSError("no answer")

    def join_now(kind: str, name: str) -> None:
        if (name == NAME) == (at == "first"):
            bucket.before = refuse
            driver.add("c" * 100_000 + "\n")
            with suppress(OSError):
                driver.copy()

    bucket.before = join_now
    data = read_parts(bucket, NAME, objects)
    whole = driver.path.read_bytes()
    assert len(bucket.objects) == (1 if deletes else 2)
    assert data == (whole[:1102] if at == "second" and not deletes else whole)  # it was read before


def test_a_second_driver_of_a_study_is_refused(tmp_path: Path) -> None:
    bucket = Memory()
    one = Driver(bucket, tmp_path / "one")
    one.add("first\n" * 100)
    one.copy()
    two = Driver(bucket, tmp_path / "two")
    two.add("first\n" * 100)
    two.copy()  # it knows as much, and adds nothing
    assert bucket.sent == 600
    one.add("of one\n")
    one.copy()
    two.copy()
    two.add("of two\n")
    with pytest.raises(RazError, match="another driver has written it"):
        two.copy()
    one.add("more of one\n")
    one.copy()
    assert joined(bucket) == one.path.read_bytes()


def test_a_study_that_another_machine_writes_is_read_once(tmp_path: Path) -> None:
    bucket = Memory()
    one, two = Driver(bucket, tmp_path / "one"), Driver(bucket, tmp_path / "two")
    for driver in (one, two):
        driver.add("first\n" * 100)
    one.copy()
    for _ in range(5):
        two.copy()
    assert bucket.received == 600


def test_a_gap_ends_a_journal_and_is_filled_by_its_driver(tmp_path: Path) -> None:
    bucket, rng = Memory(), random.Random(1)
    driver = Driver(bucket, tmp_path)
    for size in (2000, 500, 100):
        driver.add("x" * (size - 1) + "\n")
        driver.copy()
    assert [part.start for part in parts_of(bucket.names("studies"))] == [0, 2000, 2500]
    bucket.remove(f"{NAME}.parts/{2000:016d}")
    assert joined(bucket) == driver.path.read_bytes()[:2000]
    assert length_of(parts_of(bucket.names("studies"))) == 2000
    driver.add(lines(rng, 1))
    driver.copy()
    assert joined(bucket) == driver.path.read_bytes()


def test_parts_are_downloaded_as_one_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Memory()
    driver = Driver(bucket, tmp_path / "one")
    for text in ("a" * 3000 + "\n", "b" * 300 + "\n", "c\n"):
        driver.add(text)
        driver.copy()
    assert len(bucket.objects) == 3
    bucket.write("studies/s.journal.parts/notes.txt", b"not a part")
    bucket.write("studies/deeper/t.journal", b"none of ours\n")
    bucket.write("tables/t-1.json", b"{}")
    monkeypatch.setattr(s3_journals, "bucket_for", lambda folder: bucket)
    two = tmp_path / "two"
    download_journals(two)
    assert (two / NAME).read_bytes() == driver.path.read_bytes()
    assert (two / "tables" / "t-1.json").read_bytes() == b"{}"
    assert not list(two.rglob("*.parts"))
    assert not (two / "studies" / "deeper").exists()
    before = bucket.received
    download_journals(two)  # there is nothing new
    assert bucket.received == before
    (two / NAME).write_text("another study\n")
    download_journals(two)
    assert (two / NAME).read_text() == "another study\n"
