"""`data list`, `data check` and `data show`: what they say, and that it is true."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from raz.cli.data import data_app
from raz.cli.main import app
from raz.config import TrialConfig
from raz.data import DATASETS, open_dataset
from raz.data.check import DatasetReport, check, render, shared_pixels
from raz.data.show import apply_colours, compute, draw, show
from raz.data.splits import Leak
from raz.errors import RazError
from tests.conftest import Part, write_mat

WritePart = Callable[..., Part]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "real_root" not in request.fixturenames:
        monkeypatch.delenv("RAZ_DATA_ROOT", raising=False)


def text(report: DatasetReport) -> str:
    out = io.StringIO()
    render(report, Console(file=out, width=140))
    return out.getvalue()


# ------------------------------------------------------------------ check


def test_shared_pixels_are_counted_by_pixel() -> None:
    assert shared_pixels(np.zeros((0, 2))) == 0
    assert shared_pixels(np.array([[1.0, 2.0], [1.9, 2.9], [1.0, 2.0], [2.0, 2.0], [0.99, 2.0]])) == 2


def test_a_sound_copy_is_counted(write_part: WritePart) -> None:
    part = write_part()
    report = check("shanghaitech_a", part.folder)
    assert report.sound
    for split in report.splits:
        of = {i: h for i, h in part.heads.items() if i.startswith(split.split)}
        n = [len(h) for h in of.values()]
        assert (split.images, split.heads, split.least, split.most) == (len(n), sum(n), min(n), max(n))
        assert split.mean == sum(n) / len(n)
        numbers = [int(i.split("_")[1]) for i in of]
        assert split.smallest == (20 + min(numbers), 30 + 2 * min(numbers))
        assert split.largest == (20 + max(numbers), 30 + 2 * max(numbers))
    assert [split.split for split in report.splits] == ["train", "test"]
    assert "Every image and every annotation can be read." in text(report)


def test_the_good_part_is_reported_when_parts_are_broken(write_part: WritePart) -> None:
    part = write_part()
    shutil.copy(part.image("test/IMG_1"), part.image("train/IMG_1"))  # a leak
    part.label("train/IMG_2").unlink()  # missing
    part.image("train/IMG_3").unlink()  # orphaned
    part.image("train/IMG_4").write_bytes(part.image("train/IMG_4").read_bytes()[:300])  # truncated
    write_mat(part.label("train/IMG_5"), np.array([["x", "y"]]))  # text
    write_mat(part.label("train/IMG_6"), np.array([[3.0, 3.0], [3.5, 3.5], [-1.0, 2.0], [9.0, 9.0]]))
    report = check("shanghaitech_a", part.folder)
    train, test = report.splits
    assert not report.sound
    assert (train.images, test.images) == (8, 3)
    assert (train.outside, train.shared_pixels) == (1, 1)
    assert report.leaks == (Leak("train/IMG_1", "test/IMG_1"),)
    assert report.missing == (str(part.image("train/IMG_2")),)
    assert report.orphaned == (str(part.label("train/IMG_3")),)
    assert report.unreadable == (str(part.image("train/IMG_4")), str(part.label("train/IMG_5")))
    assert len(report.faults) == 3
    told = text(report)
    for words in (
        "train/IMG_1 and test/IMG_1 are the same file",
        f"{part.image('train/IMG_2')}: no annotation",
        f"annotation without an image: {part.label('train/IMG_3')}",
        "location holds text, expected numbers",
        "3 fault(s): the data set cannot be opened",
    ):
        assert words in told


def test_damage_in_the_middle_of_an_image_is_found_by_decoding(write_part: WritePart) -> None:
    part = write_part()
    path = part.image("test/IMG_2")
    data = bytearray(path.read_bytes())
    table = data.index(b"\xff\xc4") + 5  # a Huffman table's counts: the size and the end stay as they were
    data[table : table + 16] = b"\xff" * 16
    path.write_bytes(bytes(data))
    item = open_dataset("shanghaitech_a", part.folder).items["test"][1]  # which reads headers only
    with pytest.raises(RazError, match=r"IMG_2.jpg: damaged image \("):
        item.load_pixels()
    report = check("shanghaitech_a", part.folder)
    assert report.unreadable == (str(path),)
    assert not report.sound
    assert report.splits[1].images == 2


def test_nothing_readable_is_an_error(write_part: WritePart) -> None:
    part = write_part()
    for split in ("train", "test"):
        shutil.rmtree(part.folder / f"{split}_data" / "images")
        (part.folder / f"{split}_data" / "images").mkdir()
    with pytest.raises(RazError, match="holds no image"):
        check("shanghaitech_a", part.folder)


def test_progress_reaches_the_end(write_part: WritePart) -> None:
    seen: list[tuple[int, int]] = []
    check("shanghaitech_a", write_part().folder, lambda done, total: seen.append((done, total)))
    assert seen == [(n, 15) for n in range(1, 16)]


def test_real_part_a(real_root: Path) -> None:
    report = check("shanghaitech_a", real_root)
    train, test = report.splits
    assert (train.images, train.heads, test.images, test.heads) == (300, 162_413, 182, 78_862)
    assert train.shared_pixels + test.shared_pixels == 141
    assert train.outside == test.outside == 0
    assert min(*train.smallest, *test.smallest) == 182
    assert report.leaks == (Leak("train/IMG_121", "test/IMG_98"),)
    assert report.sound
    assert report.warnings == report.missing == report.orphaned == ()


# ------------------------------------------------------------------ show


def test_the_colours_run_from_dark_to_bright() -> None:
    ramp = apply_colours(np.linspace(0, 1, 101, dtype=np.float32)[None])[0].astype(float)
    lightness = ramp @ [0.299, 0.587, 0.114]
    assert (np.diff(lightness) > 0).all()


def test_panels_are_computed_from_the_truth() -> None:
    item = open_dataset("toy").items["test"][0]
    panels = compute(item, TrialConfig())
    heads = item.load_heads()
    assert panels.density.sum(dtype=np.float64) == pytest.approx(len(heads), abs=1e-3)
    assert len(panels.regions) > 0
    for (x0, y0, x1, y1), mean in zip(panels.regions, panels.means, strict=True):
        assert mean == pytest.approx(panels.attention[y0:y1, x0:x1].mean(dtype=np.float64), rel=1e-6)
    assert (np.diff(panels.means) <= 0).all()


@pytest.mark.parametrize("index", [0, 14])  # a packed scene, and one without a head
def test_show_writes_four_panels(tmp_path: Path, index: int) -> None:
    out = tmp_path / "new" / "crowd.png"
    panels = show("toy", None, out, index=index)
    assert (len(panels.heads) == 0) == (index == 14)
    picture = np.asarray(Image.open(out))
    assert picture.shape == np.asarray(draw(panels)).shape
    height, width = panels.pixels.shape[:2]
    assert picture.shape[1] > 2 * width
    assert picture.shape[0] > 2 * height
    # each head is marked in the first panel, in a colour that the photograph does not hold
    yellow = (picture == (255, 230, 40)).all(axis=2)
    assert yellow.any() == (index != 14)
    assert not yellow[:, picture.shape[1] // 2 :].any()


def test_show_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(RazError, match="--index: 40, but toy has 40 test images"):
        show("toy", None, tmp_path / "x.png", index=40)
    with pytest.raises(RazError, match="--split: 'dev', expected one of train, val, test"):
        show("toy", None, tmp_path / "x.png", split="dev")  # type: ignore[arg-type]
    (tmp_path / "file").write_text("")
    with pytest.raises(RazError, match="cannot be written"):
        show("toy", None, tmp_path / "file" / "x.png")


# ------------------------------------------------------------------ command line


def test_list_names_every_data_set_and_where_it_is(write_part: WritePart) -> None:
    part = write_part("part_B")
    result = CliRunner().invoke(data_app, ["list", "--data-root", str(part.folder.parent), "--json"])
    assert result.exit_code == 0
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert {name for name, row in rows.items() if row["found"]} == {"toy", "shanghaitech_b"}
    assert set(rows) == set(DATASETS)
    assert rows["shanghaitech_b"]["where"] == str(part.folder)
    plain = CliRunner().invoke(data_app, ["list"])
    assert plain.exit_code == 0
    assert re.search(r"shanghaitech_a +ShanghaiTech Part A +- shanghaitech_a: no folder given", plain.stdout)


def test_list_tells_of_a_root_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("nope", "file"):
        done = CliRunner().invoke(app, ["data", "list", "--root", str(tmp_path / name)])
        assert done.exit_code == 2
        assert done.stdout == ""
        assert done.stderr == f"{tmp_path / name}: no such folder\n  try: check --data-root and RAZ_DATA_ROOT\n"


def test_check_prints_json_and_nothing_else(write_part: WritePart) -> None:
    part = write_part()
    part.label("train/IMG_2").unlink()
    result = CliRunner().invoke(data_app, ["check", "shanghaitech_a", "--root", str(part.folder), "--json"])
    assert result.exit_code == 0  # findings are listed; only when nothing can be read it is an error
    document = json.loads(result.stdout)
    assert document == json.loads(json.dumps(check("shanghaitech_a", part.folder).as_json()))
    assert document["sound"] is False
    assert document["missing"] == [str(part.image("train/IMG_2"))]


def test_check_prints_for_people(write_part: WritePart) -> None:
    result = CliRunner().invoke(data_app, ["check", "shanghaitech_a", "--root", str(write_part().folder)])
    assert result.exit_code == 0
    assert "ShanghaiTech Part A (shanghaitech_a)" in result.stdout
    assert "12 train images, 300 were published" in result.stdout


def test_errors_are_left_to_the_command_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(data_app, ["check", "shanghaitech_a", "--root", str(tmp_path)])
    assert isinstance(result.exception, RazError)
    assert "no folder part_A" in str(result.exception)


def test_show_from_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "crowd.png"
    result = CliRunner().invoke(data_app, ["show", "toy", "--split", "val", "--index", "1", "--out", str(out)])
    assert result.exit_code == 0
    assert f"{out}: Toy crowd, val/001, " in result.stdout
    assert Image.open(out).format == "PNG"


def test_show_writes_over_no_file_of_another_kind(tmp_path: Path) -> None:
    photo = tmp_path / "crowd.jpg"
    photo.write_bytes(b"mine")
    result = CliRunner().invoke(data_app, ["show", "toy", "--out", str(photo)])
    assert isinstance(result.exception, RazError)
    assert "ends with .jpg, expected .png" in str(result.exception)
    assert photo.read_bytes() == b"mine"


@pytest.mark.parametrize("command", ["list", "check", "show"])
def test_help_has_examples(command: str) -> None:
    result = CliRunner().invoke(data_app, [command, "--help"])
    assert result.exit_code == 0
    assert f"raz-sweep data {command}" in result.stdout
