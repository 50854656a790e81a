"""The stage tree on real training runs: same bits twice, after a kill, in pieces; nothing retrained without need."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raz.config import PRESETS, TrialConfig, configure, parameters, without_before
from raz.errors import FailureReason, RazError, TrialFailure
from raz.pipeline import context, trial
from raz.pipeline.device import hardware
from raz.pipeline.events import StageEvent, TrialPruned
from raz.pipeline.executor import EpochCallback, StageRequest
from raz.pipeline.graph import STAGES, TRAINED, Node, chain_key, declared_inputs, inputs_of, node_keys
from raz.pipeline.keys import stage_keys
from raz.pipeline.scoring import ceiling_counts
from raz.pipeline.stage_context import TrialState
from raz.pipeline.trial import devices_of, run_trial
from raz.store.cache import Artifact, StageCache, StageKey
from raz.store.failures import Device
from raz.store.manifest import Manifest, read_manifest
from tests.conftest import write_mat
from tests.crowds import write_crowd

MICRO = {
    "dataset": "shanghaitech_a", "backbone.width": 0.0625, "counting.channels": [8, 8], "localization.channels": [8],
    "localization.upsample": [8, 6, 4], "attention.channels": 4, "attention.sigma_z": 6.0, "depth": 3,
    **{f"{name}.epochs": 2 for name in ("counting.train", "localization.train", "attention.train", "raz.train")},
    "raz.attention_train.epochs": 2, "counting.train.crop": 64, "localization.train.crop": 64,
    "attention.train.crop": 64, "raz.train.crop": 64, "raz.attention_train.crop": 64,
}  # fmt: skip


def micro(**settings: Any) -> TrialConfig:
    given = {name.replace("__", "."): value for name, value in settings.items()}
    return configure(PRESETS["tiny"], MICRO | given)


@pytest.fixture(scope="module")
def undisturbed(crowd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which the micro trial ran once, whole."""
    store = tmp_path_factory.mktemp("undisturbed")
    run_trial(micro(), store, data_root=crowd, splits=("val", "test"))
    return store


def artifacts(store: Path) -> dict[str, dict[str, str]]:
    """(stage/key) -> digests of its files, without the curve, which holds seconds."""
    out = {}
    for manifest in sorted((store / "stages").glob("*/*/manifest.json")):
        files = json.loads(manifest.read_text())["files"]
        out["/".join(manifest.parts[-3:-1])] = {n: d for n, d in files.items() if n != "curve.json"}
    return out


def stored_metrics(config: TrialConfig, store: Path, data_root: Path) -> dict[str, float] | None:
    """The metrics of a trial's scores in the store, of both splits; None where one is missing."""
    keys, out = stage_keys(config, data_root=data_root, splits=("val", "test")), {}
    for split in ("val", "test"):
        artifact = StageCache(store).find(keys[Node("score", split)])
        if artifact is None:
            return None
        metrics = json.loads((artifact.folder / "metrics.json").read_text())
        out |= {f"{split}.{name}": value for name, value in metrics.items()}
    return out


def curve(store: Path, stage: str) -> list[float]:
    (path,) = (store / "stages" / stage).glob("*/curve.json")
    return [point["value"] for point in json.loads(path.read_text())]


@pytest.mark.long
def test_a_trial_gives_every_metric(crowd: Path, undisturbed: Path) -> None:
    metrics = stored_metrics(micro(), undisturbed, data_root=crowd)
    assert metrics is not None
    for split, images in (("val", 2), ("test", 4)):
        for name in ("mae", "rmse", "mae_density", "mae_localization", "ap50@40", "mar@5", "regions_per_image"):
            assert np.isfinite(metrics[f"{split}.{name}"])
        assert metrics[f"{split}.images"] == images
        assert metrics[f"{split}.mae"] <= metrics[f"{split}.rmse"] + 1e-9
    assert metrics["test.images_zoomed_2"] > 0


@pytest.mark.long
def test_same_config_gives_the_same_bits(crowd: Path, undisturbed: Path, tmp_path: Path) -> None:
    run_trial(micro(), tmp_path, data_root=crowd, splits=("val", "test"))
    assert artifacts(tmp_path) == artifacts(undisturbed)


