"""One table of broken copies for every reader on disk: a message each, all at once, and the good part still counted."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raz.data import open_dataset
from raz.data.check import check
from raz.errors import RazError, RazErrorGroup
from tests.conftest import noise
from tests.datasets import COPIES, SIZE, Copy

# One reader of each kind: the parts of ShanghaiTech and the folds of UCF_CC_50 share their code.
NAMES = ("shanghaitech_a", "ucf_qnrf", "ucf_cc_50@3", "worldexpo", "jhu_crowd", "nwpu_crowd")


def _damage_image(change: Callable[[Path], object]) -> Callable[[Copy, str], Path]:
    def damage(copy: Copy, item: str) -> Path:
        change(copy.images[item])
        return copy.images[item]

    return damage


def _damage_label(change: Callable[[Copy, Path], object]) -> Callable[[Copy, str], Path]:
    def damage(copy: Copy, item: str) -> Path:
        change(copy, copy.labels[item])
        return copy.labels[item]

    return damage


def _animated(path: Path) -> None:
    frames = [Image.fromarray(noise(n, *SIZE)) for n in range(3)]
    frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:])


def _pages(path: Path) -> None:
    frames = [Image.fromarray(noise(n, *SIZE)) for n in range(2)]
    frames[0].save(path, format="TIFF", save_all=True, append_images=frames[1:])


def _floating(path: Path) -> None:
    Image.fromarray(np.ones(SIZE, np.float32)).save(path, format="TIFF")


def _unlink(copy: Copy, item: str) -> Path:
    copy.labels[item].unlink()
    return copy.images[item]


def _twin_in_case(copy: Copy, item: str) -> Path:
    twin = copy.images[item].with_suffix(".JPG")
    if twin.exists():
        pytest.skip("this file system does not tell case apart")
    shutil.copy(copy.images[item], twin)
    return twin.with_suffix("")


def _twin_in_ending(copy: Copy, item: str) -> Path:
    Image.open(copy.images[item]).save(copy.images[item].with_suffix(".png"))
    return copy.images[item].with_suffix("")


def _text(copy: Copy, path: Path) -> None:
    copy.write(path, np.array([["a", "b"]], dtype=object if path.suffix == ".txt" else np.str_))


# What is done to an image or its annotation, and what is said of it. All are faults.
BROKEN: dict[str, tuple[Callable[[Copy, str], Path], str]] = {
    "truncated image": (_damage_image(lambda p: p.write_bytes(p.read_bytes()[:-200])), "damaged image ("),
    "empty image": (_damage_image(lambda p: p.write_bytes(b"")), "is empty (0 bytes), expected an image"),
    "a page of HTML": (_damage_image(lambda p: p.write_bytes(b"<html>404</html>")), "is not a readable image"),
    "animated": (_damage_image(_animated), "is animated or has several pages (3), expected one picture"),
    "two pages": (_damage_image(_pages), "is animated or has several pages (2), expected one picture"),
    "floating point": (_damage_image(_floating), "has pixels in floating point, expected 8 or 16 bits"),
    "no annotation": (_unlink, "no annotation, expected "),
    "other ending": (_twin_in_ending, "2 images share one annotation"),
    "names differ in case": (_twin_in_case, "2 images share one annotation"),
    "a NaN point": (_damage_label(lambda c, p: c.write(p, np.array([[1, 2], [np.nan, 3.0]]))), "not finite"),
    "points as text": (_damage_label(_text), "numbers"),
    "bytes": (
        _damage_label(lambda c, p: p.write_bytes(b"\xff\xfe\x00 no such thing")),
        "expected|is not a readable MATLAB file",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("name", NAMES)
def test_a_broken_file_is_one_message_and_the_rest_is_counted(name: str, case: str, tmp_path: Path) -> None:
    copy = COPIES[name](tmp_path)
    item = sorted(copy.labels)[-1]
    damage, words = BROKEN[case]
    path = damage(copy, item)
    with pytest.raises(RazError) as error:
        open_dataset(name, tmp_path)
    faults = error.value.faults if isinstance(error.value, RazErrorGroup) else (error.value,)
    assert len(faults) == 1
    assert str(path).lower() in faults[0].where.lower()
    assert any(word in faults[0].what for word in words.split("|"))
    assert faults[0].hint
    report = check(name, tmp_path)
    assert not report.sound
    assert len(report.faults) == 1
    still = len(copy.labels) - ("case" not in case and "ending" not in case)
    assert sum(split.images for split in report.splits) == still


@pytest.mark.parametrize("name", NAMES)
def test_all_faults_are_told_at_once(name: str, tmp_path: Path) -> None:
    copy = COPIES[name](tmp_path)
    items = sorted(copy.labels)
    broken = dict(zip(BROKEN, items, strict=False)) if len(items) > len(BROKEN) else {}
    broken = broken or {case: items[i] for i, case in enumerate(list(BROKEN)[: len(items) - 3])}
    for case, item in broken.items():
        BROKEN[case][0](copy, item)
    report = check(name, tmp_path)
    assert len(report.faults) == len(broken)
    with pytest.raises(RazErrorGroup) as error:
        open_dataset(name, tmp_path)
    assert len(error.value.faults) == len(broken)


def _cmyk(path: Path) -> np.ndarray:
    Image.new("CMYK", SIZE[::-1], (0, 255, 255, 0)).save(path, format="TIFF")
    return np.broadcast_to(np.array([255, 0, 0], np.uint8), (*SIZE, 3))


def _sixteen(path: Path) -> np.ndarray:
    values = np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE) * 60
    Image.fromarray(values).save(path, format="PNG")
    return np.repeat((values // 256).astype(np.uint8)[:, :, None], 3, axis=2)


@pytest.mark.parametrize("write", [_cmyk, _sixteen])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "worldexpo"])
def test_other_colours_are_converted_by_rule(name: str, write: Callable[[Path], np.ndarray], tmp_path: Path) -> None:
    copy = COPIES[name](tmp_path)
    item = sorted(copy.labels)[-1]
    expected = write(copy.images[item])
    items = {i.id: i for each in open_dataset(name, tmp_path).items.values() for i in each}
    assert np.array_equal(items[item].load_pixels(), expected)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_odd_but_legal_is_a_warning(name: str, tmp_path: Path) -> None:
    copy = COPIES[name](tmp_path)
    outside, orphan = sorted(copy.labels)[-2:]
    copy.write(copy.labels[outside], np.array([[9.5, 9.5], [4711.0, 3.0], [-2.0, 3.0]]))
    copy.images[orphan].unlink()
    if name == "nwpu_crowd":  # its lists name every image, so one that is gone is a fault there
        report = check(name, tmp_path)
        assert "of which there is no image" in report.faults[0]
    else:
        report = check(name, tmp_path)
        assert report.sound
        assert any("1 annotation(s) without an image" in warning for warning in report.warnings)
    assert report.orphaned == (str(copy.labels[orphan]),)
    assert sum(split.outside for split in report.splits) == 2


SPLIT_FOLDERS = {
    "shanghaitech_a": ("part_A/test_data", "test_data"), "ucf_qnrf": ("UCF-QNRF_ECCV18/Test", "est: no such folder"),
    "worldexpo": ("WorldExpo/test_frame", "test_frame: no such folder"),
    "jhu_crowd": ("jhu_crowd_v2.0/val/images", "images: no such folder"),
    "nwpu_crowd": ("NWPU-Crowd/images", "images: no such folder"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPLIT_FOLDERS)
def test_a_folder_of_another_name_is_named(name: str, tmp_path: Path) -> None:
    COPIES[name](tmp_path)
    relative, words = SPLIT_FOLDERS[name]
    shutil.move(tmp_path / relative, tmp_path / "elsewhere")
    root = tmp_path / relative.split("/")[0]
    with pytest.raises(RazError) as error:
        open_dataset(name, root if name != "ucf_qnrf" else tmp_path)
    assert words in str(error.value)


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """As a user whom permissions bind."""
    if not hasattr(os, "geteuid"):
        pytest.skip("no users here")
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_without_read_permission_is_named(name: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        copy = COPIES[name](root)
        closed = copy.images[sorted(copy.labels)[-1]].parent
        os.chmod(root, 0o755)
        os.chmod(closed, 0)
        try:
            with unprivileged(), pytest.raises(RazError) as error:
                open_dataset(name, root)
        finally:
            os.chmod(closed, 0o755)
        assert f"{closed}: cannot be read (Permission denied)" in str(error.value)
