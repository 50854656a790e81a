"""`raz-sweep report`: a table beside the paper's numbers, or a study's best trials. Options in, text out."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raz.errors import RazError

if TYPE_CHECKING:
    from raz.report.layout import Report


def report_command(
    study: Annotated[
        str | None, typer.Argument(help="A study of the store: its best trials, states, failures.")
    ] = None,
    table: Annotated[str | None, typer.Option("--table", help="An ablation: a shipped name, or your own file.")] = None,
    profile: Annotated[str | None, typer.Option(help="At which scale. Default: toy.")] = None,
    store: Annotated[Path, typer.Option(envvar="RAZ_STORE", help="Where studies and trained stages are kept.")] = Path(
        "raz-store"
    ),
    data_root: Annotated[
        Path | None, typer.Option(envvar="RAZ_DATA_ROOT", help="The folder that holds the data sets.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As the table was run with; repeatable.")
    ] = None,
    form: Annotated[
        str | None, typer.Option("--format", help="terminal, md, csv, json or latex. Default: by --out's suffix.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write to this file instead of the terminal.")] = None,
    listing: Annotated[
        bool, typer.Option("--list", help="What can be reported: tables, and the store's studies.")
    ] = False,
) -> None:
    """Show a table beside the paper's numbers, or a study. Reads the store; trains and predicts nothing.

    \b
    raz-sweep report --table recurrence                   rows on the generated crowd
    raz-sweep report --table recurrence --profile paper --data-root ~/data --out table4.tex
    raz-sweep report fusion                               the best trials of a study
    raz-sweep report --list                               what there is
    """
    from raz.report.render import FORMATS, terminal

    chosen = _format(form, out)
    if listing or (study is None and table is None):
        if study is not None or table is not None:
            raise RazError("report", "--list beside a study or a table", "leave one out")
        report = _listing(store)
    elif table is not None:
        if study is not None:
            raise RazError("report", f"both a study ({study}) and a table ({table})", "leave one out")
        report = _table(table, profile, store, data_root, settings or [])
    else:
        if profile is not None or settings:
            raise RazError("report", "--profile and --set belong to a table", f"raz-sweep report {study}")
        report = _study(str(study), store)
    if chosen == "terminal" and out is None and sys.stdout.isatty():
        text = terminal(report, shutil.get_terminal_size().columns)
    else:
        text = FORMATS[chosen](report)
    if out is None:
        typer.echo(text, nl=False)
    else:
        _write(out, text)
        typer.echo(f"wrote {out}", err=True)


def _format(form: str | None, out: Path | None) -> str:
    from raz.config import nearest
    from raz.report.render import FORMATS, SUFFIXES

    if form is None:
        return SUFFIXES.get(out.suffix.lower(), "terminal") if out else "terminal"
    if form not in FORMATS:
        raise RazError("--format", f"{form!r}, expected one of {', '.join(FORMATS)}", nearest(form, FORMATS))
    return form


def _write(path: Path, text: str) -> None:
    """Aside and renamed, so that a full disk leaves no half table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _table(name: str, profile: str | None, store: Path, data_root: Path | None, settings: list[str]) -> Report:
    from raz.report.fill import fill_table
    from raz.report.tables import table_report
    from raz.resources import find
    from raz.study.ablation import load_table
    from raz.study.base import settings_of

    path = find(name, ("ablations",))
    own = Path(name).expanduser().is_file()
    shown = name if own else f"ablations/{path.name}"
    table = load_table(path, shown, settings_of(settings))
    scale = table.profile(profile)
    filled = fill_table(table, scale, store, data_root=data_root)
    command = fill_command(shown, scale.name, scale.datasets, store, data_root, settings)
    return table_report(filled, command)


def fill_command(
    file: str, profile: str, datasets: tuple[str, ...], store: Path, data_root: Path | None, settings: list[str]
) -> str:
    """The command that trains and scores what a table is missing."""
    from raz.data import DATASETS

    words = ["raz-sweep", "run", file, "--profile", profile, "--store", str(store)]
    if data_root is not None:
        words += ["--data-root", str(data_root)]
    elif any(DATASETS[name].find is not None for name in datasets if name in DATASETS):
        words += ["--data-root", "DIR"]
    for pair in settings:
        words += ["--set", pair]
    return shlex.join(words)


def _study(name: str, store: Path) -> Report:
    from raz.report.study import study_report
    from raz.study.ledger import load_study, read_records

    study = load_study(store, name)
    meaning: dict[str, Any] = study.user_attrs.get("meaning", {})
    metric = str(meaning.get("objective.metric", "objective"))
    return study_report(name, read_records(store, name), metric, study.direction.name.lower())


def _listing(store: Path) -> Report:
    from raz.report.layout import Report, Sheet
    from raz.resources import shipped
    from raz.study.ablation import load_table
    from raz.study.ledger import read_records, study_names

    tables = {name: load_table(path, f"ablations/{path.name}") for name, path in shipped("ablations").items()}
    lines = tuple((name, ", ".join(t.profiles), t.title, t.paper) for name, t in tables.items())
    sheets = [Sheet("Tables (--table NAME)", ("table", "profiles", "title", "paper"), lines, frozenset({0, 1, 2, 3}))]
    records: list[dict[str, Any]] = [
        {"kind": "table", "name": name, "title": t.title, "profiles": ", ".join(t.profiles)}
        for name, t in tables.items()
    ]
    notes, studies = [], []
    for name in study_names(store):
        try:
            trials = read_records(store, name)
        except RazError as error:
            notes.append(str(error))
            continue
        complete = sum(trial.state == "complete" for trial in trials)
        studies.append((name, str(len(trials)), str(complete)))
        records.append({"kind": "study", "name": name, "trials": len(trials), "complete": complete})
    if studies:
        sheets.append(Sheet("Studies (report NAME)", ("study", "trials", "complete"), tuple(studies)))
    else:
        notes.append(f"{store} has no studies yet: raz-sweep run fusion")
    return Report("What can be reported", tuple(sheets), tuple(notes), tuple(records), {"store": str(store)})
