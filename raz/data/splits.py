"""Detection of identical images in two splits, and the validation split (24)."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raz.data.contract import Sample, ScannedSample, Split
from raz.errors import RazError

VAL_FRACTION = 0.1
TWO_FROM = 6  # training images from which at least two are for validation: a fit to one must score another (I9)


@dataclass(frozen=True)
class Leak:
    """Two byte-identical image files in different splits."""

    image: str  # id in the earlier split (train before val before test)
    twin: str  # id in the later one


def find_leaks(samples: Mapping[Split, Sequence[ScannedSample]]) -> tuple[Leak, ...]:
    """All pairs of byte-identical images in different splits, in the order of the earlier split."""
    leaks = []
    order: tuple[Split, ...] = ("train", "val", "test")
    for a, first in enumerate(order):
        for second in order[a + 1 :]:
            later = defaultdict(list)
            for s in samples.get(second, ()):
                later[s.image_digest].append(s.sample.id)
            leaks += [Leak(s.sample.id, twin) for s in samples.get(first, ()) for twin in later.get(s.image_digest, ())]
    return tuple(leaks)


def id_hash(item_id: str) -> str:
    """sha256 of an image's id, hexadecimal; orders images for splits."""
    return hashlib.sha256(item_id.encode()).hexdigest()


def split_validation(
    items: Sequence[Sample], fraction: float = VAL_FRACTION, *, where: str = "validation split"
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """(train, val) of the training images: val takes a fraction of them, those with the lowest `id_hash` (24).

    Scenes are moved to val as a whole, in the order of their lowest hash, until val has round(fraction · n) images, at
    least two if n is 6 or more, else at least one; it may exceed that by less than one scene. Both results keep the
    order of `items`. The choice depends only on the set of ids and scenes. `where` names the data set in errors. Raises
    RazError for fewer than two scenes.
    """
    scenes: dict[str, list[Sample]] = defaultdict(list)
    for item in items:
        scenes[item.scene].append(item)
    if len(scenes) < 2:
        raise RazError(
            where,
            f"{len(items)} training image(s) of {len(scenes)} scene(s), expected two scenes or more",
            "add training images: some are used for validation",
        )
    wanted = max(2 if len(items) >= TWO_FROM else 1, round(fraction * len(items)))
    ranked = sorted(scenes, key=lambda scene: min(id_hash(item.id) for item in scenes[scene]))
    val: set[str] = set()
    for scene in ranked[:-1]:  # at least one scene remains for training
        if len(val) >= wanted:
            break
        val |= {item.id for item in scenes[scene]}
    return tuple(s for s in items if s.id not in val), tuple(s for s in items if s.id in val)
