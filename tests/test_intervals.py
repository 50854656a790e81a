"""Intervals of counts through a trained model: its store, its exported file, the commands, and the toy crowd's test
images, which they must cover."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from typer.testing import CliRunner

from raz.cli.main import app
from raz.config import PRESETS, configure
from raz.data import DATASETS, toy
from raz.data.contract import ScanResult
from raz.pipeline.conformal import Conformal, quantile_rank
from raz.pipeline.model import Model, load_model, save_model, stored_model
from raz.pipeline.trial import run_trial
from tests.test_conformal import covered_bounds

pytestmark = pytest.mark.long
CONFIG = configure(
    PRESETS["tiny"],
    {
        "dataset": "larger_toy", "backbone.width": 0.0625, "counting.channels": [8, 8], "depth": 1,
        "localization.channels": [8], "localization.upsample": [8, 6, 4], "fusion.fit_on": "val",
        "counting.train.epochs": 1, "localization.train.epochs": 1,
    },
)  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A trial on 20 training, 60 validation and 100 test images, one epoch a stage: errors are large, and known."""
    place = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:

        def scan(_: Path | None) -> ScanResult:
            with pytest.MonkeyPatch.context() as sizes:
                sizes.setattr(toy, "SIZES", {"train": 20, "val": 60, "test": 100})  # of one mix
                return toy.scan(None)

        patch.setitem(DATASETS, "larger_toy", replace(toy.READER, scan=scan))
        run_trial(CONFIG, place, splits=("val", "test"))
        yield place


def score_folder(store: Path, split: str) -> Path:
    for manifest in (store / "stages" / "score").glob("*/manifest.json"):
        if json.loads(manifest.read_text())["stage"] == f"score@{split}":
            return manifest.parent
    raise AssertionError(f"no score of {split}")


@pytest.fixture(scope="module")
def model(store: Path) -> Model:
    return stored_model(store, score_folder(store, "val").name)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(2):
        Image.fromarray(toy.generate("test", n)[0]).save(folder / f"{n}.png")
    return folder


CALIBRATED = Conformal(tuple(0.125 * i for i in range(20)))  # rank ceil(18.9) = 19 of 20: 2.25


def test_an_interval_stands_beside_each_count(model: Model, photos: Path, tmp_path: Path) -> None:
    """In text, CSV, JSON and Python, through an exported file; without errors of validation images there is none."""
    file, out = tmp_path / "m.safetensors", tmp_path / "out"
    calibrated = replace(model, fitted=replace(model.fitted, conformal=CALIBRATED))
    save_model(calibrated, file)
    here = load_model(file)
    assert here.fitted.conformal == CALIBRATED
    counts = {name: here.predict(photos / name).count for name in ("0.png", "1.png")}
    ends = {name: (max(c - 2.25 * max(c, 1) ** 0.75, 0), c + 2.25 * max(c, 1) ** 0.75) for name, c in counts.items()}
    for name, end in ends.items():
        assert here.predict(photos / name).interval == pytest.approx(end)
    words = ["predict", str(photos), "--weights", str(file)]
    done = CliRunner().invoke(app, [*words, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[0].split() == ["image", "count", "interval", "density", "points", "seconds"]
    low, high = ends["0.png"]
    assert f" {low:.1f} to {high:.1f} " in done.stdout.splitlines()[1]
    about = done.stdout.splitlines()[-1]
    assert about.startswith("intervals: 90 %, split-conformal, from the errors of 20 validation images (100 ± 71, ")
    with (out / "counts.csv").open() as stream:
        rows = {row["image"]: row for row in csv.DictReader(stream)}
    for name, row in rows.items():
        assert (float(row["low"]), float(row["high"])) == pytest.approx(ends[name])
    assert {name: float(row["count"]) for name, row in rows.items()} == counts
    got = json.loads((out / "predictions.json").read_text())
    for image in got["images"]:
        assert image["interval"] == pytest.approx(ends[image["image"]])
    assert got["model"]["intervals"] == about
    save_model(replace(calibrated, about={**model.about, "final": True}), file)
    assert CliRunner().invoke(app, words).stdout.splitlines()[-1].endswith(
        "; the search's: this model was trained on these images too"
    )  # fmt: skip
    assert load_model(file).predict(photos / "0.png").interval == pytest.approx(ends["0.png"])


def test_a_file_without_errors_of_validation_images_has_no_intervals(
    model: Model, photos: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "m.safetensors", tmp_path / "out"
    save_model(replace(model, fitted=replace(model.fitted, conformal=None)), file)
    with safe_open(file, "pt") as stream:
        assert "conformal" not in stream.metadata()["fitted"]  # as earlier versions wrote it
    assert load_model(file).predict(photos / "0.png").interval is None
    done = CliRunner().invoke(app, ["predict", str(photos), "--weights", str(file), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[1].split()[2] == "-"
    assert done.stdout.splitlines()[-1] == "no intervals: the model holds no errors of validation images"
    with (out / "counts.csv").open() as stream:
        assert [(row["low"], row["high"]) for row in csv.DictReader(stream)] == [("", "")] * 2


def test_few_validation_images_give_no_intervals(model: Model, photos: Path) -> None:
    few = replace(model, fitted=replace(model.fitted, conformal=Conformal((0.5,) * 8)))
    assert few.predict(photos / "0.png").interval is None
    assert few.about_intervals() == "no intervals: errors of 8 validation images, 90 % takes at least 9"


def test_at_another_depth_the_errors_are_not_known(model: Model, photos: Path) -> None:
    deeper = replace(model, config=replace(model.config, depth=2))
    assert deeper.predict(photos / "0.png", depth=1).interval is None
    assert deeper.about_intervals(1) == "no intervals: errors are known after 2 passes, not after 1"
    assert deeper.about_intervals(2) == deeper.about_intervals() == model.about_intervals(1)


def test_a_trained_model_s_intervals_cover_the_test_images(store: Path) -> None:
    folder = score_folder(store, "test")
    conformal = stored_model(store, folder.name).fitted.conformal
    assert conformal is not None
    assert len(conformal.values) == 60
    assert conformal == stored_model(store, score_folder(store, "val").name).fitted.conformal
    with np.load(folder / "per_image.npz", allow_pickle=False) as scored:
        fused, truth = scored["fused"], scored["truth"]
    ends = np.array([conformal.interval(float(c)) for c in fused])
    covered = int(((ends[:, 0] <= truth) & (truth <= ends[:, 1])).sum())
    low, _ = covered_bounds(100, 60, quantile_rank(60))
    assert 70 < low <= covered < 100, covered
