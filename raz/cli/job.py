"""`raz-sweep submit` and `raz-sweep job …`: runs on a cluster that continue without this machine."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raz.cli.options import Json, Profile, Settings
from raz.errors import RazError
from raz.remote.cluster_file import cluster_file

if TYPE_CHECKING:
    from raz.remote.jobs import Jobs, JobState

Cluster = Annotated[
    Path | None,
    typer.Option("--cluster", envvar="RAZ_CLUSTER", help="The file that `ray up` started the cluster from."),
]
Address = Annotated[
    str | None, typer.Option("--address", help="Or its job server's URL, such as http://127.0.0.1:8265 on the head.")
]
Job = Annotated[
    str, typer.Argument(metavar="JOB", help="A job's id, as `raz-sweep submit` and `raz-sweep job list` print it.")
]
STOPPED = 130

job_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Runs that were submitted to a cluster: list, status, logs, stop."
)


def submit_command(
    file: Annotated[str, typer.Argument(help="A search space or an ablation: your own path, or a shipped name.")],
    cluster: Cluster = None,
    address: Address = None,
    settings: Settings = None,
    store: Annotated[
        str | None, typer.Option(help="The store, as the cluster sees it. Default: RAZ_STORE there.")
    ] = None,
    data_root: Annotated[
        str | None, typer.Option("--data-root", help="The data sets, as the cluster sees them. Default: RAZ_DATA_ROOT.")
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials in all, instead of the file's.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Trials at a time. Default: cores / threads.")] = None,
    profile: Profile = None,
    retry: Annotated[bool, typer.Option("--retry", help="Run failed trials again.")] = False,
    max_hours: Annotated[float | None, typer.Option(min=0, help="Stop cleanly when the time is up.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Print its output until it ends; Ctrl-C leaves it running.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a file on a running cluster, as a job that continues without this machine.

    The file is checked here first. The same command again resumes or extends the run. With --follow the exit code is
    the run's.

    \b
    raz-sweep submit everything --cluster cluster/gpu.yaml --jobs 8
    raz-sweep submit my.yaml --cluster cluster/gpu.yaml --follow
    raz-sweep submit fusion --profile paper --cluster cluster/gpu.yaml --data-root s3://bucket/data
    raz-sweep job logs JOB --cluster cluster/gpu.yaml --follow
    """
    from raz.spec.ablation_yaml import parse_table
    from raz.spec.base_config import open_spec, parse_settings
    from raz.spec.space_yaml import parse_space
    from raz.utils.shipped import find_shipped

    source, is_table = open_spec(file, trials=trials, retry=retry)
    if is_table:
        table = parse_table(source, parse_settings(settings or []), profile)
        table.profile(profile)
        name = table.table
    else:
        name = parse_space(source, parse_settings(settings or []), profile).study
    path = find_shipped(file)
    file_name = path.name
    options: dict[str, str | int | float | None] = {
        "--store": store, "--data-root": data_root, "--trials": trials, "--jobs": jobs, "--profile": profile,
        "--max-hours": max_hours,
    }  # fmt: skip
    words = ["raz-sweep", "run", file_name, "--address", "auto"]
    words += [word for pair in settings or [] for word in ("--set", pair)]
    words += [str(word) for option, value in options.items() if value is not None for word in (option, value)]
    words += ["--retry"] if retry else []
    # The job's folder is deleted with the job, so the store must lie elsewhere.
    entry = f'RAZ_STORE="${{RAZ_STORE:-$HOME/raz-store}}" {shlex.join(words)}'
    with _jobs(cluster, address) as server, tempfile.TemporaryDirectory() as folder:
        (Path(folder) / file_name).write_bytes(path.read_bytes())
        job = server.submit(Path(folder), entry, name)
        where = _where(cluster, address)
        commands = {
            "look": f"raz-sweep job logs {job} {where} --follow",
            "stop": f"raz-sweep job stop {job} {where}",
            "bring": f"raz-sweep pull {name} {where}" if cluster else f"raz-sweep export {name} --out {name}.zip",
        }
        if not follow:
            _print(
                {**asdict(server.state(job)), "next": commands},
                [
                    f"{job} runs on the cluster; this machine is not needed",
                    "next: " + "\n      ".join(commands.values()),
                ],
                as_json,
            )
            return
        typer.echo(f"{job}; Ctrl-C leaves it running, `{commands['stop']}` ends it", err=True)
        _follow(server, job, where, as_json)


