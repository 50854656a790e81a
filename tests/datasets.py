"""Small copies of every data set in its makers' layout, and the truth about them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from raz.data.worldexpo import TEST_SCENES
from tests.conftest import noise, write_mat

Heads = NDArray[np.float64]
SIZE = (24, 40)  # H, W of every image


@dataclass
class Copy:
    """A written data set: where it lies, and its images, annotations and heads by item id."""

    root: Path
    images: dict[str, Path] = field(default_factory=dict)
    labels: dict[str, Path] = field(default_factory=dict)
    heads: dict[str, Heads] = field(default_factory=dict)
    write: Callable[[Path, object], None] = lambda path, points: None  # an annotation of these points

    def add(self, item: str, image: Path, label: Path, seed: int) -> None:
        image.parent.mkdir(parents=True, exist_ok=True)
        label.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(seed, *SIZE)).save(image, quality=90)
        self.images[item], self.labels[item] = image, label
        self.heads[item] = np.random.default_rng(seed).random((1 + seed % 5, 2)) * (SIZE[1], SIZE[0])
        self.write(label, self.heads[item])


def _ann(path: Path, points: object) -> None:
    savemat(path, {"annPoints": points})


def shanghaitech(root: Path, letter: str) -> Copy:
    copy = Copy(root, write=lambda path, points: write_mat(path, points, number=None))
    for split, numbers in (("train", range(1, 13)), ("test", range(1, 4))):
        base = root / f"part_{letter}" / f"{split}_data"
        for n in numbers:
            label = base / "ground-truth" / f"GT_IMG_{n}.mat"
            copy.add(f"{split}/IMG_{n}", base / "images" / f"IMG_{n}.jpg", label, n + 100 * (split == "test"))
    return copy


def ucf_qnrf(root: Path) -> Copy:
    copy = Copy(root, write=_ann)
    for split, count in (("Train", 12), ("Test", 3)):
        base = root / "UCF-QNRF_ECCV18" / split
        for n in range(1, count + 1):
            stem = f"img_{n:04d}"
            seed = n + 100 * (split == "Test")
            copy.add(f"{split.lower()}/{stem}", base / f"{stem}.jpg", base / f"{stem}_ann.mat", seed)
    return copy


def ucf_cc_50(root: Path) -> Copy:
    copy = Copy(root, write=_ann)
    for n in range(1, 51):
        base = root / "UCF_CC_50"
        copy.add(f"image/{n}", base / f"{n}.jpg", base / f"{n}_ann.mat", n)
    return copy


def _gt(path: Path, points: object) -> None:
    rows = [list(row) for row in np.asarray(points, dtype=object)]
    path.write_text("".join(" ".join(str(v) for v in [*row, 12, 14, 1, 0]) + " \n" for row in rows))


def jhu_crowd(root: Path) -> Copy:
    copy = Copy(root, write=_gt)
    for seed, (split, count) in enumerate((("train", 6), ("val", 3), ("test", 3))):
        base = root / "jhu_crowd_v2.0" / split
        lines = []
        for n in range(1, count + 1):
            stem = f"{n + 10 * count:04d}"
            copy.add(f"{split}/{stem}", base / "images" / f"{stem}.jpg", base / "gt" / f"{stem}.txt", n + 20 * seed)
            lines.append(f"{stem},{len(copy.heads[f'{split}/{stem}'])},street,0,0\n")
        (base / "image_labels.txt").write_text("".join(lines))
    return copy


def nwpu_crowd(root: Path) -> Copy:
    copy = Copy(root, write=_ann)
    base = root / "NWPU-Crowd"
    lists = {"train": range(1, 9), "val": range(9, 12), "test": range(12, 15)}
    for split, numbers in lists.items():
        for n in numbers:
            copy.add(f"{split}/{n:04d}", base / "images" / f"{n:04d}.jpg", base / "mats" / f"{n:04d}.mat", n)
        (base / f"{split}.txt").write_text("".join(f"{n:04d} 2 3\n" for n in numbers))
    for item in [i for i in copy.labels if i.startswith("test/")]:  # withheld
        copy.labels.pop(item).unlink()
        del copy.heads[item]
    return copy


def nwpu_json(path: Path, points: object, boxes: object = ()) -> None:
    rows, corners = np.asarray(points).tolist(), np.asarray(boxes).tolist()
    content = {"img_id": f"{path.stem}.jpg", "human_num": len(rows), "points": rows, "boxes": corners}
    path.write_text(json.dumps(content))


def nwpu_boxes(points: Heads, seed: int) -> NDArray[np.float64]:
    """(n, 4) x0, y0, x1, y1 of a box about each head, of 2 to 30 px a side."""
    size = 2 + 28 * np.random.default_rng(seed).random((len(points), 2))
    return np.hstack([points - size / 2, points + size / 2])


ROI = ((4.0, 2.0), (38.0, 2.0), (38.0, 22.0), (4.0, 22.0))  # of every scene


def write_roi(path: Path, corners: object = ROI) -> None:
    x, y = np.asarray(corners, dtype=np.float64).T
    savemat(path, {"maskVerticesXCoordinates": x[:, None], "maskVerticesYCoordinates": y[:, None]})


def worldexpo(root: Path) -> Copy:
    """Heads lie inside the regions."""
    copy = Copy(root, write=lambda path, points: savemat(path, {"point_position": points, "point_num": 0}))
    base = root / "WorldExpo"
    scenes = {"train": [f"1000{n:02d}" for n in range(6)], "test": list(TEST_SCENES)}
    for split, names in scenes.items():
        for s, scene in enumerate(names):
            for n in range(2):
                stem = f"{scene}_A-{n}"
                image = base / f"{split}_frame" / (scene if split == "test" else "") / f"{stem}.jpg"
                item, seed = f"{split}/{stem}", 10 * s + n + 500 * (split == "test")
                copy.add(item, image, base / f"{split}_label" / scene / f"{stem}.mat", seed)
                unit = copy.heads[item] / (SIZE[1], SIZE[0])
                copy.heads[item] = np.array(ROI[0]) + unit * (np.array(ROI[2]) - ROI[0])
                copy.write(copy.labels[item], copy.heads[item])
            write_roi(base / f"{split}_label" / scene / "roi.mat")
    return copy


COPIES: dict[str, Callable[[Path], Copy]] = {
    "shanghaitech_a": lambda root: shanghaitech(root, "A"),
    "shanghaitech_b": lambda root: shanghaitech(root, "B"),
    "ucf_qnrf": ucf_qnrf,
    **{f"ucf_cc_50@{fold}": ucf_cc_50 for fold in range(1, 6)},
    "worldexpo": worldexpo,
    "jhu_crowd": jhu_crowd,
    "nwpu_crowd": nwpu_crowd,
}
