"""Tables, inline and under Ray: which trials run, how they end, and how a run stops and goes on."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from raz.engine.events import NullEvents
from raz.engine.interrupt import StopRequest
from raz.engine.results import TableResult
from raz.engine.runner import Execution
from raz.engine.table_runner import run_table
from raz.errors import RazError
from raz.pipeline.events import StageEvent
from raz.spec.ablation_yaml import parse_table
from raz.store.manifest import read_manifest
from raz.study.records import Outcome
from raz.utils.yamlfile import parse
from tests.test_pipeline import MICRO

FAKE = "tests.fakes_engine:run_trial"


def lines(store: Path) -> list[str]:
    """The trials that were run: depth, gamma, seed, splits and process of each."""
    return (store / "count").read_text().splitlines()


TABLE = """\
table: tiny
metrics: [test.mae]
seeds: [0, 13]
profiles:
  toy: {base: {preset: tiny}, datasets: [toy]}
  paper: {base: {preset: paper}, datasets: [shanghaitech_a, ucf_qnrf]}
  both: {base: {preset: tiny}, datasets: [ucf_qnrf, toy]}
rows:
  main: {set: {depth: 1}}
  twice: {set: {depth: 2}}
"""


def cells(result: TableResult) -> list[tuple[Any, ...]]:
    return [
        (c.row, c.dataset, c.seed, c.outcome.state, c.outcome.reason, dict(c.outcome.metrics or {}).get("test.mae"))
        for c in result.cells
    ]


TOY_CELLS = [
    ("main", "toy", 0, "complete", "", 20.0),
    ("twice", "toy", 0, "complete", "", 10.0),
    ("main", "toy", 13, "failed", "nan", None),
    ("twice", "toy", 13, "failed", "nan", None),
]


def test_a_table_runs_its_rows_and_seeds_and_nothing_else(tmp_path: Path) -> None:
    result = run_table(parse_table(parse(TABLE, "t.yaml")), tmp_path, inline=True, run_trial=FAKE)
    assert cells(result) == TOY_CELLS
    assert sorted(lines(tmp_path)) == sorted(
        f"{depth} 100.0 {seed} val+test {os.getpid()}" for depth in (1, 2) for seed in (0, 13)
    )
    assert len(result.failed) == 2


@pytest.mark.parametrize(
    ("cpus", "gpus", "jobs", "inline", "session"),
    [
        (1, 0, None, True, None),
        (8, 0, None, False, 4),  # four trials
        (8, 1, None, False, 4),  # one stage at a time on the GPU, and predictions and scores on CPUs beside it
        (8, 2, 1, True, None),
    ],
)
def test_what_a_table_runs_on(
    cpus: int, gpus: int, jobs: int | None, inline: bool, session: int | None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    used: list[Execution] = []

    def begin(source: object, execution: Execution, *_: object) -> None:
        used.append(execution)
        raise RazError("test", "this is all")

    for module in ("ray_session", "table_runner"):
        monkeypatch.setattr(f"raz.engine.{module}.available_cpus", lambda: cpus)
    monkeypatch.setattr("raz.engine.ray_session.local_gpus", lambda: gpus)
    monkeypatch.setattr("raz.engine.table_runner.engine_session", lambda execution: nullcontext())
    monkeypatch.setattr("raz.engine.table_runner.run_trials", begin)
    with pytest.raises(RazError, match="this is all"):
        run_table(parse_table(parse(TABLE, "t.yaml")), tmp_path, jobs=jobs, run_trial=FAKE)
    assert (used[-1].inline, used[-1].slots) == (inline, min(4, gpus or cpus) if not inline else 1)
    if session is not None:
        assert used[-1].cpus == session


def test_a_data_set_that_is_not_there_is_left_out_and_named(tmp_path: Path) -> None:
    table = parse_table(parse(TABLE, "t.yaml"))
    result = run_table(table, tmp_path, profile="both", inline=True, run_trial=FAKE)
    assert cells(result) == TOY_CELLS
    assert "ucf_qnrf" in result.left_out["ucf_qnrf"]
    with pytest.raises(RazError):  # neither of the two is there
        run_table(table, tmp_path, profile="paper", data_root=tmp_path, inline=True, run_trial=FAKE)


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_a_table_under_ray(tmp_path: Path) -> None:
    table = parse_table(parse(TABLE, "t.yaml"))
    assert cells(run_table(table, tmp_path, jobs=2, run_trial=FAKE)) == TOY_CELLS
    assert str(os.getpid()) not in {line.split()[4] for line in lines(tmp_path)}

    heard: set[tuple[int, str, str]] = set()

    class Listening(NullEvents):
        def stage(self, number: int, event: StageEvent) -> None:
            heard.add((number, event.kind, event.key))

    run_table(table, tmp_path, jobs=2, run_trial="tests.fakes_engine:telling", watch=nullcontext(Listening()))
    kinds = ("started", "epoch", "finished")
    assert heard == {(i, kind, f"key {1 + i % 2}") for i in range(4) for kind in kinds}
    full = parse_table(parse(TABLE.replace("13", "16"), "t.yaml"))
    with pytest.raises(OSError, match="No space left"):
        run_table(full, tmp_path, jobs=2, run_trial=FAKE)


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_a_table_under_ray_stops_cleanly_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "sleep").write_text("0 0.5")
    table = parse_table(parse(TABLE.replace("[0, 13]", "[0, 1, 2]"), "t.yaml"))
    stop = StopRequest()

    class Ending(NullEvents):
        def done(self, number: int, text: str, outcome: Outcome | None = None) -> None:
            stop.request()

    first = run_table(table, tmp_path, jobs=2, run_trial=FAKE, watch=nullcontext(Ending()), stop=stop)
    assert first.stopped == "stopped by Ctrl-C"
    assert 1 <= len(first.cells) < 6
    assert len(first.cells) + first.left == 6
    assert not first.failed  # a trial that the stop ended has not failed
    (tmp_path / "sleep").unlink()
    last = run_table(table, tmp_path, jobs=2, run_trial=FAKE)
    assert (len(last.cells), last.left, last.stopped, last.failed) == (6, 0, "", ())


def test_a_table_whose_scores_are_stored_makes_no_stage_again(tmp_path: Path) -> None:
    """A pull brings scores without the weights that they were made from."""
    values = ", ".join(f"{name}: {json.dumps(value)}" for name, value in MICRO.items() if name != "dataset")
    text = f"""\
