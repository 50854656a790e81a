"""UCF-QNRF (Idrees et al., ECCV 2018) and UCF_CC_50 (Idrees et al., CVPR 2013) in their native layouts.

    UCF-QNRF_ECCV18/{Train,Test}/img_0001.jpg, img_0001_ann.mat
    UCF_CC_50/1.jpg, 1_ann.mat … 50.jpg, 50_ann.mat

Both annotate with `annPoints`, (n, 2) x, y px, as read by C-3-Framework (datasets/QNRF/preapre_QNRF.m,
datasets/UCF50/preapre_UCF_CC_50.m) and Bayesian-Crowd-Counting (preprocess_dataset.py). Neither ships a validation
split.

UCF_CC_50 is scored by five-fold cross-validation over images drawn at random, and everybody draws anew. Here fold k
of `ucf_cc_50@k` tests the k-th ten images in the order of their numbers, so `@1` tests 1.jpg to 10.jpg; the
protocol's number is the mean over the five.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from raz.data.contract import Reader, ScannedSample, ScanResult, Split
from raz.data.image_pairs import (
    Annotation,
    Pair,
    ScanBuilder,
    files_by_name,
    find_folder,
    list_folder,
    list_images,
    note_orphans,
    read_pairs,
)
from raz.data.matlab import read_ann_points

QNRF: tuple[tuple[Split, str, int], ...] = (("train", "Train", 1201), ("test", "Test", 334))
FOLDS = 5
_CC_50 = 50


def _parse(data: bytes, where: str) -> Annotation:
    return Annotation(read_ann_points(data, where))


def _beside(folder: Path, prefix: str, notes: ScanBuilder, example: str) -> list[Pair]:
    """Every image of a folder with NAME_ann.mat beside it."""
    labels = files_by_name(list_folder(folder, ScanBuilder()) or (), ".mat", notes)
    pairs = []
    for picture in list_images(folder, notes, example):
        name = f"{picture.stem}_ann.mat"
        pairs.append(Pair(f"{prefix}/{picture.stem}", picture, labels.get(name.lower()), folder / name))
    if pairs:
        note_orphans(labels, pairs, notes)
    return pairs


def scan_qnrf(folder: Path | None) -> ScanResult:
    """Read every annotation and hash every file of UCF-QNRF; no image is decoded."""
    assert folder is not None
    notes = ScanBuilder()
    found: dict[Split, tuple[ScannedSample, ...]] = {}
    for split, name, published in QNRF:
        pairs = _beside(_cased(folder, name), split, notes, "img_0001.jpg, img_0002.jpg, …")
        notes.compare_size(split, len(pairs), published)
        found[split] = read_pairs(pairs, _parse, notes)
    return notes.scan(found)


def _cased(folder: Path, name: str) -> Path:
    """`Train`, or `train` as some copies write it."""
    return folder / name if (folder / name).exists() else folder / name.lower()


def scan_cc_50(fold: int, folder: Path | None) -> ScanResult:
    """Read all fifty images of UCF_CC_50: those of the fold are for testing, the others for training."""
    assert folder is not None
    notes = ScanBuilder()
    pairs = _beside(folder, "image", notes, "1.jpg, 2.jpg, …")
    if len(pairs) != _CC_50:
        notes.warnings.append(f"{len(pairs)} images, {_CC_50} were published: scores do not compare")
    size = -(-len(pairs) // FOLDS)
    tested = pairs[(fold - 1) * size : fold * size]
    ids = {pair.id for pair in tested}
    return notes.scan(
        {
            "train": read_pairs([pair for pair in pairs if pair.id not in ids], _parse, notes),
            "test": read_pairs(tested, _parse, notes),
        }
    )


def _find_qnrf(root: Path) -> Path:
    return find_folder(
        root, ("UCF-QNRF_ECCV18", "UCF-QNRF", "UCF_QNRF"), ("Train", "Test"), "UCF-QNRF_ECCV18/Train/img_0001.jpg in it"
    )


def _find_cc_50(root: Path) -> Path:
    return find_folder(root, ("UCF_CC_50", "UCF-CC-50"), ("1.jpg", "1_ann.mat"), "UCF_CC_50/1.jpg in it")


READER_QNRF = Reader(
    "UCF-QNRF", scan_qnrf, "UCF-QNRF_ECCV18/{Train,Test}/img_0001.jpg, img_0001_ann.mat", _find_qnrf,
    splits="train, test; val: a tenth of train",
    source="crcv.ucf.edu, data sets, ucf-qnrf; for research",
)  # fmt: skip
READERS_CC_50 = {
    f"ucf_cc_50@{fold}": Reader(
        f"UCF_CC_50, fold {fold}", partial(scan_cc_50, fold), "UCF_CC_50/1.jpg, 1_ann.mat", _find_cc_50,
        splits=f"test: images {10 * fold - 9} to {10 * fold}, train: the others; val: a tenth of train",
        source="crcv.ucf.edu, data sets, ucf-cc-50; for research",
    )
    for fold in range(1, FOLDS + 1)
}  # fmt: skip
