"""Training steps of the tiny preset (width 1/8): of the convolution rate, of features once computed, of threads.

A step is what the training loop does with a batch: crops, ground truth, loss, gradients, clipping, AdamW.
Shares of processors are measured in processes of their own that start together and are held to two of them; those
ratios are of steps a second, so they mean little while others use the machine, and the run says how much they do.
"""

from __future__ import annotations

import copy
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _alt import Bench
from _crowd import crowd
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from raz.config import PRESETS
from raz.paper.losses import counting_loss
from raz.paper.networks import STRIDE, network_input, receptive_field_radius
from raz.pipeline import backbones, builders
from raz.pipeline.feature_cache import BranchFeatureCache, FeatureCache
from raz.pipeline.malloc import keep_freed_memory
from raz.pipeline.samples import GroundTruth, Window, crop_pixels, draw_windows, generator
from raz.pipeline.tasks import (
    FeaturesOf,
    RichOf,
    TrainingData,
    attention_task,
    counting_task,
    features_from,
    localization_task,
)
from raz.pipeline.training_loop import TrainingTask

BATCH, CROP = 8, 128
TINY = PRESETS["tiny"]
TRAIN = replace(TINY.counting.train, batch=BATCH, crop=CROP, crops_per_image=BATCH)
CPU = torch.device("cpu")
ARRANGEMENTS = {"2x1": (2, 1), "1x2": (1, 2), "2x2": (2, 2)}  # processes x threads
ROUNDS, SECONDS, BUDGET = 5, 1.0, 30.0  # two threads beside others' work may take seconds a step
REPS, STEPS = 5, 3  # of one measurement of memory
MEMORY = {
    "counting": "counting step",
    "localization": "localization step with the backbone",
    "picture": "maps of a whole picture",
}


class Pictures:
    """Noise of the size of ShanghaiTech A's photographs, with its crowd."""

    def __init__(self, count: int = 2) -> None:
        self.crowd = crowd("SHA")
        self.ids = tuple(f"picture {i}" for i in range(count))
        self._pixels = [
            generator("pixels", i).integers(0, 256, (self.crowd.height, self.crowd.width, 3), dtype=np.uint8)
            for i in range(count)
        ]

    def __len__(self) -> int:
        return len(self.ids)

    def size(self, index: int) -> tuple[int, int]:
        return self.crowd.height, self.crowd.width

    def pixels(self, index: int) -> NDArray[np.uint8]:
        return self._pixels[index]

    def heads(self, index: int) -> NDArray[np.float64]:
        return self.crowd.heads


class Main:
    """Main-Net of the tiny preset, its seeded weights in the layout that the pipeline gives narrow networks."""

    def __init__(self) -> None:
        self.backbone = backbones.build_backbone(TINY.backbone, 0)
        self.counting = builders.build_counting(TINY.counting, self.backbone, 0)
        self.localization = builders.build_localization(TINY.localization, self.backbone, 0)
        channels = self.localization.channels + self.counting.channels
        self.attention = builders.build_attention(TINY.attention, channels, 0)
        builders.to_channels_last(TINY.backbone, self.backbone, self.counting, self.localization, self.attention)


class Computed:
    """The features of a batch's crops computed anew, the whole batch at once: what a cache has to beat."""

    def __init__(self, images: Pictures, of: Callable[[Tensor], Any]) -> None:
        self.images, self.of = images, of

    def __call__(self, batch: list[Window]) -> Any:
        with torch.no_grad():
            return self.of(torch.cat([crop_pixels(self.images, w, CPU) for w in batch]))


class Step:
    """One training step a call, over the batches of an epoch in turn."""

    def __init__(self, task: TrainingTask[list[Window]], batches: list[list[Window]]) -> None:
        self.task = task
        self.parameters = [p for p in task.modules.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-6, weight_decay=TRAIN.weight_decay)
        self.batches = self._endless(batches)

    @staticmethod
    def _endless(batches: list[list[Window]]) -> Iterator[list[Window]]:
        while True:
            yield from batches

    def __call__(self) -> None:
        batch = next(self.batches)
        self.optimizer.zero_grad(set_to_none=True)
        self.task.loss(batch).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, TRAIN.clip)
        self.optimizer.step()


