"""WorldExpo'10 (Zhang, Li, Wang, Yang, CVPR 2015) in its native layout.

    {train,test}_frame/…/NAME.jpg, {train,test}_label/SCENE/{NAME.mat,roi.mat}

Frames are in {train,test}_frame; test frames may be in a subfolder per scene. An annotation has `point_position`,
(n, 2) x, y px; a scene's roi.mat has its region of interest in `maskVerticesXCoordinates` and
`maskVerticesYCoordinates`, as in C-3-Framework (datasets/WE/preapre_WE.m). Points and polygons come from the same tool,
so neither is shifted.

Only heads inside the region are annotated, so training, counts and scores are limited to it: pixels outside are painted
over, heads outside are dropped. The five test scenes are scored separately (`mae@scene1` … `mae@scene5`, in the order
of the papers), and the split's errors are the means of the five. A scene is never divided between train and val.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from raz.data.contract import Reader, ScannedSample, ScanResult, Split
from raz.data.image_pairs import Annotation, Pair, ScanBuilder, drop_name_clashes, find_folder, list_folder, read_pairs
from raz.data.images import SUFFIXES
from raz.data.matlab import COPY_AGAIN, as_heads, read_variables
from raz.data.region import Polygon, polygon_area
from raz.errors import RazError

TEST_SCENES = ("104207", "200608", "200702", "202201", "500717")  # scenes 1 to 5 in the papers' tables
PUBLISHED: dict[Split, int] = {"train": 3380, "test": 600}
_X, _Y = "maskVerticesXCoordinates", "maskVerticesYCoordinates"


def _parse(data: bytes, where: str) -> Annotation:
    content = read_variables(data, where, "point_position")
    if "point_position" not in content:
        raise RazError(where, "has no variable point_position", COPY_AGAIN)
    return Annotation(as_heads(content["point_position"], where, "point_position"))


def read_region(data: bytes, where: str) -> Polygon:
    """The polygon (x, y px) of a roi.mat. Raises RazError for missing or unequal lists, < 3 corners, or no area."""
    content = read_variables(data, where, _X, _Y)
    missing = [name for name in (_X, _Y) if name not in content]
    if missing:
        raise RazError(where, f"has no variable {' and '.join(missing)}", COPY_AGAIN)
    x, y = (np.asarray(content[name]).reshape(-1) for name in (_X, _Y))
    if len(x) != len(y) or len(x) < 3:
        raise RazError(where, f"has {len(x)} x and {len(y)} y corners, expected three or more of each", COPY_AGAIN)
    corners = as_heads(np.stack([x, y], axis=1), where, "the region")
    polygon = tuple((float(a), float(b)) for a, b in corners)
    if polygon_area(polygon) <= 0:
        raise RazError(where, "the region of interest has no area", COPY_AGAIN)
    return polygon


def scan(folder: Path | None) -> ScanResult:
    """Scan the folder: annotations and regions are parsed, files hashed, no image is decoded."""
    assert folder is not None
    builder = ScanBuilder()
    samples: dict[Split, tuple[ScannedSample, ...]] = {}
    for split, published in PUBLISHED.items():
        pairs = _pairs(split, folder, builder)
        builder.compare_size(split, len(pairs), published)
        samples[split] = read_pairs(pairs, _parse, builder)
    return builder.result(samples)


def _pairs(split: Split, folder: Path, builder: ScanBuilder) -> list[Pair]:
    """The frames of a split, each with its annotation, scene and region."""
    label_folder, frame_folder = folder / f"{split}_label", folder / f"{split}_frame"
    labels, regions = _labels(label_folder, builder)
    frames = [p for p in _files(frame_folder, builder) if p.suffix.lower() in SUFFIXES]
    if not frames and os.path.isdir(frame_folder):
        builder.fault(frame_folder, "holds no image", "expected NAME.jpg, or SCENE/NAME.jpg")
    pairs = []
    for frame in drop_name_clashes(frames, builder):
        label = labels.get(frame.stem.lower())
        scene = label.parent.name if label is not None else frame.stem[:6]
        part = ""
        if split == "test":
            part = f"scene{TEST_SCENES.index(scene) + 1}" if scene in TEST_SCENES else f"scene-{scene.lower()}"
        expected = label_folder / scene / f"{frame.stem}.mat"
        if label is not None and scene not in regions:
            continue  # the scene's missing region has been reported
        region = regions.get(scene, ())
        pairs.append(Pair(f"{split}/{frame.stem}", frame, label, expected, scene, part, region))
    used = {pair.label for pair in pairs}
    builder.orphaned += [str(p) for p in labels.values() if pairs and p not in used and p.parent.name in regions]
    scenes = {pair.scene for pair in pairs}
    if split == "test" and pairs and scenes != set(TEST_SCENES):
        names = ", ".join(sorted(scenes))
        builder.warnings.append(f"the test scenes are {names}, not the five published: scores are not comparable")
    return pairs


def _labels(folder: Path, builder: ScanBuilder) -> tuple[dict[str, Path], dict[str, Polygon]]:
    """Annotation files by lower-case stem, and the region of each scene with a readable roi.mat."""
    labels: dict[str, Path] = {}
    regions: dict[str, Polygon] = {}
    for scene in (p for p in list_folder(folder, builder) or () if os.path.isdir(p)):
        files = [p for p in list_folder(scene, builder) or () if p.suffix.lower() == ".mat"]
        outline = scene / "roi.mat"
        for path in files:
            if path.name.lower() == "roi.mat":
                outline = path
                continue
            twin = labels.setdefault(path.stem.lower(), path)
            if twin is not path:
                builder.fault(path, f"has the name of {twin}", "keep one of them")
        try:
            regions[scene.name] = read_region(outline.read_bytes(), str(outline))
        except OSError as error:
            what = f"cannot be read ({error.strerror}), so scene {scene.name} has no region of interest"
            builder.fault(outline, what, "copy it: scenes are scored inside their regions only")
        except RazError as error:
            builder.faults.append(error)
            builder.unreadable.append(error.where)
    return labels, regions


def _files(folder: Path, builder: ScanBuilder) -> list[Path]:
    """The files of the folder and of its subfolders."""
    out: list[Path] = []
    for path in list_folder(folder, builder) or ():
        out += (list_folder(path, builder) or []) if os.path.isdir(path) else [path]
    return out


def _find(root: Path) -> Path:
    names = ("WorldExpo", "WorldExpo10", "WorldExpo'10", "WorldExpo_10", "WE")
    return find_folder(root, names, ("train_label", "test_label"), "WorldExpo/train_frame and train_label in it")


READER = Reader(
    "WorldExpo'10", scan, "WorldExpo/{train,test}_frame/NAME.jpg, {train,test}_label/SCENE/{NAME,roi}.mat", _find,
    splits="train, test (five scenes, each scored by itself); val: a tenth of train, whole scenes",
    source="on request from its authors (Zhang et al., CVPR 2015); for research",
)  # fmt: skip
