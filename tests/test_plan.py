"""What a run will cost: counted against torch's own counter, brute force, and stages that were measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from raz.cli.dry_run import plan_file
from raz.cli.main import app
from raz.config import PRESETS, TrialConfig, configure, parameters
from raz.paper.networks import AttentionBranch, CountingBranch, LocalizationBranch
from raz.pipeline.backbones import empty_backbone
from raz.pipeline.graph import Node
from raz.pipeline.keys import stage_keys
from raz.planning.cost_model import (
    PRIORS,
    CostModel,
    DatasetSizes,
    Estimate,
    branch_flop,
    dataset_sizes,
    parameter_count,
    stage_gflop,
)
from raz.planning.plan import draw_trials, format_estimate
from raz.spec.space_yaml import parse_space
from raz.utils.yamlfile import parse

TINY = PRESETS["tiny"]
FIXED = """\
study: fixed
base: {preset: tiny, dataset: toy}
design: {sampler: grid}
parameters:
  localization.gamma: {choice: [10, 100]}
  fusion.rule: {choice: [average, density, localization]}
"""
LEARNED = FIXED.replace("{sampler: grid}", "{sampler: tpe, trials: 9}").replace("study: fixed", "study: learned")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAZ_STORE", raising=False)
    (tmp_path / "fixed.yaml").write_text(FIXED)
    (tmp_path / "learned.yaml").write_text(LEARNED)
    return tmp_path


def put(store: Path, config: TrialConfig, *names: str, seconds: Callable[[Node], float]) -> None:
    """Artifacts as a run leaves them, as far as a plan reads them."""
    for node, key in stage_keys(config, splits=("val",)).items():
        if node.stage in names:
            folder = store / "stages" / node.stage / key.key
            folder.mkdir(parents=True)
            (folder / "a").write_bytes(b"x" * 1000)
            manifest = {"stage": str(node), "seconds": seconds(node), "device": "cpu", "config": parameters(config)}
            (folder / "manifest.json").write_text(json.dumps({**manifest, "key": {}, "files": {"a": ""}}))


# ------------------------------------------------------------------ work


@pytest.mark.parametrize(
    "config", [TINY, PRESETS["small"], configure(TINY, {"counting.output_stride": 2}), configure(TINY, {"depth": 4})],
    ids=["tiny", "small", "stride 2", "depth 4"],
)  # fmt: skip
def test_work_is_what_torch_counts(config: TrialConfig) -> None:
    side = 64
    backbone = empty_backbone(config.backbone)
    counting = CountingBranch(backbone.channels, config.counting.channels, config.counting.output_stride)
    localization = LocalizationBranch(backbone.channels, config.localization.channels, config.localization.upsample)
    attention = AttentionBranch(localization.channels + counting.channels, config.attention.channels)

    def counted(module: nn.Module, *inputs: torch.Tensor) -> float:
        with FlopCounterMode(display=False) as mode, torch.inference_mode():
            module(*inputs)
        return mode.get_total_flops() / side**2

    x = torch.zeros(1, 3, side, side)
    features = backbone(x)
    rich, own = localization(features)[1], counting(features)[1]
    wanted = {
        "backbone": counted(backbone, x), "counting": counted(counting, features),
        "localization": counted(localization, features), "attention": counted(attention, rich, own),
    }  # fmt: skip
    found = branch_flop(config)
    # torch counts as well how the attention branch's kernels are put together, which is the same for any image
    assert (
        wanted["attention"] - 9 * 2 * 81 * config.attention.channels < found.pop("attention") <= wanted.pop("attention")
    )
    assert found == pytest.approx(wanted, rel=1e-9)

    def numbers(*modules: nn.Module) -> int:
        return sum(p.numel() for module in modules for p in module.parameters())

    counting_learns = [backbone] if config.counting.unfreeze == "backbone" else []
    localization_learns = [backbone] if config.localization.unfreeze == "backbone" else []
    assert parameter_count(config, "counting") == numbers(counting, *counting_learns)
    assert parameter_count(config, "localization") == numbers(localization, *localization_learns)
    assert parameter_count(config, "attention") == numbers(attention)


def test_more_epochs_and_images_are_more_work_in_proportion() -> None:
    of = DatasetSizes({"train": 60, "val": 0, "test": 40}, {"train": 0.1, "val": 0.0, "test": 0.1})
    learned = configure(TINY, {"localization.unfreeze": "backbone"})
    for stage in ("counting", "localization", "attention", "raz_attention"):
        once = stage_gflop(learned, Node(stage), of)
        name = {"raz_attention": "raz.attention_train.epochs"}.get(stage, f"{stage}.train.epochs")
        epochs = parameters(learned)[name]
        assert stage_gflop(configure(learned, {name: 2 * epochs}), Node(stage), of) == pytest.approx(2 * once)
    twice = DatasetSizes({**of.images, "test": 80}, of.megapixels)
    for node in (Node("density", "test"), Node("points", "test"), Node("zoom", "test", 2), Node("score", "test")):
        assert stage_gflop(TINY, node, twice) == pytest.approx(2 * stage_gflop(TINY, node, of))


def test_sizes_are_those_of_the_images_at_the_input() -> None:
    whole, half = dataset_sizes(TINY, None), dataset_sizes(replace(TINY, input=replace(TINY.input, scale=0.5)), None)
    assert whole.images == half.images == {"train": 60, "val": 16, "test": 40}
    assert half.megapixels["train"] == pytest.approx(whole.megapixels["train"] / 4, rel=0.02)


# ------------------------------------------------------------------ costs


def test_like_stages_that_were_measured_give_the_price(tmp_path: Path) -> None:
    put(tmp_path, TINY, "counting", "score", seconds=lambda node: 80.0)
    costs = CostModel(tmp_path, device="cpu")
    found, measured = costs.seconds(TINY, Node("counting"))
    assert measured
    assert found == Estimate(80 / 1.5, pytest.approx(80.0), pytest.approx(120.0))
    longer = configure(TINY, {"counting.train.epochs": 60, "counting.beta": 0.3})
    of = costs.sizes(TINY)
    scaled = 80 * stage_gflop(longer, Node("counting"), of) / stage_gflop(TINY, Node("counting"), of)
    assert costs.seconds(longer, Node("counting"))[0].likely == pytest.approx(scaled)
    # neither another stage, nor another number of threads, nor another device is alike
    assert not costs.seconds(TINY, Node("localization"))[1]
    assert not costs.seconds(replace(TINY, threads=2), Node("counting"))[1]
    assert not CostModel(tmp_path, device="cuda").seconds(TINY, Node("counting"))[1]
    assert costs.bytes(TINY, Node("score", "val")) == 1000


def test_damage_and_strangers_in_a_store_price_nothing(tmp_path: Path) -> None:
    put(tmp_path, TINY, "counting", seconds=lambda node: 80.0)
    for path in (tmp_path / "stages").glob("*/*/manifest.json"):
        path.write_text(path.read_text()[:-20])
    other = tmp_path / "stages" / "score" / "00"
    other.mkdir(parents=True)
    (other / "manifest.json").write_text('{"stage": "counting", "config": {"no.such": 1}, "key": {}, "files": {}}')
    assert not CostModel(tmp_path, device="cpu").seconds(TINY, Node("counting"))[1]


def test_a_prior_is_work_over_a_stated_rate(tmp_path: Path) -> None:
    costs = CostModel(tmp_path, device="cpu")
    found, measured = costs.seconds(TINY, Node("density", "val"))
    amount, prior = stage_gflop(TINY, Node("density", "val"), costs.sizes(TINY)), PRIORS["cpu"]
    assert not measured
    assert found == Estimate(amount / prior.fast, amount / prior.likely, amount / prior.slow)
    # a stage that may stop early may be cheaper still
    early = configure(TINY, {"counting.train.stop": 5})
    assert costs.seconds(early, Node("counting"))[0].low == pytest.approx(
        costs.seconds(configure(TINY, {"counting.train.stop": 99}), Node("counting"))[0].low * 6 / 30
    )


# ------------------------------------------------------------------ plans


def test_a_fixed_design_is_counted_exactly(here: Path) -> None:
    plan = plan_file("fixed.yaml", here / "store", settings=[], jobs=1)
    assert (plan.trials, plan.exact, plan.devices, plan.stored) == (6, True, 1, 0)
    space = parse_space(parse(FIXED, "fixed.yaml"))
    keys = [stage_keys(space.config(point)) for point in space.points]
    wanted: dict[str, set[str]] = {}
    for found in keys:
        for node, key in found.items():
            wanted.setdefault(node.stage, set()).add(key.key)
    assert {row.stage: row.distinct for row in plan.rows} == {stage: len(of) for stage, of in wanted.items()}
    # conservation: rows add up to the whole, and one device does all of it, one after the other
    assert sum(row.seconds.likely for row in plan.rows) == pytest.approx(plan.device_seconds.likely)
    costs = CostModel(here / "store")
    alone = sum(costs.seconds(TINY, node)[0].likely for found in keys for node in found if node.stage != "score")
    assert plan.alone_seconds.likely == pytest.approx(alone, rel=0.05)
    assert plan.wall_seconds.low < plan.wall_seconds.likely < plan.wall_seconds.high


def test_what_the_store_holds_costs_nothing(here: Path) -> None:
    store = here / "store"
    before = plan_file("fixed.yaml", store, settings=[])
    put(store, configure(TINY, {"localization.gamma": 10}), "counting", "localization", seconds=lambda node: 60.0)
    after = plan_file("fixed.yaml", store, settings=[])
    rows = {row.stage: row for row in after.rows}
    assert (rows["counting"].distinct, rows["counting"].stored, rows["counting"].seconds.high) == (1, 1, 0)
    assert (rows["localization"].distinct, rows["localization"].stored) == (2, 1)
    assert rows["localization"].measured
    assert rows["localization"].seconds.likely == pytest.approx(60.0)
    assert after.device_seconds.likely < before.device_seconds.likely
    assert after.disk < before.disk


def test_a_search_is_an_estimate_and_says_so(here: Path) -> None:
    plan = plan_file("learned.yaml", here / "store", settings=[], trials=4)
    assert (plan.trials, plan.exact) == (4, False)
    rows = {row.stage: row.distinct for row in plan.rows}
    assert rows["counting"] == 1
    assert 1 <= rows["localization"] <= 2
    result = CliRunner().invoke(app, ["run", "learned.yaml", "--dry-run"])
    assert result.exit_code == 0
    assert "an estimate: the search draws its trials as it learns" in result.stdout
    assert PRIORS["cpu"].source in result.stdout
    assert not (here / "raz-store").exists()  # nothing is run, nothing is written


def test_a_trial_over_seeds_is_all_of_them(here: Path) -> None:
    once = plan_file("fixed.yaml", here / "store", settings=[])
    (here / "fixed.yaml").write_text(FIXED.replace("{sampler: grid}", "{sampler: grid, seeds: [0, 1, 2]}"))
    thrice = plan_file("fixed.yaml", here / "store", settings=[])
    assert thrice.trials == once.trials
    assert thrice.stages == 3 * once.stages
    assert thrice.device_seconds.likely == pytest.approx(3 * once.device_seconds.likely)


def test_a_table_is_planned_with_both_splits(here: Path) -> None:
    result = CliRunner().invoke(app, ["run", "recurrence", "--dry-run", "--json"])
    plan = json.loads(result.stdout)
    assert (plan["kind"], plan["exact"]) == ("table", True)
    assert plan["stages"]["counting"]["distinct"] == 3  # seeds
    assert plan["stages"]["density"]["distinct"] == 6  # seeds, on the validation and the test images
    assert plan["without_sharing_seconds"]["likely"] > 3 * plan["device_seconds"]["likely"]


def test_random_draws_stay_within_the_space() -> None:
    text = LEARNED + "  counting.beta: {float: [0.05, 0.6], log: true}\n  zooming.k_z: {int: [2, 16], log: true}\n"
    text += "  attention.sigma_z: {float: [1, 8], step: 0.5}\n  depth: {int: [1, 3], step: 2}\n"
    configs, skipped = draw_trials(parse_space(parse(text, "f.yaml")), 200, seed=1)
    assert (len(configs), skipped) == (200, 0)
    assert {c.depth for c in configs} == {1, 3}
    assert all(0.05 <= c.counting.beta <= 0.6 and 2 <= c.zooming.k_z <= 16 for c in configs)
    assert sum(c.counting.beta < (0.05 * 0.6) ** 0.5 for c in configs) in range(70, 130)  # half lie below the middle
    assert {c.attention.sigma_z for c in configs} == {1 + 0.5 * i for i in range(15)}


@pytest.mark.long
@pytest.mark.usefixtures("here")
def test_a_plan_needs_neither_torch_nor_ray() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom raz.cli.main import app\n"
        "for words in (['run', 'fixed.yaml', '--dry-run'], ['simulate', 'learned.yaml', '--devices', '2']):\n"
        "    result = CliRunner().invoke(app, words)\n    assert result.exit_code == 0, result.output\n"
        "print([m for m in ('torch', 'ray', 'optuna', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "fixed.yaml", "--dry-run", "--profile", "toy"], "--profile: fixed.yaml is a search space"),
        (["run", "recurrence", "--dry-run", "--trials", "3"], "is a table, whose rows and seeds are fixed"),
        (["run", "recurrence", "--dry-run", "--trials", "3"], "try: --set and --profile"),  # as a run says
        (["run", "recurrence", "--trials", "3"], "try: --set and --profile"),
        (["run", "recurrence", "--retry"], "--retry: "),
        (["run", "fixed.yml", "--dry-run"], "fixed.yml: no such file"),
        (["run", "fixed.yaml", "--dry-run", "--set", "dataset=shanghaitech_a"], "shanghaitech_a"),
        (["simulate", "fixed.yaml", "--devices", "0"], "Invalid value for '--devices'"),
        (["simulate", "fixed.yaml"], "Missing option '--devices'"),
    ],
)
@pytest.mark.usefixtures("here")
def test_what_can_be_put_right_is_said(words: list[str], message: str) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_spans_in_words() -> None:
    assert format_estimate(Estimate(3600, 7200, 14400)) == "2.0 h (1.0 to 4.0 h)"
    assert format_estimate(Estimate(60, 120, 600)) == "2.0 min (1.0 to 10 min)"
    assert format_estimate(Estimate(0.02, 0.5, 30)) == "0.5 s (0.02 to 30 s)"
