"""`raz-sweep report`: a table beside the paper's numbers, or a study's best trials. Options in, text out."""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from raz.cli.options import DEFAULT_STORE, DataRoot, Profile, Settings, Store, resolve_store
from raz.errors import RazError
from raz.report.figures.photo_request import PhotoRequest
from raz.utils.atomic import atomic_write

if TYPE_CHECKING:
    from raz.report.layout import Report
    from raz.report.statistics import Over


def report_command(
    study: Annotated[
        str | None, typer.Argument(help="A study of the store: its best trials, states, failures.")
    ] = None,
    table: Annotated[str | None, typer.Option("--table", help="An ablation: a shipped name, or your own file.")] = None,
    profile: Profile = None,
    store: Store = DEFAULT_STORE,
    data_root: DataRoot = None,
    settings: Settings = None,
    form: Annotated[
        str | None, typer.Option("--format", help="terminal, md, csv, json, latex or html. Default: by --out's suffix.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write to this file instead of the terminal.")] = None,
    over: Annotated[
        str | None, typer.Option(help="Differences over seeds or images. Default: seeds where two are paired.")
    ] = None,
    compare: Annotated[str | None, typer.Option(metavar="STUDY", help="Beside a study: another one.")] = None,
    png: Annotated[Path | None, typer.Option(metavar="DIR", help="Draw the figures into this folder.")] = None,
    svg: Annotated[Path | None, typer.Option(metavar="DIR", help="The same as SVG.")] = None,
    photo: Annotated[
        list[str] | None,
        typer.Option(
            metavar="IMAGE", help="Also show this image: a name, an index, densest, median, worst … Again for more."
        ),
    ] = None,
    of: Annotated[
        str | None, typer.Option(metavar="WHOSE", help="With --photo: a table's ROW or ROW@SEED, or a study's trial.")
    ] = None,
    listing: Annotated[
        bool, typer.Option("--list", help="What can be reported: tables, and the store's studies.")
    ] = False,
) -> None:
    """Show a table beside the paper's numbers, or a study. Reads the store; trains and predicts nothing.

    \b
    raz-sweep report --table recurrence                   rows on the generated crowd
    raz-sweep report --table recurrence --profile paper --data-root ~/data --out table4.tex
    raz-sweep report --table recurrence --out t.html      one page: sorts, draws, says where each number is from
    raz-sweep report --table recurrence --over images     of these trained models, not of training again
    raz-sweep report --table recurrence --png figures     every figure as a picture, its data beside it
    raz-sweep report --table recurrence --photo densest --photo IMG_3 --out t.html    with photographs: Figures 1 and 5
    raz-sweep report fusion --compare zooming             the best trials of a study, beside another
    raz-sweep report --list                               what there is
    """
    store = resolve_store(store)
    from raz.report.render import FORMATS, terminal

    chosen = _format(form, out)
    drawing = chosen == "html" or png is not None or svg is not None
    asked = PhotoRequest(tuple(photo or ()), of)
    if over not in (None, "seeds", "images"):
        raise RazError("--over", f"{over!r}, expected seeds or images", "--over seeds")
    if over is not None and table is None:
        raise RazError("--over", "belongs to a table", "raz-sweep report --table NAME")
    if compare is not None and study is None:
        raise RazError("--compare", "belongs to a study", f"raz-sweep report STUDY --compare {compare}")
    if compare is not None and compare == study:
        raise RazError("--compare", f"{study} is the study itself", "raz-sweep report --list names the others")
    if asked.which and (listing or (study is None and table is None)):
        raise RazError("--photo", "belongs to a table or a study", "raz-sweep report --table NAME --photo densest")
    if asked.which and not drawing:
        raise RazError("--photo", "a terminal shows no photographs", "--out page.html, or --png DIR")
    if of is not None and not asked.which:
        raise RazError("--of", "belongs to --photo", f"--photo densest --of {of}")
    if listing or (study is None and table is None):
        if study is not None or table is not None:
            raise RazError("report", "--list beside a study or a table", "leave one out")
        report = _listing(store)
    elif table is not None:
        if study is not None:
            raise RazError("report", f"both a study ({study}) and a table ({table})", "leave one out")
        report = _table(table, profile, store, data_root, settings or [], cast(Any, over), drawing, asked)
    else:
        if profile is not None or settings:
            raise RazError("report", "--profile and --set belong to a table", f"raz-sweep report {study}")
        report = _study(str(study), store, compare, drawing, data_root, asked)
    if chosen == "terminal" and out is None and sys.stdout.isatty():
        text = terminal(report, shutil.get_terminal_size().columns)
    else:
        text = FORMATS[chosen](report)
    for folder, suffix in ((png, "png"), (svg, "svg")):
        if folder is not None:
            from raz.report.figures.export import write_pictures

            written = write_pictures(report.figures, folder, suffix)
            typer.echo(f"wrote {len(written)} figures to {folder}", err=True)
    if out is None:
        typer.echo(text, nl=False)
    else:
        _write(out, text)
        typer.echo(f"wrote {out}", err=True)


