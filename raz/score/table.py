"""`raz-sweep score`: from two files (or a file and a data set) to one table of every protocol that applies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from raz.data import Sample, Split, open_dataset
from raz.errors import RazError
from raz.paper.metrics import SIGMAS
from raz.score import protocols
from raz.score.points import PointSet, box_sigmas, pair_images, read_points
from raz.score.protocols import ScoreRow
from raz.utils.suggestions import did_you_mean

PROTOCOLS = ("raz", "nwpu", "fidtm", "qnrf")
NO_BOXES = "the true heads have no boxes"


@dataclass(frozen=True)
class ScoreReport:
    """What `raz-sweep score` prints. `counts` holds mae, rmse and nae of the number of points."""

    images: int
    heads: int
    points: int
    counts: Mapping[str, float]
    rows: tuple[ScoreRow, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """JSON values only; what is 0/0 is null."""
        rows = [{k: _defined(v) for k, v in asdict(row).items() if v is not None} for row in self.rows]
        counts = {name: _defined(value) for name, value in self.counts.items()}
        about = {"images": self.images, "heads": self.heads, "points": self.points}
        return {**about, **counts, "scores": rows, "notes": list(self.notes)}


def _defined(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def select_protocols(asked: Sequence[str], true: Mapping[str, PointSet]) -> tuple[str, ...]:
    """Those asked for, or all that apply. Raises RazError for an unknown one, and for nwpu without boxes."""
    for name in asked:
        if name not in PROTOCOLS:
            raise RazError(
                "--protocol", f"{name!r}, expected one of {', '.join(PROTOCOLS)}", did_you_mean(name, PROTOCOLS)
            )
    boxed = all(heads.sigma is not None for heads in true.values() if len(heads))
    if "nwpu" in asked and not boxed:
        hint = "--gt with columns w and h, or sigma_s and sigma_l; or --dataset nwpu_crowd"
        raise RazError("--protocol nwpu", NO_BOXES, hint)
    return tuple(name for name in PROTOCOLS if (name in asked if asked else name != "nwpu" or boxed))


def score_points(
    pred: Mapping[str, PointSet],
    true: Mapping[str, PointSet],
    *,
    protocol: Sequence[str] = (),
    sigmas: Sequence[float] = SIGMAS,
    floor: bool = False,
    where: str = "predictions",
    told: Callable[[int, int], None] = lambda done, total: None,
) -> ScoreReport:
    """Score predictions against true heads, image by image of `true`, under the protocols (all that apply: none named).

    `floor` rounds coordinates down for nwpu, fidtm and qnrf, as their published scripts do. Raises RazError for images
    that do not belong together, unknown protocols and wrong sigmas.
    """
    names = select_protocols(protocol, true)
    if not true:
        raise RazError(where, "there are no true images to score against")
    found, notes = pair_images(pred, true, where)
    images = [(found[name], heads) for name, heads in true.items()]
    if "raz" in names and any(len(p) and p.score is None for p, _ in images):
        notes.append("the points have no scores: raz ranks them by position alone, so its AP means little")
    if not protocol and "nwpu" not in names:
        notes.append(f"{NO_BOXES}, so nwpu is left out")
    whole = [(protocols.drop_fractions(p), protocols.drop_fractions(h)) for p, h in images] if floor else images
    rows: list[ScoreRow] = []
    for name in names:
        if name == "raz":
            rows += protocols.raz(images, sigmas)
        elif name == "qnrf":
            rows += protocols.qnrf(whole, told)
        else:
            rows += {"nwpu": protocols.nwpu, "fidtm": protocols.fidtm}[name](whole)
    heads, points = sum(len(h) for _, h in images), sum(len(p) for p, _ in images)
    return ScoreReport(len(images), heads, points, protocols.count_errors(images), tuple(rows), tuple(notes))


def load_true_heads(gt: Path | None, dataset: str | None, root: Path | None, split: str | None) -> dict[str, PointSet]:
    """The heads of a file, or of a split (test unless named) of a data set. Raises RazError unless exactly one of both
    is named, and where a file is given what only a data set has."""
    if (gt is None) == (dataset is None):
        raise RazError("score", "the true heads come from --gt FILE or from --dataset NAME", "give one of them")
    if gt is not None:
        if split is not None:
            raise RazError("--split", f"{split!r}, but the heads of --gt have no splits", "leave it out")
        return read_points(gt)
    opened, split = open_dataset(str(dataset), root), split or "test"
    if split not in opened.items:
        raise RazError(
            "--split", f"{split!r}, expected one of {', '.join(opened.items)}", did_you_mean(split, opened.items)
        )
    return {item.id: _heads_of(item) for item in opened.items[cast(Split, split)]}


def _heads_of(item: Sample) -> PointSet:
    """An image's heads, with the sigmas and levels of their boxes where the data set has boxes."""
    if item.load_sizes is None:
        return PointSet(item.load_heads())
    return PointSet(item.load_heads(), None, *box_sigmas(*item.load_sizes().T))


def render(scores: ScoreReport) -> str:
    """The table as text."""

    def shown(value: float | None) -> str:
        return "" if value is None else "-" if math.isnan(value) else f"{value:.4f}"

    header = ("protocol", "setting", "AP", "AR", "precision", "recall", "F1")
    cells = [
        (r.protocol, r.setting, *(shown(v) for v in (r.ap, r.ar, r.precision, r.recall, r.f1))) for r in scores.rows
    ]
    wide = [max(len(line[i]) for line in (header, *cells)) for i in range(len(header))]
    lines = [
        f"{scores.images} images, {scores.heads} heads, {scores.points} points",
        "count: " + ", ".join(f"{name.upper()} {_number(value)}" for name, value in scores.counts.items()),
        "",
    ]
    for line in (header, *cells):
        left = [f"{word:<{wide[i]}}" if i < 2 else f"{word:>{wide[i]}}" for i, word in enumerate(line)]
        lines.append("  ".join(left).rstrip())
    return "\n".join([*lines, *(f"note: {note}" for note in scores.notes)])


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.4g}"
