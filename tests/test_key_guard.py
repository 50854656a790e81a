"""A stage's function reads nothing that its key lacks: everything else of the trial raises when it is touched."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from raz.config import PRESETS, TrialConfig, configure, parameters
from raz.pipeline import train_stages
from raz.pipeline.executor import StageExecutor
from raz.pipeline.graph import (
    COMMON,
    STAGES,
    Node,
    UndeclaredInput,
    declared_inputs,
    dependency_closure,
    inputs_for,
    inputs_of,
    topological_order,
)
from raz.pipeline.stage_context import TrialState
from raz.pipeline.trial import _threads, run_trial
from raz.store.cache import StageCache
from tests.crowds import write_crowd

TRAINS = ("counting.train", "localization.train", "attention.train", "raz.train", "raz.attention_train")
DEEP = {
    "dataset": "shanghaitech_a", "backbone.width": 0.0625, "counting.channels": [8, 8], "localization.channels": [8],
    "localization.upsample": [8, 6, 4], "attention.channels": 4, "attention.sigma_z": 6.0, "depth": 4,
    "zooming.k_z": 2, "fusion.rule": "grid", "fusion.fit_on": "train",
    **{f"{name}.epochs": 1 for name in TRAINS}, **{f"{name}.crop": 64 for name in TRAINS},
}  # fmt: skip
# What is frozen decides which features are kept, and so which parameters name them.
VARIANTS: dict[str, dict[str, Any]] = {
    "backbone learns": {},
    "backbone frozen": {
        "counting.unfreeze": "none", "raz.unfreeze": "none", "localization.unfreeze": "backbone",
        "counting.sizes": [1.0, 0.7], "counting.output_stride": 4, "raz.regions": "same",
    },
}  # fmt: skip
SPLITS = ("val", "test")


class Touched(BaseException):
    """A parameter outside the declaration was read. It is no Exception, so that no `except Exception` hides it."""


def _touch(*_: object) -> Any:
    raise Touched("a parameter outside the declaration was read")


USES = (
    "getattribute", "eq", "ne", "lt", "le", "gt", "ge", "hash", "bool", "len", "iter", "getitem", "contains", "call",
    "str", "repr", "format", "int", "float", "index", "neg", "add", "radd", "sub", "rsub", "mul", "rmul", "truediv",
    "rtruediv", "floordiv", "rfloordiv", "mod", "rmod", "pow", "rpow",
)  # fmt: skip
Forbidden = type("Forbidden", (), {f"__{use}__": _touch for use in USES})


def without(config: TrialConfig, allowed: tuple[str, ...]) -> TrialConfig:
    """The configuration with an object that raises in place of every parameter that is not allowed."""

    def walk(part: Any, prefix: str) -> Any:
        changed: dict[str, Any] = {}
        for f in fields(part):
            path = f"{prefix}{f.name}"
            if path in allowed:
                continue
            inside = any(name.startswith(f"{path}.") for name in allowed)
            value = getattr(part, f.name)
            changed[f.name] = walk(value, f"{path}.") if inside and is_dataclass(value) else Forbidden()
        return replace(part, **changed)

    found: TrialConfig = walk(config, "")
    return found


def allowed_for(config: TrialConfig, node: Node) -> tuple[str, ...]:
    stages = {needed.stage for needed in dependency_closure(config, [node])}
    return (*COMMON, *(name for stage in stages for name in STAGES[stage].reads))


def outputs(store: Path) -> dict[str, Mapping[str, Any]]:
    """stage/key -> digests of its files, and the learning curve without the seconds that it took."""
    out: dict[str, Mapping[str, Any]] = {}
    for manifest in sorted((store / "stages").glob("*/*/manifest.json")):
        files = dict(json.loads(manifest.read_text())["files"])
        if "curve.json" in files:
            curve = json.loads((manifest.parent / "curve.json").read_text())
            files["curve.json"] = [{**point, "seconds": 0.0} for point in curve]
        out["/".join(manifest.parts[-3:-1])] = files
    return out


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_crowd(tmp_path_factory.mktemp("crowd"), train=16, test=2)


@pytest.mark.long
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_stage_runs_on_its_declared_inputs_alone(variant: str, crowd: Path, tmp_path: Path) -> None:
    config = configure(PRESETS["tiny"], DEEP | VARIANTS[variant]).resolved()
    run_trial(config, tmp_path / "whole", data_root=crowd, splits=SPLITS)
    undisturbed = outputs(tmp_path / "whole")

    cache = StageCache(tmp_path / "guarded")
    keys = TrialState(config, cache, crowd, lambda _: None).keys
    path = topological_order(config, SPLITS)
    assert {node.stage for node in path} == set(STAGES), "a stage is not on the path, so it is not guarded"
    made: dict[Node, Any] = {}
    for node in path:
        allowed = allowed_for(config, node)
        state = TrialState(without(config, allowed), cache, crowd, lambda _: None, dict(made))
        trial = StageExecutor(state)
        state.__dict__["keys"] = keys  # they are made of the whole configuration, and so is what manifests tell
        trial.__dict__["_parameters"] = parameters(config)
        with _threads(config.threads):
            assert not trial.get_or_make(node).hit
        # No later stage finds the configuration in the manifest either.
        manifest = cache.paths.stage(node.stage, keys[node].key) / "manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"config": {"no.such": 1}}))
        found = cache.find(keys[node])
        assert found is not None
        made[node] = found
    assert outputs(tmp_path / "guarded") == undisturbed


def test_the_stand_in_raises_on_any_use() -> None:
    uses: list[Callable[[Any], Any]] = [
        lambda x: x.epochs, bool, len, list, str, repr, hash, int, float, operator.index, operator.neg,
        lambda x: x == 1, lambda x: x < 1, lambda x: x + 1, lambda x: 1 * x, lambda x: x[0],
        lambda x: 1 in x, lambda x: f"{x}", lambda x: isinstance(x, str), lambda x: x(), lambda x: 2 / x,
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(Touched):
            use(Forbidden())
    config = without(PRESETS["tiny"], ("dataset", "raz.train"))
    assert config.dataset == PRESETS["tiny"].dataset
    assert config.raz.train == PRESETS["tiny"].raz.train
    for outside in (lambda: config.raz.unfreeze == "none", lambda: config.zooming.k_z, lambda: config.depth > 1):
        with pytest.raises(Touched):
            outside()


def test_a_hidden_read_is_told_by_stage_and_parameter(
    crowd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reads_depth(context: Any) -> Any:
        return context.inputs.depth

    def reads_a_later_stage(context: Any) -> Any:
        return context.stage_inputs["zooming"]

    config = configure(PRESETS["tiny"], DEEP)
    monkeypatch.setitem(train_stages.PLANS, "counting", reads_depth)  # type: ignore[arg-type]
    with pytest.raises(UndeclaredInput, match="stage counting does not declare depth"):
        run_trial(config, tmp_path, data_root=crowd)
    monkeypatch.setitem(train_stages.PLANS, "counting", reads_a_later_stage)  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="zooming"):
        run_trial(config, tmp_path, data_root=crowd)


def test_what_a_stage_is_given_holds_its_declaration_and_cannot_be_changed() -> None:
    config = PRESETS["tiny"].resolved()
    values = parameters(config)
    for stage in STAGES:
        given = declared_inputs(config, stage)
        for name in inputs_of(values, stage):
            found: Any = given
            for part in name.split("."):
                found = getattr(found, part)
            assert (list(found) if isinstance(found, tuple) else found) == values[name]
        with pytest.raises(AttributeError, match="read-only"):
            given.seed = 1
    with pytest.raises(UndeclaredInput, match=r"stage raz does not declare raz\.attention_train"):
        _ = declared_inputs(config, "raz").raz.attention_train


def test_a_node_is_given_the_stages_it_needs_and_no_other() -> None:
    config = configure(PRESETS["tiny"], DEEP)
    assert set(inputs_for(config, Node("counting"))) == {"counting"}
    assert set(inputs_for(config, Node("density", "val"))) == {"counting", "density"}
    assert set(inputs_for(config, Node("zoom", "val", 2))) == {
        "counting", "localization", "attention", "raz", "points", "zoom",
    }  # fmt: skip
    assert set(inputs_for(config, Node("score", "val"))) == set(STAGES)
