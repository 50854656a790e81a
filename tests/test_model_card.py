"""The model card says what the store knows, goes with the file, and is safe Markdown."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from typer.testing import CliRunner

from raz.cli.main import app
from raz.config import PRESETS, TrialConfig, configure
from raz.data import open_dataset
from raz.errors import RazError
from raz.pipeline.conformal import Conformal
from raz.pipeline.model import Model, load_model, save_model, stored_model
from raz.pipeline.trial import run_trial
from raz.predict.model_card import card_path, model_card, with_measurements, write_with_card
from raz.utils.markdown import escape, table

SETTINGS = {
    "dataset": "shanghaitech_a", "backbone.width": 0.0625, "counting.channels": [8, 8], "depth": 1, "seed": 3,
    "localization.channels": [8], "localization.upsample": [8, 6, 4], "counting.train.epochs": 2,
    "counting.train.crop": 64, "localization.train.epochs": 1, "localization.train.crop": 64,
}  # fmt: skip
CONFIG = configure(PRESETS["tiny"], SETTINGS)


@pytest.fixture(scope="module")
def store(crowd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial, another of the same networks, and one that is not scored on test images."""
    place = tmp_path_factory.mktemp("store")
    run_trial(CONFIG, place, data_root=crowd, splits=("val", "test"))
    run_trial(other_rule(), place, data_root=crowd, splits=("val", "test"))
    run_trial(untested(), place, data_root=crowd, splits=("val",))
    return place


def other_rule() -> TrialConfig:
    return configure(CONFIG, {"fusion.rule": "average"})


def untested() -> TrialConfig:
    return configure(CONFIG, {"fusion.rule": "density"})


def score_of(store: Path, split: str, rule: str) -> Path:
    for path in (store / "stages" / "score").glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        if (manifest["stage"], manifest["config"]["fusion.rule"]) == (f"score@{split}", rule):
            return path.parent
    raise AssertionError(f"no score of {split}, {rule}")


def cells(card: str) -> dict[str, list[str]]:
    """First cell -> the others, of every table line."""
    lines = [line for line in card.splitlines() if line.startswith("| ")]
    return {parts[0]: parts[1:] for parts in ([cell.strip() for cell in line.strip("| ").split("|")] for line in lines)}


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_numbers_of_a_card_are_those_of_its_scores(split: str, store: Path, crowd: Path) -> None:
    """Whichever score names the model: validation and test of the same trial, not of the other one."""
    model = with_measurements(stored_model(store, score_of(store, split, "grid").name), store)
    card = model_card(model)
    found = cells(card)
    folders = [score_of(store, name, "grid") for name in ("val", "test")]
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
    assert found["metric"] == ["val", "test"]
    for name in ("mae", "rmse", "bias", "mae_density", "map@5"):
        assert [float(cell) for cell in found[name]] == pytest.approx([m[name] for m in metrics], rel=1e-3), name
    assert not [name for name in found if name.startswith(("theta_f_", "threshold_", "images_zoomed"))]
    truths = [
        [len(item.load_heads()) for item in open_dataset("shanghaitech_a", crowd).items[name]]
        for name in ("val", "test")
    ]  # fmt: skip
    guessed = [np.abs(np.array(truth) - np.median(truths[0])).mean() for truth in truths]
    assert [float(cell) for cell in found["MAE of guessing the median of val"]] == pytest.approx(guessed, rel=1e-3)
    assert f"Validation images held {min(truths[0])} to {max(truths[0])} heads" in card
    assert [found[f"score of {name}"] for name in ("val", "test")] == [[folder.name] for folder in folders]
    assert "Validation images also chose the epochs," in card
    assert "no intervals: errors of 2 validation images" in card.lower()
    assert found["fingerprint of train"] == [open_dataset("shanghaitech_a", crowd).fingerprint("train")[:16]]
    assert found["source and terms"] == ["its authors' repository (Zhang et al., CVPR 2016), for research"]
    assert found["counting"][0] == model.trained["counting"].key[:16]
    counting = store / "stages" / "counting" / model.trained["counting"].key / "manifest.json"
    assert found["counting"][1] == str(json.loads(counting.read_text())["best_epoch"])
    assert "Seed 3 (one seed" in card


def test_a_card_says_how_the_configuration_differs_from_its_preset(store: Path) -> None:
    found = cells(model_card(stored_model(store, score_of(store, "val", "average").name)))
    assert found["fusion.rule"] == ["grid", "average"]
    assert found["backbone.width"] == ["0.125", "0.0625"]
    assert {name for name in found if name in SETTINGS} == set(SETTINGS) - {"dataset", "seed"}
    assert "Preset `tiny`, but:" in model_card(stored_model(store, score_of(store, "val", "average").name))


@pytest.mark.parametrize(
    ("settings", "fitted"),
    [
        ({}, "thresholds and theta_f on validation images"),
        ({"fusion.fit_on": "train"}, "thresholds on validation images; theta_f on training images"),
        ({"peaks.count": "expected"}, "theta_f on validation images"),
        ({"fusion.rule": "average"}, "thresholds on validation images"),
        ({"fusion.theta_f": 3.0, "peaks.threshold": 0.5}, "nothing"),
    ],
)
def test_a_card_says_what_was_fitted_beside_weights(settings: dict[str, Any], fitted: str, store: Path) -> None:
    model = stored_model(store, score_of(store, "val", "grid").name)
    card = model_card(replace(model, config=configure(model.config, settings)))
    assert cells(card)["fitted beside weights"] == [fitted]


