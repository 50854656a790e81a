"""`raz-sweep predict` as its user meets it: a process from start to answer, its network's part, and its peak memory.

    python benchmarks/bench_predict.py [--check] [--weights F] [--size 1024x768] [--depth 2] [--threads 2] [--images 1]

The model is preset `small`, untrained: time depends on what was learned only through how much attention proposes, and
here every region that may be is zoomed, the most that a trained model could do. Images are generated. `--check` exits
1 beyond the targets: 12 s for one photograph, 4 s of them the network, or 3 GB for one of 50 megapixels.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

SECONDS, NETWORK, GIGABYTES = 12.0, 4.0, 3.0
LARGE = 40e6  # px from which on memory is the target


def model_file(folder: Path, weights: str, depth: int, threads: int) -> Path:
    """An untrained `small` model, exported."""
    import torch

    from raz.config import PRESETS
    from raz.pipeline import backbones, builders
    from raz.pipeline.assembly import TrainedStage
    from raz.pipeline.graph import declared_inputs
    from raz.pipeline.model import Model, save_model
    from raz.pipeline.scoring import FittedThresholds

    small = PRESETS["small"]
    config = replace(small, depth=depth, threads=threads, backbone=replace(small.backbone, weights=weights))
    backbone = backbones.build_backbone(config.backbone, 0)
    counting = builders.build_counting(config.counting, backbone, 0)
    localization = builders.build_localization(config.localization, backbone, 0)
    parts: dict[str, dict[str, torch.nn.Module]] = {
        "counting": {"backbone": backbone, "counting": counting},
        "localization": {"localization": localization},
        "attention": {
            "attention": builders.build_attention(config.attention, localization.channels + counting.channels, 0)
        },
        "raz": {"localization": localization},
        "raz_attention": {"attention": builders.build_attention(config.attention, localization.channels, 0)},
    }

    def state(modules: dict[str, torch.nn.Module]) -> dict[str, torch.Tensor]:
        return {f"{n}.{k}": v.clone() for n, m in modules.items() for k, v in m.state_dict().items()}

    trained = {
        stage: TrainedStage(stage, declared_inputs(config, stage), state(modules)) for stage, modules in parts.items()
    }
    model = Model(config, trained, FittedThresholds(0.5, 0.5, np.zeros(config.fusion.cells**2)), {"untrained": True})
    path = folder / "model.safetensors"
    save_model(model, path)
    return path


def photograph(path: Path, width: int, height: int, seed: int) -> None:
    """Smooth noise with some grain: what a JPEG of a crowd weighs, roughly."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    image += rng.integers(-12, 13, (height, width, 1), dtype=np.int16)
    Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(path, quality=90)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="none", help="of the backbone; none: random ones")
    parser.add_argument("--size", default="1024x768", help="of the images, px")
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    width, height = (int(side) for side in given.size.split("x"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = model_file(folder, given.weights, given.depth, given.threads)
        for i in range(given.images):
            photograph(folder / f"{i}.jpg", width, height, i)
        words = [str(folder), "--weights", str(model), "--out", str(folder / "out"), "--json"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "raz.cli", "predict", *words], capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - began
        if done.returncode:
            sys.exit(done.stderr)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
        images = json.loads(done.stdout)["images"]
    network = sum(image["seconds"] for image in images)
    peak = used.ru_maxrss / 1024**2
    regions = sum(len(r) for image in images for r in image["regions"])
    print(
        f"predict: {given.images} image(s) of {width} x {height}, small, depth {given.depth}, {given.threads} threads"
    )
    print(f"  {seconds:.1f} s from start to answer ({cpu:.1f} s of CPU), {network:.1f} s of them the networks")
    print(f"  {regions} regions zoomed, {sum(i['localization'] for i in images)} points, peak memory {peak:.2f} GB")
    print(f"  {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    if width * height >= LARGE:
        missed = peak > GIGABYTES
    else:
        missed = given.images == 1 and (seconds > SECONDS or network > NETWORK)
    return 1 if given.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