table: scores
metrics: [test.mae]
seeds: [0, 1]
profiles:
  toy: {{base: {{preset: tiny, set: {{{values}}}}}, datasets: [toy]}}
rows:
  main: {{set: {{depth: 1, fusion.rule: density}}}}
"""
    table = parse_table(parse(text, "t.yaml"))
    first = run_table(table, tmp_path, inline=True)
    for folder in (tmp_path / "stages").iterdir():
        if folder.name != "score":
            shutil.rmtree(folder)
    events: list[str] = []

    class Listening(NullEvents):
        def stage(self, number: int, event: StageEvent) -> None:
            events.append(f"{event.kind} {event.stage}")

    again = run_table(table, tmp_path, jobs=2, watch=nullcontext(Listening()))
    assert sorted(events) == sorted(["hit score@val", "hit score@test"] * 2)
    assert [c.outcome.metrics for c in again.cells] == [c.outcome.metrics for c in first.cells]
    assert not any(use.spent for c in again.cells for use in c.outcome.stages)
    folders = sorted(path for path in (tmp_path / "stages" / "score").iterdir() if path.is_dir())
    shown = next(path for path in folders if read_manifest(path).stage == "score@test")  # the table shows no other
    (shown / "metrics.json").write_text("{}")  # damage is a miss: its trial is run again
    events.clear()
    mended = run_table(table, tmp_path, inline=True, watch=nullcontext(Listening()))
    assert [c.outcome.metrics for c in mended.cells] == [c.outcome.metrics for c in first.cells]
    assert events.count("started counting") == 1