def test_test_images_that_were_not_scored_are_said_to_be_missing(store: Path) -> None:
    model = with_measurements(stored_model(store, score_of(store, "val", "density").name), store)
    card = model_card(model)
    assert cells(card)["metric"] == ["val"]
    assert "Test images were not scored." in card
    assert "Not known to this file" in model_card(replace(model, about={}))
    with pytest.raises(RazError, match="score 000000000000 is not there"):
        with_measurements(replace(model, about={"stages": {"score": "0" * 64}}), store)


def test_coverage_on_test_images_is_counted(store: Path) -> None:
    folder = score_of(store, "test", "grid")
    model = stored_model(store, folder.name)
    model = replace(model, fitted=replace(model.fitted, conformal=Conformal((0.5,) * 20)))
    card = model_card(with_measurements(model, store))
    with np.load(folder / "per_image.npz", allow_pickle=False) as scored:
        fused, truth = scored["fused"].astype(float), scored["truth"]
    covered = (np.abs(truth - fused) <= 0.5 * np.maximum(fused, 1) ** 0.75).sum()
    assert f"Of {len(truth)} test images {covered} had their true count in the interval." in card


def test_a_final_model_says_whose_numbers_these_are(store: Path) -> None:
    model = stored_model(store, score_of(store, "val", "grid").name)
    stages = model.about["stages"]
    about = {"final": True, "study": "s", "trial": 7, "images": 24, "search": stages, "epochs": {"counting": 5}}
    final = replace(model, config=replace(model.config, dataset="shanghaitech_a+val"), about=about)
    card = model_card(with_measurements(final, store))
    found = cells(card)
    assert card.startswith("# Model card: trial 7 of study s, trained again on training and validation images\n")
    assert "These are the numbers of the search's model" in card
    assert "also chose the epochs and the trial," in card
    assert found["trained on"] == ["training and validation images (24)"]
    assert found["data set"] == ["ShanghaiTech Part A (shanghaitech\\_a)"] or "(shanghaitech_a)" in found["data set"][0]
    assert found["counting"][1] == "5"


def test_a_card_goes_with_the_file_and_inside_it(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "my model.safetensors"
    key = score_of(store, "val", "grid").name
    done = CliRunner().invoke(app, ["export", f"{store}#{key}", "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    card = (tmp_path / "my model.card.md").read_text()
    assert json.loads(done.stdout)["card"] == str(card_path(out)) == str(tmp_path / "my model.card.md")
    assert card == model_card(with_measurements(stored_model(store, key), store), "my model.safetensors")
    with safe_open(out, "pt") as file:
        assert file.metadata()["card"] == card
    shown = CliRunner().invoke(app, ["show", str(out)])
    assert (shown.exit_code, shown.stdout) == (0, card)
    document = json.loads(CliRunner().invoke(app, ["show", str(out), "--json"]).stdout)
    assert document == {"card": card, "about": json.loads(json.dumps(dict(load_model(out).about)))}
    assert load_model(out).card == card
    # A file of an earlier version has none: it is written from what the file knows.
    save_model(stored_model(store, key), out)
    assert load_model(out).card == ""
    shown = CliRunner().invoke(app, ["show", str(out)])
    assert shown.stdout == model_card(load_model(out), "my model.safetensors")
    missing = CliRunner().invoke(app, ["show", str(tmp_path / "none.safetensors")])
    assert missing.exit_code == 2
    assert "cannot be read" in missing.stderr


def test_where_the_card_cannot_be_written_is_told(store: Path, tmp_path: Path) -> None:
    (tmp_path / "m.card.md").mkdir()
    model = stored_model(store, score_of(store, "val", "grid").name)
    with pytest.raises(RazError, match="cannot be written") as told:
        write_with_card(model, tmp_path / "m.safetensors")
    assert str(told.value).startswith(str(tmp_path / "m.card.md"))


def test_names_from_outside_cannot_break_the_markdown(store: Path) -> None:
    bad = "a|b *c* <script>[x](y)`\n# d\x1b[31m"
    model: Model = stored_model(store, score_of(store, "val", "grid").name)
    weights = f"/home/someone/{bad.replace('/', '')}"
    backbone = replace(model.config.backbone, weights=weights)
    config = replace(model.config, dataset=bad, backbone=backbone)
    about = {"study": bad, "trial": 1, "values": {bad: bad}, "made": {"versions": {bad: bad}, "device": bad}}
    card = model_card(replace(model, config=config, about=about), bad)
    assert "<script>" not in re.sub(r"^    .*$", "", card, flags=re.M)  # but in the block of code
    assert "\x1b" not in card
    assert not re.search(r"^# d", card, flags=re.M)
    assert "/home/someone" not in card
    tables = [line for line in card.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} <= {3, 4}


def test_tables_align_and_escape() -> None:
    assert table(("a", "b|"), [("x_y", "_1_")], right=(1,)) == ["| a | b\\| |", "|:--|--:|", "| x_y | \\_1\\_ |"]
    assert escape("a\nb\x00<i>") == "a b &lt;i&gt;"