def whole_picture(main: Main, x: Tensor) -> None:
    """The density and the response of one picture, as validation and inference compute them."""
    with torch.inference_mode():
        features = main.backbone(x)
        main.counting(features)
        main.localization(features)


def peak_memory() -> float:
    """Bytes that were resident at most in this process; getrusage's figure starts from its parent's."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return math.nan
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), math.nan)


def batches_of(images: Pictures) -> list[list[Window]]:
    windows = draw_windows(images, seed=0, stage="bench", epoch=1, crop=CROP, crops=BATCH, flip=True)
    return [windows[i : i + BATCH] for i in range(0, len(windows), BATCH)]


def counting_step(m: TrainingData, main: Main, batches: list[list[Window]]) -> Step:
    modules = nn.ModuleDict({"counting": main.counting, "backbone": main.backbone})
    features = features_from(main.backbone, m.train, CPU, None)
    c = TINY.counting
    task = counting_task(
        m, modules, main.counting, features, features, TRAIN, beta=c.beta, kernel=c.kernel, kind=c.loss
    )
    return Step(task, batches)


def network_step(m: TrainingData, main: Main, batch: list[Window]) -> Step:
    """The counting step on one batch whose crops and density maps are ready: what the networks alone take."""
    step = counting_step(m, main, [batch])
    x = torch.cat([crop_pixels(m.train, w, CPU) for w in batch])
    c, truth = TINY.counting, GroundTruth(m.train)
    maps = torch.from_numpy(np.stack([truth.density(w, c.output_stride, c.beta, c.kernel) for w in batch])[:, None])

    def loss(_: Any) -> Tensor:
        return counting_loss(main.counting(main.backbone(x))[0], maps, c.loss)

    step.task = replace(step.task, loss=loss)
    return step


def localization_step(
    m: TrainingData, main: Main, batches: list[list[Window]], features: FeaturesOf, *, backbone: bool = False
) -> Step:
    """On features as they come, or with the backbone trained too."""
    branch = copy.deepcopy(main.localization).requires_grad_(True)
    modules = nn.ModuleDict({"localization": branch} | ({"backbone": main.backbone} if backbone else {}))
    gamma = TINY.localization.gamma
    task = localization_task(m, "localization", modules, branch, features, features, TRAIN, gamma=gamma)
    return Step(task, batches)


def attention_step(m: TrainingData, main: Main, batches: list[list[Window]], rich: RichOf) -> Step:
    branch = copy.deepcopy(main.attention)
    c = TINY.attention
    modules = nn.ModuleDict({"attention": branch})
    task = attention_task(m, "attention", modules, branch, rich, rich, TRAIN, sigma_z=c.sigma_z, kind=c.loss)
    return Step(task, batches)


# ------------------------------------------------------------------ proofs


def formula_flops(main: Main) -> int:
    """2·k²·in·out a pixel, over the layers of the backbone and the counting branch."""
    total, side = 0, CROP
    for layer in [*main.backbone.modules(), *main.counting.modules()]:
        if isinstance(layer, nn.MaxPool2d):
            side //= 2
        elif isinstance(layer, nn.Conv2d):
            total += 2 * layer.kernel_size[0] ** 2 * layer.in_channels * layer.out_channels * side * side
    return BATCH * total


def counted_flops(main: Main, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        main.counting(main.backbone(x))
    return int(counter.get_total_flops())


def gradient_error(main: Main, x: Tensor) -> float:
    """Of the gradient of the mean density over all weights, against float64 in torch's usual layout; relative."""
    gradients = []
    for dtype in (torch.float32, torch.float64):
        parts = nn.Sequential(copy.deepcopy(main.backbone), copy.deepcopy(main.counting)).to(dtype)
        if dtype == torch.float64:
            parts.to(memory_format=torch.contiguous_format)
        density, _ = parts(x.to(dtype))
        density.square().mean().backward()
        used = [p.grad for p in parts.parameters() if p.grad is not None]
        gradients.append(torch.cat([g.double().flatten() for g in used]))
    return float((gradients[0] - gradients[1]).norm() / gradients[1].norm())


