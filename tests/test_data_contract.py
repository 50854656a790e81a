"""One contract, every reader."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import raz.data
from raz.data import DATASETS, Dataset, open_dataset
from raz.data.contract import SPLITS, Sample
from raz.errors import RazError
from tests.conftest import Part
from tests.datasets import COPIES

WritePart = Callable[..., Part]

# How each data set comes about here. A reader without a line fails `test_every_reader_is_tested`.
FIXTURES: dict[str, Callable[[Path], Path | None]] = {
    "toy": lambda root: None,
    **{name: (lambda root, write=write: write(root).root) for name, write in COPIES.items()},
}


def test_every_reader_is_tested() -> None:
    assert set(FIXTURES) == set(DATASETS)


@pytest.fixture(params=sorted(FIXTURES))
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Dataset, Path | None]:
    root = FIXTURES[request.param](tmp_path)
    return open_dataset(request.param, root), root


def some(dataset: Dataset) -> list[Sample]:
    return [item for split in SPLITS for item in dataset.items[split][:4]]


def test_splits_are_three_disjoint_and_not_empty(opened: tuple[Dataset, Path | None]) -> None:
    dataset, _ = opened
    assert tuple(dataset.items) == SPLITS
    assert all(dataset.items[split] for split in SPLITS)
    ids = [item.id for split in SPLITS for item in dataset.items[split]]
    assert len(set(ids)) == len(ids)
    scenes = [{item.scene for item in dataset.items[split]} for split in ("train", "val")]
    assert not scenes[0] & scenes[1]


def test_pixels_and_heads_keep_their_word(opened: tuple[Dataset, Path | None]) -> None:
    for item in some(opened[0]):
        pixels, heads = item.load_pixels(), item.load_heads()
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3
        assert heads.dtype == np.float64
        assert heads.shape == (len(heads), 2)
        assert ((heads >= 0) & (heads < (pixels.shape[1], pixels.shape[0]))).all()
        assert item.size == item.original_size() == pixels.shape[:2]  # known without decoding: keys ask for it


def test_what_a_loader_returns_is_the_callers_own(opened: tuple[Dataset, Path | None]) -> None:
    item = max(some(opened[0]), key=lambda item: len(item.load_heads()))
    pixels, heads = item.load_pixels(), item.load_heads()
    kept = pixels.copy(), heads.copy()
    pixels[:] = 0
    heads[:] = -1
    assert np.array_equal(item.load_pixels(), kept[0])
    assert np.array_equal(item.load_heads(), kept[1])


def test_items_travel_to_another_process(opened: tuple[Dataset, Path | None]) -> None:
    for item in some(opened[0]):
        there = pickle.loads(pickle.dumps(item))
        assert (there.id, there.scene, there.digest) == (item.id, item.scene, item.digest)
        assert np.array_equal(there.load_pixels(), item.load_pixels())
        assert np.array_equal(there.load_heads(), item.load_heads())


def test_fingerprints_are_of_content(opened: tuple[Dataset, Path | None]) -> None:
    dataset, root = opened
    raz.data._OPEN_DATASETS.clear()  # as another process
    again = open_dataset(dataset.name, root)
    prints = [dataset.fingerprint(split) for split in SPLITS]
    assert prints == [again.fingerprint(split) for split in SPLITS]
    assert len(set(prints)) == 3
    assert all(re.fullmatch("[0-9a-f]{64}", item.digest) for item in some(dataset))
    shorter = Dataset(dataset.name, dataset.title, {**dataset.items, "train": dataset.items["train"][1:]})
    assert shorter.fingerprint("train") != dataset.fingerprint("train")


@pytest.mark.parametrize("name", sorted(n for n, reader in DATASETS.items() if reader.find is not None))
def test_a_data_set_on_disk_says_what_it_needs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAZ_DATA_ROOT", raising=False)
    with pytest.raises(RazError, match=r"no folder given(.|\n)*--data-root DIR, or set RAZ_DATA_ROOT"):
        open_dataset(name)
    with pytest.raises(RazError, match="no such folder"):
        open_dataset(name, tmp_path / "nowhere")
    with pytest.raises(RazError, match=r"no folder .+ here(.|\n)*try: --data-root DIR with DIR/"):
        open_dataset(name, tmp_path)


def test_the_environment_names_the_root(write_part: WritePart, monkeypatch: pytest.MonkeyPatch) -> None:
    part = write_part("part_A")
    monkeypatch.setenv("RAZ_DATA_ROOT", str(part.folder.parent))
    assert len(open_dataset("shanghaitech_a").items["test"]) == 3


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(RazError, match=r"unknown name 'shanghai_a'(.|\n)*shanghaitech_a"):
        open_dataset("shanghai_a")


def test_a_process_reads_a_data_set_once(write_part: WritePart, monkeypatch: pytest.MonkeyPatch) -> None:
    part = write_part()
    first = open_dataset("shanghaitech_a", part.folder)
    read: list[Path] = []
    original = Path.read_bytes

    def noted(path: Path) -> bytes:
        read.append(path)
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", noted)
    assert open_dataset("shanghaitech_a", part.folder) is first
    assert read == []
    part.image("test/IMG_2").write_bytes(part.image("test/IMG_3").read_bytes())  # a file changes
    again = open_dataset("shanghaitech_a", part.folder)
    assert len(read) > 30
    assert again.fingerprint("test") != first.fingerprint("test")
    assert again.fingerprint("train") == first.fingerprint("train")
    part.label("test/IMG_1").unlink()  # one goes
    with pytest.raises(RazError, match="no annotation"):
        open_dataset("shanghaitech_a", part.folder)


def test_a_relative_root_is_read_from_anywhere(
    write_part: WritePart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = write_part()
    monkeypatch.chdir(part.folder.parent)
    item = open_dataset("shanghaitech_a", Path(".")).items["test"][0]
    monkeypatch.chdir(tmp_path)
    assert item.load_pixels().shape == (21, 32, 3)


def test_a_dangling_link_is_a_fault_with_a_name(write_part: WritePart) -> None:
    part = write_part()
    part.image("test/IMG_2").unlink()
    part.image("test/IMG_2").symlink_to(part.folder / "nowhere.jpg")
    with pytest.raises(RazError, match=r"IMG_2.jpg: cannot be read \(No such file"):
        open_dataset("shanghaitech_a", part.folder)
