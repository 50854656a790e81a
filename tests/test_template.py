"""What `raz-sweep init` writes parses, also with its comments' suggestions taken, and runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from raz.cli.main import app
from raz.config import PRESETS
from raz.data import DATASETS
from raz.data.dataset_file import FILE
from raz.spec.space_yaml import load_space, parse_space
from raz.spec.template import render_template
from raz.utils.shipped import slugify
from raz.utils.yamlfile import parse
from tests.conftest import noise


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dataset", DATASETS)
def test_it_parses_for_every_data_set_and_preset(dataset: str, preset: str) -> None:
    space = parse_space(parse(render_template("mine", dataset, preset, None, "my.yaml"), "my.yaml"))
    assert space.study == "mine"
    assert space.base.dataset == dataset
    assert {p.name for p in space.parameters} == {"depth", "fusion.rule", "fusion.theta_f", "zooming.k_z"}


@pytest.mark.parametrize("weights", ["/data/vgg16.pt", "a b: [c].pt", "imagenet", "1e5", "é.pt"])
def test_what_it_suggests_in_comments_parses_too(weights: str) -> None:
    text = render_template("mine", "shanghaitech_a", "small", weights, "my.yaml")
    space = parse_space(parse(text, "my.yaml"))
    assert space.base.backbone.weights == weights
    taken = re.sub(r"^(\s*)# ([a-z_]+\.[\w.]+:)", r"\1\2", text, flags=re.M)
    assert taken.count("\n  counting.beta:") == 1
    bold = parse_space(parse(taken, "my.yaml"))
    assert {p.name for p in bold.parameters} >= {"counting.beta", "localization.gamma", "zooming.theta_z"}
    assert bold.base.input.scale == 0.5


def test_the_profiles_that_it_suggests_are_right() -> None:
    text = render_template("mine", "toy", None, None, "my.yaml")
    suggested = re.sub(r"^# (profiles:|  full: |  quick: )", r"\1", text, flags=re.M)
    document = parse(suggested, "my.yaml")
    assert parse_space(document) == parse_space(parse(text, "my.yaml"))
    quick = parse_space(document, None, "quick")
    assert (quick.study, quick.trials, quick.base.input.scale) == ("mine-quick", 5, 0.5)


@pytest.mark.long
def test_the_file_is_named_written_once_and_runs(tmp_path: Path) -> None:
    out = tmp_path / "My Crowd.yaml"
    done = CliRunner().invoke(app, ["init", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert load_space(out).study == "my_crowd"
    again = CliRunner().invoke(app, ["init", "--out", str(out)])
    assert again.exit_code == 2
    assert "is there already" in again.stderr
    assert CliRunner().invoke(app, ["init", "--out", str(out), "--force"]).exit_code == 0
    small = {
        "backbone.width": 0.0625, "counting.train.epochs": 1, "localization.train.epochs": 1,
        "attention.train.epochs": 1, "raz.train.epochs": 1, "raz.attention_train.epochs": 1,
        "counting.channels": "[8]", "localization.channels": "[8]", "localization.upsample": "[8, 6, 4]",
    }  # fmt: skip
    words = [w for k, v in small.items() for w in ("--set", f"{k}={v}")]
    ran = CliRunner().invoke(
        app, ["run", str(out), "--inline", "--trials", "1", "--store", str(tmp_path / "store"), *words]
    )
    assert ran.exit_code == 0, ran.output
    assert "study my_crowd: 1 complete" in ran.stdout


@pytest.mark.parametrize(
    ("file", "study"),
    [("übung.yaml", "ubung"), ("Köln Süd 2.yaml", "koln_sud_2"), ("実験.yaml", "study"), ("it's.yaml", "it_s")],
)
def test_a_name_in_any_script_gives_a_study_that_runs_by_the_printed_command(
    file: str, study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["init", "--out", file])
    assert done.exit_code == 0, done.output
    words = done.stdout.partition("then: ")[2].strip()
    assert shlex.split(words) == ["raz-sweep", "run", file]
    assert f"#   {words}\n" in (tmp_path / file).read_text("utf-8")
    assert load_space(Path(file)).study == study


@pytest.mark.parametrize("name", ["cells", "007", "on"])
def test_a_folder_of_ones_own_is_known_below_the_data_root(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAZ_DATA_ROOT", raising=False)
    images = tmp_path / "my images" / name / "images"
    images.mkdir(parents=True)
    for i in range(5):
        Image.fromarray(noise(i, 24, 32)).save(images / f"{i}.png")
    (images.parent / "points.csv").write_text("image,x,y\n" + "".join(f"{i}.png,3.5,4.5\n" for i in range(5)))
    added = CliRunner().invoke(app, ["data", "add", str(images.parent), "--title", "mine"])
    assert added.exit_code == 0, added.output
    description = images.parent / FILE  # a line break in a title must not end the comment that holds it
    description.write_text(description.read_text().replace("title: mine", 'title: "a: [\\nb\\u2028c # d"'))
    printed = next(line for line in added.stdout.splitlines() if line.startswith("raz-sweep init"))
    done = CliRunner().invoke(app, shlex.split(printed.partition("   (")[0])[1:])  # its words work as they stand
    assert done.exit_code == 0, done.output
    file = f"{name}.yaml"
    assert shlex.split(done.stdout.partition("then: ")[2]) == [
        "raz-sweep", "run", file, "--data-root", str(tmp_path / "my images")
    ]  # fmt: skip
    space = load_space(Path(file), data_root=tmp_path / "my images")
    assert (space.study, space.base.dataset, space.base.backbone.weights) == (name, name, "none")
    lost = CliRunner().invoke(app, ["init", "--dataset", name, "--out", "b.yaml"])
    assert lost.exit_code == 2
    assert "needs --data-root" in lost.stderr
    bare = CliRunner().invoke(
        app, ["init", "--dataset", "shanghaitech_a", "--data-root", "my images", "--out", "b.yaml"]
    )
    assert bare.exit_code == 2
    assert not Path("b.yaml").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--dataset", "shanghai_a"], "did you mean shanghaitech_a"),
        (["--preset", "smal"], "did you mean small"),
        (["--out", "/proc/no/my.yaml"], "cannot be written"),
        (["--out", "a\nb.yaml"], "has a line break"),
        (["--out", ""], "--out: . is a folder, expected a file"),
        (["--backbone-weights", ""], "--backbone-weights: an empty name"),
        (["--weights", "vgg16.pt"], "No such option"),  # that is a model of predict's
    ],
)
def test_a_wrong_command_is_told_and_writes_nothing(words: list[str], expected: str, tmp_path: Path) -> None:
    out = [] if "--out" in words else ["--out", str(tmp_path / "x.yaml")]
    done = CliRunner().invoke(app, ["init", *out, *words])
    assert done.exit_code == 2
    assert expected in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "name"),
    [("fusion", "fusion"), ("Köln Süd", "koln_sud"), ("été-2", "ete-2"), ("実験", "other"), ("a" * 99, "a" * 64)],
)
def test_a_name_is_made_of_any_text(text: str, name: str) -> None:
    assert slugify(text, "_", "other") == name