def _follow(server: Jobs, job: str, where: str, as_json: bool) -> None:
    def write(text: str) -> None:
        typer.echo(text, nl=False, err=as_json)
        sys.stdout.flush()

    try:
        state = server.follow(job, write)
    except KeyboardInterrupt:
        typer.echo(f"\n{job} keeps running; raz-sweep job logs {job} {where} --follow", err=True)
        raise typer.Exit(STOPPED) from None
    if as_json:
        _print(asdict(state), [], True)
    else:
        typer.echo(_state_line(state), err=True)
    raise typer.Exit(_exit_code(state))


def _exit_code(state: JobState) -> int:
    if state.state == "STOPPED":
        return STOPPED
    return state.exit_code if state.exit_code is not None else int(state.state != "SUCCEEDED")


@job_app.command("list")
def list_command(cluster: Cluster = None, address: Address = None, as_json: Json = False) -> None:
    """List the jobs that were submitted to a cluster.

    \b
    raz-sweep job list --cluster cluster/gpu.yaml
    """
    with _jobs(cluster, address) as server:
        states = server.list_jobs()
    lines = [_state_line(state) for state in states] or ["no job was submitted there"]
    _print([asdict(state) for state in states], lines, as_json)


@job_app.command("status")
def status_command(job: Job, cluster: Cluster = None, address: Address = None, as_json: Json = False) -> None:
    """Show the state of a job. Exits 1 if it failed, else 0.

    \b
    raz-sweep job status fusion-0a1b2c3d --cluster cluster/gpu.yaml
    """
    with _jobs(cluster, address) as server:
        state = server.state(job)
    _print(asdict(state), [_state_line(state), *([state.message] if state.message else [])], as_json)
    raise typer.Exit(1 if state.state == "FAILED" else 0)


@job_app.command("logs")
def logs_command(
    job: Job,
    cluster: Cluster = None,
    address: Address = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print until the job ends; Ctrl-C leaves it running.")
    ] = False,
) -> None:
    """Print the output of a job.

    \b
    raz-sweep job logs fusion-0a1b2c3d --cluster cluster/gpu.yaml --follow
    """
    with _jobs(cluster, address) as server:
        if follow:
            _follow(server, job, _where(cluster, address), False)
        typer.echo(server.logs(job), nl=False)


@job_app.command("stop")
def stop_command(job: Job, cluster: Cluster = None, address: Address = None, as_json: Json = False) -> None:
    """Ask a job to stop: running epochs finish and are kept; the same submit continues from there.

    \b
    raz-sweep job stop fusion-0a1b2c3d --cluster cluster/gpu.yaml
    """
    with _jobs(cluster, address) as server:
        server.state(job)  # raises for an unknown job
        server.stop(job)
        state = server.state(job)
    _print(asdict(state), [f"{job} was asked to stop"], as_json)


@contextmanager
def _jobs(cluster: Path | None, address: str | None) -> Iterator[Jobs]:
    from raz.remote.jobs import Jobs, ssh_tunnel

    if address is not None:
        if not address.startswith(("http://", "https://")):
            raise RazError("--address", f"{address!r} is no URL", "--address http://127.0.0.1:8265")
        yield Jobs(address)
        return
    with ssh_tunnel(cluster_file(cluster)) as url:
        yield Jobs(url)


def _where(cluster: Path | None, address: str | None) -> str:
    return f"--address {shlex.quote(address)}" if address else f"--cluster {shlex.quote(str(cluster))}"


def _state_line(state: JobState) -> str:
    began = datetime.fromtimestamp(state.started).isoformat(" ", "seconds") if state.started else "not started"
    tail = f", exit code {state.exit_code}" if state.exit_code not in (None, 0) else ""
    return f"{state.job}  {state.state.lower()}{tail}  since {began}"


def _print(document: object, lines: list[str], as_json: bool) -> None:
    typer.echo(json.dumps(document, indent=1) if as_json else "\n".join(lines))
