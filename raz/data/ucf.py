"""UCF-QNRF (Idrees et al., ECCV 2018) and UCF_CC_50 (Idrees et al., CVPR 2013) in their native layouts.

    UCF-QNRF_ECCV18/{Train,Test}/img_0001.jpg, img_0001_ann.mat
    UCF_CC_50/1.jpg, 1_ann.mat … 50.jpg, 50_ann.mat

Annotations are `annPoints`, (n, 2) x, y px, as in C-3-Framework (datasets/QNRF/preapre_QNRF.m,
datasets/UCF50/preapre_UCF_CC_50.m) and Bayesian-Crowd-Counting (preprocess_dataset.py). Neither data set ships a
validation split.

UCF_CC_50 is scored by five-fold cross-validation; its folds are not published, and papers draw them at random. Here
`ucf_cc_50@k` tests the k-th ten images in the order of their numbers, so `@1` tests 1.jpg to 10.jpg. The reported score
is the mean over the five folds.
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


def _find_pairs(folder: Path, prefix: str, builder: ScanBuilder, example: str) -> list[Pair]:
    """Every image of a folder with its annotation NAME_ann.mat in the same folder."""
    # an unreadable folder is reported once, by list_images below
    labels = files_by_name(list_folder(folder, ScanBuilder()) or (), ".mat", builder)
    pairs = []
    for picture in list_images(folder, builder, example):
        name = f"{picture.stem}_ann.mat"
        pairs.append(Pair(f"{prefix}/{picture.stem}", picture, labels.get(name.lower()), folder / name))
    if pairs:
        note_orphans(labels, pairs, builder)
    return pairs


def scan_qnrf(folder: Path | None) -> ScanResult:
    """Scan UCF-QNRF: annotations are parsed, files hashed, no image is decoded."""
    assert folder is not None
    builder = ScanBuilder()
    samples: dict[Split, tuple[ScannedSample, ...]] = {}
    for split, name, published in QNRF:
        pairs = _find_pairs(_split_folder(folder, name), split, builder, "img_0001.jpg, img_0002.jpg, …")
        builder.compare_size(split, len(pairs), published)
        samples[split] = read_pairs(pairs, _parse, builder)
    return builder.result(samples)


def _split_folder(folder: Path, name: str) -> Path:
    """The folder `Train`, or `train` in some copies."""
    return folder / name if (folder / name).exists() else folder / name.lower()


def scan_cc_50(fold: int, folder: Path | None) -> ScanResult:
    """Scan UCF_CC_50 with the images of one fold (1 to 5) as test split, and the others as training split."""
    assert folder is not None
    builder = ScanBuilder()
    pairs = _find_pairs(folder, "image", builder, "1.jpg, 2.jpg, …")
    if len(pairs) != _CC_50:
        builder.warnings.append(f"{len(pairs)} images, {_CC_50} were published: scores are not comparable")
    size = -(-len(pairs) // FOLDS)
    test_pairs = pairs[(fold - 1) * size : fold * size]
    ids = {pair.id for pair in test_pairs}
    return builder.result(
        {
            "train": read_pairs([pair for pair in pairs if pair.id not in ids], _parse, builder),
            "test": read_pairs(test_pairs, _parse, builder),
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