def _format(form: str | None, out: Path | None) -> str:
    from raz.report.render import FORMATS, SUFFIXES
    from raz.utils.suggestions import did_you_mean

    if form is None:
        return SUFFIXES.get(out.suffix.lower(), "terminal") if out else "terminal"
    if form not in FORMATS:
        raise RazError("--format", f"{form!r}, expected one of {', '.join(FORMATS)}", did_you_mean(form, FORMATS))
    return form


def _write(path: Path, text: str) -> None:
    """Aside and renamed, so that a full disk leaves no half table."""
    with atomic_write(path) as aside:
        aside.write_text(text, encoding="utf-8")


def _table(
    name: str, profile: str | None, store: Path, data_root: Path | None, settings: list[str], over: Over | None,
    drawing: bool, photographs: PhotoRequest,
) -> Report:  # fmt: skip
    from raz.report.fill import fill_table
    from raz.report.stale import stale_notes
    from raz.report.tables import table_report
    from raz.spec.ablation_yaml import load_table
    from raz.spec.base_config import parse_settings
    from raz.utils.shipped import find_shipped

    path = find_shipped(name, ("ablations",))
    own = Path(name).expanduser().is_file()
    shown = name if own else f"ablations/{path.name}"
    table = load_table(path, shown, parse_settings(settings), profile, data_root=data_root)
    scale = table.profile(profile)
    filled = fill_table(table, scale, store, data_root=data_root)
    command = fill_command(shown, scale.name, scale.datasets, store, data_root, settings)
    cost = _cost(shown, scale.name, store, data_root, settings) if filled.missing else ""
    report = table_report(filled, command, cost, over, tuple(stale_notes(filled, data_root)))
    if not drawing:
        return report
    from raz.report import stage_costs
    from raz.report.figures import learning_curves
    from raz.report.figures.stage_tree import stage_cost_figures
    from raz.report.figures.table_figures import table_figures
    from raz.report.used_stages import stages_of

    uses = stages_of(filled, data_root)
    figures = (
        *table_figures(filled, over),
        *learning_curves.learning_curves(uses, data_root),
        *stage_cost_figures(stage_costs.of_uses(uses)),
    )
    photographed = photographs.of_table(filled, data_root) if photographs.which else ()
    return replace(report, figures=(*photographed, *figures))


def _cost(file: str, profile: str, store: Path, data_root: Path | None, settings: list[str]) -> str:
    """What the missing trials will take, as `raz-sweep run --dry-run` has it; nothing where it cannot be known."""
    from raz.cli.dry_run import plan_file
    from raz.planning.plan import format_estimate

    try:
        plan = plan_file(file, store, settings=settings, data_root=data_root, profile=profile)
    except RazError:  # a data set that is not here: told among the notes
        return ""
    measured = "measured" if all(row.measured for row in plan.rows if row.distinct > row.stored) else "estimated"
    kind = "CPU jobs" if plan.device == "cpu" else f"{plan.device} devices"
    return f"what is missing takes about {format_estimate(plan.wall_seconds)} on {plan.devices} {kind} ({measured})"


