"""`raz-sweep report`: a table beside the paper's numbers, or the trials of a study, in any format."""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raz.cli.options import DEFAULT_STORE, DataRoot, Profile, Settings, Store, resolve_store
from raz.errors import RazError
from raz.report.figures.photo_request import PhotoRequest
from raz.utils.atomic import atomic_write

if TYPE_CHECKING:
    from raz.report.layout import Record, Report
    from raz.report.statistics import Over


def report_command(
    study: Annotated[
        str | None, typer.Argument(help="A study in the store: report its best trials, states and failures.")
    ] = None,
    table: Annotated[
        str | None, typer.Option("--table", help="A table: the name of a shipped one, or your own YAML file.")
    ] = None,
    profile: Profile = None,
    store: Store = DEFAULT_STORE,
    data_root: DataRoot = None,
    settings: Settings = None,
    form: Annotated[
        str | None,
        typer.Option("--format", help="terminal, md, csv, json, latex or html. Default: from --out's suffix."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write to this file instead of the terminal.")] = None,
    over: Annotated[
        str | None,
        typer.Option(help="Take differences over seeds or images. Default: seeds where at least two are paired."),
    ] = None,
    compare: Annotated[str | None, typer.Option(metavar="STUDY", help="Show this study next to the first one.")] = None,
    png: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the figures as PNG into this folder, with their data.")
    ] = None,
    svg: Annotated[Path | None, typer.Option(metavar="DIR", help="The same as SVG.")] = None,
    photo: Annotated[
        list[str] | None,
        typer.Option(
            metavar="IMAGE",
            help="Show this image too: a name, an index, densest, median, sparsest, worst or best. Repeatable.",
        ),
    ] = None,
    of: Annotated[
        str | None,
        typer.Option(
            metavar="TRIAL", help="With --photo: ROW or ROW@SEED of the table, or a trial number of the study."
        ),
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Take a table's scores from this file of --scores-out, not from the store."),
    ] = None,
    scores_out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a table's scores as numbers: .parquet or .csv."),
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the tables and the store's studies.")] = False,
) -> None:
    """Report a table beside the paper's numbers, or a study. It reads the store; it trains and predicts nothing.

    \b
    raz-sweep report --table recurrence                   the rows, on the generated crowd
    raz-sweep report --table recurrence --profile paper --data-root ~/data --out table4.tex
    raz-sweep report --table recurrence --out t.html      one page with sortable tables, figures and provenance
    raz-sweep report --table recurrence --over images     compare these trained models over images, not over seeds
    raz-sweep report --table recurrence --png figures     every figure as an image file, with its data as CSV
    raz-sweep report --table recurrence --photo densest --photo IMG_3 --out t.html    with the paper's Figures 1 and 5
    raz-sweep report --table recurrence --scores-out t4.parquet    its scores as numbers, image by image
    raz-sweep report --table recurrence --scores t4.parquet    the same table from that file, without the trainings
    raz-sweep report fusion --compare zooming             the best trials of a study, next to another study
    raz-sweep report --list                               all tables and studies
    """
    store = resolve_store(store)
    from raz.report.render import FORMATS, terminal

    output_format = _format(form, out)
    with_figures = output_format == "html" or png is not None or svg is not None
    photos = PhotoRequest(tuple(photo or ()), of)
    differences_over = _parse_over(over)
    if over is not None and table is None:
        raise RazError("--over", "belongs to a table", "raz-sweep report --table NAME")
    if compare is not None and study is None:
        raise RazError("--compare", "belongs to a study", f"raz-sweep report STUDY --compare {compare}")
    if compare is not None and compare == study:
        raise RazError("--compare", f"{study} is the study itself", "raz-sweep report --list names the others")
    if photos.images and (listing or (study is None and table is None)):
        raise RazError("--photo", "belongs to a table or a study", "raz-sweep report --table NAME --photo densest")
    if photos.images and not with_figures:
        raise RazError("--photo", "photographs need a page or image files", "--out page.html, or --png DIR")
    if table is None and (scores is not None or scores_out is not None):
        option = "--scores" if scores is not None else "--scores-out"
        raise RazError(option, "belongs to a table", f"raz-sweep report --table NAME {option} {scores or scores_out}")
    if scores is not None and photos.images:
        raise RazError("--photo", "photographs are drawn from a store, and --scores has numbers alone", "omit --scores")
    if of is not None and not photos.images:
        raise RazError("--of", "belongs to --photo", f"--photo densest --of {of}")
    if listing or (study is None and table is None):
        if study is not None or table is not None:
            raise RazError("report", "--list beside a study or a table", "leave one out")
        report = _listing(store)
    elif table is not None:
        if study is not None:
            raise RazError("report", f"both a study ({study}) and a table ({table})", "leave one out")
        files = _ScoreFiles(scores and scores.expanduser(), scores_out and scores_out.expanduser())
        report = _table(table, profile, store, data_root, settings or [], differences_over, with_figures, photos, files)
    else:
        if profile is not None and not settings:
            what = "belongs to a table; the study of a search's profile has the profile in its name"
            hint = f"raz-sweep report {study}-{profile}, or raz-sweep report {study} for the default profile"
            raise RazError("--profile", what, hint)
        if settings:
            raise RazError("report", "--profile and --set belong to a table", f"raz-sweep report {study}")
        report = _study(str(study), store, compare, with_figures, data_root, photos)
    if output_format == "terminal" and out is None and sys.stdout.isatty():
        text = terminal(report, shutil.get_terminal_size().columns)
    else:
        text = FORMATS[output_format](report)
    for folder, suffix in ((png, "png"), (svg, "svg")):
        if folder is not None:
            from raz.report.figures.export import write_figures

            written = write_figures(report.figures, folder, suffix)
            typer.echo(f"wrote {len(written)} figures to {folder}", err=True)
    if out is None:
        typer.echo(text, nl=False)
    else:
        _write(out, text)
        typer.echo(f"wrote {out}", err=True)


def _parse_over(text: str | None) -> Over | None:
    match text:
        case None:
            return None
        case "seeds":
            return "seeds"
        case "images":
            return "images"
    raise RazError("--over", f"{text!r}, expected seeds or images", "--over seeds")


def _format(form: str | None, out: Path | None) -> str:
    """The name of a format in FORMATS. Raises RazError for an unknown one."""
    from raz.report.render import FORMATS, SUFFIXES
    from raz.utils.suggestions import did_you_mean

    if form is None:
        return SUFFIXES.get(out.suffix.lower(), "terminal") if out else "terminal"
    if form not in FORMATS:
        raise RazError("--format", f"{form!r}, expected one of {', '.join(FORMATS)}", did_you_mean(form, FORMATS))
    return form


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class _ScoreFiles:
    """Files with a table's scores: the one that is read in place of the store, and the one that is written."""

    read: Path | None
    write: Path | None


def _table(
    name: str, profile: str | None, store: Path, data_root: Path | None, settings: list[str], over: Over | None,
    with_figures: bool, photos: PhotoRequest, files: _ScoreFiles,
) -> Report:  # fmt: skip
    from raz.report.fill import fill_table
    from raz.report.score_transfer import fill_from_file, write_scores
    from raz.report.stage_costs import costs_of_stages, seconds_notes
    from raz.report.stale import stale_notes
    from raz.report.tables import table_report
    from raz.report.used_stages import used_stages
    from raz.spec.ablation_yaml import load_table
    from raz.spec.base_config import parse_settings
    from raz.utils.shipped import find_shipped

    path = find_shipped(name, ("ablations",))
    own = Path(name).expanduser().is_file()
    file = name if own else f"ablations/{path.name}"
    table = load_table(path, file, parse_settings(settings), profile, data_root=data_root)
    selected = table.profile(profile)
    if files.read is not None:
        filled = fill_from_file(table, selected, files.read, data_root=data_root)
    else:
        filled = fill_table(table, selected, store, data_root=data_root)
    if files.write is not None:
        written = write_scores(filled, files.write)
        typer.echo(f"wrote {written} scores to {files.write}", err=True)
    command = fill_command(file, selected.name, selected.datasets, store, data_root, settings)
    cost = "" if filled.imported or not filled.missing else _cost(file, selected.name, store, data_root, settings)
    costed = f"{table.splits[-1]}.gflops_per_image" in table.metrics
    stages = used_stages(filled, data_root) if (costed or with_figures) and not filled.imported else ()
    notes = (*stale_notes(filled, data_root), *(seconds_notes(filled, stages) if costed else ()))
    report = table_report(filled, command, cost, over, notes)
    if not with_figures:
        return report
    from raz.report.figures.learning_curves import learning_curves
    from raz.report.figures.stage_tree import stage_cost_figures
    from raz.report.figures.table_figures import table_figures

    if filled.imported:  # what trained and what it took is in the store alone
        return replace(report, figures=table_figures(filled, over))
    figures = (
        *table_figures(filled, over),
        *learning_curves(stages, data_root),
        *stage_cost_figures(costs_of_stages(stages)),
    )
    photographs = photos.of_table(filled, data_root) if photos.images else ()
    return replace(report, figures=(*photographs, *figures))


def _cost(file: str, profile: str, store: Path, data_root: Path | None, settings: list[str]) -> str:
    """A sentence: the time of the missing trials, as `raz-sweep run --dry-run` estimates it; '' where it is unknown."""
    from raz.cli.dry_run import plan_file
    from raz.planning.plan import format_estimate

    try:
        plan = plan_file(file, store, settings=settings, data_root=data_root, profile=profile)
    except RazError:  # a data set that cannot be opened: the notes say why
        return ""
    measured = "measured" if all(row.measured for row in plan.rows if row.distinct > row.stored) else "estimated"
    kind = "CPU jobs" if plan.device == "cpu" else f"{plan.device} devices"
    return f"The missing trials take about {format_estimate(plan.wall_seconds)} on {plan.devices} {kind} ({measured})."


def fill_command(
    file: str, profile: str, datasets: tuple[str, ...], store: Path, data_root: Path | None, settings: list[str]
) -> str:
    """The command that trains and scores the missing trials of a table."""
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
    name: str, store: Path, compare: str | None, with_figures: bool, data_root: Path | None, photos: PhotoRequest
) -> Report:
    from raz.report.devices import study_device_notes
    from raz.report.figures.stage_tree import stage_cost_figures
    from raz.report.figures.study_figures import importances, study_figures, to_optuna_study
    from raz.report.stage_costs import costs_of_records
    from raz.report.study import comparison_table, held_out_table, study_report
    from raz.study.attributes import StudyAttributes
    from raz.study.index import read_study

    study = read_study(store, name)
    attributes = StudyAttributes.parse(study.attributes)
    objectives = study.objectives
    shares = importances(to_optuna_study(study.trials, study.directions)) if len(objectives) == 1 else {}
    store_option = "" if store == DEFAULT_STORE else " " + shlex.join(["--store", str(store)])
    command = f"{attributes.command}{store_option}" if attributes.command else ""  # '' for a study run from Python
    report = study_report(name, study.trials, objectives, shares, command, store_option, all_trials=with_figures)
    report = replace(report, sheets=(*report.sheets[:1], *held_out_table(attributes), *report.sheets[1:]))
    studies = {name: study.trials}
    if compare is not None:
        other = read_study(store, compare)
        comparison = comparison_table(name, study.trials, compare, other.trials, objectives)
        report = replace(report, sheets=(comparison, *report.sheets))
        studies[compare] = other.trials
    report = replace(report, notes=(*report.notes, *study_device_notes(studies)))
    if not with_figures:
        return report
    figures = (*study_figures(study.trials, objectives), *stage_cost_figures(costs_of_records(study.trials)))
    photographs = photos.of_study(study, data_root) if photos.images else ()
    return replace(report, figures=(*photographs, *figures))


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
    records: list[Record] = [
        {"kind": "table", "name": name, "title": t.title, "profiles": ", ".join(t.profiles)}
        for name, t in tables.items()
    ]
    notes: list[str] = []
    studies: list[tuple[str, ...]] = []
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
        reason = f"{store} has no studies yet" if store.is_dir() else f"there is no store {store} yet"
        notes.append(f"{reason}: raz-sweep run fusion")
    return Report("What can be reported", tuple(sheets), tuple(notes), tuple(records), {"store": str(store)})
