"""The outputs of the nine kinds of stage from what is given, as numbers that are few and change with the meaning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from raz.config import TrainConfig, TrialConfig
from raz.data.contract import SPLITS
from raz.pipeline.checkpoint import ChainState, Checkpoint
from raz.pipeline.context import network_context
from raz.pipeline.graph import STAGES, TRAINED, Node
from raz.pipeline.predict_stages import PREDICTORS
from raz.pipeline.samples import Window
from raz.pipeline.score_stage import score
from raz.pipeline.scoring import Scores
from raz.pipeline.stage_context import TrialState
from raz.pipeline.tasks import Batch
from raz.pipeline.train_stages import PLANS
from raz.pipeline.training_loop import TrainingTask, train
from tests.golden import given

FILE = Path(__file__).with_name("outputs.json")
COMMAND = "python -m tests.golden.regenerate"
# How far a number or an array's norm may be off: kinds of CPUs differ by a twentieth of it, meanings by more.
TOLERANCE = 1e-4
# The same of a gradient. Where an input of a ReLU is nothing but rounding, it passes a pixel's gradient or does not.
GRADIENT_TOLERANCE = 2e-3
CPU = torch.device("cpu")

Values = dict[str, Any]  # name -> number, text, list of whole numbers, or what `digest` gives


# ------------------------------------------------------------------ the stages, as they are called


def task_of(at: TrialState, stage: str) -> tuple[TrainingTask[Batch], TrainConfig]:
    plan = PLANS[stage](network_context(at, Node(stage)))
    assert plan.task is not None, f"{stage} has nothing to learn from"
    return plan.task, plan.settings


def arrays_of(at: TrialState, node: Node) -> dict[str, Any]:
    return dict(PREDICTORS[node.stage](network_context(at, node)))


def scores_of(at: TrialState, node: Node) -> Scores:
    return score(at.context(node))


# ------------------------------------------------------------------ numbers of an array


def digest(array: ArrayLike) -> dict[str, Any]:
    """Shape, norm, and the component along a fixed direction: another order of the same numbers gives another one.

    Numbers that are not finite count as 0 in both, and `infinite` says which they are.
    """
    values = np.asarray(array)
    flat = values.astype(np.float64).ravel()
    finite = np.isfinite(flat)
    along = given.whole_numbers("direction", flat.size, -128, 127) / 128
    flat = np.where(finite, flat, 0.0)
    return {
        "shape": list(values.shape), "infinite": np.flatnonzero(~finite).tolist(),
        "norm": float(np.sqrt((flat**2).sum())), "along": float((flat * along).sum()),
    }  # fmt: skip


def _digests(prefix: str, arrays: Mapping[str, Any]) -> Values:
    return {f"{prefix}/{name}": digest(value) for name, value in arrays.items()}


def _gradients(prefix: str, arrays: Mapping[str, Any]) -> Values:
    """Digests that are compared by a tenth of the norm of all together where their own is less: in the gradient of a
    bias what is large may cancel."""
    digests = _digests(prefix, arrays)
    scale = 0.1 * float(np.sqrt(sum(value["norm"] ** 2 for value in digests.values())))
    return {name: {**value, "scale": scale} for name, value in digests.items()}


# ------------------------------------------------------------------ stage by stage


def stage_outputs(folder: Path, *, nudge: float = 0.0, threads: int = 1) -> dict[str, Values]:
    """{stage: its values}. `nudge`: see `given.weights`."""
    named = {"threads": 2 if nudge else 1}  # in every key, so that nothing is found that the process remembers
    out: dict[str, Values] = {stage: {} for stage in STAGES}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with given.dataset():
            for name, settings in given.CONFIGS.items():
                config = given.configured({**settings, **named})
                for stage, values in _networks(folder / name, config, nudge).items():
                    out[stage] |= {f"{name}: {key}": value for key, value in values.items()}
            for name, settings in given.SCORINGS.items():
                config = given.configured({**settings, **named})
                out["score"] |= {f"{name}: {key}": v for key, v in _scores(folder / name, config).items()}
            for optimizer in ("sgd", "adamw"):
                loop = loop_outputs(folder / optimizer, optimizer)
                for stage in TRAINED:
                    out[stage] |= {f"loop {optimizer}: {key}": value for key, value in loop.items()}
    finally:
        torch.set_num_threads(before)
    return out


def _networks(folder: Path, config: TrialConfig, nudge: float) -> dict[str, Values]:
    """The trained stages, each from what is given of those before it, and the inferred ones from all of them."""
    at = given.trial(folder / "store", config)
    out = {}
    for stage in TRAINED:
        task, train_config = task_of(at, stage)
        weights = given.weights(stage, task.modules.state_dict(), nudge)
        out[stage] = _trained(task, train_config, weights, folder / stage)
        given.plant_weights(at, stage, weights)
    out |= {"density": {}, "points": {}, "zoom": {}}
    for node in (Node("density", "val"), Node("points", "val"), Node("zoom", "val", 2), Node("zoom", "val", 3)):
        arrays = arrays_of(at, node)
        out[node.stage] |= _digests(str(node), _by_place(arrays) if "xy" in arrays else arrays)
        given.plant_arrays(at, node, arrays)
    return out


def _by_place(points: Mapping[str, Any]) -> dict[str, Any]:
    """Each image's points in reading order: two of nearly one score may come in either order."""
    image = np.repeat(np.arange(len(points["ends"])), np.diff(points["ends"], prepend=0))
    order = np.lexsort((points["xy"][:, 0], points["xy"][:, 1], image))
    return {n: v[order] if n in ("xy", "score", "network", "depth") else v for n, v in points.items()}