def fill_command(
    file: str, profile: str, datasets: tuple[str, ...], store: Path, data_root: Path | None, settings: list[str]
) -> str:
    """The command that trains and scores what a table is missing."""
    from raz.data import readers

    words = ["raz-sweep", "run", file, "--profile", profile, "--store", str(store)]
    if data_root is not None:
        words += ["--data-root", str(data_root)]
    elif any(reader.find is not None for name, reader in readers(data_root).items() if name in datasets):
        words += ["--data-root", "DIR"]
    for pair in settings:
        words += ["--set", pair]
    return shlex.join(words)


def _study(
    name: str, store: Path, compare: str | None, drawing: bool, data_root: Path | None, photographs: PhotoRequest
) -> Report:
    from raz.report import stage_costs
    from raz.report.figures.stage_tree import stage_cost_figures
    from raz.report.figures.study_figures import importances, study_figures, to_optuna_study
    from raz.report.study import compared, held_out, study_report
    from raz.study.index import read_study

    study = read_study(store, name)
    objectives = study.objectives
    shares = importances(to_optuna_study(study.trials, study.directions)) if len(objectives) == 1 else {}
    where = "" if str(store) == "raz-store" else " " + shlex.join(["--store", str(store)])
    ran = study.attributes.get("command", "")  # of a study that was run by the command line
    command = f"{ran}{where}" if isinstance(ran, str) and ran else ""
    report = study_report(name, study.trials, objectives, shares, command, where, everything=drawing)
    told = held_out(study.attributes)
    report = replace(report, sheets=(*report.sheets[:1], *told, *report.sheets[1:]))
    if compare is not None:
        other = read_study(store, compare)
        sheet = compared(name, study.trials, compare, other.trials, objectives)
        report = replace(report, sheets=(sheet, *report.sheets))
    if not drawing:
        return report
    figures = study_figures(study.trials, objectives)
    photographed = photographs.of_study(study, data_root) if photographs.which else ()
    return replace(report, figures=(*photographed, *figures, *stage_cost_figures(stage_costs.of_records(study.trials))))


def _listing(store: Path) -> Report:
    from raz.report.layout import Report, TextTable
    from raz.spec.ablation_yaml import load_table
    from raz.study.index import read_study
    from raz.study.journal import study_names
    from raz.utils.shipped import shipped

    tables = {name: load_table(path, f"ablations/{path.name}") for name, path in shipped("ablations").items()}
    lines = tuple((name, ", ".join(t.profiles), t.title, t.paper) for name, t in tables.items())
    sheets = [
        TextTable("Tables (--table NAME)", ("table", "profiles", "title", "paper"), lines, frozenset({0, 1, 2, 3}))
    ]
    records: list[dict[str, Any]] = [
        {"kind": "table", "name": name, "title": t.title, "profiles": ", ".join(t.profiles)}
        for name, t in tables.items()
    ]
    notes, studies = [], []
    for name in study_names(store):
        try:
            trials = read_study(store, name).trials
        except RazError as error:
            notes.append(str(error))
            continue
        complete = sum(trial.state == "complete" for trial in trials)
        studies.append((name, str(len(trials)), str(complete)))
        records.append({"kind": "study", "name": name, "trials": len(trials), "complete": complete})
    if studies:
        sheets.append(TextTable("Studies (report NAME)", ("study", "trials", "complete"), tuple(studies)))
    else:
        there = f"{store} has no studies yet" if store.is_dir() else f"there is no store {store} yet"
        notes.append(f"{there}: raz-sweep run fusion")
    return Report("What can be reported", tuple(sheets), tuple(notes), tuple(records), {"store": str(store)})
