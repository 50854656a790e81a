"""Frames: sizes and coordinates (26, 27), zooming from the original pixels (17), and a pack that survives damage."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from raz.data.contract import Pixels, Sample
from raz.data.frames import Frames, input_size
from raz.data.images import decode
from raz.errors import RazError, RazErrorGroup
from tests.conftest import noise

SIZES = ((40, 60), (57, 33), (21, 90))


class Counting:
    """Loads pixels, and counts its calls."""

    def __init__(self, pixels: Pixels) -> None:
        self.pixels, self.times = pixels, 0

    def __call__(self) -> Pixels:
        self.times += 1
        return self.pixels.copy()


def heads_of(height: int, width: int) -> NDArray[np.float64]:
    far_corner = np.nextafter([width, height], 0.0)
    return np.array([[0.0, 0.0], [width / 3, height / 2], far_corner])


def make_items() -> tuple[Sample, ...]:
    return tuple(
        Sample(f"train/{n}", f"{n}", Counting(noise(n, *size)), heads_of(*size).copy, f"{n:064x}")
        for n, size in enumerate(SIZES)
    )


def decoded(items: tuple[Sample, ...]) -> list[int]:
    return [item.load_pixels.times for item in items]  # type: ignore[attr-defined]


def only(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


# ------------------------------------------------------------------ sizes and coordinates


@pytest.mark.parametrize(
    ("scale", "max_side", "expected"),
    [
        (1.0, 0, (600, 801)),
        (0.5, 0, (300, 400)),
        (1.0, 400, (300, 400)),
        (0.25, 400, (150, 200)),
        (2.0, 801, (600, 801)),
        (0.0001, 0, (1, 1)),
    ],
)
def test_input_size(scale: float, max_side: int, expected: tuple[int, int]) -> None:
    assert input_size(600, 801, scale, max_side) == expected


def test_unscaled_frames_are_the_images() -> None:
    items = make_items()
    frames = Frames(items)
    assert len(frames) == 3
    assert frames.ids == ("train/0", "train/1", "train/2")
    for i, item in enumerate(items):
        assert np.array_equal(frames.pixels(i), item.load_pixels())
        assert np.array_equal(frames.heads(i), item.load_heads())
        assert np.array_equal(frames.original_heads(i), item.load_heads())
        assert frames.scale(i) == (1.0, 1.0)


@pytest.mark.parametrize(("scale", "max_side"), [(0.5, 0), (0.3, 0), (1.7, 0), (1.0, 31)])
def test_heads_scale_with_their_image(scale: float, max_side: int) -> None:
    frames = Frames(make_items(), scale=scale, max_side=max_side)
    for i, (h0, w0) in enumerate(SIZES):
        height, width = frames.pixels(i).shape[:2]
        assert (height, width) == input_size(h0, w0, scale, max_side)
        assert frames.original_size(i) == (h0, w0)
        assert frames.scale(i) == (width / w0, height / h0)
        # the same fractions of the sides, and a head in the last pixel stays in the last pixel
        assert frames.heads(i)[1].tolist() == pytest.approx([width / 3, height / 2])
        assert np.floor(frames.heads(i)[2]).tolist() == [width - 1, height - 1]
        assert (frames.heads(i) < (width, height)).all()


def test_halving_averages_without_shifting() -> None:
    # a ramp keeps its values at pixel centres (27): shrinking may not move it by half a pixel
    ramp = np.repeat(np.arange(0, 240, 2, dtype=np.uint8)[None, :, None], 80, axis=0).repeat(3, axis=2)
    item = Sample("train/ramp", "ramp", lambda: ramp.copy(), lambda: np.zeros((0, 2)), "0")
    half = Frames([item], scale=0.5).pixels(0)[20, 4:-4, 0].astype(float)
    centres = (np.arange(60) + 0.5) * 2  # in original px
    assert np.abs(half - 2 * (centres[4:-4] - 0.5)).max() <= 1


def test_what_frames_hold_cannot_be_changed_by_accident() -> None:
    frames = Frames(make_items())
    with pytest.raises(ValueError, match="read-only"):
        frames.pixels(0)[:] = 0
    with pytest.raises(ValueError, match="read-only"):
        frames.original_heads(0)[:] = 0


def test_all_images_that_fail_are_told_at_once(tmp_path: Path) -> None:
    def fail(name: str) -> Pixels:
        raise RazError(name, "is damaged", "copy it again")

    good = make_items()
    bad = [replace(good[0], id="train/x", load_pixels=lambda: fail("x")),
           replace(good[1], id="train/y", load_pixels=lambda: fail("y"))]  # fmt: skip
    for pack in (None, tmp_path / "packs"):
        with pytest.raises(RazErrorGroup, match=r"x: is damaged(.|\n)*y: is damaged"):
            Frames([bad[0], good[2], bad[1]], pack=pack)
    assert list((tmp_path / "packs").iterdir()) == []  # nothing half-written stays


def test_heads_outside_their_image_are_a_fault_of_the_reader() -> None:
    item = replace(make_items()[0], load_heads=lambda: np.array([[60.0, 1.0]]))
    with pytest.raises(RazError, match="has heads outside its 60 x 40 px"):
        Frames([item])


# ------------------------------------------------------------------ zooming


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("zoom", [2.0, 3.0])
@pytest.mark.parametrize("box", [(0, 0, 60, 40), (10, 5, 31, 29), (37, 20, 60, 40), (12.5, 3.5, 40.5, 30.5)])
def test_zooming_is_a_cut_out_of_the_whole_image_zoomed(
    tmp_path: Path, box: tuple[float, float, float, float], zoom: float, pack: bool
) -> None:
    frames = Frames(make_items(), pack=tmp_path if pack else None)
    whole = Image.fromarray(noise(0, 40, 60)).resize((int(60 * zoom), int(40 * zoom)), Image.Resampling.BILINEAR)
    x0, y0, x1, y1 = (int(v * zoom) for v in box)
    if all(v * zoom == int(v * zoom) for v in box):
        got = frames.zoomed(0, box, zoom).astype(int)
        expected = np.asarray(whole).astype(int)[y0:y1, x0:x1]
        assert got.shape == expected.shape
        assert np.abs(got - expected).max() <= 1  # rounding of the filter's weights


def test_zooming_a_shrunk_frame_shows_the_original(tmp_path: Path) -> None:
    # At half size, zooming by 2 gives back the original pixels, which no zoom of the shrunk ones can.
    pixels = noise(0, 40, 60)
    for pack in (None, tmp_path):
        frames = Frames(make_items(), scale=0.5, pack=pack)
        assert np.array_equal(frames.zoomed(0, (0, 0, 30, 20), 2.0), pixels)
        assert np.array_equal(frames.zoomed(0, (5, 3, 16, 18), 2.0), pixels[6:36, 10:32])


def test_points_map_back_by_the_zoom() -> None:
    # one bright pixel at (41, 22): its centre must land at ((41.5 - x0) * zoom, (22.5 - y0) * zoom)
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[22, 41] = 255
    item = Sample("train/dot", "dot", lambda: pixels.copy(), lambda: np.zeros((0, 2)), "0")
    crop = Frames([item]).zoomed(0, (30.0, 11.0, 55.0, 33.0), 4.0)[:, :, 0].astype(float)
    rows, cols = np.indices(crop.shape) + 0.5
    centre = (crop * cols).sum() / crop.sum(), (crop * rows).sum() / crop.sum()
    assert centre == pytest.approx(((41.5 - 30) * 4, (22.5 - 11) * 4), abs=0.05)


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (-1, 0, 5, 5), (0, 0, 61, 5), (0, 0, 5, 40.1), (9, 9, 5, 12)])
def test_a_box_outside_the_input_is_refused(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match="expected it inside 60 x 40 px"):
        Frames(make_items()).zoomed(0, box, 2.0)


# ------------------------------------------------------------------ the pack


@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_a_pack_holds_what_memory_holds_and_is_decoded_once(tmp_path: Path, scale: float) -> None:
    items = make_items()
    memory = Frames(make_items(), scale=scale)
    for _ in range(2):  # built, then found
        packed = Frames(items, scale=scale, pack=tmp_path)
        for i in range(len(items)):
            assert np.array_equal(packed.pixels(i), memory.pixels(i))
            assert np.array_equal(packed.heads(i), memory.heads(i))
            assert packed.original_size(i) == memory.original_size(i)
    assert decoded(items) == [1, 1, 1]
    assert only(tmp_path).suffix == ".rgb"


def test_other_content_or_size_is_another_pack(tmp_path: Path) -> None:
    items = make_items()
    Frames(items, pack=tmp_path)
    Frames(items, pack=tmp_path, scale=0.5)
    Frames(items, pack=tmp_path, max_side=30)
    Frames(items[:2], pack=tmp_path)
    Frames([replace(items[0], digest="f" * 64), *items[1:]], pack=tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


def test_an_empty_split_packs_too(tmp_path: Path) -> None:
    assert len(Frames([], pack=tmp_path)) == len(Frames([], pack=tmp_path)) == len(Frames([])) == 0


def _flip(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset if offset >= 0 else path.stat().st_size + offset)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0x10]))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a pixel": lambda path: _flip(path, 7000),
    "the index": lambda path: _flip(path, -80),
    "the magic": lambda path: _flip(path, -1),
    "the index's length": lambda path: _flip(path, -45),
    "cut short": lambda path: os.truncate(path, path.stat().st_size - 5),
    "cut to nothing": lambda path: os.truncate(path, 0),
    "bytes missing in front": lambda path: path.write_bytes(path.read_bytes()[100:]),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_pack_is_built_again(tmp_path: Path, damage: str) -> None:
    Frames(make_items(), pack=tmp_path)
    DAMAGE[damage](only(tmp_path))
    items = make_items()
    frames = Frames(items, pack=tmp_path)
    for i, item in enumerate(items):
        assert np.array_equal(frames.pixels(i), item.load_pixels.pixels)  # type: ignore[attr-defined]
    assert decoded(items) == [1, 1, 1]
    after = make_items()
    repaired = Frames(after, pack=tmp_path)
    assert [repaired.pixels(i).shape[:2] for i in range(3)] == list(SIZES)
    assert decoded(after) == [0, 0, 0]


def test_a_process_that_reads_the_old_pack_is_not_disturbed(tmp_path: Path) -> None:
    old = Frames(make_items(), pack=tmp_path)
    view = old.pixels(2)
    _flip(only(tmp_path), 20)  # seen by image 0 when it is first used, which builds the pack anew
    assert np.array_equal(old.pixels(0), noise(0, *SIZES[0]))
    assert np.array_equal(view, noise(2, *SIZES[2]))


def test_a_killed_writer_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    first = Frames(make_items(), pack=tmp_path)
    name = only(tmp_path).name
    (tmp_path / name).rename(tmp_path / f".{name}.aside")  # as a writer leaves it before the rename
    items = make_items()
    again = Frames(items, pack=tmp_path)
    assert decoded(items) == [1, 1, 1]
    assert np.array_equal(first.pixels(1), again.pixels(1))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "CMYK", "1", "YCbCr"])
@pytest.mark.parametrize("turned", [1, 6])
def test_a_picture_is_converted_band_by_band_to_the_same_pixels(
    mode: str, turned: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = Image.fromarray(noise(3, 20, 31)).convert(mode)
    kind = {"CMYK": "TIFF", "YCbCr": "TIFF"}.get(mode, "PNG")
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = turned
    picture.save(file, kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(file)).convert("RGB"))  # a TIFF turns as it is opened
    assert expected.shape == ((31, 20, 3) if turned == 6 else (20, 31, 3))
    for band in (7, 512):
        monkeypatch.setattr("raz.data.images.BAND", band)
        pixels = decode(file.getvalue(), "x")
        assert np.array_equal(pixels, expected)
        assert pixels.flags.writeable
        assert pixels.flags.c_contiguous


def test_processes_that_start_together_decode_the_images_once(tmp_path: Path) -> None:
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    second_decodes, opening = threading.Event(), threading.Event()
    decoded: list[int] = []

    def load() -> Pixels:
        decoded.append(1)
        if len(decoded) > 1:
            second_decodes.set()
        opening.set()
        second_decodes.wait(0.5)  # time for the other to begin, too, if nothing holds it back
        return image

    item = Sample("train/a", "a", load, lambda: np.zeros((0, 2)), "digest")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(Frames, [item], pack=tmp_path)
        assert opening.wait(30)
        second = pool.submit(Frames, [item], pack=tmp_path)
        both = [first.result(60), second.result(60)]
    assert len(decoded) == 1
    assert all((frames.pixels(0) == image).all() for frames in both)
    assert [path.suffix for path in tmp_path.iterdir()] == [".rgb"]