def _trained(task: TrainingTask, config: TrainConfig, weights: Mapping[str, Any], folder: Path) -> Values:
    """What a stage begins with and sees, and from the given weights: loss, gradient, validation value, one step."""
    values = _digests("begin", task.modules.state_dict())
    windows = {epoch: list(task.batches(epoch)) for epoch in (1, 2)}
    values |= {
        f"epoch {e}": [[_window(window) for window in batch] for batch in batches] for e, batches in windows.items()
    }
    batch = windows[1][0]
    task.modules.load_state_dict(weights)
    task.modules.train()
    loss = task.loss(batch)
    loss.backward()
    values["loss"] = float(loss.detach())
    gradients = {n: p.grad.double() for n, p in task.modules.named_parameters() if p.grad is not None}
    values |= _gradients("gradient", gradients)
    one = replace(task, batches=lambda epoch: [batch])
    for optimizer, rate in (("sgd", 1.0), ("adamw", 2.0**-4)):  # a large step: its rounding is small beside it
        task.modules.load_state_dict(weights)
        asked = replace(config, epochs=1, optimizer=optimizer, lr=rate, weight_decay=2.0**-4, clip=1.0)
        done = train(one, asked, Checkpoint(folder / optimizer / "checkpoint.pt"), CPU)
        steps = {n: done.weights[n].double() - weights[n].double() for n in gradients}
        if optimizer == "adamw":  # it goes as far for a gradient that is nothing but rounding as for any other
            steps = {n: step * gradients[n].abs() for n, step in steps.items()}
        values |= _gradients(optimizer, steps)
    task.modules.load_state_dict(weights)
    task.modules.eval()
    with torch.inference_mode():
        values["validation"] = task.validate()
    return values


def _window(window: Window) -> list[int]:
    """Its numbers; without the last two, colours and resizing, where neither is used."""
    numbers = [int(value) for value in asdict(window).values()]
    return numbers if any(numbers[-2:]) else numbers[:-2]


def _scores(folder: Path, config: TrialConfig) -> Values:
    at = given.trial(folder / "store", config)
    given.plant_weights(at, "counting", {})  # its configuration says the stride; its weights are not read
    for split in SPLITS:
        of = given.predictions(split, config.counting.output_stride)
        given.plant_arrays(at, Node("density", split), of["density"])
        given.plant_arrays(at, Node("points", split), of["points"])
        for number in range(2, config.depth + 1):
            given.plant_arrays(at, Node("zoom", split, number), of[f"zoom{number}"])
    values: Values = {}
    for split in ("val", "test"):
        scores = scores_of(at, Node("score", split))
        values |= {f"{split}.{name}": value for name, value in scores.metrics.items()}
        values |= {f"{split} fitted {name}": value for name, value in scores.fitted.as_json().items()}
        numbers = {name: value for name, value in scores.per_image.items() if value.dtype.kind in "biuf"}
        values |= _digests(split, numbers)
        values |= {f"{split} {n}": v.tolist() for n, v in scores.per_image.items() if n not in numbers}
    return values


# ------------------------------------------------------------------ the loop of all trained stages

CURVE = (5.0, 4.0, 4.0, 4.5, 3.0, 3.5, 3.25, 3.0, 6.0, 2.0)  # validation values, the last for ever; equal is not better