def test_a_second_run_makes_nothing(crowd: Path, undisturbed: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*") if p.is_file()}
    result = run_trial(micro(), undisturbed, data_root=crowd, splits=("val", "test"))
    assert all(use.hit for use in result.stages)
    after = {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*") if p.is_file()}
    assert after == before


@pytest.mark.long
@pytest.mark.parametrize("stage", ["counting", "localization", "raz"])
def test_killed_in_mid_stage_ends_with_the_same_bits(
    stage: str, crowd: Path, undisturbed: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.test_pipeline import micro; "
        "from raz.pipeline.trial import run_trial; "
        "run_trial(micro(), Path(sys.argv[1]), data_root=Path(sys.argv[2]), splits=('val', 'test'), "
        "log=lambda line: print(line, flush=True))"
    )
    here = Path(__file__).parents[1]
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), str(crowd)], cwd=here, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(here)},
    )  # fmt: skip
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith(f"{stage} epoch 1/2"):
            child.send_signal(signal.SIGKILL)
            break
    assert child.wait() == -signal.SIGKILL
    assert stored_metrics(micro(), tmp_path, data_root=crowd) is None
    run_trial(micro(), tmp_path, data_root=crowd, splits=("val", "test"))
    assert artifacts(tmp_path) == artifacts(undisturbed)


@pytest.mark.long
def test_two_epochs_and_then_four_are_four_at_once(crowd: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"depth": 1, "fusion__rule": "density", "localization__train__epochs": 1}
    short = micro(counting__train__epochs=2, **settings)
    long = micro(counting__train__epochs=4, **settings)
    once, pieces = tmp_path / "once", tmp_path / "pieces"
    lines: list[StageEvent] = []
    run_trial(long, once, data_root=crowd)
    run_trial(short, pieces, data_root=crowd)
    run_trial(long, pieces, data_root=crowd, log=lines.append)
    wanted, got = artifacts(once), artifacts(pieces)
    assert wanted.items() <= got.items()
    assert not any(str(line).startswith(("counting epoch 1/", "counting epoch 2/")) for line in lines)
    # and a shorter run after a longer one is what it would have been alone
    alone, after = tmp_path / "alone", tmp_path / "after"
    run_trial(short, alone, data_root=crowd)
    run_trial(long, after, data_root=crowd)
    run_trial(short, after, data_root=crowd)
    assert artifacts(alone).items() <= artifacts(after).items()


def test_only_what_a_parameter_reaches_is_made_again(crowd: Path, undisturbed: Path) -> None:
    def missed(**settings: Any) -> set[str]:
        old = {str(n): k.key for n, k in stage_keys(micro(), data_root=crowd, splits=("val",)).items()}
        new = {str(n): k.key for n, k in stage_keys(micro(**settings), data_root=crowd, splits=("val",)).items()}
        return {name for name in new if old.get(name) != new[name]}

    assert missed(fusion__rule="average") == {"score@val"}
    assert missed(depth=2) == {"score@val"}
    assert missed(peaks__threshold=0.5) == {"score@val"}
    assert missed(zooming__k_z=3) == {"zoom2@val", "zoom3@val", "score@val"}
    assert "counting" not in missed(localization__gamma=50.0)
    assert {"localization", "attention", "raz", "points@val"} <= missed(localization__gamma=50.0)
    assert "localization" not in missed(attention__sigma_z=5.0)
    assert "raz" not in missed(raz__attention_train__lr=0.01)
    assert missed(counting__beta=0.2) >= {*TRAINED, "density@val"}
    assert "raz" in missed(zooming__k_z=3, raz__regions="same")


