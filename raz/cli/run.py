"""`raz-sweep run FILE`: a search space or an ablation table, from the name that was typed to the exit code."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from raz.cli.options import DEFAULT_STORE
from raz.config import Settings
from raz.engine.events import ConsoleProgress, TrialEvents
from raz.engine.interrupt import StopRequest
from raz.engine.runner import check_data, check_searched_backbones
from raz.engine.study_runner import run_study
from raz.engine.summary import summary, table_summary, to_json
from raz.engine.table_runner import run_table
from raz.engine.trial_runner import DEFAULT_RUN_TRIAL
from raz.spec.ablation_yaml import parse_table
from raz.spec.base_config import open_spec, parse_settings
from raz.spec.space_yaml import parse_space
from raz.study.bucket_sync import sync_to_bucket
from raz.utils.json_types import JsonLike
from raz.utils.yamlfile import Document


@dataclass(frozen=True)
class RunOptions:
    """The options of `raz-sweep run` that a search and a table have in common."""

    settings: tuple[str, ...] = ()
    data_root: Path | None = None
    jobs: int | None = None
    inline: bool = False
    run_trial: str = DEFAULT_RUN_TRIAL


@dataclass(frozen=True)
class FinishedRun:
    """What a run of either kind leaves to print."""

    document: Mapping[str, JsonLike]
    lines: list[str]
    stopped: str  # why it ended before its last trial
    failed: bool  # whether something failed for good


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
    options = RunOptions(tuple(settings), data_root and data_root.expanduser(), jobs, inline, run_trial)
    source, is_table = open_spec(file, trials=trials, retry=retry)
    if is_table:
        run = _table_run(source, store, options, stop, profile)
    else:
        run = _study_run(source, store, options, stop, file, profile, trials, retry)
    with redirect_stdout(sys.stderr), sync_to_bucket(store):  # stdout is for the result, whatever a library prints
        finished = run()
    print(to_json(finished.document) if as_json else "\n".join(finished.lines))
    if finished.stopped:
        print(f"{finished.stopped}; the same command goes on from here", file=sys.stderr)
        return stop.code
    return 1 if finished.failed else 0


def _study_run(
    source: Document,
    store: Path,
    options: RunOptions,
    stop: StopRequest,
    file: str,
    profile: str | None,
    trials: int | None,
    retry: bool,
) -> Callable[[], FinishedRun]:
    """The run of a search space, ready to begin. Raises RazError for the space and for its data set."""
    space = parse_space(source, parse_settings(list(options.settings)), profile, data_root=options.data_root)
    check_data(space.base, options.data_root)
    check_searched_backbones(space)

    @contextmanager
    def watch(left: int) -> Iterator[TrialEvents]:
        with ConsoleProgress(
            Console(file=sys.stderr), left, space.metric, space.direction, f"study {space.study}"
        ) as events:
            yield events

    def run() -> FinishedRun:
        result = run_study(
            space, store, data_root=options.data_root, trials=trials, jobs=options.jobs, inline=options.inline,
            retry=retry, run_trial=options.run_trial, watch=watch, stop=stop,
            command=_shareable_command(file, profile, options),
        )  # fmt: skip
        return FinishedRun(result.as_json(), summary(result), result.stopped, bool(result.failed or result.trouble))

    return run


def _table_run(
    source: Document, store: Path, options: RunOptions, stop: StopRequest, profile: str | None
) -> Callable[[], FinishedRun]:
    """The run of a table, ready to begin. Raises RazError for the table."""
    settings = parse_settings(list(options.settings))
    table = parse_table(source, settings, profile, data_root=options.data_root)
    total = sum(1 for _ in table.trials(table.profile(profile)))

    def run() -> FinishedRun:
        result = run_table(
            table, store, profile=profile, data_root=options.data_root, jobs=options.jobs, inline=options.inline,
            run_trial=options.run_trial, stop=stop,
            watch=ConsoleProgress(Console(file=sys.stderr), total, "test.mae", title=f"table {table.table}"),
        )  # fmt: skip
        own = Path(source.name).is_file()  # else a shipped one, known by its name
        name = source.name if own else result.table
        report = _report_command(name, result.profile, store, options.data_root, settings)
        lines = [*table_summary(result), f"next: {report}"]
        return FinishedRun(result.as_json(), lines, result.stopped, bool(result.failed))

    return run


def _shareable_command(file: str, profile: str | None, options: RunOptions) -> str:
    """The command without the paths of this machine's data and stores, so that it may be shown to others."""
    words = ["raz-sweep", "run", file, *(["--profile", profile] if profile is not None else [])]
    words += [word for pair in options.settings for word in ("--set", pair)]
    return shlex.join([*words, *(["--data-root", "DIR"] if options.data_root is not None else [])])


def _report_command(table: str, profile: str, store: Path, data_root: Path | None, settings: Settings) -> str:
    """The command that shows what was run. It repeats the options that change trials."""
    words = ["raz-sweep", "report", "--table", table, "--profile", profile]
    words += ["--store", str(store)] if store != DEFAULT_STORE else []
    words += ["--data-root", str(data_root)] if data_root is not None else []
    for name, value in settings.items():
        words += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(words)
