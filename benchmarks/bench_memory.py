"""Peak memory of a validation pass on one large image, whole and by tiles, and memory of RAZ-Net's training regions.

    python benchmarks/bench_memory.py [--megapixels 12] [--preset paper] [--branch counting] [--only tiles]

The image is noise, the networks have random weights: memory depends on neither. Each side (`--only tiles`, `whole` or
`regions`; by default all) runs in a process of its own, one after the other, on one thread, and tells by how much it
raised the peak of resident memory, which is read from /proc. Both values are compared, and exit code 1 says that they
differ. Whole, preset paper takes about 0.9 GiB a megapixel: mind what the machine has. Regions: those of images of 6
megapixels, as UCF-QNRF has them, with all pixels held as the code once did, and cut when they are read.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

GIB = 2**30
REGION_IMAGES, REGIONS = 20, 10  # the paper's k_z
QNRF = (2013, 2902, 1081)  # mean height and width, px; training images without the validation images


def peak() -> int:
    """Bytes of the highest resident memory of this process so far."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


class Noise:
    """One image of noise with a crowd."""

    ids = ("noise",)

    def __init__(self, height: int, width: int) -> None:
        self._pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        self._heads = np.random.default_rng(1).random((1000, 2)) * [width, height]

    def __len__(self) -> int:
        return 1

    def size(self, index: int) -> tuple[int, int]:
        height, width, _ = self._pixels.shape
        return height, width

    def pixels(self, index: int) -> np.ndarray:
        return self._pixels

    def heads(self, index: int) -> np.ndarray:
        return self._heads


def validate(side: str, preset: str, branch: str, height: int, width: int) -> dict[str, float]:
    """A validation pass, in this process."""
    import torch
    from torch import nn

    from raz.config import PRESETS
    from raz.pipeline import backbones, builders, tiling
    from raz.pipeline.malloc import keep_freed_memory
    from raz.pipeline.tasks import TrainingData, counting_task, features_from, localization_task, tiles_from

    torch.set_num_threads(1)
    keep_freed_memory()
    config = PRESETS[preset]
    if side == "whole":
        tiling.TILE_PIXELS = tiling.LARGE = sys.maxsize
    backbone = backbones.build_backbone(replace(config.backbone, weights="none"), 0)
    device, images = torch.device("cpu"), Noise(height, width)
    data, features = TrainingData(images, images, 0, device), features_from(backbone, images, device, None)
    if branch == "counting":
        counting = builders.build_counting(config.counting, backbone, 0)
        modules = nn.ModuleDict({"backbone": backbone, "branch": counting})
        task = counting_task(
            data, modules, counting, features, features, config.counting.train, beta=0.1, kernel="raz", kind="rmse",
            tiles_of=tiles_from(backbone, counting=counting),
        )  # fmt: skip
    else:
        localization = builders.build_localization(config.localization, backbone, 0)
        modules = nn.ModuleDict({"backbone": backbone, "branch": localization})
        task = localization_task(
            data, "localization", modules, localization, features, features, config.localization.train,
            gamma=config.localization.gamma, tiles_of=tiles_from(backbone, localization=localization),
        )  # fmt: skip
    builders.to_channels_last(config.backbone, *modules.values())
    modules.eval()
    before, began = peak(), time.perf_counter()
    with torch.inference_mode():
        value = task.validate()
    return {"bytes": peak() - before, "seconds": time.perf_counter() - began, "value": value}


def regions(side: str) -> dict[str, float]:
    """What the regions of a few images take when each was read once, in this process."""
    from raz.config import ZoomingConfig
    from raz.data.contract import Sample
    from raz.data.frames import Frames
    from raz.paper.zoom import candidate_regions
    from raz.pipeline import regions as of_regions

    height, width, images = QNRF
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    heads = rng.random((800, 2)) * [width, height]
    config = ZoomingConfig(k_z=REGIONS, theta_z=0.0)
    attention = np.full((height, width), 0.5, np.float32)
    proposed = [candidate_regions(attention, np.random.default_rng(i)) for i in range(REGION_IMAGES)]
    with tempfile.TemporaryDirectory() as folder:
        items = [Sample(f"{i}", f"{i}", lambda: pixels, lambda: heads, f"{i}") for i in range(REGION_IMAGES)]
        frames = Frames(items, pack=Path(folder))
        for i in range(len(frames)):
            frames.pixels(i)
        before = peak()
        found = of_regions.region_images(frames, config, proposed)
        held, total = [], 0
        for i in range(len(found)):
            region = found.pixels(i)
            total += region.nbytes
            if side == "held":
                held.append(region)
        took = peak() - before
    of_split = total / REGION_IMAGES * images
    return {"bytes": took, "regions": len(found), "total": total, "qnrf": of_split, "cap": of_regions.CUT_BYTES}


def child(*words: str) -> dict[str, float]:
    """The same file in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--child", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.returncode}\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, default=12.0)
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--branch", choices=("counting", "localization"), default="counting")
    parser.add_argument("--only", choices=("whole", "tiles", "regions"))
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        kind, *words = given.child
        if kind == "regions":
            print(json.dumps(regions(words[0])))
        else:
            print(json.dumps(validate(kind, words[0], words[1], int(words[2]), int(words[3]))))
        return 0
    height = round((given.megapixels * 1e6 / 1.5) ** 0.5)
    width = round(height * 1.5)
    found = {}
    for side in ("tiles", "whole"):
        if given.only in (None, side):
            found[side] = child(side, given.preset, given.branch, str(height), str(width))
            print(
                f"validation, {given.preset}, {given.branch}, {width} x {height} px, {side}: "
                f"{found[side]['bytes'] / GIB:.2f} GiB more, {found[side]['seconds']:.0f} s, "
                f"value {found[side]['value']:.9g}",
                flush=True,
            )
    if len(found) == 2:
        difference = abs(found["tiles"]["value"] - found["whole"]["value"]) / abs(found["whole"]["value"])
        print(f"  the values differ by {difference:.1e} of themselves")
        if difference > 1e-5:
            return 1
    if given.only in (None, "regions"):
        for side in ("held", "cut"):
            of = child("regions", side)
            print(
                f"{of['regions']} regions of {REGION_IMAGES} images of {QNRF[1]} x {QNRF[0]} px, {side}: "
                f"{of['bytes'] / GIB:.2f} GiB more (their pixels {of['total'] / GIB:.2f} GiB)",
                flush=True,
            )
        print(f"  of {QNRF[2]} such images: {of['qnrf'] / 1e9:.0f} GB held, at most {of['cap'] / 1e9:.2f} GB cut")
    print(f"  {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