def test_main_net_proposes_once_for_every_stage_and_every_choice(
    crowd: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RAZ-Net's two stages and pass 2, whatever theta_z, k_z and IoU, choose among the same candidates."""
    assert len(list((undisturbed / "features").glob("*/candidates.npz"))) == 3  # of the three splits
    store = tmp_path / "store"
    shutil.copytree(undisturbed, store)

    def refuse(*_: Any) -> None:
        raise AssertionError("candidates were drawn again")

    config = micro(depth=2, zooming__k_z=3, zooming__theta_z=0.002, zooming__iou=0.3)
    with monkeypatch.context() as patch:
        patch.setattr(context, "image_candidates", refuse)
        run_trial(config, store, data_root=crowd)
    alone = tmp_path / "alone"
    shutil.copytree(undisturbed, alone)
    shutil.rmtree(alone / "features")
    run_trial(config, alone, data_root=crowd)
    assert artifacts(alone) == artifacts(store)


def test_a_stage_cannot_read_what_it_does_not_declare() -> None:
    given = declared_inputs(micro(), "counting")
    assert given.counting.beta == 0.1
    for name in ("localization", "zooming", "fusion", "depth", "peaks"):
        with pytest.raises(AttributeError):
            getattr(given, name)
    raz = declared_inputs(micro(), "raz")
    assert raz.localization.gamma == 100.0
    with pytest.raises(AttributeError):
        _ = raz.raz.attention_train


def test_every_parameter_reaches_some_key() -> None:
    """A hyperparameter that no key holds would silently do nothing, or worse, share artifacts it changes."""
    values = parameters(micro())
    assert {name for stage in STAGES for name in inputs_of(values, stage)} == set(values)
    reached = set()
    for key in node_keys(micro(), ("val", "test"), lambda s: s, lambda b: b.weights).values():
        reached |= set(key.inputs)
    assert reached - {"pass"} == set(without_before(values))  # what is as before the field existed is in no key


def test_keys_are_what_they_were() -> None:
    """Golden: a changed key means every store is lost to its users. Raise a stage's `version` on purpose only."""
    keys = node_keys(PRESETS["paper"], ("test",), lambda split: f"fingerprint of {split}", lambda b: b.weights)
    golden = json.loads((Path(__file__).parent / "golden" / "keys.json").read_text())
    assert {str(node): key.key for node, key in keys.items()} == golden


@pytest.mark.long
def test_damage_is_a_miss_and_is_made_good(crowd: Path, tmp_path: Path) -> None:
    config = micro(depth=1, localization__train__epochs=1)
    run_trial(config, tmp_path, data_root=crowd)
    wanted = artifacts(tmp_path)
    for path in (tmp_path / "stages").glob("*/*/*"):
        if path.suffix in (".safetensors", ".npz"):
            path.write_bytes(path.read_bytes()[:-7])
    (next((tmp_path / "stages" / "score").glob("*/manifest.json"))).write_text("{")
    for path in (tmp_path / "chains").glob("*/*/checkpoint.pt"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    result = run_trial(config, tmp_path, data_root=crowd)
    assert not any(use.hit for use in result.stages)
    assert artifacts(tmp_path) == wanted


@pytest.mark.long
def test_a_poisoned_test_split_changes_nothing_fitted(crowd: Path, undisturbed: Path, tmp_path: Path) -> None:
    """I9: with the test annotations replaced by noise, validation results and every fitted number stay bit-equal."""
    poisoned = tmp_path / "poisoned"
    shutil.copytree(crowd, poisoned)
    rng = np.random.default_rng(9)
    for path in sorted((poisoned / "part_A" / "test_data" / "ground-truth").iterdir()):
        write_mat(path, rng.uniform(1, 60, size=(int(rng.integers(1, 200)), 2)))
    store = tmp_path / "store"
    got = run_trial(micro(), store, data_root=poisoned, splits=("val", "test")).metrics
    clean = stored_metrics(micro(), undisturbed, data_root=crowd)
    assert clean is not None
    fitted = [n for n in clean if n.startswith("val.") or "theta_f" in n or "threshold" in n]
    assert len(fitted) > 30
    assert {n: got[n] for n in fitted} == {n: clean[n] for n in fitted}
    assert got["test.mae"] != clean["test.mae"]
    untouched = {k: v for k, v in artifacts(undisturbed).items() if not k.startswith("score/")}
    test_keys = {k.key for n, k in stage_keys(micro(), data_root=crowd, splits=("test",)).items() if n.split == "test"}
    untouched = {k: v for k, v in untouched.items() if k.split("/")[1] not in test_keys}
    assert untouched.items() <= artifacts(store).items()


def test_progress_is_replayed_from_the_store_and_can_stop(crowd: Path, undisturbed: Path) -> None:
    heard: list[tuple[int, float]] = []
    run_trial(micro(), undisturbed, data_root=crowd, progress=lambda s, v: heard.append((s, v)) or False)
    assert [step for step, _ in heard] == list(range(1, 11))  # five stages of two epochs
    assert [v for _, v in heard[:2]] == curve(undisturbed, "counting")
    with pytest.raises(TrialPruned) as stop:
        run_trial(micro(), undisturbed, data_root=crowd, progress=lambda s, v: s >= 5)
    assert stop.value.step == 5


def test_a_score_that_cannot_be_given_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    crowd, store = write_crowd(tmp_path / "crowd", train=5, test=1), tmp_path / "store"  # one is for validation
    with pytest.raises(
        TrialFailure, match=r"peaks\.threshold and fusion\.theta_f .* the only validation image"
    ) as told:
        run_trial(micro(fusion__rule="grid", fusion__fit_on="val"), store, data_root=crowd)
    assert told.value.reason == FailureReason.INVALID
    assert not artifacts(store)


def test_a_diverging_trial_fails_with_its_reason(crowd: Path, tmp_path: Path) -> None:
    config = micro(counting__train__optimizer="sgd", counting__train__lr=1e30, counting__train__clip=0.0)
    with pytest.raises(TrialFailure) as failure:
        run_trial(config, tmp_path, data_root=crowd)
    assert failure.value.reason == "nan"
    assert "counting" in str(failure.value)
    assert not (tmp_path / "stages").exists()
    lines: list[StageEvent] = []
    other = configure(config, {"localization.gamma": 50.0})
    with pytest.raises(TrialFailure) as again:  # another trial with this prefix does not pay for it again
        run_trial(other, tmp_path, data_root=crowd, log=lines.append)
    assert again.value.args == failure.value.args
    assert lines == []
    assert trial.forget_failures(other, tmp_path, data_root=crowd) == 1
    with pytest.raises(TrialFailure):
        run_trial(other, tmp_path, data_root=crowd, log=lines.append)
    assert [(event.kind, event.stage) for event in lines] == [("started", "counting"), ("failed", "counting")]


def test_what_another_kind_of_device_met_is_tried_again(crowd: Path, tmp_path: Path) -> None:
    """Half precision overflows on a GPU where the CPU learns, and the reverse may be."""
    config = micro(counting__train__optimizer="sgd", counting__train__lr=1e30, counting__train__clip=0.0)
    cache = StageCache(tmp_path)
    key = stage_keys(config, data_root=crowd)[Node("counting")]
    cpu, gpu = Device("cpu"), Device("H100", 80)
    cache.record_failure(key, TrialFailure("stage counting", "diverged on the GPU", reason="nan"), gpu)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrialState, "device", torch.device("cpu"))
        with pytest.raises(TrialFailure, match="the loss is") as failure:
            run_trial(config, tmp_path, data_root=crowd)
    told = {device: cache.failure(key, device) for device in (None, cpu, gpu)}
    assert told[None] is None
    assert told[cpu] is not None
    assert told[cpu].args == failure.value.args
    assert told[gpu] is not None
    assert told[gpu].what == "diverged on the GPU"


class Asked(Exception):
    """The provider was asked for a stage."""


class Elsewhere:
    """A provider whose processes run on a device that this process does not see."""

    def begin(self, path: Mapping[Node, StageKey]) -> None: ...

    def __call__(self, request: StageRequest, on_epoch: EpochCallback) -> bool | None:
        raise Asked


def test_a_provider_is_asked_whatever_this_process_would_meet(crowd: Path, tmp_path: Path) -> None:
    """The coordinator of a trial sees no GPU, and the stage is made on one."""
    config, cache = micro(), StageCache(tmp_path)
    key = stage_keys(config, data_root=crowd)[Node("counting")]
    here = trial._trial_state(config, tmp_path, crowd, None).hardware
    cache.record_failure(key, TrialFailure("stage counting", "diverged", reason="nan"), here)
    with pytest.raises(Asked):
        run_trial(config, tmp_path, data_root=crowd, make=Elsewhere())
    with pytest.raises(TrialFailure, match="diverged"):
        run_trial(config, tmp_path, data_root=crowd)
    cache.record_failure(key, TrialFailure("stage counting", "no such thing", reason="invalid"), here)
    with pytest.raises(TrialFailure, match="no such thing"):
        run_trial(config, tmp_path, data_root=crowd, make=Elsewhere())


def test_a_full_disk_is_one_message_and_leaves_nothing_half_written(
    crowd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import raz.store.cache as cache

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache, "_sync", full)
    with pytest.raises(RazError, match="No space left on device") as refusal:
        run_trial(micro(), tmp_path, data_root=crowd)
    assert "--store" in refusal.value.hint
    assert not list((tmp_path / "stages").glob("*/*"))


def test_a_store_below_a_file_is_refused(crowd: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RazError, match="store"):
        run_trial(micro(), tmp_path / "file" / "store", data_root=crowd)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no file, expected imagenet, none or a state dict's path"),
        (b"this is no checkpoint", "is no checkpoint"),
        ({"features.0.weight": torch.zeros(2, 3, 3, 3)}, "expected (64, 3, 3, 3)"),
        ({"features.0.weight": "text"}, "of tensors only"),
    ],
)
def test_bad_weights(content: Any, message: str, crowd: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    config = micro(backbone__width=1.0, backbone__weights=str(path))
    with pytest.raises(RazError) as refusal:
        run_trial(config, tmp_path / "store", data_root=crowd)
    assert message in str(refusal.value)


def test_frozen_pretrained_weights_are_named_by_content(crowd: Path, tmp_path: Path) -> None:
    from raz.paper.networks import VggBackbone

    torch.manual_seed(0)
    for name in ("a.pt", "b.pt"):
        torch.save({f"{k}": v for k, v in VggBackbone().state_dict().items()}, tmp_path / name)
    a, b = (
        stage_keys(micro(backbone__width=1.0, backbone__weights=str(tmp_path / n)), data_root=crowd)[Node("counting")]
        for n in ("a.pt", "b.pt")
    )
    assert a.key != b.key  # other weights
    torch.save(torch.load(tmp_path / "a.pt", weights_only=True), tmp_path / "c.pt")
    c = stage_keys(micro(backbone__width=1.0, backbone__weights=str(tmp_path / "c.pt")), data_root=crowd)
    same = (tmp_path / "a.pt").read_bytes() == (tmp_path / "c.pt").read_bytes()
    assert (c[Node("counting")].key == a.key) == same


SCORES_ONLY = """
import sys
from pathlib import Path
from raz.config import from_parameters
from raz.pipeline.keys import stage_keys
from raz.pipeline.trial import run_trial

class Nobody:
    def begin(self, path): pass
    def __call__(self, request, on_epoch):
        assert request.nodes[0].stage == "score", request.nodes
        return None

config = from_parameters({PARAMETERS})
store, root = map(Path, sys.argv[1:])
result = run_trial(config, store, data_root=root, splits=("val", "test"), make=Nobody())
print(repr(sorted(result.metrics.items())))
print([name for name in ("torch", "torchvision", "timm") if name in sys.modules])
"""


def test_a_process_that_scores_what_others_made_loads_no_torch(undisturbed: Path, crowd: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(undisturbed, store, ignore=shutil.ignore_patterns("score"))
    code = SCORES_ONLY.replace("{PARAMETERS}", repr(parameters(micro())))
    done = subprocess.run(
        [sys.executable, "-c", code, str(store), str(crowd)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    metrics, loaded = done.stdout.splitlines()
    whole = run_trial(micro(), undisturbed, data_root=crowd, splits=("val", "test")).metrics
    assert metrics == repr(sorted(whole.items()))
    assert loaded == "[]"


@pytest.mark.long
def test_other_branches_of_the_tree_train(crowd: Path, tmp_path: Path) -> None:
    """Options off the presets' path: unfrozen localization, frozen RAZ-Net backbone, other strides and losses."""
    config = micro(
        localization__unfreeze="backbone", raz__unfreeze="none", counting__output_stride=2, counting__kernel="csrnet",
        counting__loss="mse", attention__loss="bce", zooming__sampling="uniform", zooming__anchors="square",
        metrics__points="all", metrics__pool="image", fusion__theta_f="image", fusion__fit_on="train",
        counting__train__crop=0, counting__train__batch=1, raz__regions="same", counting__train__average=0.0,
    )  # fmt: skip
    metrics = run_trial(config, tmp_path, data_root=crowd).metrics
    assert np.isfinite(metrics["val.mae"])
    chains = list((tmp_path / "chains").glob("*/*"))
    assert len(chains) == 5


@pytest.mark.long
def test_no_region_leaves_raz_net_a_copy_of_main_net(crowd: Path, tmp_path: Path) -> None:
    lines: list[StageEvent] = []
    config = micro(raz__regions__theta_z=0.999, zooming__theta_z=0.999)
    metrics = run_trial(config, tmp_path, data_root=crowd, log=lines.append).metrics
    assert metrics["val.regions_per_image"] == 0.0
    assert any("RAZ-Net stays a copy" in str(line) for line in lines)
    one = run_trial(micro(raz__regions__theta_z=0.999, depth=1), tmp_path, data_root=crowd).metrics
    assert metrics["val.mae"] == one["val.mae"]


@pytest.mark.long
def test_a_waiting_process_takes_the_others_artifact(crowd: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.test_pipeline import micro; "
        "from raz.pipeline.trial import run_trial; "
        "run_trial(micro(depth=1), Path(sys.argv[1]), data_root=Path(sys.argv[2]), "
        "log=lambda line: print(line, flush=True))"
    )
    here = Path(__file__).parents[1]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(crowd)], cwd=here, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": str(here)},
        )
        for _ in range(3)
    ]  # fmt: skip
    outputs = [child.communicate(timeout=240)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0, 0]
    for stage in ("counting", "localization", "density@val", "points@val", "score@val"):
        assert sum(f"{stage} starts" in out for out in outputs) == 1


def test_publishing_twice_keeps_the_first(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    key = StageKey("counting", 1, {"a": 1}, {}, {})
    first = cache.publish(key, lambda f: (f / "x").write_text("first") and None, Manifest(seconds=1.0))
    second = cache.publish(key, lambda f: (f / "x").write_text("second") and None, Manifest(seconds=2.0))
    assert (second.folder / "x").read_text() == "first"
    assert first.seconds == second.seconds == 1.0
    assert sorted(p.name for p in first.folder.parent.iterdir()) == [key.key]


def test_a_failed_attempt_leaves_nothing(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    key = StageKey("counting", 1, {}, {}, {})

    def fails(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        cache.publish(key, fails, Manifest(seconds=0.0))
    assert cache.find(key) is None
    assert list((tmp_path / "stages" / "counting").iterdir()) == []


def test_a_chain_leaves_out_its_epochs_only() -> None:
    a = node_keys(micro(), ("val",), lambda s: s, lambda b: b.weights)[Node("counting")]
    longer = micro(counting__train__epochs=9)
    b = node_keys(longer, ("val",), lambda s: s, lambda b: b.weights)[Node("counting")]
    other = node_keys(micro(counting__train__lr=0.5), ("val",), lambda s: s, lambda b: b.weights)[Node("counting")]
    assert a.key != b.key
    assert chain_key(a) == chain_key(b) != chain_key(other)


def test_seconds_are_of_the_making(undisturbed: Path) -> None:
    now = time.time()
    for path in (undisturbed / "stages").glob("*/*/manifest.json"):
        assert 0 <= json.loads(path.read_text())["seconds"] < now


def test_a_score_holds_each_image(crowd: Path, undisturbed: Path) -> None:
    """What is printed of a split follows from what is kept of its images; localization too, from its matches."""
    metrics = stored_metrics(micro(), undisturbed, data_root=crowd)
    assert metrics is not None
    key = stage_keys(micro(), data_root=crowd, splits=("test",))[Node("score", "test")]
    with np.load(undisturbed / "stages" / "score" / key.key / "per_image.npz", allow_pickle=False) as arrays:
        kept = {name: arrays[name] for name in arrays.files}
    truth = kept["truth"]
    assert kept["ids"].shape == truth.shape == (metrics["test.images"],)
    for name, suffix in (
        ("fused", ""),
        ("density", "_density"),
        ("localization", "_localization"),
        ("ceiling", "_ceiling"),
    ):
        error = kept[name] - truth
        assert np.abs(error).mean() == pytest.approx(metrics[f"test.mae{suffix}"])
        assert np.sqrt((error**2).mean()) == pytest.approx(metrics[f"test.rmse{suffix}"])
    assert kept["regions"].sum(axis=1).mean() == pytest.approx(metrics["test.regions_per_image"])
    for name in ("truth", "density", "localization"):
        assert kept[f"cells_{name}"].sum(axis=1) == pytest.approx(kept[name], abs=1e-6)
    radius = 40 * np.sqrt(-2 * np.log(0.5))  # affinity 0.50 at sigma 40
    hits = ((kept["match_distance"] < radius) & (radius <= kept["match_before"])).sum()
    assert hits / truth.sum() == pytest.approx(metrics["test.ar50@40"])
    assert kept["match_ends"][-1] == len(kept["match_score"]) == kept["localization"].sum()
    assert kept["points"].tolist() == kept["localization"].tolist()
    assert kept["quartile_heads"].sum(axis=1).tolist() == truth.tolist()
    found = kept["quartile_found"][..., kept["radii"].tolist().index(8)].sum()
    assert 2 * found / (kept["points"].sum() + truth.sum()) == pytest.approx(metrics["test.f1@8"])
    error = kept["quartile_points"] - kept["quartile_heads"]
    assert np.abs(error).mean(axis=0) == pytest.approx([metrics[f"test.mae_points_q{q}"] for q in (1, 2, 3, 4)])


def test_a_score_by_hand() -> None:
    """Two images of 8 x 8 px, one cell, one density bin: counts 3 and 1, points 2 and 0, heads 1 and 2."""
    from raz.config import FusionConfig, MetricsConfig
    from raz.paper.zoom import Points
    from raz.pipeline.passes import PassResult
    from raz.pipeline.scoring import FittedThresholds, SplitPredictions, score

    def points(*scores: float) -> PassResult:
        n = len(scores)
        return PassResult(
            Points(np.full((n, 2), 4.0), np.array(scores, np.float32), np.zeros(n, np.int8), np.ones(n, np.int8))
        )

    split = SplitPredictions(
        ("a", "b"), [np.array([[4.0, 4.0]]), np.array([[1.0, 1.0], [6.0, 6.0]])], [(8, 8), (8, 8)], [(1, 1), (1, 1)],
        [np.full((1, 1), 3.0, np.float32), np.full((1, 1), 1.0, np.float32)], 8, [[points(0.9, 0.8, 0.2), points()]],
        np.array([1, 2]),
    )  # fmt: skip
    fitted = FittedThresholds(0.5, 0.5, np.array([2.5]))
    got = score(split, [([0, 1], fitted)], fitted, 1, FusionConfig(cells=1), MetricsConfig())
    # Eq. 4: the mean 2.5 of image a reaches theta_f, so the density count 3 is taken; of b the mean 0.5
    assert got.per_image["fused"].tolist() == [3.0, 0.5]
    assert (got.metrics["mae"], got.metrics["bias"]) == (1.75, 0.25)  # errors 2 and -1.5
    assert got.metrics["mae_density"] == 1.5  # 2 and -1
    assert got.metrics["mae_localization"] == 1.5  # 1 and -2
    assert got.metrics["rmse_localization"] == pytest.approx(np.sqrt(2.5))
    assert got.metrics["mae_ceiling"] == 0
    assert got.metrics["ar50@5"] == pytest.approx(1 / 3)  # the second point finds its head taken
    assert got.metrics["f1@8"] == pytest.approx(2 * 1 / (2 + 3))
    # a's head is alone, b's are equally dense: of three heads the first edge is the first's, the others the second's
    assert got.per_image["quartile_heads"].tolist() == [[1, 0, 0, 0], [0, 2, 0, 0]]
    assert got.per_image["match_ends"].tolist() == [2, 2]


def test_the_ceiling_counts_what_the_labels_can_tell_apart() -> None:
    """Lone heads come back, also at the border and in a corner; heads in neighbouring pixels come back as one."""
    lone = np.array([[0.5, 0.5], [20.2, 0.9], [40.7, 30.1], [63.9, 47.9]])
    touching = np.array([[10.5, 10.5], [11.5, 10.5], [30.5, 30.5], [36.5, 30.5]])
    none = np.zeros((0, 2))
    counts = ceiling_counts([lone, touching, none], [(48, 64), (48, 64), (48, 64)])
    assert counts.tolist() == [4, 3, 0]


def test_a_trial_was_where_its_stages_were(tmp_path: Path) -> None:
    """A coordinator without a device scores what others trained and predicted on theirs."""
    places = {Node("counting"): "H100", Node("localization"): "H100", Node("density", "val"): "A10"}
    artifacts = {node: Artifact(tmp_path, Manifest(device=place)) for node, place in places.items()}
    score = {Node("score", "val"): Artifact(tmp_path, Manifest(device="cpu"))}
    assert devices_of({**artifacts, **score}) == "A10, H100"
    assert devices_of({**artifacts, **score, Node("density", "val"): Artifact(tmp_path, Manifest())}) == "H100"
    pulled = Manifest(device="cpu", devices={"counting": "A10", "density@val": ""})
    assert devices_of({Node("score", "val"): Artifact(tmp_path, pulled)}) == "A10"


def test_a_score_names_the_devices_behind_it(crowd: Path, undisturbed: Path, tmp_path: Path) -> None:
    """After a pull it is alone."""
    keys = stage_keys(micro(), data_root=crowd, splits=("val",))
    score = Node("score", "val")
    folder = undisturbed / "stages" / "score" / keys[score].key
    behind = {str(node) for node in keys if node != score}
    assert read_manifest(folder).devices == dict.fromkeys(behind, hardware().name)
    shutil.copytree(folder, tmp_path / "stages" / "score" / folder.name)
    assert trial.stored_trial(micro(), tmp_path, data_root=crowd).device == hardware().name


def test_a_trial_is_charged_with_a_batch_that_was_made_for_it(tmp_path: Path, crowd: Path) -> None:
    """The stages of a batch may all be there before the trial looks for the second: they were made for it all the
    same."""
    from raz.pipeline.trial import build_stages

    asked: list[list[str]] = []
    made: set[str] = set()

    class Provider:
        """Makes a whole batch before it answers, and charges who asked."""

        def begin(self, path: Mapping[Node, StageKey]) -> None:
            assert list(path)

        def __call__(self, request: StageRequest, on_epoch: EpochCallback) -> bool | None:
            if request.nodes[0].stage == "score":
                return None
            asked.append([str(node) for node in request.nodes])
            if request.keys[0].key not in made:
                build_stages(request.config, tmp_path, request.nodes, data_root=crowd)
                made.update(key.key for key in request.keys)
            return True

    provider = Provider()

    config = micro(depth=2)
    result = run_trial(config, tmp_path, data_root=crowd, splits=("val",), make=provider)
    assert any(len(nodes) > 1 for nodes in asked), "no batch was asked for"
    assert [use.stage for use in result.stages if use.hit] == []
    again = run_trial(config, tmp_path, data_root=crowd, splits=("val",), make=provider)
    assert all(use.hit for use in again.stages)