def prove_cache(bench: Bench, main: Main, images: Pictures, cache: FeatureCache) -> None:
    """Cached crops are the whole image's features rounded to half; away from the edge also those of the crop alone."""
    inner = -(-receptive_field_radius(main.backbone) // STRIDE)  # cells that the crop's edge can reach
    middle = slice(inner, CROP // STRIDE - inner)
    whole_error = middle_error = 0.0
    for w in batches_of(images)[0]:
        pixels = images.pixels(w.index)[:, ::-1] if w.mirrored else images.pixels(w.index)
        with torch.no_grad():
            whole = main.backbone(network_input(pixels))
            alone = main.backbone(crop_pixels(images, w, CPU))
        y, x = w.y0 // STRIDE, w.x0 // STRIDE
        expected = whole[:, :, y : y + CROP // STRIDE, x : x + CROP // STRIDE]
        got = cache.crop(w)
        whole_error = max(whole_error, float((got - expected).abs().max() / expected.abs().max()))
        inside = (got - alone)[:, :, middle, middle]
        assert inside.numel() > 0
        middle_error = max(middle_error, float(inside.abs().max() / alone.abs().max()))
    bench.exact("cached features, to the image's greatest", whole_error, 2**-11)
    bench.exact("cached features away from the edge, against the crop alone", middle_error, 2**-11)


def prove_rich(bench: Bench, main: Main, images: Pictures, maps: BranchFeatureCache, cells: BranchFeatureCache) -> None:
    """Cached rich maps are those of the whole image's cached features, rounded to half."""
    batch = batches_of(images)[0]
    got = maps.crops(batch), cells.crops(batch)
    error = 0.0
    for i, w in enumerate(batch):
        features = maps.features.whole(w.index, w.mirrored)
        for branch, crops, stride in ((main.localization, got[0], 1), (main.counting, got[1], STRIDE)):
            with torch.no_grad():
                whole = branch(features)[1][0]
            y, x, side = w.y0 // stride, w.x0 // stride, CROP // stride
            expected = whole[:, y : y + side, x : x + side]
            error = max(error, float((crops[i] - expected).abs().max() / whole.abs().max()))
    bench.exact("cached rich maps, to the image's greatest", error, 2**-11)


# ------------------------------------------------------------------ processes of their own


def serve(name: str, keep: bool) -> None:
    """Steps on demand: reads (threads, steps, seconds) as JSON lines, writes what they took."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    kept = keep and keep_freed_memory()
    images = Pictures(1)
    m, batches, main = TrainingData(images, images, 0, CPU), batches_of(images), Main()
    step: Callable[[], None]
    if name == "counting":
        step = counting_step(m, main, batches)
    elif name == "localization":
        # The largest maps of the preset: those of the backbone and of the localization branch at once.
        features = features_from(main.backbone, images, CPU, None)
        step = localization_step(m, main, batches, features, backbone=True)
    else:
        step = partial(whole_picture, main, network_input(images.pixels(0)))
    print(json.dumps(kept), flush=True)
    for line in sys.stdin:
        ask = json.loads(line)
        torch.set_num_threads(ask["threads"])
        done = 0
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        while done < ask["steps"] or time.perf_counter() - start < ask["seconds"]:
            step()
            done += 1
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
        own = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        answer = {
            "rate": done / wall,
            "cpu": own / done,
            "system": (after.ru_stime - before.ru_stime) / max(own, 1e-9),
            "faults": (after.ru_minflt - before.ru_minflt) / done,
            "peak": peak_memory(),
        }
        print(json.dumps(answer), flush=True)


class Worker:
    """A process that serves steps."""

    def __init__(self, step: str, *, keep: bool) -> None:
        command = [sys.executable, __file__, "--serve", step, *(["keep"] if keep else [])]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, *, threads: int = 1, steps: int = 1, seconds: float = 0.0) -> None:
        assert self.process.stdin is not None
        ask = {"threads": threads, "steps": steps, "seconds": seconds}
        self.process.stdin.write(json.dumps(ask) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"a process of the benchmark ended with {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


def record(
    bench: Bench, label: str, against: str, pairs: list[tuple[float, float]], unit: str, target: float | None, work: str
) -> None:
    """A row of ratios ours / baseline, both better when greater."""
    ratios = [ours / base for ours, base in pairs]
    ours, base = (statistics.median(p[i] for p in pairs) for i in (0, 1))
    ratio = statistics.median(ratios)
    row = {
        "label": label,
        "against": against,
        "unit": unit,
        "ours": ours,
        "baseline": base,
        "ratio": ratio,
        "least": min(ratios),
        "most": max(ratios),
        "extrapolated": False,
        "target": target,
        "reps": len(pairs),
        "work": work,
    }
    bench.results.append(row)
    line = f"  {label}: {ours:.3g} {unit}, {against} {base:.3g} -> {ratio:,.2f}x"
    line += f" ({min(ratios):,.2f} to {max(ratios):,.2f})"
    if target is not None:
        line += f", target {target:g}x" + ("" if ratio >= target else " MISSED")
    print(line + (f", {work}" if work else ""), flush=True)


def compare_memory(bench: Bench) -> None:
    """The same steps in a process that keeps freed memory and in one that does not, in turn."""
    for step, label in MEMORY.items():
        workers = {name: Worker(step, keep=name == "kept") for name in ("kept", "plain")}
        try:
            kept, _ = (worker.answer() for worker in workers.values())
            if not kept:
                print("  freed memory: not glibc, or set by the environment; skipped")
                return
            for worker in workers.values():
                worker.ask(steps=3)
                worker.answer()
            rounds = []
            for i in range(REPS):
                took = {}
                for name in ("kept", "plain") if i % 2 == 0 else ("plain", "kept"):
                    workers[name].ask(steps=STEPS)
                    took[name] = workers[name].answer()
                rounds.append(took)
        finally:
            for worker in workers.values():
                worker.close()
        faults, peak, system = (
            [statistics.median(r[name][what] for r in rounds) for name in ("kept", "plain")]
            for what in ("faults", "peak", "system")
        )
        work = (
            f"{faults[0]:,.0f} page faults a step against {faults[1]:,.0f}, {system[0]:.1%} of the time in the kernel "
            f"against {system[1]:.1%}, peak {peak[0] / 1e6:.0f} MB against {peak[1] / 1e6:.0f}"
        )
        pairs = [(1 / r["kept"]["cpu"], 1 / r["plain"]["cpu"]) for r in rounds]
        record(bench, f"{label}, freed memory kept", "given back", pairs, "steps/CPU s", None, work)


def busy() -> tuple[float, float]:
    """Seconds the machine's processors have worked, and the part of this process and its ended children."""
    try:
        fields = [int(f) for f in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return 0.0, 0.0
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK"), time.perf_counter()


def compare_threads(bench: Bench) -> None:
    if len(os.sched_getaffinity(0)) < 2 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) < 2:
        print("  processes and threads: needs two processors; skipped")
        return
    workers = [Worker("counting", keep=True) for _ in range(2)]
    try:
        for worker in workers:
            worker.answer()
            for threads in (1, 2):
                worker.ask(threads=threads, steps=2)
                worker.answer()
        rates: list[dict[str, float]] = []
        others: list[float] = []
        began = time.perf_counter()
        for i in range(ROUNDS):
            if rates and time.perf_counter() - began > BUDGET:
                print(f"  after {BUDGET:.0f} s: {len(rates)} rounds of {ROUNDS}")
                break
            names = list(ARRANGEMENTS)
            rate = {}
            for name in names[i % 3 :] + names[: i % 3]:
                processes, threads = ARRANGEMENTS[name]
                worked, start = busy()
                for worker in workers[:processes]:
                    worker.ask(threads=threads, seconds=SECONDS)
                answers = [worker.answer() for worker in workers[:processes]]
                rate[name] = sum(a["rate"] for a in answers)
                own = sum(a["cpu"] * a["rate"] for a in answers)
                worked_after, end = busy()
                others.append(max(0.0, (worked_after - worked) / max(end - start, 1e-9) - own))
            rates.append(rate)
        note = f"others used {statistics.mean(others):.2f} processors"
        for other, against, target in (("1x2", "one of two threads", 1.05), ("2x2", "two of two threads", 1.7)):
            pairs = [(r["2x1"], r[other]) for r in rates]
            record(bench, f"two processes of one thread, 2x1 to {other}", against, pairs, "steps/s", target, note)
    finally:
        for worker in workers:
            worker.close()


# ------------------------------------------------------------------


def main() -> int:
    torch.set_num_threads(1)
    keep_freed_memory()  # as a trial does
    bench = Bench(f"model: steps of the tiny preset, batch {BATCH}, crops {CROP} px, torch {torch.__version__}")
    images = Pictures()
    m, batches = TrainingData(images, images, 0, CPU), batches_of(images)
    main = Main()
    x = torch.cat([crop_pixels(images, w, CPU) for w in batches[0]])

    flops = counted_flops(main, x)
    bench.exact("forward FLOP, counted against the formula", abs(flops - formula_flops(main)) / flops, 0)
    bench.exact("gradient, channels_last float32 against float64", gradient_error(main, x), 1e-4)
    conv = nn.Conv2d(256, 256, 3, padding=1).to(memory_format=torch.channels_last)
    conv_in = torch.randn(4, 256, 32, 32).to(memory_format=torch.channels_last)
    conv_flops = 2 * 9 * 256 * 256 * conv_in[:, 0].numel()

    def convolve() -> None:
        with torch.inference_mode():
            conv(conv_in)

    convolve()
    for label, call in (
        ("counting step, crops given", network_step(m, main, batches[0])),
        ("counting step", counting_step(m, main, batches)),
    ):
        bench.compare(
            f"{label}, share of the convolution rate", call, convolve, against="a 256-channel convolution's time",
            scale=3 * flops / conv_flops, target=0.45, work=f"{3 * flops / 1e9:.2f} GFLOP",
        )  # fmt: skip
        if bench.results:
            row = bench.results[-1]
            rate = 3 * flops / row["baseline_cpu_ms"] / 1e6
            print(f"    = {row['ratio']:.0%} of {rate:.0f} GFLOP/s ({row['least']:.0%} to {row['most']:.0%})")

    main = Main()
    for part in (main.backbone, main.counting, main.localization):
        builders.freeze(part)
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(Path(folder), main.backbone, images, CPU)
        prove_cache(bench, main, images, cache)
        bench.compare(
            "localization step, cached features",
            localization_step(m, main, batches, features_from(main.backbone, images, CPU, cache)),
            localization_step(m, main, batches, Computed(images, main.backbone)),
            against="the backbone at every step", target=1.4,
        )  # fmt: skip

        maps = BranchFeatureCache(Path(folder, "localization"), main.localization, main.localization.channels, 1, cache)
        cells = BranchFeatureCache(Path(folder, "counting"), main.counting, main.counting.channels, STRIDE, cache)
        prove_rich(bench, main, images, maps, cells)

        def rich_of(x: Tensor) -> tuple[Tensor, Tensor]:
            features = main.backbone(x)
            return main.localization(features)[1], main.counting(features)[1]

        bench.compare(
            "attention step, cached maps",
            attention_step(m, main, batches, lambda windows: (maps.crops(windows), cells.crops(windows))),
            attention_step(m, main, batches, Computed(images, rich_of)),
            against="the backbone and the branches at every step", target=2,
        )  # fmt: skip
    for compare, label in ((compare_memory, "freed memory kept"), (compare_threads, "two processes of one thread")):
        if bench.options.only in label:
            compare(bench)
    return bench.done()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], "keep" in sys.argv[3:])
    else:
        sys.exit(main())
