"""`raz-sweep submit` and `raz-sweep job …`: a run on a cluster that goes on without the machine that sent it."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raz.cli.options import Json, Profile, Settings
from raz.errors import RazError
from raz.remote.cluster_file import cluster_file

if TYPE_CHECKING:
    from raz.remote.jobs import Jobs

Cluster = Annotated[
    Path | None,
    typer.Option("--cluster", envvar="RAZ_CLUSTER", help="The file that `ray up` brought the cluster up by."),
]
Address = Annotated[
    str | None, typer.Option("--address", help="Or its job server's URL, such as http://127.0.0.1:8265 on the head.")
]
Job = Annotated[str, typer.Argument(metavar="JOB", help="As `raz-sweep submit` and `raz-sweep job list` name it.")]
STOPPED = 130

job_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Runs that were sent to a cluster: list, status, logs, stop."
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
        bool, typer.Option("--follow", help="Print what it prints until it ends; Ctrl-C leaves it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a file on a cluster that is up, as a job that survives this machine.

    The file is checked here first. The same again resumes or extends it. With --follow the exit code is the run's.

    \b
    raz-sweep submit everything --cluster cluster/gpu.yaml --jobs 8
    raz-sweep submit my.yaml --cluster cluster/gpu.yaml --follow
    raz-sweep job logs JOB --cluster cluster/gpu.yaml --follow
    """
    from raz.spec.ablation_yaml import parse_table
    from raz.spec.base_config import open_spec, parse_settings
    from raz.spec.space_yaml import parse_space
    from raz.utils.shipped import find_shipped

    source, is_table = open_spec(file, profile=profile, trials=trials, retry=retry)
    if is_table:
        table = parse_table(source, parse_settings(settings or []), profile)
        table.profile(profile)
        name = table.table
    else:
        name = parse_space(source, parse_settings(settings or [])).study
    path = find_shipped(file)
    sent = path.name
    options: dict[str, Any] = {
        "--store": store, "--data-root": data_root, "--trials": trials, "--jobs": jobs, "--profile": profile,
        "--max-hours": max_hours,
    }  # fmt: skip
    words = ["raz-sweep", "run", sent, "--address", "auto"]
    words += [word for pair in settings or [] for word in ("--set", pair)]
    words += [str(word) for option, value in options.items() if value is not None for word in (option, value)]
    words += ["--retry"] if retry else []
    # Beside the file there is no place that stays: the job's folder goes with it.
    entry = f'RAZ_STORE="${{RAZ_STORE:-$HOME/raz-store}}" {shlex.join(words)}'
    with _jobs(cluster, address) as server, tempfile.TemporaryDirectory() as folder:
        (Path(folder) / sent).write_bytes(path.read_bytes())
        job = server.submit(Path(folder), entry, name)
        where = _where(cluster, address)
        ahead = {
            "look": f"raz-sweep job logs {job} {where} --follow",
            "stop": f"raz-sweep job stop {job} {where}",
            "bring": f"raz-sweep pull {name} {where}" if cluster else f"raz-sweep export {name} --out {name}.zip",
        }
        if not follow:
            _tell(
                {**server.state(job), "next": ahead},
                [f"{job} runs on the cluster, whatever this machine does", "next: " + "\n      ".join(ahead.values())],
                as_json,
            )
            return
        typer.echo(f"{job}; Ctrl-C leaves it running, `{ahead['stop']}` ends it", err=True)
        _follow(server, job, where, as_json)


def _follow(server: Jobs, job: str, where: str, as_json: bool) -> None:
    def write(text: str) -> None:
        typer.echo(text, nl=False, err=as_json)
        sys.stdout.flush()

    try:
        state = server.follow(job, write)
    except KeyboardInterrupt:
        typer.echo(f"\n{job} goes on; raz-sweep job logs {job} {where} --follow", err=True)
        raise typer.Exit(STOPPED) from None
    if as_json:
        _tell(state, [], True)
    else:
        typer.echo(_line(state), err=True)
    raise typer.Exit(_code(state))


def _code(state: dict[str, Any]) -> int:
    if state["state"] == "STOPPED":
        return STOPPED
    code = state["exit_code"]
    return int(code) if code is not None else int(state["state"] != "SUCCEEDED")


@job_app.command("list")
def list_command(cluster: Cluster = None, address: Address = None, as_json: Json = False) -> None:
    """List the jobs that were sent to a cluster.

    \b
    raz-sweep job list --cluster cluster/gpu.yaml
    """
    with _jobs(cluster, address) as server:
        found = server.list_jobs()
    _tell(found, [_line(state) for state in found] or ["no job was sent there"], as_json)


@job_app.command("status")
def status_command(job: Job, cluster: Cluster = None, address: Address = None, as_json: Json = False) -> None:
    """Say how a job stands. Exits 0 while it runs and when it is done well.

    \b
    raz-sweep job status fusion-0a1b2c3d --cluster cluster/gpu.yaml
    """
    with _jobs(cluster, address) as server:
        state = server.state(job)
    _tell(state, [_line(state), *([state["message"]] if state["message"] else [])], as_json)
    raise typer.Exit(1 if state["state"] == "FAILED" else 0)


@job_app.command("logs")
def logs_command(
    job: Job,
    cluster: Cluster = None,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends; Ctrl-C leaves it.")] = False,
) -> None:
    """Print what a job printed.

    \b
    raz-sweep job logs fusion-0a1b2c3d --cluster cluster/gpu.yaml --follow
    """
    with _jobs(cluster, address) as server:
        if follow:
            _follow(server, job, _where(cluster, address), False)
        typer.echo(server.logs(job), nl=False)


@job_app.command("stop")
def stop_command(job: Job, cluster: Cluster = None, address: Address = None, as_json: Json = False) -> None:
    """Ask a job to end: running epochs end and are kept, and the same submit goes on from there.

    \b
    raz-sweep job stop fusion-0a1b2c3d --cluster cluster/gpu.yaml
    """
    with _jobs(cluster, address) as server:
        server.state(job)  # an unknown one is told
        server.stop(job)
        state = server.state(job)
    _tell(state, [f"{job} was asked to end"], as_json)


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


def _line(state: dict[str, Any]) -> str:
    began = datetime.fromtimestamp(state["started"]).isoformat(" ", "seconds") if state["started"] else "not started"
    code = state["exit_code"]
    tail = f", exit code {code}" if code not in (None, 0) else ""
    return f"{state['job']}  {state['state'].lower()}{tail}  since {began}"


def _tell(document: Any, lines: list[str], as_json: bool) -> None:
    from raz.cli.study import tell

    tell(document, lines, as_json)
