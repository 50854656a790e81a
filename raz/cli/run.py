"""`raz-sweep run FILE`: a search space or an ablation, from the name that was typed to the exit code."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from rich.console import Console

from raz.engine.events import ConsoleProgress, TrialEvents
from raz.engine.interrupt import StopRequest
from raz.engine.study_runner import check_data, run_study
from raz.engine.summary import summary, to_json
from raz.engine.trial_runner import DEFAULT_RUN_TRIAL
from raz.spec.base_config import open_spec, parse_settings
from raz.spec.space_yaml import parse_space
from raz.study.bucket_sync import sync_to_bucket


def run_file(
    file: str,
    store: Path,
    *,
    settings: list[str],
    data_root: Path | None = None,
    trials: int | None = None,
    jobs: int | None = None,
    profile: str | None = None,
    inline: bool = False,
    retry: bool = False,
    as_json: bool = False,
    max_hours: float | None = None,
    run_trial: str = DEFAULT_RUN_TRIAL,
) -> int:
    """Runs the file and prints what came of it. Returns 0, 1 when trials failed for good, and where a clean stop
    left more to do 3 (the `max_hours` are up) or 130 (Ctrl-C).

    Raises RazError for what the user can put right, OSError when the store cannot be written.
    """
    stop = StopRequest(max_hours)
    store = store.expanduser()
    data_root = data_root and data_root.expanduser()
    source, is_table = open_spec(file, profile=profile, trials=trials, retry=retry)
    if is_table:
        from raz.engine.table_runner import run_table_file

        return run_table_file(
            source, store, settings=parse_settings(settings), data_root=data_root, profile=profile, jobs=jobs,
            inline=inline, as_json=as_json, max_hours=max_hours, run_trial=run_trial,
        )  # fmt: skip
    space = parse_space(source, parse_settings(settings), data_root=data_root)
    check_data(space.base, data_root)

    @contextmanager
    def watch(left: int) -> Iterator[TrialEvents]:
        with ConsoleProgress(
            Console(file=sys.stderr), left, space.metric, space.direction, f"study {space.study}"
        ) as events:
            yield events

    with redirect_stdout(sys.stderr), sync_to_bucket(store):  # whatever a library prints, stdout is the result's
        result = run_study(
            space, store, data_root=data_root, trials=trials, jobs=jobs, inline=inline, retry=retry,
            run_trial=run_trial, watch=watch, stop=stop, command=_shareable_command(file, settings, data_root),
        )  # fmt: skip
    print(to_json(result.as_json()) if as_json else "\n".join(summary(result)))
    if result.stopped:
        print(f"{result.stopped}; the same command goes on from here", file=sys.stderr)
        return stop.code
    return 1 if result.failed or result.trouble else 0


def _shareable_command(file: str, settings: list[str], data_root: Path | None) -> str:
    """The command as it may be shown to others: where this machine keeps its data and stores is left out."""
    words = ["raz-sweep", "run", file, *(word for pair in settings for word in ("--set", pair))]
    return shlex.join([*words, *(["--data-root", "DIR"] if data_root is not None else [])])
