"""The command line: what it prints where, and how it exits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import raz
from raz.cli.console import _format_os_error
from raz.cli.main import app
from raz.study.records import read_records
from raz.utils.atomic import atomic_write
from tests.fakes_engine import use_stand_in

HERE = Path(__file__).resolve().parent
SPACE = """\
study: depths
base: {preset: tiny, dataset: toy}
design: {sampler: grid}
parameters:
  depth: {choice: [1, 2, 3]}
"""
TABLE = """\
table: depths
metrics: [test.mae]
seeds: [0]
profiles:
  toy: {base: {preset: tiny}, datasets: [toy]}
rows:
  main: {set: {depth: 1}}
  twice: {set: {depth: 2}}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, with two files, where trials are the stand-in's."""
    use_stand_in(tmp_path, monkeypatch)
    (tmp_path / "depths.yaml").write_text(SPACE)
    (tmp_path / "table.yaml").write_text(TABLE)
    return tmp_path


def call(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_help_is_quick_and_needs_none_of_the_heavy_libraries() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom raz.cli.main import app\n"
        "for words in (['--help'], ['run', '--help'], ['data', '--help'], ['report', '--help']):\n"
        "    result = CliRunner().invoke(app, words)\n    assert result.exit_code == 0, words\n"
        "    assert words == ['--help'] or 'raz-sweep' in result.stdout, words\n"
        "print([name for name in ('torch', 'ray', 'optuna', 'pandas', 'plotly', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=HERE.parent, check=True)
    assert done.stdout.strip() == "[]"


def test_version() -> None:
    assert call("--version") == (0, f"raz-sweep {raz.__version__}\n", "")


@pytest.mark.long
def test_a_run_tells_its_events_on_stderr_and_its_result_on_stdout(here: Path) -> None:
    code, out, err = call("run", "depths.yaml", "--inline", "--store", "mine")
    assert code == 0
    assert "study depths: 3 complete, 0 pruned, 0 failed (3 run now, " in out
    assert (
        "best: trial 2, val.mae 0\n  depth: 3  (base 2)\nheld out: test.mae 0  (guessing the training median: " in out
    )
    assert "next: raz-sweep report depths --store mine" in out
    told = [line for line in err.splitlines() if line.startswith("trial ")]
    assert len(told) == 6
    assert told[0] == "trial 0: started  depth=1"
    assert told[1].startswith("trial 0: val.mae 20, 1 of 1 stages from the store (")
    assert len(read_records(here / "mine", "depths")) == 3


def test_json_is_the_only_thing_on_stdout(here: Path) -> None:
    code, out, _ = call("run", "depths.yaml", "--inline", "--json", "--set", "localization.gamma=1000")
    assert code == 0
    found = json.loads(out)
    assert found["trials"] == {"complete": 3, "pruned": 0, "failed": 0}
    assert found["best"]["changed"] == {"depth": {"base": 2, "best": 3}}
    assert found["best"]["value"] == pytest.approx(1.0)
    assert found["best"]["test"]["test.mae"] == pytest.approx(1.0)
    assert found["best"]["baselines"]["median"]["test.mae"] > 0
    assert found["store"] == "raz-store"


def test_the_store_may_be_named_by_the_environment(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAZ_STORE", str(here / "other"))
    assert call("run", "depths.yaml", "--inline", "--trials", "2")[0] == 0
    assert len(read_records(here / "other", "depths")) == 2


def test_failed_trials_are_exit_code_1(here: Path) -> None:
    (here / "depths.yaml").write_text(SPACE.replace("depth: {choice: [1, 2, 3]}", "seed: {choice: [0, 13]}"))
    code, out, err = call("run", "depths.yaml", "--inline")
    assert code == 1
    assert "1 complete, 0 pruned, 1 failed" in out
    assert "failures: nan 1" in out
    assert "trial 1: failed (nan) localization: the loss is not a number at epoch 2" in err


def test_a_table_is_run_by_the_same_command(here: Path) -> None:
    code, out, err = call("run", "table.yaml", "--inline")
    assert code == 0
    assert out == (
        "table depths, profile toy: 2 trials done, 0 failed\nnext: raz-sweep report --table table.yaml --profile toy\n"
    )
    assert "twice, toy, seed 0: test.mae 10, test.rmse 15 (" in err
    found = json.loads(call("run", "table.yaml", "--inline", "--json")[1])
    assert [(cell["row"], cell["metrics"]["test.mae"]) for cell in found["cells"]] == [("main", 20.0), ("twice", 10.0)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "depth.yaml"], "depth.yaml: no such file\n  try: "),
        (["run", "depths.yaml", "--set", "sed=1"], "--set: unknown parameter 'sed'\n  try: did you mean seed?"),
        (["run", "depths.yaml", "--profile", "toy"], "--profile: depths.yaml is a search space without profiles"),
        (["run", "table.yaml", "--trials", "3"], "--trials: table.yaml is a table, whose rows and seeds are fixed"),
        (["run", "table.yaml", "--profile", "tot"], "--profile: table depths has no profile 'tot'"),
        (
            ["run", "depths.yaml", "--store", "depths.yaml", "--inline"],
            "store depths.yaml: depths.yaml is a file, expected a folder",
        ),
        (["run", "depths.yaml", "--set", "dataset=shanghaitech_a", "--inline"], "shanghaitech_a"),
        (["run", "depths.yaml", "--inline", "--max-hours", "nan"], "Invalid value for '--max-hours'"),
        (["run", "depths.yaml", "--trials", "10000000"], "Invalid value for '--trials'"),
        (["run", ""], "FILE: an empty name"),
        (["run", "depths.yaml", "--trials", "0"], "Invalid value for '--trials'"),
        (["run"], "Missing argument"),
        (["walk"], "No such command 'walk'"),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else None,
)
@pytest.mark.usefixtures("here")
def test_what_can_be_put_right_is_said_without_a_traceback(words: list[str], message: str) -> None:
    code, out, err = call(*words)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert out == ""


