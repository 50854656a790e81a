"""A model predicts what the pipeline scored, wherever it is loaded from; its files, pictures and complaints."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from torch import ones
from typer.testing import CliRunner

import raz
from raz.cli.main import app
from raz.config import PRESETS, TrialConfig, configure
from raz.data import open_dataset
from raz.data.frames import Frames
from raz.errors import RazError
from raz.pipeline.graph import TRAINED, Node
from raz.pipeline.inference import Network
from raz.pipeline.keys import stage_keys
from raz.pipeline.model import Model, load_model, save_model, stored_model
from raz.pipeline.trial import run_trial
from raz.predict.image_files import find_images, unique_names
from raz.predict.model_source import model_from_store
from raz.predict.overlay import compute, draw

CONFIG = configure(
    PRESETS["tiny"],
    {
        "dataset": "shanghaitech_a", "backbone.width": 0.0625, "counting.channels": [8, 8], "input.scale": 0.9,
        "localization.channels": [8], "localization.upsample": [8, 6, 4], "attention.channels": 4,
        "attention.sigma_z": 6.0, "depth": 3, "zooming.theta_z": 0.001,
        **{f"{name}.{k}": v for k, v in (("epochs", 1), ("crop", 64)) for name in (
            "counting.train", "localization.train", "attention.train", "raz.train", "raz.attention_train"
        )},
    },
)  # fmt: skip


@pytest.fixture(scope="module")
def store(crowd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("store")
    run_trial(CONFIG, place, data_root=crowd, splits=("val", "test"))
    return place


def score_key(config: TrialConfig, crowd: Path, split: str = "test") -> str:
    return stage_keys(config, data_root=crowd, splits=(split,))[Node("score", split)].key


@pytest.fixture(scope="module")
def model(store: Path, crowd: Path) -> Model:
    return stored_model(store, score_key(CONFIG, crowd))


@pytest.fixture(scope="module")
def exported(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.safetensors"
    save_model(model, path)
    return path


def same(a: Any, b: Any) -> bool:
    return (
        a.count == b.count and a.density == b.density and a.localization == b.localization
        and np.array_equal(a.points, b.points) and np.array_equal(a.scores, b.scores)
        and np.array_equal(a.density_map, b.density_map)
        and len(a.regions) == len(b.regions)
        and all(np.array_equal(x, y) for x, y in zip(a.regions, b.regions, strict=True))
    )  # fmt: skip


@pytest.mark.long
def test_a_model_predicts_what_the_pipeline_scored(store: Path, crowd: Path, model: Model) -> None:
    items = open_dataset("shanghaitech_a", crowd).items["test"]
    folder = store / "stages" / "score" / score_key(CONFIG, crowd)
    with np.load(folder / "per_image.npz", allow_pickle=False) as scored:
        for i, item in enumerate(items):
            got = model.predict(item.load_pixels())
            assert got.count == scored["fused"][i]
            assert got.density == scored["density"][i]
            assert got.localization == scored["localization"][i]
            assert [len(r) for r in got.regions] == scored["regions"][i].tolist()
            ends = [0, *scored["match_ends"].tolist()]
            assert np.array_equal(got.scores, scored["match_score"][ends[i] : ends[i + 1]])
        assert scored["regions"].sum() > 0  # else nothing was zoomed, and nothing tested


@pytest.mark.long
def test_a_trial_may_predict_at_another_size_than_it_was_trained_at(store: Path, crowd: Path) -> None:
    """Nothing is trained again; the maps are those of the enlarged images, also where this process has just seen the
    same images at their size; and a model from this trial predicts at its size."""
    larger = configure(CONFIG, {"predict.scale": 1.5})
    before = {path.name for stage in TRAINED for path in (store / "stages" / stage).iterdir()}
    run_trial(larger, store, data_root=crowd, splits=("test",))
    assert {path.name for stage in TRAINED for path in (store / "stages" / stage).iterdir()} == before
    keys = stage_keys(larger, data_root=crowd, splits=("test",))
    was = stage_keys(CONFIG, data_root=crowd, splits=("test",))
    assert {node.stage for node in keys if keys[node] != was[node]} == {"density", "points", "zoom", "score"}

    model = stored_model(store, keys[Node("score", "test")].key)
    items = open_dataset("shanghaitech_a", crowd).items["test"]
    enlarged = Frames(items, scale=1.5 * CONFIG.input.scale)
    folder = store / "stages"
    with (
        np.load(folder / "density" / keys[Node("density", "test")].key / "arrays.npz", allow_pickle=False) as maps,
        np.load(folder / "score" / score_key(larger, crowd) / "per_image.npz", allow_pickle=False) as scored,
        np.load(folder / "score" / score_key(CONFIG, crowd) / "per_image.npz", allow_pickle=False) as at_size,
    ):
        for i, item in enumerate(items):
            direct = model.main.maps(enlarged.pixels(i), ("density",), model.device)
            assert np.array_equal(maps[f"d{i}"], direct["density"])
            got = model.predict(item.load_pixels())
            assert got.count == scored["fused"][i]
            assert got.localization == scored["localization"][i]
            assert got.size == item.load_pixels().shape[:2]
        assert (scored["gflop"] > at_size["gflop"]).all()
        assert np.array_equal(scored["quartile_heads"], at_size["quartile_heads"])


def test_validation_folds_do_not_decide_what_is_predicted(store: Path, crowd: Path, model: Model) -> None:
    of_val = stored_model(store, score_key(CONFIG, crowd, "val"))
    assert of_val.fitted.as_json() == model.fitted.as_json()


def test_points_are_ranked_inside_the_image_and_in_its_own_pixels(model: Model) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    got = model.predict(pixels)
    assert got.size == (90, 120)
    assert (np.diff(got.scores) <= 0).all()
    assert (got.points >= 0).all()
    assert (got.points < [120, 90]).all()
    if len(got.points):
        assert got.points.max() > 81  # beyond the input's 0.9 of a side: mapped back
    assert same(got, model.predict(pixels))  # again: the content seeds the sampling
    assert model.predict(pixels, depth=1).regions == ()


@pytest.mark.long
def test_an_exported_model_needs_no_store_and_gives_the_same_bits(
    model: Model, exported: Path, tmp_path: Path, store: Path
) -> None:
    shutil.copy(exported, tmp_path / "model.safetensors")
    pixels = np.random.default_rng(1).integers(0, 256, (100, 80, 3), dtype=np.uint8)
    code = (
        "import sys, numpy as np, raz\n"
        "m = raz.load('model.safetensors')\n"
        "p = m.predict(np.random.default_rng(1).integers(0, 256, (100, 80, 3), dtype=np.uint8))\n"
        "np.savez('out.npz', points=p.points, scores=p.scores, density=p.density_map, count=p.count)\n"
        "print([n for n in ('ray', 'pandas', 'optuna', 'torchvision') if n in sys.modules])\n"
    )
    env = {"PATH": "/usr/bin", "HOME": str(tmp_path), "PYTHONPATH": str(Path(raz.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"  # quick to start
    here = model.predict(pixels)
    with np.load(tmp_path / "out.npz") as there:
        assert np.array_equal(there["points"], here.points)
        assert np.array_equal(there["scores"], here.scores)
        assert np.array_equal(there["density"], here.density_map)
        assert float(there["count"]) == here.count
    about = load_model(exported).about
    assert about["stages"]["score"] == model.about["stages"]["score"]
    assert about["made"]["versions"]["torch"]


def test_where_a_model_cannot_be_written_is_told_by_the_name_that_was_given(model: Model, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "m.safetensors", tmp_path):
        with pytest.raises(RazError, match="cannot be written") as told:
            save_model(model, out)
        assert str(told.value).startswith(f"{out}: ")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.long
def test_a_frozen_pretrained_backbone_travels_with_the_export(crowd: Path, tmp_path: Path) -> None:
    from raz.pipeline.backbones import build_backbone

    backbone = build_backbone(configure(PRESETS["tiny"], {"backbone.width": 1.0}).backbone, 5)
    weights = tmp_path / "vgg.safetensors"
    save_file({n: v.contiguous() for n, v in backbone.state_dict().items()}, weights)
    config = configure(
        CONFIG,
        {
            "backbone.width": 1.0, "backbone.weights": str(weights), "counting.unfreeze": "none", "depth": 1,
            "input.scale": 0.4,
        },
    )  # fmt: skip
    run_trial(config, tmp_path / "store", data_root=crowd)
    here = stored_model(tmp_path / "store", score_key(config, crowd, "val"))
    save_model(here, tmp_path / "m.safetensors")
    pixels = np.random.default_rng(2).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    before = here.predict(pixels)
    weights.unlink()
    shutil.rmtree(tmp_path / "store")
    assert same(load_model(tmp_path / "m.safetensors").predict(pixels), before)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda p: p.write_bytes(b"nonsense"), "is no exported model"),
        (lambda p: p.write_bytes(p.read_bytes()[:-100]), "is no exported model"),
        (lambda p: p.write_bytes(b""), "is no exported model"),
        (lambda p: p.unlink(), "cannot be read"),
        (lambda p: save_file({"a": ones(1)}, p), "holds weights without a configuration"),
        (lambda p: save_file({"a": ones(1)}, p, {"format": "raz-sweep model 9"}), "holds a 'raz-sweep model 9'"),
        (lambda p: save_file({"a": ones(1)}, p, {"format": "raz-sweep model 1"}), "its description is damaged"),
    ],
)
def test_a_file_that_is_no_model_is_told(
    spoil: Callable[[Path], Any], words: str, exported: Path, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    shutil.copy(exported, path)
    spoil(path)
    with pytest.raises(RazError, match=words):
        load_model(path)


def test_wrong_images_and_depths_are_told(model: Model, store: Path, crowd: Path, tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(RazError, match="expected uint8"):
        model.predict(pixels.astype(np.float32))
    with pytest.raises(RazError, match="can make 1 to 8 passes"):
        model.predict(pixels, depth=9)
    (tmp_path / "x.jpg").write_text("no image")
    with pytest.raises(RazError, match="is not a readable image"):
        model.predict(tmp_path / "x.jpg")
    with pytest.raises(RazError, match="is not there, or damaged"):
        stored_model(store, "0" * 64)


def test_damage_in_the_store_is_told_before_anything_is_predicted(store: Path, crowd: Path, tmp_path: Path) -> None:
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    (weights,) = (copy / "stages" / "raz").glob("*/weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(RazError, match=r"stage raz .* is not there, or damaged"):
        stored_model(copy, score_key(CONFIG, crowd))


# ------------------------------------------------------------------ images


def test_files_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "a/2.PNG", "a/notes.txt", "b/1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = find_images([str(tmp_path / "a"), str(tmp_path / "*/1.jpg")])
    assert [str(p.relative_to(tmp_path)) for p in found] == ["a/1.jpg", "a/2.PNG", "b/1.jpg"]
    assert unique_names(found) == ("a/1.jpg", "2.PNG", "b/1.jpg")
    with pytest.raises(RazError) as caught:
        find_images([str(tmp_path / "none.jpg"), str(tmp_path / "*.gif"), str(tmp_path / "a")])
    assert "none.jpg: no such file" in str(caught.value)
    assert "matches no image" in str(caught.value)


def test_the_picture_holds_photograph_points_and_density(model: Model) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    got = model.predict(pixels)
    overlay = compute("x.jpg", got)
    assert overlay.size == (560, 420)
    np.testing.assert_allclose(overlay.points, got.points * 7, atol=1e-9)
    assert overlay.heat.shape == (420, 560)
    sheet = np.asarray(draw(overlay, pixels))
    assert sheet.shape[1] == 2 * 560 + 24
    if len(overlay.points):
        x, y = overlay.points[0].astype(int)
        assert tuple(sheet[y + 32, x + 8]) in {(255, 230, 40), (64, 224, 255), (255, 120, 220), (0, 0, 0)}


# ------------------------------------------------------------------ commands


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(2):
        pixels = np.random.default_rng(n).integers(0, 256, (64, 72, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{n}.png")
    return folder


def test_predict_writes_what_score_reads(exported: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["predict", str(photos), "--weights", str(exported), "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    got = json.loads(done.stdout)
    assert [image["image"] for image in got["images"]] == ["0.png", "1.png"]
    files = ["0.png.png", "1.png.png", "counts.csv", "points.csv", "predictions.json"]
    assert sorted(p.name for p in out.iterdir()) == files
    model = load_model(exported)
    for image in got["images"]:
        truth = model.predict(photos / image["image"])
        assert image["count"] == truth.count
        assert [p[:2] for p in image["points"]] == truth.points.tolist()
    with (out / "points.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert sum(row["x"] != "" for row in rows) == sum(image["localization"] for image in got["images"])
    for name in ("points.csv", "predictions.json"):
        scored = CliRunner().invoke(app, ["score", "--pred", str(out / name), "--gt", str(out / name), "--json"])
        assert scored.exit_code == 0, scored.output
        assert json.loads(scored.stdout)["mae"] == 0.0
    table = CliRunner().invoke(app, ["predict", str(photos / "0.png"), "--weights", str(exported), "--depth", "1"])
    assert table.stdout.splitlines()[1].split()[0] == "0.png"


def test_a_large_image_is_predicted_by_smaller_tiles(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(6).integers(0, 256, (300, 420, 3), dtype=np.uint8)
    whole = model.predict(pixels, depth=2)
    seen = []
    forward = Network._forward

    def watched(self: Network, x: Any, *rest: Any) -> Any:
        seen.append(x.shape[2] * x.shape[3])
        return forward(self, x, *rest)

    monkeypatch.setattr(Network, "_forward", watched)
    monkeypatch.setattr("raz.pipeline.tiling.TILE_PIXELS", 1 << 17)
    model.predict(pixels, depth=1)
    assert seen == [272 * 384]  # at 0.9 of a side: not large, and no more than a tile
    monkeypatch.setattr("raz.pipeline.tiling.LARGE", 270 * 378 - 1)
    seen.clear()
    by_tiles = model.predict(pixels, depth=2)
    assert len(seen) > 1
    assert len(whole.regions[0]) == len(by_tiles.regions[0]) > 0
    np.testing.assert_allclose(by_tiles.density_map, whole.density_map, atol=1e-5)
    assert by_tiles.density == pytest.approx(whole.density, abs=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("depth", [1, 2])
def test_fifty_megapixels_fit_into_three_gigabytes(depth: int, exported: Path, tmp_path: Path) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (361, 541, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((8656, 5776), Image.Resampling.BICUBIC).save(tmp_path / "large.jpg", quality=85)
    words = [
        "-m",
        "raz.cli",
        "predict",
        str(tmp_path / "large.jpg"),
        "--weights",
        str(exported),
        "--depth",
        str(depth),
    ]
    code = (
        "import resource, subprocess, sys\n"
        f"done = subprocess.run([sys.executable, *{[*words, '--out', str(tmp_path / 'out')]!r}], stdout=sys.stderr)\n"
        "print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    returned, kilobytes = map(int, done.stdout.split())
    assert returned == 0, done.stderr
    assert kilobytes * 1024 < 3e9
    with Image.open(tmp_path / "out" / "large.jpg.png") as picture:
        assert picture.width > 2000


def test_a_file_that_is_no_image_stops_nothing(exported: Path, photos: Path) -> None:
    (photos / "0.jpg").write_text("no image")
    done = CliRunner().invoke(app, ["predict", str(photos), "--weights", str(exported), "--json"])
    assert done.exit_code == 1
    got = json.loads(done.stdout)
    assert len(got["images"]) == 2
    assert "is not a readable image" in got["failed"][0]["error"]
    only = CliRunner().invoke(app, ["predict", str(photos / "0.jpg"), "--weights", str(exported)])
    assert only.exit_code == 2


@pytest.mark.long
def test_a_study_s_best_trial_is_what_predict_and_export_take(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = {
        "study": "pick", "base": {"preset": "tiny", "dataset": "toy"}, "design": {"sampler": "grid"},
        "objective": {"metric": "val.mae", "direction": "minimize"},
        "parameters": {"fusion.rule": {"choice": ["density", "localization"]}},
    }  # fmt: skip
    (tmp_path / "pick.yaml").write_text(json.dumps(space))
    place = tmp_path / "store"
    words = [w for k, v in SMALL_TOY.items() for w in ("--set", f"{k}={v}")]
    ran = CliRunner().invoke(app, ["run", str(tmp_path / "pick.yaml"), "--inline", "--store", str(place), *words])
    assert ran.exit_code == 0, ran.output
    from raz.study.records import read_records

    records = read_records(place, "pick")
    best = min(records, key=lambda r: (r.value, r.number))
    for spec in (f"{place}", f"{place}#pick", f"{place}#pick#{best.number}"):
        assert model_from_store(spec).about["trial"] == best.number
    other = model_from_store(f"{place}#pick#{1 - best.number}")
    assert other.config.fusion.rule != model_from_store(str(place)).config.fusion.rule
    file = tmp_path / "m.safetensors"
    done = CliRunner().invoke(app, ["export", "--best", "pick", "--store", str(place), "--out", str(file)])
    assert done.exit_code == 0, done.output
    assert f"trial {best.number} of pick" in done.stdout
    for word, number in (("pick", best.number), (f"pick#{1 - best.number}", 1 - best.number)):
        done = CliRunner().invoke(
            app, ["export", word, "--store", str(place), "--out", str(tmp_path / "again.safetensors")]
        )
        assert done.exit_code == 0, done.output
        assert load_model(tmp_path / "again.safetensors").about["trial"] == number
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pick").mkdir()  # a folder of the study's name: the images it was searched on
    for words in (["--best", "pick"], ["pick"]):
        told = CliRunner().invoke(app, ["export", *words, "--store", str(place), "--out", "b.safetensors", "--json"])
        assert told.exit_code == 0, told.output
        assert json.loads(told.stdout)["about"]["trial"] == best.number
        assert json.loads(told.stdout)["bytes"] == (tmp_path / "b.safetensors").stat().st_size
    for number in ("²", "-1", "999", ""):
        with pytest.raises(RazError, match="study pick has no complete trial"):
            model_from_store(f"{place}#pick#{number}")
    here = model_from_store(str(place)).predict(photos / "0.png")
    assert same(load_model(file).predict(photos / "0.png"), here)
    key = model_from_store(str(place)).about["stages"]["score"]
    assert same(model_from_store(f"{place}#{key[:10]}").predict(photos / "0.png"), here)
    for spec, expected in (
        (f"{place}#pcik", "did you mean pick"), (f"{place}#pick#7", "has no complete trial '7'"),
        (f"{place}#pick#1#2", "too many parts"), (f"{tmp_path}/none", "no such store"),
    ):  # fmt: skip
        told = CliRunner().invoke(app, ["predict", str(photos), "--from", spec])
        assert told.exit_code == 2
        assert expected in told.stderr


@pytest.mark.long
def test_the_best_trial_is_trained_again_on_all_but_the_test_images(tmp_path: Path, crowd: Path) -> None:
    space = {
        "study": "last", "base": {"preset": "tiny", "dataset": "shanghaitech_a"}, "design": {"sampler": "grid"},
        "objective": {"metric": "val.mae", "direction": "minimize"},
        "parameters": {"fusion.rule": {"choice": ["density", "grid"]}},
    }  # fmt: skip
    (tmp_path / "last.yaml").write_text(json.dumps(space))
    place, out = tmp_path / "store", tmp_path / "final.safetensors"
    words = [w for k, v in (SMALL_TOY | {"counting.train.epochs": 3}).items() for w in ("--set", f"{k}={v}")]
    where = ["--store", str(place), "--data-root", str(crowd)]
    final = ["train", str(tmp_path / "last.yaml"), "--final", *where, "--out", str(out), "--json"]
    early = CliRunner().invoke(app, final)
    assert early.exit_code == 2
    assert "there is no such folder" in early.stderr
    assert not out.exists()
    ran = CliRunner().invoke(app, ["run", str(tmp_path / "last.yaml"), "--inline", *where, *words])
    assert ran.exit_code == 0, ran.output
    before = {p.name for p in (place / "stages" / "counting").iterdir()}
    done = CliRunner().invoke(app, final)
    assert done.exit_code == 0, done.output
    (new,) = {p.name for p in (place / "stages" / "counting").iterdir()} - before
    found, last = model_from_store(f"{place}#last"), load_model(out)
    manifest = json.loads((place / "stages" / "counting" / new / "manifest.json").read_text())
    items = open_dataset("shanghaitech_a", crowd).items
    assert last.about["images"] == len(items["train"]) + len(items["val"]) == 24
    assert manifest["key"]["inputs"]["dataset"] == "shanghaitech_a+val"
    old = json.loads((place / "stages" / "counting" / found.trained["counting"].key / "manifest.json").read_text())
    assert manifest["key"]["data"]["train"] != old["key"]["data"]["train"]
    assert manifest["key"]["inputs"]["counting.train.epochs"] == old["best_epoch"]
    assert last.fitted.as_json() == found.fitted.as_json()
    assert last.trained["counting"].key == new
    assert all("+val" not in p.read_text() for p in (place / "stages" / "score").glob("*/manifest.json"))
    pixels = items["test"][0].load_pixels()
    assert last.predict(pixels).density != found.predict(pixels).density
    once = CliRunner().invoke(app, ["train", str(tmp_path / "last.yaml"), *where, *words])
    assert once.exit_code == 0, once.output
    spec = once.stdout.split("--from ")[1].strip()
    assert model_from_store(spec).config.fusion.rule == "grid"


SMALL_TOY = {
    "backbone.width": 0.0625, "depth": 1, "counting.train.epochs": 1, "localization.train.epochs": 1,
    "counting.channels": "[8]", "localization.channels": "[8]", "localization.upsample": "[8, 6, 4]",
}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["predict", "PHOTOS"], "--from STORE or from --weights FILE"),
        (["predict", "PHOTOS", "--from", "x", "--weights", "y"], "give one of them"),
        (["predict", "nowhere.jpg", "--from", "x"], "no such file or folder"),
        (["predict", "", "--from", "x"], "IMAGE: an empty name"),
        (["predict", "PHOTOS", "--from", "x", "--out", "PHOTOS/0.png/out"], "/0.png is a file, expected a folder"),
        (["predict", "PHOTOS", "--weights", "PHOTOS/0.png"], "is no exported model"),
        (["predict", "PHOTOS", "--weights", "PHOTOS"], "is a folder, expected a file"),
        (["predict", "~no-such-user/x.jpg", "--from", "x"], "begins with ~NAME and there is no such user"),
        (["predict", "PHOTOS", "--from", "PHOTOS"], "contains no study\n  try: raz-sweep run fusion --store "),
        (["export", "fusion", "--out", ""], "--out: . ends with nothing, expected .safetensors, .zip, .csv, .parquet"),
        (["export", "fusion", "--out", "x.ZIP"], "x.ZIP ends with .ZIP, expected .safetensors"),
        (["export", "fusion", "--out", "PHOTOS/0.png/m.safetensors"], "/0.png is a file, expected a folder"),
        (["export", "--best", "fusion#7"], "--best: 'fusion#7', expected a study"),
        (["train", "fusion", "--out", "m.safetensors"], "--out: only --final writes a file"),
        (["train", "fusion", "--final", "--out", "PHOTOS"], "is a folder, expected a file"),
        (["export"], "STUDY#TRIAL or from --best STUDY"),
        (["export", "fusion#7", "--store", "PHOTOS/none"], "none: no such store"),
        (["export", "fusion#7", "--store", "PHOTOS"], "study fusion: "),
        (["export", "nowhere/store#fusion"], "nowhere/store: no such store"),
    ],
)
def test_a_wrong_command_is_told(words: list[str], expected: str, photos: Path) -> None:
    given = [word.replace("PHOTOS", str(photos)) for word in words]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 2
    assert expected in done.stderr
