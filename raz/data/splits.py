"""Leaks between training and test images, and the validation split (24)."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raz.data.contract import Sample, ScannedSample, Split
from raz.errors import RazError

VAL_FRACTION = 0.1


@dataclass(frozen=True)
class Leak:
    """An image of one split whose bytes are also an image of another."""

    image: str  # id in the earlier split (train before val before test)
    twin: str  # id in the later one


def find_leaks(found: Mapping[Split, Sequence[ScannedSample]]) -> tuple[Leak, ...]:
    """Byte-identical images across splits, each pair once, in the order of the first."""
    leaks = []
    order: tuple[Split, ...] = ("train", "val", "test")
    for a, first in enumerate(order):
        for second in order[a + 1 :]:
            later = defaultdict(list)
            for f in found.get(second, ()):
                later[f.image_digest].append(f.item.id)
            leaks += [Leak(f.item.id, twin) for f in found.get(first, ()) for twin in later.get(f.image_digest, ())]
    return tuple(leaks)


def id_hash(item_id: str) -> str:
    """The hash that orders images for the split: sha256 of the id, hexadecimal."""
    return hashlib.sha256(item_id.encode()).hexdigest()


def split_validation(
    items: Sequence[Sample], fraction: float = VAL_FRACTION, *, where: str = "validation split"
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """(train, val): round(`fraction`) of the images, those with the lowest hash of their id (24).

    Scenes are taken whole, in the order of their lowest hash, until the number is reached, so val may
    exceed it by less than one scene. At least one image; both keep the order of `items`. The choice
    depends on the set of ids and scenes only. Raises RazError when there are not two scenes to part.
    """
    scenes: dict[str, list[Sample]] = defaultdict(list)
    for item in items:
        scenes[item.scene].append(item)
    if len(scenes) < 2:
        raise RazError(
            where,
            f"{len(items)} training image(s) of {len(scenes)} scene(s), expected two scenes or more",
            "add training images: some are set aside for validation",
        )
    wanted = max(1, round(fraction * len(items)))
    ranked = sorted(scenes, key=lambda scene: min(id_hash(item.id) for item in scenes[scene]))
    val: set[str] = set()
    for scene in ranked[:-1]:  # one scene at least stays for training
        if len(val) >= wanted:
            break
        val |= {item.id for item in scenes[scene]}
    return tuple(i for i in items if i.id not in val), tuple(i for i in items if i.id in val)