def test_a_file_is_told_by_the_name_that_was_typed(here: Path) -> None:
    (here / "depths.yaml").write_text(SPACE.replace("depth:", "dpeth:"))
    assert call("run", "depths.yaml") == (
        2,
        "",
        "depths.yaml:5: unknown parameter 'dpeth'\n  try: did you mean depth or dataset?\n",
    )


def test_a_renaming_that_fails_names_the_file_that_is_wanted() -> None:
    error = IsADirectoryError(21, "Is a directory", ".t.md.123", None, "t.md")
    assert _format_os_error(error) == "t.md: Is a directory\n  try: this is a folder, expected a file"


def test_a_file_that_cannot_be_made_is_told_by_its_own_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as other, atomic_write(tmp_path / "a" / "b.csv"):
        (tmp_path / "none").read_bytes()
    assert other.value.filename == str(tmp_path / "none")
    with pytest.raises(FileNotFoundError) as lost, atomic_write(tmp_path / "a" / "b.csv") as aside:
        aside.read_bytes()
    assert lost.value.filename == str(tmp_path / "a" / "b.csv")
    with pytest.raises(IsADirectoryError), atomic_write(Path("")):
        pass


def test_a_full_disk_is_said_in_one_message(here: Path) -> None:
    (here / "depths.yaml").write_text(SPACE.replace("depth: {choice: [1, 2, 3]}", "seed: {choice: [16]}"))
    code, out, err = call("run", "depths.yaml", "--inline")
    assert (code, out) == (2, "")
    assert err.endswith(
        "raz-store: No space left on device\n"
        "  try: free some space, or choose another --store; the same command goes on from there\n"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_store_that_may_not_be_written(here: Path) -> None:
    (here / "locked").mkdir(mode=0o500)
    code, _, err = call("run", "depths.yaml", "--inline", "--store", "locked")
    assert code == 2
    assert err == "locked/studies: Permission denied\n  try: choose a --store that may be written\n"


@pytest.mark.long
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_leaves_a_study_that_goes_on(here: Path, sent: signal.Signals, code: int) -> None:
    store = here / "raz-store"
    store.mkdir()
    (store / "sleep").write_text("1")  # four of them a trial: a busy machine finds the first one running
    script = (
        "from raz.cli.run import run_file\n"
        "run_file.__kwdefaults__['run_trial'] = 'tests.fakes_engine:run_trial'\n"
        "import sys\nsys.argv = ['raz-sweep', 'run', 'depths.yaml', '--inline']\nfrom raz.cli.main import main\nmain()"
    )
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, env=environment)
    end = time.monotonic() + 240
    while not (store / "count").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(sent)
    _, err = process.communicate(timeout=240)
    assert process.returncode == code
    why = "stopped by Ctrl-C" if sent == signal.SIGINT else "stopped"
    assert err.splitlines()[-1] == f"{why}; the same command goes on from here"
    assert "Traceback" not in err
    (store / "sleep").unlink()
    assert call("run", "depths.yaml", "--inline")[0] == 0
    lost = ["failed"] if sent == signal.SIGTERM else []  # a clean stop loses nothing
    assert sorted(r.state for r in read_records(store, "depths")) == ["complete"] * 3 + lost