GRADIENTS = (  # of three weights, two batches an epoch; the second is clipped
    (0.5, -0.25, 0.125), (3.0, 0.0, -4.0), (-0.5, 0.5, 0.25), (0.25, 0.25, 0.5), (1.0, -1.5, 0.5),
)  # fmt: skip
LOOP = TrainConfig(
    epochs=20, lr=0.125, momentum=0.5, weight_decay=0.0625, plateau=2, stop=4, average=0.75, clip=2.0, amp=False
)  # fmt: skip
BEGIN = (1.0, -2.0, 0.5)


def loop_task() -> TrainingTask:
    """Three weights with the given gradients and validation values, whatever the weights are."""
    module = torch.nn.Module()
    module.w = torch.nn.Parameter(torch.tensor(BEGIN))
    heard: list[int] = []

    def batches(epoch: int) -> list[Any]:
        heard.append(epoch)
        return [GRADIENTS[(2 * epoch + k) % len(GRADIENTS)] for k in range(2)]

    return TrainingTask(
        "loop", module, batches,
        loss=lambda gradient: (module.w * torch.tensor(gradient)).sum(),  # type: ignore[operator]
        validate=lambda: CURVE[min(heard[-1], len(CURVE)) - 1],
    )  # fmt: skip


def loop_outputs(folder: Path, optimizer: str) -> Values:
    """Weights, rate and best of a whole run that stops by itself."""
    rows = []

    class Heard(Checkpoint):
        def save(self, state: ChainState, best_file: str = "") -> str:
            name = super().save(state, best_file)
            kept = self.load(CPU)
            assert kept is not None
            rate = kept["curve"][-1]["rate"]
            rows.append([rate, *kept["modules"]["w"].tolist(), *kept["average"]["w"].tolist()])
            return name

    checkpoint = Heard(folder / "checkpoint.pt")
    done = train(loop_task(), replace(LOOP, optimizer=optimizer), checkpoint, CPU)  # type: ignore[arg-type]
    return {
        "epochs": [int(point["epoch"]) for point in done.curve],
        "rate": [row[0] for row in rows], "weights": [row[1:4] for row in rows],
        "average": [row[4:] for row in rows], "loss": [point["loss"] for point in done.curve],
        "best": [done.best_epoch, done.best_value, *done.weights["w"].tolist()],
    }  # fmt: skip


# ------------------------------------------------------------------ comparison


def deviations(wanted: Values, got: Values) -> dict[str, float]:
    """How far each value is off, over what is allowed; infinite where it cannot be compared."""
    return {name: _off(wanted.get(name), got.get(name)) for name in wanted.keys() | got.keys()}


def _off(wanted: Any, got: Any) -> float:
    if isinstance(wanted, dict) and isinstance(got, dict):
        if any(wanted[k] != got[k] for k in ("shape", "infinite")):
            return float("inf")
        size = max(wanted["norm"], wanted.get("scale", 0.0), 1e-12)
        allowed = size * (GRADIENT_TOLERANCE if "scale" in wanted else TOLERANCE)
        return max(abs(wanted[k] - got[k]) for k in ("norm", "along")) / allowed
    if wanted == got:
        return 0.0
    a, b = _numbers(wanted), _numbers(got)
    if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype or a.dtype.kind == "i":
        return float("inf")
    return float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-12) / TOLERANCE)


def _numbers(value: Any) -> Any:
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different length
        return None
    return array if array.dtype.kind in "if" and array.size else None


def changes(stage: str, wanted: Mapping[str, Any], got: Values) -> list[str]:
    """What is wrong with a stage's outputs, in words; `wanted` is its entry in the file, or empty."""
    version = STAGES[stage].version
    if not wanted or wanted["version"] != version:
        held = f"of version {wanted['version']}" if wanted else "none"
        return [f"stage {stage} is of version {version}, its golden outputs are {held}: regenerate with `{COMMAND}`"]
    off = {name: value for name, value in deviations(wanted["values"], got).items() if not value <= 1}
    if not off:
        return []
    worst = sorted(off, key=lambda name: -off[name])
    shown = "\n".join(f"  {n}: {wanted['values'].get(n)} -> {got.get(n)} ({off[n]:.2g} x tolerance)" for n in worst[:4])
    return [
        f"the meaning of stage {stage} changed: raise its version (now {version}) in STAGES of raz/pipeline/graph.py "
        f"and regenerate with `{COMMAND}`; {len(off)} of {len(got)} values differ, the most:\n{shown}"
    ]


def stored() -> dict[str, Any]:
    """{stage: {"version", "values"}} of the file."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
