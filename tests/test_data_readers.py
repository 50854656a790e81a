"""The readers of published data sets: layouts, protocols, and what each makes of its authors' conventions."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raz.data import DATASETS, open_dataset
from raz.data.check import check
from raz.data.contract import Sample
from raz.data.region import OUTSIDE_COLOUR
from raz.data.worldexpo import TEST_SCENES
from raz.errors import RazError
from tests.datasets import (
    COPIES,
    ROI,
    SIZE,
    jhu_crowd,
    nwpu_crowd,
    nwpu_json,
    ucf_cc_50,
    ucf_qnrf,
    worldexpo,
    write_roi,
)


def by_id(name: str, root: Path) -> dict[str, Sample]:
    return {item.id: item for items in open_dataset(name, root).items.values() for item in items}


@pytest.mark.parametrize("name", sorted(COPIES))
def test_every_image_is_read_with_its_own_heads(name: str, tmp_path: Path) -> None:
    copy = COPIES[name](tmp_path)
    items = by_id(name, tmp_path)
    assert set(items) == set(copy.heads)
    for item_id, item in items.items():
        assert np.array_equal(item.load_heads(), copy.heads[item_id])
        pixels = np.array(Image.open(copy.images[item_id]))
        if item.region:
            y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
            (x0, y0), (x1, y1) = ROI[0], ROI[2]
            pixels[(x < x0) | (x >= x1) | (y < y0) | (y >= y1)] = OUTSIDE_COLOUR
        assert np.array_equal(item.load_pixels(), pixels)


@pytest.mark.parametrize("name", sorted(COPIES))
def test_check_counts_a_sound_copy(name: str, tmp_path: Path) -> None:
    copy = COPIES[name](tmp_path)
    report = check(name, tmp_path)
    assert report.sound
    assert sum(split.images for split in report.splits) == len(copy.heads)
    assert sum(split.heads for split in report.splits) == sum(map(len, copy.heads.values()))
    assert report.leaks == report.missing == report.orphaned == ()


@pytest.mark.parametrize("name", sorted(COPIES))
def test_the_folder_itself_may_be_given_as_root(name: str, tmp_path: Path) -> None:
    COPIES[name](tmp_path)
    (folder,) = tmp_path.iterdir()
    assert DATASETS[name].find is not None
    assert DATASETS[name].find(folder) == DATASETS[name].find(tmp_path) == folder  # type: ignore[misc]


def test_two_copies_are_refused(tmp_path: Path) -> None:
    ucf_qnrf(tmp_path)
    shutil.copytree(tmp_path / "UCF-QNRF_ECCV18", tmp_path / "ucf-qnrf")
    with pytest.raises(RazError, match="holds UCF-QNRF_ECCV18 and ucf-qnrf, expected one of them"):
        open_dataset("ucf_qnrf", tmp_path)


# ------------------------------------------------------------------ UCF_CC_50


def test_the_five_folds_test_every_image_once(tmp_path: Path) -> None:
    ucf_cc_50(tmp_path)
    tested: list[str] = []
    for fold in range(1, 6):
        items = open_dataset(f"ucf_cc_50@{fold}", tmp_path).items
        ids = [item.id for item in items["test"]]
        assert ids == [f"image/{n}" for n in range(10 * fold - 9, 10 * fold + 1)]
        learned = {item.id for split in ("train", "val") for item in items[split]}  # type: ignore[index]
        assert not learned & set(ids)
        assert len(learned) == 40
        tested += ids
    assert len(set(tested)) == 50


def test_a_name_without_a_fold_gets_the_folds() -> None:
    with pytest.raises(RazError, match=r"ucf_cc_50@1"):
        open_dataset("ucf_cc_50")


# ------------------------------------------------------------------ WorldExpo'10


def test_worldexpo_is_read_inside_its_regions(tmp_path: Path) -> None:
    copy = worldexpo(tmp_path)
    first = f"test/{TEST_SCENES[0]}_A-0"
    copy.write(copy.labels[first], np.array([[4.5, 3.0], [3.9, 3.0], [20.0, 21.9], [20.0, 22.5], [39.0, 30.0]]))
    dataset = open_dataset("worldexpo", tmp_path)
    item = next(i for i in dataset.items["test"] if i.id == first)
    assert item.load_heads().tolist() == [[4.5, 3.0], [20.0, 21.9]]
    assert item.region == ROI
    told = "3 head(s) of 1 image(s) lie outside their image or its region of interest and are dropped"
    assert any(told in warning for warning in dataset.warnings)


def test_the_five_test_scenes_are_parts_in_the_order_of_the_papers(tmp_path: Path) -> None:
    worldexpo(tmp_path)
    dataset = open_dataset("worldexpo", tmp_path)
    assert {item.scene: item.part for item in dataset.items["test"]} == {
        "104207": "scene1", "200608": "scene2", "200702": "scene3", "202201": "scene4", "500717": "scene5",
    }  # fmt: skip
    assert {item.part for split in ("train", "val") for item in dataset.items[split]} == {""}  # type: ignore[index]
    sides = [{item.scene for item in dataset.items[split]} for split in ("train", "val")]  # type: ignore[index]
    assert not sides[0] & sides[1]


def test_the_region_is_part_of_what_is_read(tmp_path: Path) -> None:
    copy = worldexpo(tmp_path)
    before = {i: item.digest for i, item in by_id("worldexpo", tmp_path).items()}
    label = copy.labels[f"test/{TEST_SCENES[2]}_A-0"]
    write_roi(label.with_name("roi.mat"), [(0, 0), (40, 0), (40, 24), (0, 24)])
    after = {i: item.digest for i, item in by_id("worldexpo", tmp_path).items()}
    changed = {i for i in before if before[i] != after[i]}
    assert changed == {f"test/{TEST_SCENES[2]}_A-{n}" for n in range(2)}


def test_test_frames_may_lie_flat(tmp_path: Path) -> None:
    copy = worldexpo(tmp_path)
    for item, image in copy.images.items():
        if item.startswith("test/"):
            image.rename(tmp_path / "WorldExpo" / "test_frame" / image.name)
    assert {i.part for i in open_dataset("worldexpo", tmp_path).items["test"]} == {f"scene{n}" for n in range(1, 6)}


@pytest.mark.parametrize(
    ("corners", "words"),
    [
        ([(1, 1), (9, 9)], "has 2 x and 2 y corners, expected three or more"),
        ([(1, 1), (2, 2), (5, 5)], "the region of interest has no area"),
        ([(1, 1), (9, np.nan), (5, 5)], "1 point(s) are not finite"),
    ],
)
def test_a_region_that_is_none_is_a_fault(tmp_path: Path, corners: object, words: str) -> None:
    copy = worldexpo(tmp_path)
    outline = copy.labels[f"test/{TEST_SCENES[2]}_A-0"].with_name("roi.mat")
    write_roi(outline, corners)
    with pytest.raises(RazError) as error:
        open_dataset("worldexpo", tmp_path)
    assert f"{outline}: " in str(error.value)
    assert words in str(error.value)
    assert check("worldexpo", tmp_path).splits[1].images == 8  # the other scenes


def test_a_missing_region_is_a_fault(tmp_path: Path) -> None:
    copy = worldexpo(tmp_path)
    copy.labels[f"test/{TEST_SCENES[2]}_A-0"].with_name("roi.mat").unlink()
    with pytest.raises(RazError, match="so scene 200702 has no region of interest"):
        open_dataset("worldexpo", tmp_path)


# ------------------------------------------------------------------ JHU-Crowd++


def test_jhu_keeps_its_own_validation_split_and_empty_files(tmp_path: Path) -> None:
    copy = jhu_crowd(tmp_path)
    empty = next(i for i in copy.labels if i.startswith("test/"))
    copy.labels[empty].write_text("")  # an image without heads
    dataset = open_dataset("jhu_crowd", tmp_path)
    assert {split: len(items) for split, items in dataset.items.items()} == {"train": 6, "val": 3, "test": 3}
    assert next(i for i in dataset.items["test"] if i.id == empty).load_heads().shape == (0, 2)
    stated = len(copy.heads[empty])
    assert any(f"first {empty}: 0, stated {stated}" in warning for warning in dataset.warnings)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("3 4 5 6 1\n", "5 numbers, expected six: x y w h o b"),
        ("1 2 3 4 1 0\n3 four 5 6 1 0\n", "'3 four 5 6 1 0' is not six numbers: x y w h o b"),
        ("3 nan 5 6 1 0\n3 inf 5 6 1 0\n", "a number that is not finite: x y w h o b (2 such lines)"),
    ],
)
def test_a_line_of_jhu_that_is_wrong_is_named(tmp_path: Path, line: str, words: str) -> None:
    copy = jhu_crowd(tmp_path)
    label = next(iter(copy.labels.values()))
    label.write_text(line)
    with pytest.raises(RazError) as error:
        open_dataset("jhu_crowd", tmp_path)
    assert str(error.value).startswith(f"{label}:{2 if 'four' in line else 1}: {words}")


# ------------------------------------------------------------------ NWPU-Crowd


def test_nwpu_scores_its_official_validation_images(tmp_path: Path) -> None:
    nwpu_crowd(tmp_path)
    dataset = open_dataset("nwpu_crowd", tmp_path)
    assert [item.id for item in dataset.items["test"]] == [f"val/{n:04d}" for n in (9, 10, 11)]
    assert {item.id for split in ("train", "val") for item in dataset.items[split]} == {  # type: ignore[index]
        f"train/{n:04d}" for n in range(1, 9)
    }
    assert any("test images are withheld (3 images without one here)" in warning for warning in dataset.warnings)


@pytest.mark.parametrize("beside", [False, True])
def test_nwpu_may_come_as_json_and_in_parts(tmp_path: Path, beside: bool) -> None:
    copy = nwpu_crowd(tmp_path)
    base = tmp_path / "NWPU-Crowd"
    (base / "jsons").mkdir()
    for item, label in copy.labels.items():
        # beside mats they are not read: their boxes' authors changed nothing about the points
        nwpu_json(base / "jsons" / f"{label.stem}.json", copy.heads[item] if not beside else np.zeros((1, 2)))
    if not beside:
        shutil.rmtree(base / "mats")
    (base / "images_part2").mkdir()
    (base / "images").rename(base / "images_part1")
    shutil.move(base / "images_part1" / "0003.jpg", base / "images_part2" / "0003.jpg")
    items = by_id("nwpu_crowd", tmp_path)
    assert set(items) == set(copy.heads)
    for item_id, item in items.items():
        assert np.array_equal(item.load_heads(), copy.heads[item_id])


def test_lists_that_contradict_are_named_line_by_line(tmp_path: Path) -> None:
    nwpu_crowd(tmp_path)
    base = tmp_path / "NWPU-Crowd"
    with (base / "train.txt").open("a") as file:
        file.write("0002 1 1\n\n4711 1 1\n")
    with (base / "val.txt").open("a") as file:
        file.write("0001 2 3\n")
    with pytest.raises(RazError) as error:
        open_dataset("nwpu_crowd", tmp_path)
    for words in (
        f"{base / 'train.txt'}:9: names 0002 twice",
        f"{base / 'train.txt'}: names 4711, of which there is no image",
        f"{base / 'val.txt'}:4: names 0001, which train.txt names too",
    ):
        assert words in str(error.value)
    assert sum(split.images for split in check("nwpu_crowd", tmp_path).splits) == 11


@pytest.mark.skipif(os.name == "nt", reason="HDF5 files are written by h5py")
def test_a_matlab_73_file_is_read_where_h5py_is(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    copy = worldexpo(tmp_path)
    for item, label in copy.labels.items():
        with h5py.File(label, "w", userblock_size=512) as file:
            file["point_position"] = copy.heads[item].T
        body = label.read_bytes()[512:]
        label.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124, b" ") + b"\x00\x02IM" + b"\0" * 384 + body)
    for item_id, item in by_id("worldexpo", tmp_path).items():
        assert np.array_equal(item.load_heads(), copy.heads[item_id])
