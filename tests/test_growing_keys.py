"""A field that is added later changes no key, no study and no stored configuration until it is set.

Fields are really added here: the dataclass of the configuration is made again with one more field, and all the code
then runs on it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from raz.config import (
    PRESETS,
    CountingConfig,
    TrainConfig,
    TrialConfig,
    ZoomingConfig,
    added,
    before_values,
    completed,
    configure,
    from_parameters,
    parameter_types,
    parameters,
)
from raz.config import trial as configuration
from raz.engine.events import NullEvents
from raz.engine.inline import run_inline
from raz.engine.trial_source import StudySource
from raz.errors import RazError
from raz.inspection.compare import compare
from raz.pipeline import graph
from raz.pipeline.graph import (
    TRAINED,
    Node,
    StageSpec,
    chain_key,
    comparability_key,
    declared_inputs,
    inputs_of,
    node_keys,
)
from raz.pipeline.model import stored_model
from raz.pipeline.trial import run_trial
from raz.spec import parameter
from raz.spec.search_space import Pruning, SearchSpace
from raz.spec.space_yaml import parse_space
from raz.study.index import base_parameters, read_study
from raz.study.ledger import open_ledger
from raz.utils.yamlfile import parse
from tests.crowds import write_crowd
from tests.fields import forget, with_field

FAKE = "tests.fakes_engine:run_trial"
STUDY = """\
study: grows
base: {preset: tiny, dataset: toy%s}
design: {sampler: grid}
objective: {metric: val.mae, direction: minimize}
parameters:
  depth: {choice: [1, 2]}
  zooming.k_z: {choice: [4, 7]}
