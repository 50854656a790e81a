"""A folder of one's own: every form of points and splits, what `data add` guesses, and every way it can be wrong."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from raz.cli.main import app
from raz.data import DATASETS, describe_folder, open_dataset, readers
from raz.data.check import check
from raz.data.contract import Sample
from raz.data.dataset_file import FILE, read_spec
from raz.errors import RazError
from raz.spec.ablation import dataset_title
from raz.spec.space_yaml import load_space
from tests.conftest import noise

SIZE = (24, 40)
Points = dict[str, list[tuple[float, float]]]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAZ_DATA_ROOT", raising=False)


def write_images(folder: Path, names: list[str]) -> Points:
    """Images of noise with their annotated points."""
    out: Points = {}
    for n, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(n, *SIZE)).save(path)
        points = np.random.default_rng(n).random((1 + n % 4, 2)) * (SIZE[1], SIZE[0])
        out[name] = [(float(x), float(y)) for x, y in points]
    return out


def write_csv(path: Path, points: Points, header: tuple[str, ...] = ("image", "x", "y"), delimiter: str = ",") -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header)
        for name, each in points.items():
            writer.writerows([name, x, y] for x, y in each)


def describe(folder: Path, **values: Any) -> None:
    given = {"name": "cells", "images": "images", "points": "points.csv", "splits": {"test": 0.25}} | values
    (folder / FILE).write_text(json.dumps(given))  # JSON is YAML


@pytest.fixture
def cells(tmp_path: Path) -> Callable[..., tuple[Path, Points]]:
    def write(**values: Any) -> tuple[Path, Points]:
        folder = tmp_path / "cells"
        points = write_images(folder / "images", [f"c{n}.png" for n in range(12)])
        write_csv(folder / "points.csv", points)
        describe(folder, **values)
        return folder, points

    return write


def by_name(root: Path, name: str = "cells") -> dict[str, Sample]:
    return {i.id.split("/")[-1]: i for items in open_dataset(name, root).items.values() for i in items}


def same(root: Path, points: Points) -> None:
    items = by_name(root)
    assert set(items) == {Path(name).stem for name in points}
    for name, each in points.items():
        assert items[Path(name).stem].load_heads() == pytest.approx(np.array(each).reshape(-1, 2), abs=1e-9)


# ------------------------------------------------------------------ forms


def test_a_folder_is_a_data_set_of_the_root_above_it_and_of_itself(cells: Callable[..., Any], tmp_path: Path) -> None:
    folder, points = cells(title="My cells")
    same(tmp_path, points)
    same(folder, points)
    assert open_dataset("cells", tmp_path).title == "My cells"
    assert set(readers(tmp_path)) == {*DATASETS, "cells"}
    sizes = {split: len(items) for split, items in open_dataset("cells", tmp_path).items.items()}
    assert sizes == {"train": 7, "val": 2, "test": 3}


def _semicolons(folder: Path, points: Points) -> None:
    write_csv(folder / "points.csv", points, ("File", "CX", "cy"), ";")


def _dictionary(folder: Path, points: Points) -> None:
    (folder / "points.json").write_text(json.dumps(points))
    describe(folder, points="points.json")


def _entries(folder: Path, points: Points) -> None:
    content = [{"file_name": f"images/{name}", "points": each} for name, each in points.items()]
    (folder / "points.json").write_text(json.dumps(content))
    describe(folder, points="points.json")


def _coco(folder: Path, points: Points) -> None:
    images = [{"id": n, "file_name": name} for n, name in enumerate(points)]
    boxes = [{"image_id": n, "bbox": [x - 3, y - 2, 6, 4]} for n, each in enumerate(points.values()) for x, y in each]
    (folder / "points.json").write_text(json.dumps({"images": images, "annotations": boxes}))
    describe(folder, points="points.json")


def _singles(suffix: str, text: Callable[[list[tuple[float, float]]], str]) -> Callable[[Path, Points], None]:
    def write(folder: Path, points: Points) -> None:
        (folder / "labels").mkdir()
        for name, each in points.items():
            (folder / "labels" / f"{Path(name).stem}{suffix}").write_text(text(each))
        describe(folder, points="labels")

    return write


FORMS: dict[str, Callable[[Path, Points], None]] = {
    "semicolons": _semicolons,
    "dictionary": _dictionary,
    "entries": _entries,
    "coco": _coco,
    "a csv each": _singles(".csv", lambda p: "id,x,y\n" + "".join(f"7,{x},{y}\n" for x, y in p)),
    "numbers each": _singles(".csv", lambda p: "".join(f"{x},{y}\n" for x, y in p)),
    "a json each": _singles(".json", lambda p: json.dumps({"points": p})),
    "a text each": _singles(".txt", lambda p: "".join(f"{x} {y} 1\n" for x, y in p)),
}


@pytest.mark.parametrize("form", FORMS)
def test_points_come_in_many_forms(cells: Callable[..., Any], tmp_path: Path, form: str) -> None:
    folder, points = cells()
    FORMS[form](folder, points)
    same(tmp_path, points)


def test_an_image_may_hold_nothing(cells: Callable[..., Any], tmp_path: Path) -> None:
    folder, points = cells()
    kept = {name: each for name, each in points.items() if name not in ("c3.png", "c4.png")}
    write_csv(folder / "points.csv", kept)
    with (folder / "points.csv").open("a") as file:
        file.write("c3.png,,\n")
    with pytest.raises(RazError, match=r"c4.png: no annotation, expected a row in .*points.csv \(or `unlisted: empty`"):
        open_dataset("cells", tmp_path)
    describe(folder, unlisted="empty")
    same(tmp_path, {**points, "c3.png": [], "c4.png": []})


def test_pixel_numbers_are_moved_to_the_centres(cells: Callable[..., Any], tmp_path: Path) -> None:
    folder, points = cells(offset=0.5)
    write_csv(folder / "points.csv", {name: [(3, 4), (0, 0)] for name in points})
    same(tmp_path, {name: [(3.5, 4.5), (0.5, 0.5)] for name in points})


def test_splits_by_folder_column_and_list(cells: Callable[..., Any], tmp_path: Path) -> None:
    folder, points = cells(splits={"train": "train.txt", "test": "test.txt"})
    (folder / "train.txt").write_text("".join(f"c{n}.png\n" for n in range(8)))
    (folder / "test.txt").write_text("c8\nc9.png\n")
    dataset = open_dataset("cells", tmp_path)
    assert [item.id for item in dataset.items["test"]] == ["test/c8", "test/c9"]
    assert any("2 image(s) are in no list and ignored" in warning for warning in dataset.warnings)
    describe(folder, splits={"column": "part"})
    with (folder / "points.csv").open("w") as file:
        file.write("image,x,y,part\n")
        for n, name in enumerate(points):
            file.write(f"{name},1,1,{('train', 'train', 'Val', 'test')[n % 4]}\n")
    assert {s: len(i) for s, i in open_dataset("cells", tmp_path).items.items()} == {"train": 6, "val": 3, "test": 3}
    other = tmp_path / "cars"
    points = write_images(other, [f"{split}/{n}.png" for split in ("train", "test") for n in range(4)])
    write_csv(other / "points.csv", points)
    describe(other, name="cars", images=".", splits="folders")
    items = open_dataset("cars", tmp_path).items
    assert [item.id for item in items["test"]] == [f"test/{n}" for n in range(4)]
    assert len(items["train"]) + len(items["val"]) == 4


# ------------------------------------------------------------------ data add


def run(*words: str, text: str | None = None) -> Any:
    return CliRunner().invoke(app, ["data", "add", *words], input=text)


def test_add_guesses_and_writes_what_it_reads(cells: Callable[..., Any], tmp_path: Path) -> None:
    folder, points = cells()
    (folder / FILE).unlink()
    result = run(str(folder), "--objects", "cells")  # no terminal: nothing is asked
    assert result.exit_code == 0, result.output
    assert f"10 train, 2 test images, {sum(map(len, points.values()))} cells" in result.output
    spec = read_spec(folder / FILE)
    assert (spec.name, spec.images, spec.points, spec.splits, spec.offset) == (
        "cells", "images", "points.csv", {"test": 0.2}, 0.0,
    )  # fmt: skip
    same(tmp_path, points)
    again = run(str(folder))
    assert again.exit_code == 2
    assert "exists already\n  try: edit it, or --force" in again.output
    assert run(str(folder), "--force", "--splits", "test=0.5").exit_code == 0
    assert len(open_dataset("cells", tmp_path).items["test"]) == 6


def test_add_asks_what_it_cannot_guess(cells: Callable[..., Any]) -> None:
    folder, points = cells()
    write_csv(folder / "points.csv", {n: [(1, 2)] for n in list(points)[:10]}, ("photo", "east", "south"))
    (folder / FILE).unlink()
    asked: list[str] = []
    answers = {
        "contains the image": "photo",
        "contains the x": "east",
        "contains the y": "south",
        "have no points": "empty",
    }

    def ask(question: str, guess: str) -> str:
        asked.append(question)
        return next((answer for part, answer in answers.items() if part in question), guess)

    spec = describe_folder.describe(folder, describe_folder.FolderOptions(), ask)
    assert spec.columns == {"image": "photo", "x": "east", "y": "south"}
    assert (spec.unlisted, spec.offset) == ("empty", 0.5)  # whole numbers: of pixels
    assert any("whole numbers" in question for question in asked)
    with pytest.raises(RazError, match="cannot be guessed: which column of photo, east, south contains the image"):
        describe_folder.describe(folder, describe_folder.FolderOptions(), None)
    assert (
        describe_folder.describe(folder, describe_folder.FolderOptions(columns="photo,east,south"), None).columns
        == spec.columns
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--name", "toy"], "'toy' is a published data set"),
        (["--name", "My Cells"], "'My Cells', expected 1 to 64 of a-z"),
        (["--points", "point.csv"], "did you mean points.csv"),
        (["--images", "../other"], "is not below"),
        (["--columns", "image,x,z"], "expected image,x,y of the columns image, x, y"),
        (["--images", ""], "--images: an empty name"),
        (["--images", "points.csv"], "--images: points.csv is a file, expected the folder of images"),
        (["--points", ""], "--points: an empty name"),
        (["--points", "images"], "no image to train or to test on is found\n  try: fix the following faults"),
        (["--columns", "image,x,x"], "'image,x,x', expected image,x,y of"),
        (["--splits", "half"], "'half' is not valid"),
        (["--splits", "test=nan"], "--splits: splits.test is nan, expected a part between 0 and 1"),
        (["--splits", "bogus=3"], "--splits: unknown key 'splits.bogus'"),
        (["--splits", "folders"], "splits leave no image for train"),
        (["--splits", "train=a.txt,test=b.txt"], "a.txt: cannot be read"),
        (["--offset", "7"], "--offset: offset is 7.0, expected a number from -1 to 1\n  try: --offset 0.5"),
        (["--objects", "a\nb"], "--objects: 'a\\nb' contains unprintable characters"),
        (["--unlisted", "zero"], "'zero', expected fault or empty"),
    ],
)
def test_add_refuses_with_one_message_and_writes_nothing(
    cells: Callable[..., Any], words: list[str], said: str
) -> None:
    folder, _ = cells()
    (folder / FILE).unlink()
    result = run(str(folder), *words)
    assert result.exit_code == 2
    assert said in result.output
    assert "Traceback" not in result.output
    assert not [p for p in folder.iterdir() if "raz-dataset" in p.name]


def test_add_leaves_faults_with_exit_code_1(cells: Callable[..., Any]) -> None:
    folder, points = cells()
    (folder / FILE).unlink()
    write_csv(folder / "points.csv", dict(list(points.items())[1:]))  # one image without a row
    for words in ([], ["--force", "--json"]):
        result = run(str(folder), *words)
        assert result.exit_code == 1
        assert "no annotation, expected a row in" in result.stdout
        assert read_spec(folder / FILE).name == "cells"
    assert len(json.loads(result.stdout)["faults"]) == 1


def test_an_image_named_twice_in_json_loses_no_points_unsaid(cells: Callable[..., Any]) -> None:
    folder, points = cells()
    (folder / FILE).unlink()
    (folder / "points.csv").unlink()
    inside = ", ".join(f'"{name}": [[1, 2]]' for name in [*points, next(iter(points))])
    (folder / "points.json").write_text(f"{{{inside}}}")
    result = run(str(folder))
    assert result.exit_code == 2
    assert f"{next(iter(points))!r} occurs twice in one object" in result.output


def test_names_of_ones_own_are_legal_where_data_sets_are_named(cells: Callable[..., Any], tmp_path: Path) -> None:
    cells()
    space = tmp_path / "space.yaml"
    space.write_text(
        "study: own\nbase: {dataset: cells}\ndesign: {sampler: grid}\nparameters:\n  depth: {choice: [1, 2]}\n"
    )
    assert load_space(space, data_root=tmp_path).base.dataset == "cells"
    assert dataset_title("cells", tmp_path) == "cells"
    with pytest.raises(RazError, match=r"space.yaml:2: dataset is 'cells', expected one of toy"):
        load_space(space)


def test_a_command_leaves_no_data_root_behind(cells: Callable[..., Any], tmp_path: Path) -> None:
    cells()
    listed = CliRunner().invoke(app, ["data", "list", "--data-root", str(tmp_path), "--json"])
    assert "cells" not in readers()
    assert [row["name"] for row in json.loads(listed.stdout) if row["own"]] == ["cells"]
    CliRunner().invoke(app, ["data", "list"])
    assert "cells" not in readers()


# ------------------------------------------------------------------ wrong


WRONG_DESCRIPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "name": ({"name": "../x"}, "name is '../x', expected 1 to 64 of a-z"),
    "absolute": ({"points": "/etc/passwd"}, "points is '/etc/passwd', expected a path below the folder"),
    "above": ({"images": "a/../../b"}, "expected a path below the folder"),
    "key": ({"colour": 1}, "unknown key 'colour'"),
    "splits": ({"splits": {"train": "t.txt"}}, "splits.test is missing"),
    "part": ({"splits": {"test": 1.5}}, "splits.test is 1.5, expected a part between 0 and 1"),
    "offset": ({"offset": 7}, "offset is 7, expected a number from -1 to 1"),
    "unlisted": ({"unlisted": "none"}, "unlisted is 'none', expected fault or empty"),
    "columns": ({"columns": ["x"]}, "columns is a list, expected names of columns"),
}


@pytest.mark.parametrize("case", WRONG_DESCRIPTIONS)
def test_a_wrong_description_is_told_with_its_line(cells: Callable[..., Any], tmp_path: Path, case: str) -> None:
    values, words = WRONG_DESCRIPTIONS[case]
    folder, _ = cells(**values)
    with pytest.raises(RazError, match=rf"{FILE}:\d+: ") as error:
        read_spec(folder / FILE)
    assert words in str(error.value)
    with pytest.raises(RazError, match="unknown name 'cells'") as error:
        open_dataset("cells", tmp_path)
    assert words in str(error.value)  # why it is not taken


def test_two_folders_of_one_name_are_both_refused(cells: Callable[..., Any], tmp_path: Path) -> None:
    folder, points = cells()
    write_csv(tmp_path / "points.csv", points)
    other = tmp_path / "other"
    other.mkdir()
    describe(other)
    assert "cells" not in readers(tmp_path)
    with pytest.raises(RazError, match=r"is named cells, as .*cells/raz-dataset.yaml is"):
        open_dataset("cells", tmp_path)
    assert folder.is_dir()


def _lines(*lines: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "points.csv").open("a").write("".join(f"{line}\n" for line in lines)) and None


WRONG_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (_lines("c0.png,one,2", "c1.png,3,?"), "x, y are 'one', '2', expected numbers (2 such)"),
    "nan": (_lines("c0.png,nan,2"), "x, y are nan, 2.0, expected finite numbers"),
    "fields": (_lines("c0.png,1,2,3"), "4 fields, the header has 3"),
    "no image named": (_lines(",1,2"), "the image has no name"),
    "no x": (_lines("c0.png,,2"), "x, y are '', '2', expected numbers"),
    "empty": (lambda f: (f / "points.csv").write_text(""), "points.csv: is empty, expected a header line"),
    "columns": (lambda f: (f / "points.csv").write_text("a,b\n1,2\n"), "no column for image (none found), x"),
    "bytes": (lambda f: (f / "points.csv").write_bytes(b"image,x,y\n\xff\xfe,1,2\n"), "byte 0xff is not UTF-8"),
    "gone": (lambda f: (f / "points.csv").unlink(), "points.csv: cannot be read (No such file or directory)"),
    "no images": (lambda f: [p.unlink() for p in (f / "images").iterdir()], "images: holds no image"),
    "unlabelled": (
        lambda f: Image.fromarray(noise(99, *SIZE)).save(f / "images" / "new.png"), "new.png: no annotation, expected",
    ),
    "json": (
        lambda f: [(f / "p.json").write_text('{"c0.png": [[1, "2"]]}'), describe(f, points="p.json")],
        'point 1 is [1, "2"], expected [x, y] in numbers',
    ),
    "not json": (
        lambda f: [(f / "p.json").write_text("{"), describe(f, points="p.json")], "is not valid JSON",
    ),
    "wrong split": (
        lambda f: [
            (f / "points.csv").write_text("image,x,y,s\n" + "".join(f"c{n}.png,1,1,dev\n" for n in range(12))),
            describe(f, splits={"column": "s"}),
        ],
        "split 'dev' (12 such images), expected train, val or test",
    ),
    "no folder of a split": (lambda f: describe(f, splits="folders"), "is in no folder (12 such"),
    "list": (
        lambda f: [
            (f / "a.txt").write_text("c0.png\nnone.png\n"), (f / "b.txt").write_text("c0.png\n"),
            describe(f, splits={"train": "a.txt", "test": "b.txt"}),
        ],
        "a.txt:2: names none.png, which is no image",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_FILES)
def test_a_wrong_file_is_told_with_its_place(cells: Callable[..., Any], tmp_path: Path, case: str) -> None:
    folder, _ = cells()
    damage, words = WRONG_FILES[case]
    damage(folder)
    with pytest.raises(RazError) as error:
        open_dataset("cells", tmp_path)
    assert words in str(error.value)


def test_points_of_no_image_and_points_outside_are_told(cells: Callable[..., Any], tmp_path: Path) -> None:
    folder, _ = cells()
    _lines("gone.png,1,2", "c0.png,99,2")(folder)
    report = check("cells", tmp_path)
    assert report.sound
    assert report.orphaned == (f"{folder / 'points.csv'} (gone.png)",)
    assert sum(split.outside for split in report.splits) == 1


# ------------------------------------------------------------------ the whole way


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_strangers_folder_comes_to_a_finished_study_in_three_commands(tmp_path: Path) -> None:
    """Discs on a grey ground; the commands are the README's, the search cut to three short trials, without Ray."""
    points: Points = {}
    (tmp_path / "cells" / "images").mkdir(parents=True)
    for n in range(14):
        rng = np.random.default_rng(n)
        pixels = rng.integers(90, 110, (96, 128, 3)).astype(np.uint8)
        points[f"c{n}.png"] = [(int(x), int(y)) for x, y in rng.integers(8, 88, (5 + n, 2))]
        for x, y in points[f"c{n}.png"]:
            pixels[y - 3 : y + 4, x - 3 : x + 4] = 220
        Image.fromarray(pixels).save(tmp_path / "cells" / "images" / f"c{n}.png")
    write_csv(tmp_path / "cells" / "points.csv", points)
    names = ("counting.train", "localization.train", "attention.train", "raz.train", "raz.attention_train")
    short = [word for name in names for word in ("--set", f"{name}.epochs=2")]
    commands = [
        ["data", "add", "cells", "--objects", "cells"],
        ["init", "--dataset", "cells", "--data-root", ".", "--out", "cells.yaml"],
        ["run", "cells.yaml", "--data-root", ".", "--trials", "3", "--inline", *short],
        ["report", "cells"],
    ]
    told = []
    for words in commands:
        done = subprocess.run(
            [sys.executable, "-m", "raz.cli", *words], cwd=tmp_path, capture_output=True, text=True, timeout=1200
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        told.append(done.stdout)
    assert "11 train, 3 test images, 161 cells" in told[0]
    assert told[1] == "cells.yaml: study cells; edit it, then: raz-sweep run cells.yaml --data-root .\n"
    assert "study cells: 3 complete, 0 pruned, 0 failed" in told[2]
    assert "held out: test.mae" in told[2]
    assert "Study cells" in told[3]
