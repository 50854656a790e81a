"""Profiles of search spaces: what they change, what their studies are called, and messages about wrong ones."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from typer.testing import CliRunner

from raz.cli.main import app
from raz.config import PRESETS, configure
from raz.errors import RazError
from raz.spec.search_space import SearchSpace
from raz.spec.space_yaml import load_space, parse_space
from raz.study.attributes import StudyAttributes
from raz.study.index import read_study
from raz.study.records import read_records
from raz.utils.shipped import find_shipped, shipped
from raz.utils.yamlfile import parse
from tests.fakes_engine import use_stand_in

SPACE = """\
study: depths
base: {preset: tiny, dataset: toy, set: {fusion.rule: average, localization.gamma: 30}}
design: {sampler: grid}
parameters:
  depth: {choice: [1, 2, 3]}
"""
PROFILES = """\
profiles:
  toy: {}
  photos: {base: {preset: small, dataset: shanghaitech_a, set: {localization.gamma: 70}}, trials: 2, seeds: 2}
"""


def space_of(text: str, profile: str | None = None, **settings: object) -> SearchSpace:
    return parse_space(parse(text, "f.yaml", strict=False), settings, profile)  # type: ignore[arg-type]


def complaint(text: str, profile: str | None = None, **settings: object) -> str:
    with pytest.raises(RazError) as caught:
        space_of(text, profile, **settings)
    return str(caught.value)


def test_a_profile_changes_the_base_the_trials_and_the_seeds() -> None:
    space = space_of(SPACE + PROFILES, "photos")
    expected = {"dataset": "shanghaitech_a", "fusion.rule": "average", "localization.gamma": 70}
    assert space.base == configure(PRESETS["small"], expected)
    assert (space.study, space.trials, space.target, space.seeds) == ("depths-photos", 2, 2, (0, 1))
    assert space.parameters == space_of(SPACE).parameters


@pytest.mark.parametrize("profile", [None, "toy"])
def test_the_default_profile_is_the_study_that_the_file_was_before_it_had_profiles(profile: str | None) -> None:
    before, now = space_of(SPACE), space_of(SPACE + PROFILES, profile)
    assert now == before
    assert (now.study, now.digest()) == ("depths", before.digest())


def test_without_a_toy_the_first_profile_is_the_default() -> None:
    text = SPACE + "profiles: {mine: {trials: 1}, toys: {}}\n"
    assert [space_of(text, name).study for name in (None, "mine", "toys")] == ["depths", "depths", "depths-toys"]
    assert space_of(text).trials == 1


def test_settings_go_on_the_profile_that_is_asked_for() -> None:
    text = SPACE + PROFILES
    assert space_of(text, "photos", **{"backbone.weights": "imagenet"}).base.backbone.weights == "imagenet"
    # the narrow base of the other cannot take them, and is not asked to
    assert "expected 1 with pretrained weights" in complaint(text, None, **{"backbone.weights": "imagenet"})
    assert complaint(text, "photos", seed=1).startswith(
        "--set seed: f.yaml has profiles.photos.seeds, so a trial would overwrite the value"
    )
    assert space_of(text, "toy", seed=1).base.seed == 1


BAD = [
    (
        SPACE + "profiles: {}\n",
        "f.yaml:6: profiles is empty, expected names with what they change\n"
        "  try: small: {base: {preset: small, dataset: shanghaitech_a}}",
    ),
    (
        SPACE + "profiles:\n  toy: {bass: {}}\n  small:\n  A B: {base: {preset: smal}}\n",
        "f.yaml:7: unknown key 'profiles.toy.bass'\n  try: did you mean base?\n"
        "f.yaml:8: profiles.small is nothing, expected base, trials and seeds\n"
        "  try: {base: {preset: small, dataset: shanghaitech_a}}\n"
        "f.yaml:9: profiles.A B.base.preset is 'smal', expected one of paper, small, tiny\n"
        "  try: did you mean small?\n"
        "f.yaml:9: profile 'A B', expected a name of a-z, 0-9, _ and -\n  try: small",
    ),
    (
        SPACE + f"profiles:\n  toy: {{}}\n  {'x' * 60}: {{trials: 0, seeds: [1, 1]}}\n",
        f"f.yaml:8: profiles.{'x' * 60}.trials is 0, expected a whole number from 1 to 1000000\n"
        f"f.yaml:8: profiles.{'x' * 60}.seeds has 1 twice\n  try: leave one out\n"
        f"f.yaml:8: the study of profile {'x' * 60} would be depths-{'x' * 60}, of more than 64 letters\n"
        "  try: a shorter name of the study or the profile",
    ),
    (  # a fault of the profile's base at its own place, one of the file's base once, and both in one go
        SPACE.replace("gamma: 30", "gamma: x")
        + "profiles:\n  toy: {}\n  other: {base: {dataset: toi, set: {sed: 1}}}\n",
        "f.yaml:2: localization.gamma is 'x', expected a finite number\n"
        "f.yaml:8: dataset is 'toi', expected one of",
    ),
    (  # what is wrong under one profile alone says so
        SPACE.replace("[1, 2, 3]}", "[1, 2, 3]}\n  metrics.floor: {choice: [0.1]}\n")
        + "objective: {metric: val.map@7}\nprofiles:\n  toy: {base: {set: {metrics.sigmas: [7]}}}\n  other: {}\n",
        "f.yaml:8: objective.metric is 'val.map@7', and the base scores sigma 40, 20, 5 only (profile other)\n"
        "  try: metrics.sigmas: [7]",
    ),
    (
        SPACE.replace("depth:", "depths:") + PROFILES,
        "f.yaml:5: unknown parameter 'depths'\n  try: did you mean depth?",
    ),
    (
        SPACE.replace("depth:", "seed:") + "profiles:\n  toy: {}\n  more: {seeds: 3}\n",
        "f.yaml:8: the seed is among the parameters too\n  try: leave one out",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD)
def test_faults_of_all_profiles_are_told_at_once(text: str, message: str) -> None:
    assert complaint(text).startswith(message)


def test_an_unknown_profile_names_the_nearest() -> None:
    assert complaint(SPACE + PROFILES, "photo") == (
        "--profile: f.yaml has no profile 'photo', expected one of toy, photos\n  try: did you mean photos or toy?"
    )
    assert complaint(SPACE, "toy") == (
        "--profile: f.yaml is a search space without profiles\n"
        "  try: profiles: {small: {base: {preset: small, dataset: shanghaitech_a}}}, or --set key=value"
    )
    assert "unknown parameter 'depths'" in complaint(SPACE.replace("depth:", "depths:") + PROFILES, "photo")


@pytest.mark.parametrize("profile", ["toy", "small", "paper"])
@pytest.mark.parametrize("name", sorted(shipped("search_spaces")))
def test_shipped_spaces_have_the_profiles_of_the_tables(name: str, profile: str) -> None:
    path = find_shipped(f"search_spaces/{name}.yaml")
    space = load_space(path, path.name, profile=profile)
    preset, dataset = {"toy": ("tiny", "toy")}.get(profile, (profile, "shanghaitech_a"))
    common: dict[str, object] = {"fusion.rule": "grid"} if name == "passes" else {}
    if (name, profile) == ("losses", "small"):  # its optimizers have no warmup
        common = {"localization.train.warmup": 0}
    assert space.base == configure(PRESETS[preset], {"dataset": dataset, **common})
    assert space.study == (name if profile == "toy" else f"{name}-{profile}")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(20):  # any draw is a configuration that can be run
        space.config(space.suggest(study.ask()))


# ------------------------------------------------------------------------------------ commands


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, where trials are the stand-in's."""
    use_stand_in(tmp_path, monkeypatch)
    (tmp_path / "f.yaml").write_text(SPACE)
    return tmp_path


