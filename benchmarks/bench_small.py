"""Preset `small`: training steps against the layers by themselves, batches against steps, and whole predictions.

A step is what the training loop does with a batch of six crops of 256 px: pixels and ground truth, features, loss,
gradients, clipping, schedule-free step. By themselves, the convolutions run one after another at the shapes of the
step, forward and backward, each in the faster of both memory layouts. The networks are not trained, which time does not
depend on. Predictions are of one photograph of 1024 x 684 px. At depth 2, four regions of the larger of the small
anchors (a third of the image's sides) are zoomed.

Ratios are of CPU time in one thread, and so are the seconds of predictions that are held against the aims. Those of the
wall clock mean little while others use the machine, and with two threads, which wait for each other, still less. The
run says how much others use. Memory of large images:
bench_predict.py --size 8660x5773.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _alt import Bench
from bench_model import Pictures, busy
from bench_predict import model_file, photograph
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from raz.config import PRESETS, TrainConfig
from raz.data import open_dataset
from raz.data.frames import Frames
from raz.paper.networks import CountingBranch, LocalizationBranch, initialise
from raz.pipeline import backbones, builders, training_loop
from raz.pipeline.malloc import keep_freed_memory
from raz.pipeline.model import Model, load_model
from raz.pipeline.samples import GroundTruth, Images, Window, crop_pixels
from raz.pipeline.tasks import TrainingData, counting_task, features_from, localization_task
from raz.pipeline.training_loop import TrainingTask

SMALL = PRESETS["small"]
CPU = torch.device("cpu")
LAYOUTS = (torch.channels_last, torch.contiguous_format)
RATE, ASSEMBLY = 0.45, 0.1  # aims: of the layers' own rate; of a step
PHOTOGRAPH = (1024, 684)  # px
SECONDS = {1: 0.7, 2: 1.8}  # aims by depth, for two processors; here one has to do
IMAGES = 12  # two batches an epoch
TRIES = 5  # predictions of each kind
Call = Callable[[], object]


class Step:
    """One training step a call, over the batches of an epoch in turn."""

    def __init__(self, task: TrainingTask[list[Window]], config: TrainConfig) -> None:
        self.task, self.clip = task, config.clip
        self.parameters = [p for p in task.modules.parameters() if p.requires_grad]
        self.optimizer = training_loop._optimizer(task, config)
        task.modules.train()
        training_loop._switch(self.optimizer, training=True)
        self.batches = self._whole_batches(config.batch)

    def _whole_batches(self, size: int) -> Iterator[list[Window]]:
        epoch = 0
        while True:
            epoch += 1
            yield from (batch for batch in self.task.batches(epoch) if len(batch) == size)

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.task.loss(next(self.batches))
        assert np.isfinite(float(loss.detach()))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()


@dataclass(frozen=True)
class Stage:
    """A trained stage of the preset: its step, the assembly of its batches, and its networks as one call."""

    step: Step
    assemble: Call
    network: Callable[[Tensor], Tensor]


def stage_of(name: str, images: Images) -> Stage:
    """Stage `counting` or `localization`, its weights from the seed. Statistics of normalisation are frozen, as those
    of pretrained networks are."""
    backbone = backbones.empty_backbone(SMALL.backbone)
    builders.seed_torch(0, "backbone")
    initialise(backbone, "kaiming")
    data, features = TrainingData(images, images, 0, CPU), features_from(backbone, images, CPU, None)
    truth = GroundTruth(images)
    truth_of: Callable[[Window], NDArray[np.float32]]
    c, kept = SMALL.counting, backbone.pretrained
    branch: CountingBranch | LocalizationBranch
    if name == "counting":
        branch, config = builders.build_counting(c, backbone, 0), c.train
        modules = nn.ModuleDict({name: branch, "backbone": backbone})
        task = counting_task(
            data, modules, branch, features, features, config,
            beta=c.beta, kernel=c.kernel, kind=c.loss, pretrained=kept,
        )  # fmt: skip
        truth_of = partial(_density, truth)
    else:
        branch, config = builders.build_localization(SMALL.localization, backbone, 0), SMALL.localization.train
        modules = nn.ModuleDict({name: branch, "backbone": backbone})
        task = localization_task(
            data, name, modules, branch, features, features, config, gamma=SMALL.localization.gamma, pretrained=kept
        )
        truth_of = truth.labels
    builders.to_channels_last(SMALL.backbone, backbone, branch)
    step = Step(task, config)
    batches = step._whole_batches(config.batch)

    def assemble() -> Any:
        batch = next(batches)
        pixels = torch.cat([crop_pixels(images, w, CPU, backbone.colours) for w in batch])
        return pixels, np.stack([truth_of(w) for w in batch])

    def network(x: Tensor) -> Tensor:
        out: Tensor = branch(backbone(x))[0]
        return out

    return Stage(step, assemble, network)


def _density(truth: GroundTruth, w: Window) -> NDArray[np.float32]:
    return truth.density(w, SMALL.counting.output_stride, SMALL.counting.beta, SMALL.counting.kernel)


# ------------------------------------------------------------------ layers by themselves

# Shapes of input and weight, whether there is a bias, then what torch.convolution takes from `stride` on.
Layer = tuple[tuple[int, ...], tuple[int, ...], bool, tuple[Any, ...]]


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The convolutions that run meanwhile."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers: Counter[Layer] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            settings = tuple(tuple(v) if isinstance(v, list) else v for v in args[3:])
            self.layers[tuple(args[0].shape), tuple(args[1].shape), args[2] is not None, settings] += 1
        return func(*args, **(kwargs or {}))


def alone(layer: Layer, layout: torch.memory_format) -> Call:
    """A layer, forward and backward, on random values."""
    shape, kernel, with_bias, settings = layer
    transposed = settings[3]
    x = torch.randn(shape).contiguous(memory_format=layout).requires_grad_(shape[1] != 3)  # of pixels nobody asks
    weight = torch.randn(kernel).contiguous(memory_format=layout).requires_grad_()
    bias = torch.randn(kernel[1 if transposed else 0]).requires_grad_() if with_bias else None

    def forward() -> Tensor:
        return torch.convolution(x, weight, bias, *settings)

    gradient = torch.randn_like(forward()).contiguous(memory_format=layout)
    asked = [v for v in (x, weight, bias) if v is not None and v.requires_grad]
    return lambda: torch.autograd.grad(forward(), asked, gradient)


def cpu_seconds(call: Call, tries: int = 3) -> float:
    """Median CPU seconds of a call, after one that warms it up."""
    call()
    took = []
    for _ in range(tries):
        began = time.process_time()
        call()
        took.append(time.process_time() - began)
    return statistics.median(took)


def layers_alone(network: Callable[[Tensor], Tensor], batch: int) -> tuple[Call, int, int]:
    """All convolutions of a network one after the other, each in its faster layout; their number, and how many of them
    are faster in channels_last."""
    with torch.no_grad(), Recorder() as recorder:
        network(torch.zeros(batch, 3, SMALL.counting.train.crop, SMALL.counting.train.crop))
    calls, last = [], 0
    for layer, count in recorder.layers.items():
        sides = [alone(layer, layout) for layout in LAYOUTS]
        seconds = [cpu_seconds(side) for side in sides]
        best = int(seconds[1] < seconds[0])
        calls += [sides[best]] * count
        last += count * (1 - best)
    return lambda: [call() for call in calls], len(calls), last


def compare_steps(bench: Bench, images: Images) -> None:
    for name in ("counting", "localization"):
        stage = stage_of(name, images)
        if bench.options.only in f"{name} step, share of the layers' rate":
            together, count, last = layers_alone(stage.network, SMALL.counting.train.batch)
            bench.compare(
                f"{name} step, share of the layers' rate", stage.step, together, against="its layers alone",
                target=RATE, work=f"{count} convolutions, {last} of them faster in channels_last",
            )  # fmt: skip
            if bench.results:
                row = bench.results[-1]
                print(f"    = {row['ratio']:.0%} ({row['least']:.0%} to {row['most']:.0%})")
        for _ in range(2 * len(images)):  # distances of heads are found once for a training
            stage.assemble()
        bench.compare(
            f"{name} batch", stage.assemble, stage.step, against="a step", target=1 / ASSEMBLY,
        )  # fmt: skip
        if bench.results and bench.options.only in f"{name} batch":
            row = bench.results[-1]
            print(f"    = {1 / row['ratio']:.1%} of a step ({1 / row['most']:.1%} to {1 / row['least']:.1%})")


# ------------------------------------------------------------------ predictions


def time_predictions(bench: Bench, folder: Path) -> None:
    """Seconds of a photograph's prediction, decoding apart, by depth and threads, all four in turn."""
    from raz.data.images import decode

    width, height = PHOTOGRAPH
    photograph(folder / "photograph.jpg", width, height, 0)
    pixels = decode((folder / "photograph.jpg").read_bytes(), "photograph.jpg")
    kinds = [(depth, threads) for threads in (1, 2) for depth in (1, 2)]
    models: dict[tuple[int, int], Model] = {}
    for depth, threads in kinds:
        model = load_model(model_file(folder, "none", depth, threads))
        # Attention that knows nothing proposes anything: of the small anchors take the large ones, which cost most.
        zooming = replace(SMALL.zooming, anchors="one-scale", k_z=4, theta_z=0.0)
        models[depth, threads] = replace(model, config=replace(model.config, zooming=zooming))
        models[depth, threads].predict(pixels)
    took: dict[tuple[int, int], list[tuple[float, float, float]]] = {kind: [] for kind in kinds}
    regions: dict[int, tuple[int, float]] = {}
    for _ in range(TRIES):
        for kind in kinds:
            worked, wall = busy()
            began = time.process_time()
            found = models[kind].predict(pixels)
            own = time.process_time() - began
            worked_after, end = busy()
            others = max(0.0, worked_after - worked - own) / (end - wall)
            took[kind].append((found.seconds, own, others))
            if found.regions:
                boxes = found.regions[0]
                area = float(((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sum())
                regions[kind[0]] = len(boxes), area / (width * height)
    for depth, threads in kinds:
        rows = np.array(took[depth, threads])
        seconds, own, others = np.median(rows, axis=0)
        line = f"  depth {depth}, {threads} thread{'s' * (threads > 1)}: {seconds:.2f} s of the wall clock"
        line += f" ({rows[:, 0].min():.2f} to {rows[:, 0].max():.2f}), {own:.2f} s of CPU"
        if depth in regions:
            line += f", {regions[depth][0]} regions of {regions[depth][1]:.0%} of the image"
        target = SECONDS[depth] if threads == 1 else None
        if target is not None:  # of the processor: at rest, those of the wall clock, and the most that two threads take
            line += f", aim {target} s" + ("" if own <= target else " MISSED")
        print(f"{line}; others used {others:.1f} processors", flush=True)
        bench.results.append(
            {
                "label": f"prediction, depth {depth}, {threads} threads", "against": "the aim", "seconds": seconds,
                "least_seconds": rows[:, 0].min(), "cpu_seconds": own, "others": others,
                "ratio": SECONDS[depth] / own, "target": 1.0 if target is not None else None, "reps": TRIES,
            }
        )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="ShanghaiTech, in place of generated images")
    torch.set_num_threads(1)
    keep_freed_memory()  # as a trial does
    bench = Bench(f"small: torch {torch.__version__}, {SMALL.backbone.name}", parser)
    images: Images = Pictures(IMAGES)
    if bench.options.data_root is not None:
        images = Frames(open_dataset(SMALL.dataset, bench.options.data_root).items["train"][:IMAGES])
    if bench.options.only in "counting localization step, share of the layers' rate, batch":
        compare_steps(bench, images)
    if bench.options.only in "prediction":
        with tempfile.TemporaryDirectory() as folder:
            time_predictions(bench, Path(folder))
    return bench.done()


if __name__ == "__main__":
    sys.exit(main())
