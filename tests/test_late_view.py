"""A store on a file system that shows other machines' files late: nothing is believed missing that was announced."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raz.engine.study_runner import run_study
from raz.study.records import read_records
from tests.journaling import times
from tests.lookup_cache import environment
from tests.test_broker import grid
from tests.test_pipeline import artifacts

PARAMETERS = {"fusion.rule": ["density", "average"]}
DRIVER = """
import sys
from pathlib import Path
from raz.engine.study_runner import run_study
from tests.journaling import PIPELINE
from tests.test_broker import grid
from tests.test_late_view import PARAMETERS
store, crowd = sys.argv[1:]
result = run_study(grid(PARAMETERS, depth=1), Path(store), data_root=Path(crowd), run_trial=PIPELINE, jobs=2)
print(result.counts, dict(result.reasons))
sys.exit(1 if result.failed else 0)
"""


# ------------------------------------------------------------------ trials under Ray


def check_trials(crowd: Path, folder: Path, seconds: float, *, listing_refreshes: bool) -> None:
    """Two trials whose coordinators, broker, stage workers and driver are each a machine of their own."""
    folder = folder.resolve()
    store = folder / "store"
    store.mkdir()
    run_study(grid(PARAMETERS, depth=1), folder / "inline", data_root=crowd, inline=True)
    variables = environment(folder / "site", store, seconds, listing_refreshes)
    variables.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-c", DRIVER, str(store), str(crowd)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=1500, check=False)
    records = read_records(store, "grid")
    assert [(r.state, r.reason, r.message) for r in records] == [("complete", "", "")] * 2, done.stderr
    assert done.returncode == 0, done.stderr
    assert artifacts(store) == artifacts(folder / "inline")
    hidden = [line.split(" ", 1) for line in Path(f"{store}.hidden").read_text().splitlines()]
    assert len({pid for pid, path in hidden if "/stages/" in path}) >= 2  # else nothing was tried
    assert set(times(store, "epoch").values()) == {1}  # nothing was trained twice
    assert set(times(store, "finished").values()) == {1}


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(1200)
def test_trials_under_a_lookup_cache(crowd: Path, tmp_path: Path) -> None:
    check_trials(crowd, tmp_path, 10.0, listing_refreshes=True)
