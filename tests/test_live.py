"""What a run shows and how it stops: the sums of the view, real processes on a pty, real signals."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from raz.engine.events import ConsoleProgress
from raz.engine.interrupt import OUT_OF_TIME, RunInterrupted, StopRequest, handle_signals
from raz.engine.progress import MAX_STAGE_LINES, ProgressView, spent_and_saved, spent_and_saved_seconds
from raz.engine.study_runner import run_study
from raz.engine.table_runner import run_table
from raz.pipeline.events import StageEvent, StageUse
from raz.spec.ablation_yaml import parse_table
from raz.spec.space_yaml import parse_space
from raz.study.records import TrialRecord, read_records
from raz.utils.yamlfile import parse

HERE = Path(__file__).resolve().parent
SPACE = """\
study: depths
base: {preset: tiny, dataset: toy}
design: {sampler: grid}
parameters:
  depth: {choice: [1, 2, 3]}
"""


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def record(number: int, state: str = "complete", **fields: Any) -> TrialRecord:
    empty: dict[str, Any] = {
        "study": "s", "values": {}, "config": {}, "value": None, "metrics": {}, "stages": (), "steps": {},
        "reason": "", "message": "", "seconds": 1.0, "versions": {}, "retry_of": None, "started": None,
        "finished": None,
    }  # fmt: skip
    names = TrialRecord.__dataclass_fields__
    return TrialRecord(**{k: v for k, v in (empty | fields).items() if k in names}, number=number, state=state)


def screen(view: ProgressView, width: int = 120) -> str:
    console = Console(file=StringIO(), record=True, width=width, force_terminal=True)
    console.print(view)
    return console.export_text()


def epoch(key: str, number: int, seconds: float, of: int = 10) -> StageEvent:
    return StageEvent("epoch", "counting", key, epoch=number, epochs=of, loss=0.5, value=12.345, seconds=seconds)


# ------------------------------------------------------------------ the view


def test_a_stage_counts_once_however_many_trials_report_it() -> None:
    clock = Clock()
    view = ProgressView("study s", 9, "val.mae", clock=clock)
    for trial in (0, 1, 2):
        view.started(trial, {})
        view.stage(trial, StageEvent("waiting", "counting", "k"))
    assert "0 made, 0 running, 1 waiting, 0 from the store" in screen(view)
    for trial in (2, 0, 1):
        view.stage(trial, StageEvent("started", "counting", "k"))
    for trial in (0, 1, 2):  # each reports every epoch
        for number in (1, 2, 3):
            view.stage(trial, epoch("k", number, seconds=4.0))
    assert "0 made, 1 running, 0 waiting, 0 from the store" in screen(view)
    # seven epochs of four seconds are left
    assert "counting" in screen(view)
    assert re.search(r"3/10 +loss 0\.5 +val 12\.3\d? +28\.0 s left +trials 0, 1, 2", screen(view))
    for trial in (0, 1, 2):
        view.stage(trial, StageEvent("finished", "counting", "k", seconds=40))
    view.stage(1, epoch("k", 10, seconds=4.0))  # a late event
    view.stage(1, StageEvent("hit", "counting", "k", seconds=40))  # made in this run, so not from the store
    view.stage(1, StageEvent("hit", "density@val", "other", seconds=1))
    assert "1 made, 0 running, 0 waiting, 1 from the store" in screen(view)


def test_before_the_first_stage_the_view_shows_that_it_starts() -> None:
    view = ProgressView("study s", 9, "val.mae", clock=Clock())
    assert "starting: no stage has begun yet" in screen(view)
    view.started(0, {})
    assert "starting" in screen(view)
    view.stage(0, StageEvent("waiting", "counting", "k"))
    assert "starting" not in screen(view)
    view = ProgressView("study s", 9, "val.mae", clock=Clock())
    view.stage(0, StageEvent("hit", "counting", "k", seconds=1))
    assert "starting" not in screen(view)


def test_a_stage_without_trials_is_not_shown_running() -> None:
    view = ProgressView("s", 3, "val.mae")
    view.stage(0, StageEvent("started", "counting", "a"))
    view.stage(1, StageEvent("started", "attention", "b"))
    view.stage(2, StageEvent("waiting", "attention", "c"))
    view.stage(1, StageEvent("failed", "attention", "b", reason="nan"))
    view.done(0)  # stopped without an event of its stage
    view.done(2)
    assert "0 made, 0 running, 0 waiting" in screen(view)


def test_the_time_left_of_a_prediction_follows_from_the_images_so_far() -> None:
    clock = Clock()
    view = ProgressView("s", 1, "val.mae", clock=clock)
    view.stage(0, StageEvent("started", "zoom2@val", "z"))
    clock.now += 10
    view.stage(0, StageEvent("images", "zoom2@val", "z", epoch=5, epochs=20))
    assert re.search(r"zoom2@val .*5/20 +30\.0 s left", screen(view))


def test_the_best_the_pruned_the_failed_and_what_it_cost() -> None:
    view = ProgressView("study s", 9, "val.mae", clock=Clock())
    stages = (StageUse("counting", "k", hit=False, seconds=60.0, spent=50.0),)
    view.finished(record(0, value=5.0, values={"depth": 2}, stages=stages))
    hits = (StageUse("counting", "k", True, 60.0), StageUse("counting", "l", True, 90.0))
    view.finished(record(1, value=3.0, values={"depth": 3}, stages=hits))
    view.finished(record(2, value=4.0))
    view.finished(record(3, "pruned", steps={1: 9.0, 4: 7.5}))
    view.finished(record(4, "failed", reason="nan", message="diverged\nmore"))
    view.finished(record(5, "failed", reason="oom", message="full"))
    shown = screen(view)
    assert "6/9 trials" in shown
    assert re.search(r"best +trial 1, val\.mae 3  depth=3", shown)
    assert re.search(r"pruned +1: trial 3 at step 4 \(7\.5\)", shown)
    assert re.search(r"failed +nan 1, oom 1: trial 5: oom full", shown)
    assert re.search(r"compute +50\.0 s spent, 2 min 30 s saved by sharing \(4\.0 times less\)", shown)


def test_the_best_trial_depends_on_the_direction() -> None:
    view = ProgressView("s", 2, "val.map", direction="maximize")
    for number, value in enumerate((0.2, 0.7, 0.5)):
        view.finished(record(number, value=value))
    assert "trial 1, val.map 0.7" in screen(view)


def test_a_screen_stays_small() -> None:
    view = ProgressView("s", 500, "val.mae")
    for i in range(100):
        view.started(i, {})
        view.stage(i, StageEvent("started", "counting", f"k{i}"))
        view.finished(record(1000 + i, "failed", reason="error", message="x" * 500))
        view.finished(record(2000 + i, "pruned"))
    lines = screen(view, width=80).splitlines()
    assert len(lines) <= MAX_STAGE_LINES + 8
    assert f"and {100 - MAX_STAGE_LINES} more" in "\n".join(lines)
    assert max(map(len, lines)) <= 80


def test_compute_is_conserved() -> None:
    stages = [
        StageUse("counting", "a", hit=False, seconds=10.0, spent=10.0),
        StageUse("localization", "b", hit=True, seconds=7.0, spent=0.0),
        StageUse("zoom", "c", hit=False, seconds=4.0, spent=1.0),  # three were in a checkpoint
    ]
    assert spent_and_saved_seconds(stages) == (11.0, 7.0)
    assert spent_and_saved(0.0, 0.0) == "0.0 s spent, 0.0 s saved by sharing"


def test_each_line_is_printed_once_where_there_is_no_terminal() -> None:
    out = StringIO()
    with ConsoleProgress(Console(file=out, width=200), 2, "val.mae") as events:
        for trial in (0, 1):
            events.started(trial, {"depth": trial})
            events.stage(trial, StageEvent("started", "counting", "k"))
            events.stage(trial, epoch("k", 1, seconds=1.0))
            events.stage(trial, StageEvent("finished", "counting", "k", seconds=40))
            events.stage(trial, StageEvent("started", "density@val", "d"))
        events.finished(record(0, value=5.0))
        events.stopping("stopping")
    assert out.getvalue().splitlines() == [
        "trial 0: started  depth=0", "  counting starts", "  counting done in 40 s", "trial 1: started  depth=1",
        "trial 0: val.mae 5 (1.0 s)  ", "stopping",
    ]  # fmt: skip


@pytest.mark.parametrize("live", [False, True])
def test_remarks_of_one_stage_are_told_apart_and_warnings_are_always_shown(live: bool) -> None:
    out, regions, full = StringIO(), "RAZ-Net learns from 40 regions", "the device's memory is full"
    with ConsoleProgress(Console(file=out, width=200, force_terminal=live), 2, "val.mae") as events:
        for trial in (0, 1):
            events.stage(trial, StageEvent("note", "raz", "k", reason=regions))
            events.stage(trial, StageEvent("warning", "raz", "k", reason=full))
    lines = [line.split("\r")[-1] for line in out.getvalue().splitlines()]
    assert [line for line in lines if regions in line] == ([] if live else [f"  raz: {regions}"])
    assert len([line for line in lines if line.endswith(f"raz: {full}")]) == 1


# ------------------------------------------------------------------ stops


def test_time_is_up_when_the_clock_says_so() -> None:
    clock = Clock()
    stop = StopRequest(hours=0.5, clock=clock)
    clock.now += 1799
    assert (stop.requested, stop.seconds_left) == (False, 1.0)
    clock.now += 1
    assert (stop.requested, stop.seconds_left, stop.code) == (True, 0.0, OUT_OF_TIME)
    assert stop.reason == "the 0.5 hours of --max-hours are up"
    assert not StopRequest().requested


def test_the_first_signal_requests_a_stop_and_the_second_interrupts() -> None:
    calls: list[str] = []
    stop = StopRequest()
    stop.on_signal = lambda: calls.append("once")
    before = signal.getsignal(signal.SIGINT)
    with handle_signals(stop):
        signal.raise_signal(signal.SIGINT)
        assert (stop.requested, stop.code, calls) == (True, 130, ["once"])
        with pytest.raises(RunInterrupted) as caught:
            signal.raise_signal(signal.SIGINT)
    assert (caught.value.code, calls) == (130, ["once"])
    assert signal.getsignal(signal.SIGINT) == before
    with pytest.raises(RunInterrupted) as caught, handle_signals(StopRequest()):
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 143


@pytest.mark.long
def test_a_run_that_is_out_of_time_goes_on_with_the_same_trials(tmp_path: Path) -> None:
    space = parse_space(parse(SPACE, "f.yaml"))
    stop = StopRequest()

    class Ending(ConsoleProgress):
        def step(self, number: int, step: int, value: float) -> None:
            if (number, step) == (1, 2):
                stop.request()

    @contextmanager
    def watch(left: int) -> Iterator[ConsoleProgress]:
        yield Ending(Console(file=StringIO()), left, "val.mae")

    options: dict[str, Any] = {"inline": True, "run_trial": "tests.fakes_engine:run_trial"}
    first = run_study(space, tmp_path, watch=watch, stop=stop, **options)
    assert (first.ran, first.left, first.stopped) == (1, 2, "stopped by Ctrl-C")
    assert first.held_out == {}  # the test images wait for the end of the search
    assert Counter(r.state for r in read_records(tmp_path, "depths")) == {"complete": 1, "waiting": 2}
    for _ in range(5):  # more often than a trial may be lost
        again = StopRequest()
        again.request()
        assert run_study(space, tmp_path, stop=again, **options).left == 2
    last = run_study(space, tmp_path, stop=StopRequest(), **options)
    assert (last.ran, last.left, last.stopped) == (2, 0, "")
    records = read_records(tmp_path, "depths")
    assert [(r.number, r.state, r.values["depth"]) for r in records] == [(i, "complete", i + 1) for i in range(3)]
    assert len(records[1].steps) == 4
    assert last.held_out["test.mae"] == 0.0


TABLE = """\
table: depths
metrics: [test.mae]
profiles: {toy: {base: {preset: tiny}, datasets: [toy]}}
rows: {one: {set: {depth: 1}}, two: {set: {depth: 2}}, three: {set: {depth: 3}}}
"""


def test_a_table_stops_and_goes_on_too(tmp_path: Path) -> None:
    stop = StopRequest()

    class Ending(ConsoleProgress):
        def done(self, number: int, text: str, outcome: Any = None) -> None:
            super().done(number, text, outcome)
            stop.request()

    out = StringIO()
    table = parse_table(parse(TABLE, "t.yaml"))
    options: dict[str, Any] = {"inline": True, "run_trial": "tests.fakes_engine:run_trial"}
    first = run_table(table, tmp_path, watch=Ending(Console(file=out), 3, "test.mae"), stop=stop, **options)
    assert (len(first.cells), first.left, first.stopped) == (1, 2, "stopped by Ctrl-C")
    assert len((tmp_path / "count").read_text().splitlines()) == 1
    last = run_table(table, tmp_path, **options)
    assert (len(last.cells), last.left, last.stopped) == (3, 0, "")


# ------------------------------------------------------------------ real processes on a terminal

SCRIPT = (
    "from raz.cli.run import run_file\n"
    "run_file.__kwdefaults__['run_trial'] = 'tests.fakes_engine:run_trial'\n"
    "import sys\nfrom raz.cli.main import main\nmain()"
)


class Terminal:
    """A process on a pty of its own, whose Ctrl-C reaches the whole foreground group as in a shell."""

    def __init__(self, words: list[str], here: Path) -> None:
        self.text = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(here)
            environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "TERM": "xterm", "COLUMNS": "110"}
            os.execve(sys.executable, [sys.executable, "-c", SCRIPT, *words], environment)

    def read(self, seconds: float) -> bool:
        """Reads the output of at most `seconds`; False at its end."""
        ready, _, _ = select.select([self.fd], [], [], seconds)
        if ready:
            try:
                data = os.read(self.fd, 65536)
            except OSError as error:
                if error.errno == errno.EIO:  # the other side has closed
                    return False
                raise
            self.text += data.decode(errors="replace")
            return bool(data)
        return True

    def until(self, pattern: str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not re.search(pattern, self.text):
            assert time.monotonic() < end, self.text
            assert self.read(0.2), self.text

    def wait_for(self, path: Path, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not path.exists():
            assert time.monotonic() < end, self.text
            assert self.read(0.05), self.text

    def ctrl_c(self) -> None:
        os.write(self.fd, b"\x03")

    def code(self, seconds: float = 120) -> int:
        end = time.monotonic() + seconds
        while self.read(0.2):
            assert time.monotonic() < end, self.text
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "depths.yaml").write_text(SPACE)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "sleep").write_text("0.5")
    return tmp_path


def words(engine: str) -> list[str]:
    return ["run", "depths.yaml", "--store", "store", *(["--inline"] if engine == "inline" else ["--jobs", "2"])]


@pytest.mark.long
@pytest.mark.parametrize("engine", ["inline", pytest.param("ray", marks=[pytest.mark.slow, pytest.mark.ray])])
def test_ctrl_c_once_finishes_cleanly(here: Path, engine: str) -> None:
    terminal = Terminal(words(engine), here)
    terminal.until(r"\d running")
    terminal.until("0/3 trials")
    terminal.wait_for(here / "store" / "count")  # a trial has begun
    terminal.ctrl_c()
    terminal.until("stopping: running epochs end")
    assert terminal.code() == 130
    assert "Traceback" not in terminal.text
    assert "the same command goes on from here" in terminal.text
    states = Counter(r.state for r in read_records(here / "store", "depths"))
    assert states["waiting"] >= 1
    assert set(states) <= {"waiting", "complete"}  # nothing is lost, nothing failed
    (here / "store" / "sleep").unlink()
    again = Terminal(words("inline"), here)
    assert again.code() == 0
    assert Counter(r.state for r in read_records(here / "store", "depths")) == {"complete": 3}


@pytest.mark.long
@pytest.mark.parametrize("engine", ["inline", pytest.param("ray", marks=[pytest.mark.slow, pytest.mark.ray])])
def test_ctrl_c_twice_stops_now(here: Path, engine: str) -> None:
    (here / "store" / "sleep").write_text("600")  # an epoch of ten minutes
    terminal = Terminal(words(engine), here)
    terminal.until(r"\d running")
    terminal.ctrl_c()
    terminal.until("stopping: running epochs end")
    terminal.ctrl_c()
    assert terminal.code(240) == 130  # less than an epoch
    assert "Traceback" not in terminal.text
    assert "stopped; the same command goes on from here" in terminal.text
    assert {r.state for r in read_records(here / "store", "depths")} <= {"lost", "waiting"}


@pytest.mark.long
def test_max_hours_ends_with_a_code_of_its_own(here: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, *words("inline"), "--max-hours", "0.0002", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == OUT_OF_TIME
    document = json.loads(done.stdout)
    assert document["left"] >= 1
    assert document["stopped"] == "the 0.0002 hours of --max-hours are up"
    assert done.stderr.splitlines()[-1].endswith("; the same command goes on from here")
    (here / "store" / "sleep").unlink()
    done = subprocess.run(command[:-3], cwd=here, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert f"3 complete, 0 pruned, 0 failed ({document['left']} run now" in done.stdout
