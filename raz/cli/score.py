"""The command `raz-sweep score`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raz.cli.options import DataRoot, Json


def score_command(
    pred: Annotated[Path, typer.Option("--pred", help="Predicted points: a CSV, JSON or benchmark text file.")],
    gt: Annotated[
        Path | None, typer.Option("--gt", help="True heads, in the same formats; boxes as columns w,h.")
    ] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", help="Take the true heads from this data set.")] = None,
    data_root: DataRoot = None,
    split: Annotated[
        str | None, typer.Option(help="Split of the data set: train, val or test.", show_default="test")
    ] = None,
    protocol: Annotated[
        list[str] | None, typer.Option(help="raz, nwpu, fidtm or qnrf; repeatable. Default: all that apply.")
    ] = None,
    sigma: Annotated[
        str | None, typer.Option(help="Sigmas of protocol raz in px, separated by commas.", show_default="40,20,5")
    ] = None,
    floor: Annotated[
        bool,
        typer.Option("--floor", help="Round coordinates down, as the published scripts of nwpu, fidtm and qnrf do."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Score predicted points by the paper's and other benchmarks' metrics.

    Points are rows of image, x, y, score. The table has the rows of each protocol.

    \b
    raz-sweep score --pred mine.csv --gt heads.csv
    raz-sweep score --pred mine.json --dataset shanghaitech_a --data-root ~/data --json
    raz-sweep score --pred pred.txt --gt val_gt_loc.txt --protocol nwpu
    """
    import json
    import sys

    from rich.console import Console
    from rich.progress import Progress

    from raz.errors import RazError
    from raz.score.points import read_points
    from raz.score.table import load_true_heads, render, score_points

    if sigma is not None and protocol and "raz" not in protocol:
        raise RazError(
            "--sigma", f"belongs to protocol raz, not to {', '.join(protocol)}", "omit it, or add --protocol raz"
        )
    sigmas = _numbers("40,20,5" if sigma is None else sigma)
    true = load_true_heads(gt, dataset, data_root, split)
    predicted = read_points(pred)
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("scoring", total=None)
        scores = score_points(
            predicted, true, protocol=protocol or (), sigmas=sigmas, floor=floor, where=str(pred),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    typer.echo(json.dumps(scores.as_json(), indent=1, allow_nan=False) if as_json else render(scores))


def _numbers(text: str) -> tuple[float, ...]:
    """The numbers of `--sigma`. Raises RazError unless they are distinct, finite and above 0."""
    from raz.errors import RazError

    try:
        values = tuple(float(word) for word in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(0 < value < float("inf") for value in values) or len(set(values)) < len(values):
        raise RazError(
            "--sigma", f"{text!r}, expected distinct numbers above 0, separated by commas", "--sigma 40,20,5"
        )
    return values
