"""ShanghaiTech's layouts, its known oddities, and every way in which a copy is broken."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from raz.data import open_dataset
from raz.data.contract import Sample
from raz.data.splits import split_validation
from raz.errors import RazError, RazErrorGroup
from tests.conftest import Part, noise, write_mat

WritePart = Callable[..., Part]


def by_id(root: Path, name: str = "shanghaitech_a") -> dict[str, Sample]:
    dataset = open_dataset(name, root)
    return {item.id: item for items in dataset.items.values() for item in items}


# ------------------------------------------------------------------ layouts


@pytest.mark.parametrize("folder", ["part_A", "part_A_final", "ShanghaiTech/part_A", "ShanghaiTech/Part_A"])
@pytest.mark.parametrize("labels", ["ground-truth", "ground_truth"])
def test_copies_as_they_circulate(write_part: WritePart, tmp_path: Path, folder: str, labels: str) -> None:
    part = write_part(folder, labels=labels)
    for root in (tmp_path / "data", part.folder):
        items = by_id(root)
        assert set(items) == set(part.heads)
        for item_id, heads in part.heads.items():
            assert np.array_equal(items[item_id].load_heads(), heads)
            assert np.array_equal(items[item_id].load_pixels(), np.asarray(Image.open(part.image(item_id))))


def test_the_other_part_is_not_taken_for_this_one(write_part: WritePart) -> None:
    part = write_part("part_B")
    with pytest.raises(RazError, match="no folder part_A or part_A_final"):
        open_dataset("shanghaitech_a", part.folder)


def test_two_copies_of_a_part_are_refused(write_part: WritePart) -> None:
    write_part("part_A")
    part = write_part("part_A_final")
    with pytest.raises(RazError, match="holds part_A and part_A_final, expected one of them"):
        open_dataset("shanghaitech_a", part.folder.parent)


def test_images_come_in_the_order_of_their_numbers(write_part: WritePart) -> None:
    part = write_part(test=(1, 2, 3, 10, 20))
    ids = [item.id for item in open_dataset("shanghaitech_a", part.folder).items["test"]]
    assert ids == [f"test/IMG_{n}" for n in (1, 2, 3, 10, 20)]


def test_hidden_files_of_other_systems_are_passed_over(write_part: WritePart) -> None:
    part = write_part()
    part.image("test/IMG_1").with_name("._IMG_1.jpg").write_bytes(b"finder")
    part.image("test/IMG_1").with_name("Thumbs.db").write_bytes(b"windows")
    assert len(open_dataset("shanghaitech_a", part.folder).items["test"]) == 3


# ------------------------------------------------------------------ splits and leaks


def test_validation_images_are_the_tenth_with_the_lowest_hash(write_part: WritePart) -> None:
    part = write_part(train=range(1, 27))
    dataset = open_dataset("shanghaitech_a", part.folder)
    ids = [f"train/IMG_{n}" for n in range(1, 27)]
    lowest = sorted(ids, key=lambda i: hashlib.sha256(i.encode()).digest())[: round(0.1 * 26)]
    assert {item.id for item in dataset.items["val"]} == set(lowest)
    assert [item.id for item in dataset.items["train"]] == [i for i in ids if i not in lowest]


def items_of(scenes: dict[str, int]) -> list[Sample]:
    return [
        Sample(f"train/{scene}_{n}", scene, lambda: noise(0, 8, 8), lambda: np.zeros((0, 2)), "0")
        for scene, size in scenes.items()
        for n in range(size)
    ]


def test_scenes_stay_whole() -> None:
    items = items_of({"a": 7, "b": 9, "c": 5, "d": 8, "e": 11})
    train, val = split_validation(items)
    assert {i.id for i in train} | {i.id for i in val} == {i.id for i in items}
    assert not {i.scene for i in train} & {i.scene for i in val}
    assert len(val) >= round(0.1 * len(items))
    # the scene of the image with the lowest hash is the first one taken, and one is enough here
    first = min(items, key=lambda i: hashlib.sha256(i.id.encode()).digest())
    assert {i.scene for i in val} == {first.scene}


def test_the_split_does_not_depend_on_the_order_of_files() -> None:
    items = items_of({f"s{n}": 1 for n in range(40)})
    forwards, backwards = split_validation(items)[1], split_validation(items[::-1])[1]
    assert {i.id for i in forwards} == {i.id for i in backwards}
    assert len(forwards) == 4


def test_a_small_data_set_still_keeps_a_training_scene() -> None:
    train, val = split_validation(items_of({"a": 1, "b": 1}))
    assert (len(train), len(val)) == (1, 1)
    with pytest.raises(RazError, match="expected two scenes or more"):
        split_validation(items_of({"a": 5}))


@pytest.mark.parametrize(("images", "wanted"), [(2, 1), (5, 1), (6, 2), (14, 2), (24, 2), (25, 2), (26, 3), (300, 30)])
def test_two_images_are_for_validation_wherever_there_are_six(images: int, wanted: int) -> None:
    """round() of 24 and less by 0.1 is at most 2; Python rounds 2.5 to even."""
    train, val = split_validation(items_of({f"s{n}": 1 for n in range(images)}))
    assert (len(train), len(val)) == (images - wanted, wanted)


def test_a_training_copy_of_a_test_image_is_left_out(write_part: WritePart) -> None:
    part = write_part()
    shutil.copy(part.image("test/IMG_2"), part.image("train/IMG_5"))
    write_mat(part.label("train/IMG_5"), np.zeros((0, 2)))  # annotated anew: only the image is the same
    dataset = open_dataset("shanghaitech_a", part.folder)
    ids = {item.id for items in dataset.items.values() for item in items}
    assert "train/IMG_5" not in ids
    assert "test/IMG_2" in ids
    assert "train/IMG_5 is byte-identical to test/IMG_2: left out of train" in dataset.warnings
    kept = open_dataset("shanghaitech_a", part.folder, leaks="keep")
    assert "train/IMG_5" in {item.id for items in kept.items.values() for item in items}
    assert not any("byte-identical" in warning for warning in kept.warnings)


def test_copies_within_training_are_one_scene(write_part: WritePart) -> None:
    part = write_part()
    shutil.copy(part.image("train/IMG_3"), part.image("train/IMG_8"))
    write_mat(part.label("train/IMG_8"), np.zeros((0, 2)))
    items = by_id(part.folder)
    assert items["train/IMG_8"].scene == items["train/IMG_3"].scene
    assert items["train/IMG_8"].digest != items["train/IMG_3"].digest


# ------------------------------------------------------------------ odd, but legal


def test_heads_outside_are_dropped_and_counted(write_part: WritePart) -> None:
    part = write_part()
    # IMG_1 is 21 x 32 px (27): the far borders are outside, the near ones inside
    write_mat(part.label("test/IMG_1"), np.array([[0, 0], [32, 5], [31.99, 20.99], [5, 21], [-0.1, 3], [4, 4]]))
    dataset = open_dataset("shanghaitech_a", part.folder)
    heads = next(i for i in dataset.items["test"] if i.id == "test/IMG_1").load_heads()
    assert heads.tolist() == [[0, 0], [31.99, 20.99], [4, 4]]
    assert "3 head(s) of 1 image(s) lie outside and are dropped (most in test/IMG_1: 3)" in dataset.warnings


def test_an_image_without_heads(write_part: WritePart) -> None:
    part = write_part()
    write_mat(part.label("test/IMG_1"), np.zeros((0, 0)))
    assert by_id(part.folder)["test/IMG_1"].load_heads().shape == (0, 2)


def test_a_count_that_differs_from_the_points_is_told(write_part: WritePart) -> None:
    part = write_part()
    write_mat(part.label("test/IMG_1"), np.ones((2, 2)), number=7)
    warnings = open_dataset("shanghaitech_a", part.folder).warnings
    assert "test/IMG_1: the annotation states 7 heads and holds 2" in warnings


def test_a_copy_of_another_size_than_published_is_told(write_part: WritePart) -> None:
    warnings = open_dataset("shanghaitech_a", write_part().folder).warnings
    assert "12 train images, 300 were published: scores are not comparable" in warnings
    assert "3 test images, 182 were published: scores are not comparable" in warnings


def test_an_orphaned_annotation_is_told(write_part: WritePart) -> None:
    part = write_part()
    part.image("test/IMG_3").unlink()
    warnings = open_dataset("shanghaitech_a", part.folder).warnings
    assert f"1 annotation(s) without an image, the first is {part.label('test/IMG_3')}" in warnings


def test_known_wrong_labels_are_told(write_part: WritePart) -> None:
    part = write_part("part_B", train=(107, 108, 109))
    assert "train/IMG_108: its labels are known to be wrong" in open_dataset("shanghaitech_b", part.folder).warnings
    part_a = write_part("part_A", train=(107, 108, 109))
    assert not any("IMG_108" in w for w in open_dataset("shanghaitech_a", part_a.folder).warnings)


def _turned(pixels: np.ndarray, path: Path) -> np.ndarray:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter, clockwise
    Image.fromarray(pixels).save(path, format="PNG", exif=exif)
    return np.rot90(pixels, -1)


def _grey(pixels: np.ndarray, path: Path) -> np.ndarray:
    Image.fromarray(pixels[:, :, 0]).save(path, format="PNG")
    return np.repeat(pixels[:, :, :1], 3, axis=2)


def _palette(pixels: np.ndarray, path: Path) -> np.ndarray:
    few = (pixels // 128) * 255
    Image.fromarray(few).convert("P", palette=Image.Palette.ADAPTIVE, colors=8).save(path, format="PNG")
    return few


def _alpha(pixels: np.ndarray, path: Path) -> np.ndarray:
    Image.fromarray(np.dstack([pixels, pixels[:, :, 0]])).save(path, format="PNG")
    return pixels


def _sixteen(pixels: np.ndarray, path: Path) -> np.ndarray:
    wide = pixels[:, :, 0].astype(np.uint16) * 256 + pixels[:, :, 1]
    Image.fromarray(wide).save(path, format="PNG")
    return np.repeat(pixels[:, :, :1], 3, axis=2)


@pytest.mark.parametrize("write", [_turned, _grey, _palette, _alpha, _sixteen])
def test_whatever_a_file_holds_becomes_rgb(
    write_part: WritePart, write: Callable[[np.ndarray, Path], np.ndarray]
) -> None:
    part = write_part()
    path = part.image("test/IMG_1")
    path.unlink()
    expected = write(noise(7, 24, 40), path.with_suffix(".png"))
    height, width = expected.shape[:2]
    corner = [width - 0.5, height - 0.5]
    write_mat(part.label("test/IMG_1"), np.array([corner]))
    item = by_id(part.folder)["test/IMG_1"]
    assert np.array_equal(item.load_pixels(), expected)
    assert item.load_heads().tolist() == [corner]  # inside only of the upright image


# ------------------------------------------------------------------ broken


def _break(write: Callable[[Path], object]) -> Callable[[Part], Path]:
    def broken(part: Part) -> Path:
        path = part.label("train/IMG_4")
        write(path)
        return path

    return broken


def _truncated(part: Part) -> Path:
    path = part.image("train/IMG_4")
    path.write_bytes(path.read_bytes()[:-200])
    return path


def _no_image(part: Part) -> Path:
    path = part.image("train/IMG_4")
    path.write_bytes(b"<html>404</html>")
    return path


def _unlabelled(part: Part) -> Path:
    part.label("train/IMG_4").unlink()
    return part.image("train/IMG_4")


def _twice(part: Part) -> Path:
    path = part.image("train/IMG_4")
    shutil.copy(path, path.with_suffix(".png"))
    return path.with_suffix("")


BROKEN: dict[str, tuple[Callable[[Part], Path], str]] = {
    "no annotation": (_unlabelled, "no annotation, expected "),
    "truncated JPEG": (_truncated, "damaged image (image file is truncated"),
    "not an image": (_no_image, "is not a readable image"),
    "two images, one annotation": (_twice, "2 images share one annotation"),
    "not a .mat file": (_break(lambda p: p.write_bytes(b"nothing of the kind")), "is not a readable MATLAB file"),
    "empty .mat file": (_break(lambda p: p.write_bytes(b"")), "is empty (0 bytes), expected a MATLAB file"),
    "cut .mat file": (_break(lambda p: p.write_bytes(p.read_bytes()[:-40])), "is not a readable MATLAB file"),
    "other variable": (_break(lambda p: savemat(p, {"points": np.ones((2, 2))})), "has no variable image_info"),
    "other field": (
        _break(lambda p: savemat(p, {"image_info": {"annPoints": np.ones((2, 2))}})),
        "has no field image_info[0,0]['location'][0,0]",
    ),
    "plain numbers": (_break(lambda p: savemat(p, {"image_info": np.ones((3, 2))})), "has no field image_info"),
    "text": (_break(lambda p: write_mat(p, np.array([["12", "30"]]))), "location holds text, expected numbers"),
    "text in cells": (
        _break(lambda p: write_mat(p, np.array([["a", "b"]], dtype=object))),
        "location holds object, expected numbers",
    ),
    "NaN": (
        _break(lambda p: write_mat(p, np.array([[1, 2], [3, np.nan], [np.inf, 1]]))),
        "2 point(s) are not finite, the first at row 2",
    ),
    "three columns": (
        _break(lambda p: write_mat(p, np.ones((4, 3)))),
        "location has the shape (4, 3), expected (n, 2)",
    ),
    "three axes": (_break(lambda p: write_mat(p, np.ones((4, 2, 2)))), "location has the shape (4, 2, 2)"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named_with_its_fault(write_part: WritePart, case: str) -> None:
    part = write_part()
    break_it, words = BROKEN[case]
    path = break_it(part)
    with pytest.raises(RazError) as error:
        open_dataset("shanghaitech_a", part.folder)
    assert str(path) in str(error.value)
    assert words in str(error.value)
    assert error.value.hint


def test_all_faults_are_told_at_once(write_part: WritePart) -> None:
    part = write_part()
    part.label("train/IMG_1").unlink()
    _truncated(part)
    write_mat(part.label("train/IMG_4"), np.array([[np.nan, 1.0]]))  # the same item's other file
    write_mat(part.label("test/IMG_2"), np.ones((4, 3)))
    shutil.rmtree(part.folder / "test_data" / "images")
    with pytest.raises(RazErrorGroup) as error:
        open_dataset("shanghaitech_a", part.folder)
    assert len(error.value.faults) == 4
    told = str(error.value)
    for path in (part.image("train/IMG_1"), part.image("train/IMG_4"), part.label("train/IMG_4")):
        assert str(path) in told
    assert f"{part.folder / 'test_data' / 'images'}: no such folder" in told


def test_a_missing_folder_of_annotations_is_told(write_part: WritePart) -> None:
    part = write_part()
    shutil.rmtree(part.label("test/IMG_1").parent)
    with pytest.raises(RazError, match="test_data: no folder ground-truth or ground_truth"):
        open_dataset("shanghaitech_a", part.folder)


def test_damage_that_only_decoding_finds_is_told_when_it_is_found(write_part: WritePart) -> None:
    part = write_part()
    item = by_id(part.folder)["test/IMG_1"]
    part.image("test/IMG_1").unlink()
    with pytest.raises(RazError, match=r"IMG_1.jpg: cannot be read \(No such file"):
        item.load_pixels()
    shutil.copy(part.image("test/IMG_2"), part.image("test/IMG_1"))
    with pytest.raises(RazError, match="has changed since the data set was opened"):
        item.load_pixels()


def test_the_digest_is_of_both_files(write_part: WritePart) -> None:
    part = write_part()
    before = {i: item.digest for i, item in by_id(part.folder).items()}
    write_mat(part.label("test/IMG_1"), np.array([[1.0, 1.0]]))
    Image.fromarray(noise(99, 22, 34)).save(part.image("test/IMG_2"))
    after = {i: item.digest for i, item in by_id(part.folder).items()}
    assert {i for i in before if before[i] != after[i]} == {"test/IMG_1", "test/IMG_2"}


def test_real_part_a_holds_what_was_published(real_root: Path) -> None:
    dataset = open_dataset("shanghaitech_a", real_root)
    assert {split: len(items) for split, items in dataset.items.items()} == {"train": 269, "val": 30, "test": 182}
    assert sum(len(item.load_heads()) for item in dataset.items["test"]) == 78_862
    assert "train/IMG_121 is byte-identical to test/IMG_98: left out of train" in dataset.warnings