def call(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def test_a_study_that_was_run_before_its_file_had_profiles_goes_on(here: Path) -> None:
    call("run", "f.yaml", "--inline")
    (here / "f.yaml").write_text(SPACE + PROFILES.replace("preset: small, dataset: shanghaitech_a, ", ""))
    assert "(0 run now" in call("run", "f.yaml", "--inline")
    assert "(0 run now" in call("run", "f.yaml", "--inline", "--profile", "toy")
    assert len(read_records(here / "raz-store", "depths")) == 3


def test_the_studies_of_two_profiles_share_a_store(here: Path) -> None:
    (here / "f.yaml").write_text(SPACE + PROFILES.replace("preset: small, dataset: shanghaitech_a, ", ""))
    text = call("run", "f.yaml", "--inline", "--profile", "photos")
    assert "study depths-photos: 2 complete" in text
    assert "next: raz-sweep report depths-photos" in text
    call("run", "f.yaml", "--inline")
    assert [study["study"] for study in json.loads(call("studies", "--json"))] == ["depths", "depths-photos"]
    gammas = {
        name: {record.config["localization.gamma"] for record in read_records(here / "raz-store", name)}
        for name in ("depths", "depths-photos")
    }
    assert gammas == {"depths": {30}, "depths-photos": {70}}
    attributes = StudyAttributes.parse(read_study(here / "raz-store", "depths-photos").attributes)
    assert attributes.command == "raz-sweep run f.yaml --profile photos"
    assert "(0 run now" in call("run", "f.yaml", "--inline", "--profile", "photos")


def test_plans_and_simulations_are_of_the_profile(here: Path) -> None:
    (here / "f.yaml").write_text(SPACE + PROFILES.replace("preset: small, dataset: shanghaitech_a, ", ""))
    for profile, name, trials, stages in (("toy", "depths", 3, 1), ("photos", "depths-photos", 2, 2)):
        plan = json.loads(call("run", "f.yaml", "--dry-run", "--profile", profile, "--json"))
        assert (plan["name"], plan["trials"]) == (name, trials)
        assert plan["stages"]["counting"]["distinct"] == stages  # seeds
        words = ["simulate", "f.yaml", "--devices", "1", "--profile", profile, "--json"]
        simulated = json.loads(call(*words))
        assert (simulated["name"], simulated["trials"]) == (name, trials)


def test_the_profile_of_a_study_is_in_its_name(here: Path) -> None:
    result = CliRunner().invoke(app, ["report", "depths", "--profile", "photos"])
    assert result.exit_code == 2
    assert "the study of a search's profile has the profile in its name" in result.stderr
    assert "try: raz-sweep report depths-photos" in result.stderr
