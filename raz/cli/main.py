"""The command line: options in, messages and exit codes out. Slow imports happen inside the commands.

Exit codes: 0 done; 1 done, and some trials failed; 2 the input has an error; 3 --max-hours is up; 130 stopped by
Ctrl-C; 143 stopped by SIGTERM.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from raz._version import __version__
from raz.cli import store
from raz.cli import study as study_cli
from raz.cli.cluster import cluster_app
from raz.cli.console import ErrorHandlingGroup
from raz.cli.data import data_app
from raz.cli.doctor import doctor_command
from raz.cli.init import init_command
from raz.cli.job import job_app, submit_command
from raz.cli.options import DEFAULT_STORE, DataRoot, Json, Profile, Settings, Store, resolve_store
from raz.cli.predict import export_command, predict_command, train_command
from raz.cli.pull import pull_command
from raz.cli.report import report_command
from raz.cli.score import score_command
from raz.errors import RazError

app = typer.Typer(
    name="raz-sweep",
    cls=ErrorHandlingGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"raz-sweep {__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Sweeps, ablations and tables for RAZ-Net: crowd counting and localization by recurrent attentive zooming.

    \b
    raz-sweep run search_spaces/fusion   a search on a generated crowd; needs no data
    raz-sweep run ablations/recurrence   the rows of a table
    raz-sweep report --table recurrence  its results beside the paper's numbers
    raz-sweep data check shanghaitech_a  is my copy of a data set right?
    raz-sweep score --pred P --gt G      score any points under four protocols
    """


@app.command()
def run(
    file: Annotated[str, typer.Argument(help="A search space or an ablation: your own path, or a shipped name.")],
    store: Store = DEFAULT_STORE,
    settings: Settings = None,
    data_root: DataRoot = None,
    trials: Annotated[int | None, typer.Option(min=1, max=10**6, help="Trials in all, instead of the file's.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Trials at a time. Default: cores / threads.")] = None,
    profile: Profile = None,
    inline: Annotated[bool, typer.Option("--inline", help="One trial after the other, without Ray.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Run failed trials again.")] = False,
    as_json: Json = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what it would cost; run nothing.")] = False,
    max_hours: Annotated[
        float | None, typer.Option(min=0, help="Stop cleanly after that time; exit code 3 if more is to do.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Run on the Ray cluster at HOST:PORT, or on this machine's (auto).")
    ] = None,
) -> None:
    """Run a search, or train what a table is missing. The same command again resumes or extends it.

    Ctrl-C once lets running epochs finish, keeps what was trained and queues unfinished trials again; twice stops at
    once. Exit codes: 0 done; 1 done, and some trials failed; 2 the input has an error; 3 --max-hours is up and more is
    to do; 130 and 143 stopped by Ctrl-C and by SIGTERM.

    \b
    raz-sweep run search_spaces/fusion                the shipped search, on the generated crowd
    raz-sweep run search_spaces/fusion --profile small --data-root ~/data    on photographs: study fusion-small
    raz-sweep run my.yaml --trials 100                extend a search of 40 trials to 100
    raz-sweep run losses --set seed=1 --store other   the same question with another seed
    raz-sweep run ablations/recurrence --profile paper --data-root ~/data
    raz-sweep run everything --dry-run                stages, hours and disk, before anything runs
    raz-sweep run everything --max-hours 8            stop after a night; the same command continues
    raz-sweep run everything --address auto           on the Ray cluster that this machine belongs to
    """
    store = resolve_store(store)
    if dry_run:
        from raz.cli.dry_run import plan_file, show_plan

        plan = plan_file(
            file, store, settings=settings or [], data_root=data_root, trials=trials, jobs=jobs, profile=profile,
            inline=inline, retry=retry,
        )  # fmt: skip
        typer.echo(show_plan(plan, as_json=as_json))
        return
    from raz.cli.run import run_file
    from raz.engine.ray_session import connected

    if address is not None and inline:
        raise RazError("--address", "a run with --inline uses no Ray", "leave one of them out")
    with connected(address):
        code = run_file(
            file, store, settings=settings or [], data_root=data_root, trials=trials, jobs=jobs, profile=profile,
            inline=inline, retry=retry, as_json=as_json, max_hours=max_hours,
        )  # fmt: skip
    raise typer.Exit(code)


@app.command()
def simulate(
    file: Annotated[str, typer.Argument(help="A search space or an ablation: your own path, or a shipped name.")],
    devices: Annotated[int, typer.Option(min=1, max=4096, help="GPUs, or groups of a trial's threads.")],
    store: Store = DEFAULT_STORE,
    settings: Settings = None,
    data_root: DataRoot = None,
    trials: Annotated[int | None, typer.Option(min=1, max=10**6, help="Trials in all, instead of the file's.")] = None,
    profile: Profile = None,
    as_json: Json = False,
) -> None:
    """Simulate a run's schedule on a number of devices.

    It starts from an empty store and starts stages in the order of a real run. Prints the makespan, the utilisation of
    the devices, a lower bound for any schedule, and the time without sharing. The trials of a search are drawn at
    random here (with `proposals`: the cheapest of as many draws).

    \b
    raz-sweep simulate search_spaces/everything --devices 8
    raz-sweep simulate everything --devices 512 --trials 1000 --json
    raz-sweep simulate fusion --devices 2 --profile small --data-root ~/data
    """
    store = resolve_store(store)
    from raz.cli.dry_run import show_simulation, simulate_file

    simulation = simulate_file(
        file, store, devices=devices, settings=settings or [], data_root=data_root, trials=trials, profile=profile
    )
    typer.echo(show_simulation(simulation, as_json=as_json))


app.add_typer(data_app, name="data")
app.add_typer(cluster_app, name="cluster")
app.add_typer(job_app, name="job")
app.command("submit")(submit_command)
app.command("pull")(pull_command)
app.command("report")(report_command)
app.command("predict")(predict_command)
app.command("export")(export_command)
app.command("train")(train_command)
app.command("doctor")(doctor_command)
app.command("init")(init_command)
app.command("score")(score_command)
study_cli.register(app)
store.register(app)


def main() -> None:
    """The entry point of `raz-sweep`."""
    sys.exit(app(prog_name="raz-sweep"))