"""


def keys(config: TrialConfig) -> dict[str, str]:
    """Every stage of a deep trial, and the chains of epochs, with their keys."""
    deep = configure(config, {"depth": 4, "fusion.fit_on": "train"})
    found = node_keys(deep, ("val", "test"), lambda split: split, lambda backbone: backbone.weights)
    chains = {f"chain {n}": chain_key(key) for n, key in found.items() if n.stage in TRAINED}
    return {str(n): key.key for n, key in found.items()} | chains


def moved(old: Mapping[str, str], new: Mapping[str, str]) -> set[str]:
    """The stages (and `chain …`) whose keys differ."""
    assert old.keys() == new.keys()
    return {name.partition("@")[0].rstrip("234") for name in old if old[name] != new[name]}


def asked(more: str = "") -> SearchSpace:
    return parse_space(parse(STUDY % more, "grows.yaml"))


def run(store: Path, of: SearchSpace, trials: int) -> None:
    with open_ledger(store, of) as ledger:
        ledger.recover(trials)
        run_inline(StudySource(ledger), store, run_trial=FAKE, events=NullEvents())


AFTER_COUNTING = {"localization", "attention", "raz", "raz_attention", "density", "points", "zoom", "score"}
ZOOMS = {"zoom", "score"}
LEARNS_FROM_REGIONS = {"raz", "raz_attention", "chain raz", "chain raz_attention"}


# ------------------------------------------------------------------ keys


def test_a_field_that_stands_at_its_value_of_before_changes_no_key() -> None:
    old = {name: keys(preset) for name, preset in PRESETS.items()}
    for cls, kind, before in (
        (ZoomingConfig, float, 0.0), (TrainConfig, str, "none"), (CountingConfig, tuple[int, ...], (3, 4)),
        (TrialConfig, bool, False),
    ):  # fmt: skip
        with with_field(cls, "later", kind, added(default=before, before=before)):
            assert any(name.endswith("later") for name in parameters(PRESETS["paper"]))
            assert {name: keys(preset) for name, preset in PRESETS.items()} == old
    with with_field(ZoomingConfig, "later", float, added(default=0, before=0)):  # a whole number for a float
        assert {name: keys(preset) for name, preset in PRESETS.items()} == old
    assert {name: keys(preset) for name, preset in PRESETS.items()} == old


def test_a_field_without_a_value_of_before_changes_the_keys_of_its_stage() -> None:
    """So the test above could fail: this is what a plain new field does."""
    old = keys(PRESETS["tiny"])
    with with_field(CountingConfig, "later", float, 0.0):
        assert moved(old, keys(PRESETS["tiny"])) == {"counting", "chain counting"} | AFTER_COUNTING | {
            f"chain {stage}" for stage in TRAINED
        }


@pytest.mark.parametrize("preset", PRESETS)
def test_a_field_that_is_set_moves_its_stage_and_those_after_it(preset: str) -> None:
    base = PRESETS[preset]
    old = keys(base)
    with with_field(ZoomingConfig, "later", float, added(default=0.0, before=0.0)):
        assert moved(old, keys(configure(base, {"zooming.later": 0.5}))) == ZOOMS
        assert moved(old, keys(configure(base, {"raz.regions.later": 0.5}))) == LEARNS_FROM_REGIONS | ZOOMS
        tied = configure(base, {"raz.regions": "same"})
        as_tied = keys(tied)
        assert moved(as_tied, keys(configure(tied, {"zooming.later": 0.5}))) == LEARNS_FROM_REGIONS | ZOOMS
    with with_field(TrainConfig, "later", str, added(default="none", before="none")):
        found = moved(old, keys(configure(base, {"raz.attention_train.later": "some"})))
        assert found == {"raz_attention", "chain raz_attention"} | ZOOMS


@pytest.mark.parametrize("preset", PRESETS)
def test_a_default_that_is_not_what_was_before_moves_keys_by_intention(preset: str) -> None:
    base = PRESETS[preset]
    old = keys(base)
    with with_field(ZoomingConfig, "later", float, added(default=0.5, before=0.0)):
        assert base.zooming.later == 0.5  # type: ignore[attr-defined]
        assert moved(old, keys(base)) == LEARNS_FROM_REGIONS | ZOOMS
        assert keys(configure(base, {"zooming.later": 0.0, "raz.regions.later": 0.0})) == old


def test_true_is_not_the_number_that_was_before() -> None:
    old = keys(PRESETS["tiny"])
    with with_field(ZoomingConfig, "later", int | bool, added(default=1, before=1)):
        assert keys(PRESETS["tiny"]) == old
        assert moved(old, keys(configure(PRESETS["tiny"], {"zooming.later": True}))) == ZOOMS


def test_a_value_of_before_of_another_type_is_refused() -> None:
    with (
        with_field(ZoomingConfig, "later", float, added(default=0.5, before="none")),
        pytest.raises(ValueError, match="finite number"),
    ):
        keys(PRESETS["tiny"])


def test_a_whole_part_may_be_added(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Blur:
        width: float = 2.0
        kind: str = "box"

    old, there = keys(PRESETS["tiny"]), dict(before_values())
    stored = parameters(PRESETS["tiny"])
    points = graph.STAGES["points"]
    reads = StageSpec(points.kind, points.version, (*points.reads, "blur"), points.needs)
    monkeypatch.setitem(graph.STAGES, "points", reads)
    monkeypatch.setattr(configuration, "Blur", Blur, raising=False)  # where annotations are looked up
    with with_field(TrialConfig, "blur", "Blur", added(default=Blur(), before=Blur(0.0, "none"))):
        assert before_values() == there | {"blur.width": 0.0, "blur.kind": "none"}
        assert from_parameters(stored).blur == Blur(0.0, "none")  # type: ignore[attr-defined]
        assert keys(from_parameters(stored)) == old
        assert moved(old, keys(PRESETS["tiny"])) == {"points"} | ZOOMS
    forget()


def test_a_stage_is_given_a_field_that_its_key_leaves_out() -> None:
    with with_field(ZoomingConfig, "later", float, added(default=0.0, before=0.0)):
        config = PRESETS["tiny"]
        assert declared_inputs(config, "zoom").zooming.later == 0.0  # type: ignore[attr-defined]
        assert inputs_of(parameters(config), "zoom")["zooming.later"] == 0.0
        key = node_keys(config, ("val",), lambda s: s, lambda b: b.weights)[Node("zoom", "val", 2)]
        assert "zooming.later" not in key.inputs
        config = configure(config, {"zooming.later": 0.25})
        key = node_keys(config, ("val",), lambda s: s, lambda b: b.weights)[Node("zoom", "val", 2)]
        assert key.inputs["zooming.later"] == 0.25


# ------------------------------------------------------------------ stored configurations


@pytest.mark.parametrize("preset", PRESETS)
def test_a_stored_configuration_that_lacks_a_field_has_its_value_of_before(preset: str) -> None:
    stored = json.loads(json.dumps(parameters(PRESETS[preset])))
    old = keys(PRESETS[preset])
    with with_field(ZoomingConfig, "later", float, added(default=0.5, before=0.0)):
        read = from_parameters(stored)
        assert (read.zooming.later, read.raz.regions.later) == (0.0, 0.0)  # type: ignore[union-attr,attr-defined]
        assert keys(read) == old
        again = from_parameters(parameters(read))
        assert again == read
        newer = from_parameters({**stored, "zooming.later": 0.75})
        assert (newer.zooming.later, newer.raz.regions.later) == (0.75, 0.0)  # type: ignore[union-attr,attr-defined]


def test_a_word_for_a_part_stays_when_the_part_grows() -> None:
    stored = parameters(configure(PRESETS["tiny"], {"raz.regions": "same"}))
    with with_field(ZoomingConfig, "later", float, added(default=0.5, before=0.0)):
        assert completed(stored) == {**stored, "zooming.later": 0.0}
        assert from_parameters(stored).raz.regions == "same"


def test_the_values_that_a_trial_is_compared_by_are_complete() -> None:
    old = parameters(PRESETS["tiny"])
    with with_field(ZoomingConfig, "later", float, added(default=0.0, before=0.0)):
        new = parameters(PRESETS["tiny"])
        assert comparability_key(completed(old), "raz") == comparability_key(new, "raz")


@pytest.mark.long
def test_a_finished_store_serves_the_trials_that_leave_the_field_as_it_was(tmp_path: Path) -> None:
    crowd, store = write_crowd(tmp_path / "crowd", train=16, test=2), tmp_path / "store"
    trains = ("counting.train", "localization.train", "attention.train", "raz.train", "raz.attention_train")
    config = configure(
        PRESETS["tiny"],
        {
            "dataset": "shanghaitech_a", "backbone.width": 0.0625, "counting.channels": [8],
            "localization.channels": [8], "localization.upsample": [8, 6, 4], "attention.channels": 4, "depth": 3,
            **{f"{name}.epochs": 1 for name in trains}, **{f"{name}.crop": 64 for name in trains},
        },
    )  # fmt: skip
    first = run_trial(config, store, data_root=crowd)
    assert not any(use.hit for use in first.stages)
    with with_field(ZoomingConfig, "later", float, added(default=0.0, before=0.0)):
        again = run_trial(config, store, data_root=crowd)
        assert all(use.hit for use in again.stages)
        assert again.metrics == first.metrics
        changed = run_trial(configure(config, {"zooming.later": 0.5}), store, data_root=crowd)
        made = {use.stage for use in changed.stages if not use.hit}
        assert {name.partition("@")[0].rstrip("23") for name in made} == ZOOMS
        for result, later in ((first, 0.0), (changed, 0.5)):
            score = next(use.key for use in result.stages if use.stage == "score@val")
            assert stored_model(store, score).config.zooming.later == later  # type: ignore[attr-defined]


# ------------------------------------------------------------------ studies


def test_an_old_study_resumes(tmp_path: Path) -> None:
    run(tmp_path, asked(), 2)
    before = read_study(tmp_path, "grows")
    digest = asked().digest()
    with with_field(ZoomingConfig, "later", float, added(default=0.0, before=0.0)):
        assert asked().digest() == digest
        run(tmp_path, asked(), 4)
        study = read_study(tmp_path, "grows")
        assert study.counts()["complete"] == 4
        assert {trial.config["zooming.later"] for trial in study.trials} == {0.0}
        assert study.meaning == {**before.meaning, "base.zooming.later": 0.0, "base.raz.regions.later": 0.0}
        assert study.attributes["meaning"] == before.attributes["meaning"]  # what is recorded stays
        assert [t.config["zooming.k_z"] for t in study.trials[:2]] == [t.config["zooming.k_z"] for t in before.trials]


def test_the_index_of_an_old_study_is_read_with_the_field(tmp_path: Path) -> None:
    run(tmp_path, asked(), 2)
    read_study(tmp_path, "grows")
    index = tmp_path / "studies" / "grows.parquet"
    stamp = index.stat().st_mtime_ns
    with with_field(ZoomingConfig, "later", float, added(default=0.5, before=0.0)):
        study = read_study(tmp_path, "grows")
        assert {trial.config["zooming.later"] for trial in study.trials} == {0.0}
        assert base_parameters(study)["zooming.later"] == 0.0
    assert index.stat().st_mtime_ns == stamp


def test_an_old_study_is_refused_where_the_field_is_set(tmp_path: Path) -> None:
    run(tmp_path, asked(), 2)
    with with_field(ZoomingConfig, "later", float, added(default=0.0, before=0.0)):
        with (
            pytest.raises(RazError, match=r"base\.zooming\.later: 0\.0 -> 0\.5"),
            open_ledger(tmp_path, asked(", set: {zooming.later: 0.5}")),
        ):
            pass
        run(tmp_path, asked(), 3)


def test_a_study_resumes_under_a_new_default_when_its_file_names_what_was_before(tmp_path: Path) -> None:
    run(tmp_path, asked(), 2)
    with with_field(ZoomingConfig, "later", float, added(default=0.5, before=0.0)):
        with pytest.raises(RazError, match=r"base\.zooming\.later: 0\.0 -> 0\.5"), open_ledger(tmp_path, asked()):
            pass
        run(tmp_path, asked(", set: {zooming.later: 0, raz.regions.later: 0}"), 4)
        study = read_study(tmp_path, "grows")
        assert {trial.config["zooming.later"] for trial in study.trials} == {0.0}


def test_a_new_study_records_the_field_where_it_is_set(tmp_path: Path) -> None:
    with with_field(ZoomingConfig, "later", float, added(default=0.0, before=0.0)):
        of = replace(asked(", set: {zooming.later: 0.5}"), study="set")
        run(tmp_path, of, 2)
        assert {n: v for n, v in of.meaning().items() if n.endswith("later")} == {"base.zooming.later": 0.5}
        run(tmp_path, asked(), 2)
        differences = compare(tmp_path, "grows", "set").to_dict()
        assert differences["asks"] == {"base.zooming.later": [0.0, 0.5]}
        with (
            pytest.raises(RazError, match=r"base\.zooming\.later: 0\.5 -> 0\.0"),
            open_ledger(tmp_path, replace(asked(), study="set")),
        ):
            pass


def test_a_searched_field_is_told_by_its_trials(tmp_path: Path) -> None:
    with with_field(ZoomingConfig, "later", float, added(default=0.0, before=0.0)):
        of = parse_space(parse(STUDY % "" + "  zooming.later: {choice: [0.0, 0.5]}\n", "grows.yaml"))
        run(tmp_path, of, 8)
        found = [trial.config["zooming.later"] for trial in read_study(tmp_path, "grows").trials]
        assert sorted(found) == [0.0] * 4 + [0.5] * 4


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: asked(), "design.later"),
        (lambda: parameter.Parameter("depth", "int", low=1, high=3), "later"),
        (lambda: Pruning("median", {"warmup_steps": 3}), "later"),
    ],
    ids=["space", "parameter", "pruning"],
)
def test_the_question_itself_may_grow(make: Callable[[], Any], told: str) -> None:
    old = make().meaning()
    cls = type(make())
    with with_field(cls, "later", int, added(default=1, before=1)):
        assert make().meaning() == old
        assert replace(make(), later=2).meaning() == {**old, told: 2}
    with with_field(cls, "later", int, added(default=2, before=1)):
        assert make().meaning() == {**old, told: 2}


def test_the_class_is_as_it_was_when_the_field_is_gone() -> None:
    same, there = ZoomingConfig(), dict(before_values())
    with with_field(ZoomingConfig, "later", float, added(default=0.0, before=0.0)):
        assert replace(same, later=0.5) != same  # type: ignore[call-arg]
    assert ZoomingConfig() == same
    assert "zooming.later" not in parameter_types()
    with pytest.raises(TypeError):
        ZoomingConfig(later=0.5)  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        same.k_z = 3  # type: ignore[misc]
    assert before_values() == there
