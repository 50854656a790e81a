"""`raz-sweep score`: score predicted points against true heads under every protocol that applies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np

from raz.data import Sample, Split, open_dataset
from raz.data.images import SUFFIXES
from raz.errors import RazError, raise_all
from raz.paper.metrics import SIGMAS
from raz.score import protocols
from raz.score.points import MAX_REPORTED, PointSet, box_sigmas, read_points
from raz.score.protocols import ScoreRow
from raz.utils.json_types import Json, JsonObject
from raz.utils.suggestions import did_you_mean

PROTOCOLS = ("raz", "nwpu", "fidtm", "qnrf")
NO_BOXES = "the true heads have no boxes"


@dataclass(frozen=True)
class ScoreReport:
    """What `raz-sweep score` prints."""

    images: int
    heads: int
    points: int
    counts: Mapping[str, float]  # mae, rmse (heads per image) and nae of the number of points
    rows: tuple[ScoreRow, ...]
    notes: tuple[str, ...]

    def as_json(self) -> JsonObject:
        """The document of `--json`; 0/0 is null."""
        rows: list[Json] = [
            {name: _nan_to_none(value) for name, value in asdict(row).items() if value is not None} for row in self.rows
        ]
        counts = {name: _nan_to_none(value) for name, value in self.counts.items()}
        sizes: JsonObject = {"images": self.images, "heads": self.heads, "points": self.points}
        return {**sizes, **counts, "scores": rows, "notes": list(self.notes)}


def _nan_to_none(value: float | str) -> Json:
    return None if isinstance(value, float) and math.isnan(value) else value


def select_protocols(requested: Sequence[str], true: Mapping[str, PointSet]) -> tuple[str, ...]:
    """The requested protocols in the order of PROTOCOLS; without any, all that apply.

    Raises RazError for an unknown one, and for nwpu if heads have no boxes.
    """
    for name in requested:
        if name not in PROTOCOLS:
            raise RazError(
                "--protocol", f"{name!r}, expected one of {', '.join(PROTOCOLS)}", did_you_mean(name, PROTOCOLS)
            )
    boxed = all(heads.sigma is not None for heads in true.values() if len(heads))
    if "nwpu" in requested and not boxed:
        hint = "--gt with columns w and h, or sigma_s and sigma_l; or --dataset nwpu_crowd"
        raise RazError("--protocol nwpu", NO_BOXES, hint)
    return tuple(name for name in PROTOCOLS if (name in requested if requested else name != "nwpu" or boxed))


def score_points(
    pred: Mapping[str, PointSet],
    true: Mapping[str, PointSet],
    *,
    protocol: Sequence[str] = (),
    sigmas: Sequence[float] = SIGMAS,
    floor: bool = False,
    where: str = "predictions",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ScoreReport:
    """Score predicted points against true heads over all images of `true`.

    `protocol`: names of PROTOCOLS, by default all that apply. `sigmas` (px) are those of protocol raz. `floor` rounds
    coordinates down for nwpu, fidtm and qnrf, as their published scripts do. `where` names the predictions in errors.
    `progress(done, total)` is called after images of protocol qnrf, the slowest one. Raises RazError for predictions
    without a true image, unknown protocols and invalid sigmas.
    """
    names = select_protocols(protocol, true)
    if not true:
        raise RazError(where, "there are no true images to score against")
    paired, notes = pair_images(pred, true, where)
    images = [(paired[name], heads) for name, heads in true.items()]
    if "raz" in names and any(len(p) and p.score is None for p, _ in images):
        notes.append("the points have no scores: raz ranks them by position only, so its AP is not meaningful")
    if not protocol and "nwpu" not in names:
        notes.append(f"{NO_BOXES}, so nwpu is skipped")
    floored = [(protocols.drop_fractions(p), protocols.drop_fractions(h)) for p, h in images] if floor else images
    rows: list[ScoreRow] = []
    for name in names:
        if name == "raz":
            rows += protocols.raz(images, sigmas)
        elif name == "qnrf":
            rows += protocols.qnrf(floored, progress)
        else:
            rows += {"nwpu": protocols.nwpu, "fidtm": protocols.fidtm}[name](floored)
    heads, points = sum(len(h) for _, h in images), sum(len(p) for p, _ in images)
    return ScoreReport(len(images), heads, points, protocols.count_errors(images), tuple(rows), tuple(notes))


def pair_images(
    pred: Mapping[str, PointSet], true: Mapping[str, PointSet], where: str
) -> tuple[dict[str, PointSet], list[str]]:
    """The predictions under the names of the true images, and notes for the user.

    A name matches exactly, or else by its last part without suffix if that is unique: `IMG_1.jpg` matches
    `test/IMG_1`. A true image without a prediction gets an empty point set. Raises RazError for predictions that match
    no true image or several, and for two that match the same one.
    """
    short: dict[str, list[str]] = {}
    for name in true:
        short.setdefault(_stem(name), []).append(name)
    faults: list[RazError] = []
    out: dict[str, PointSet] = {}
    source: dict[str, str] = {}  # true image -> the name of its prediction
    for name, points in pred.items():
        matches = [name] if name in true else short.get(_stem(name), [])
        if len(matches) != 1:
            what = "matches several of the true images" if matches else "is not among the true images"
            faults.append(RazError(where, f"{name!r} {what}", did_you_mean(name, matches or true)))
        elif matches[0] in out:
            faults.append(
                RazError(where, f"{source[matches[0]]!r} and {name!r} match the same true image, {matches[0]!r}")
            )
        else:
            out[matches[0]], source[matches[0]] = points, name
    if len(faults) > MAX_REPORTED:
        faults[MAX_REPORTED:] = [RazError(where, f"and {len(faults) - MAX_REPORTED} more images")]
    raise_all(faults)
    missing = [name for name in true if name not in out]
    notes = []
    if missing:
        shown = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
        notes.append(f"{len(missing)} of {len(true)} images have no prediction and count as empty: {shown}")
        empty = PointSet(np.zeros((0, 2)), np.zeros(0))
        out |= dict.fromkeys(missing, empty)
    return out, notes


def _stem(name: str) -> str:
    """The last part of a path, without the suffix of an image file."""
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    head, dot, suffix = last.rpartition(".")
    return head if f"{dot}{suffix.lower()}" in SUFFIXES else last


def load_true_heads(gt: Path | None, dataset: str | None, root: Path | None, split: str | None) -> dict[str, PointSet]:
    """The true heads by image, of the file `gt` or of a data set's split (default: test).

    Raises RazError unless exactly one of `gt` and `dataset` is given, for an unknown split, and for `split` with `gt`.
    """
    if (gt is None) == (dataset is None):
        raise RazError("score", "the true heads come from --gt FILE or from --dataset NAME", "give one of them")
    if gt is not None:
        if split is not None:
            raise RazError("--split", f"{split!r}, but the heads of --gt have no splits", "omit it")
        return read_points(gt)
    opened, split = open_dataset(str(dataset), root), split or "test"
    if split not in opened.items:
        raise RazError(
            "--split", f"{split!r}, expected one of {', '.join(opened.items)}", did_you_mean(split, opened.items)
        )
    return {item.id: _head_set(item) for item in opened.items[cast(Split, split)]}


def _head_set(item: Sample) -> PointSet:
    """An image's heads, with the sigmas and levels of their boxes if the data set has boxes."""
    if item.load_sizes is None:
        return PointSet(item.load_heads())
    return PointSet(item.load_heads(), None, *box_sigmas(*item.load_sizes().T))


def render(scores: ScoreReport) -> str:
    """The report as a text table; 0/0 is printed as -."""

    def cell(value: float | None) -> str:
        return "" if value is None else "-" if math.isnan(value) else f"{value:.4f}"

    header = ("protocol", "setting", "AP", "AR", "precision", "recall", "F1")
    cells = [
        (r.protocol, r.setting, *(cell(v) for v in (r.ap, r.ar, r.precision, r.recall, r.f1))) for r in scores.rows
    ]
    widths = [max(len(line[i]) for line in (header, *cells)) for i in range(len(header))]
    lines = [
        f"{scores.images} images, {scores.heads} heads, {scores.points} points",
        "count: " + ", ".join(f"{name.upper()} {_number(value)}" for name, value in scores.counts.items()),
        "",
    ]
    for line in (header, *cells):
        left = [f"{text:<{widths[i]}}" if i < 2 else f"{text:>{widths[i]}}" for i, text in enumerate(line)]
        lines.append("  ".join(left).rstrip())
    return "\n".join([*lines, *(f"note: {note}" for note in scores.notes)])


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.4g}"
