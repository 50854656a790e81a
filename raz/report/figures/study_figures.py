"""Figures of a study from its index: Optuna's own where it has them, parameter importance, a timeline of workers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from raz.report.figures.style import figure
from raz.report.layout import Figure, Record
from raz.study.trial_status import TrialStatus
from raz.utils.json_types import Json

if TYPE_CHECKING:
    import optuna
    import plotly.graph_objects as go
    from optuna.distributions import BaseDistribution

    from raz.study.records import TrialRecord

MAX_TRIALS = 500  # in one of Optuna's figures; more make the page slow and the figure no clearer
MAX_PARAMETERS = 6  # in a grid of panels


def to_optuna_study(records: Sequence[TrialRecord], directions: Sequence[str]) -> optuna.Study:
    """An in-memory Optuna study of the complete and pruned trials, evenly thinned out to at most MAX_TRIALS."""
    import optuna
    from optuna.distributions import CategoricalDistribution

    finished = [
        r
        for r in records
        if (r.state == TrialStatus.PRUNED and len(directions) == 1)
        or (r.state == TrialStatus.COMPLETE and len(_objective_values(r, directions)) == len(directions))
    ]
    step = max(1, -(-len(finished) // MAX_TRIALS))
    finished = finished[::step]
    by_name: dict[str, list[Json]] = {}
    for record in finished:
        for name, value in record.values.items():
            by_name.setdefault(name, []).append(value)
    distributions = {name: _distribution(values) for name, values in by_name.items()}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=[optuna.study.StudyDirection[name.upper()] for name in directions])
    for record in finished:
        params = {
            name: _label(value) if isinstance(distributions[name], CategoricalDistribution) else value
            for name, value in record.values.items()
        }
        complete = record.state == TrialStatus.COMPLETE
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.COMPLETE if complete else optuna.trial.TrialState.PRUNED,
                params=params, distributions={name: distributions[name] for name in params},
                values=_objective_values(record, directions) if complete else None,
                intermediate_values=dict(record.steps),
            )
        )  # fmt: skip
    return study


def _distribution(values: Sequence[Json]) -> BaseDistribution:
    """A distribution that holds all these values of a parameter."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    whole = [value for value in values if type(value) is int]
    numbers = [value for value in values if type(value) is int or type(value) is float]
    if len(whole) == len(values):
        return IntDistribution(min(whole), max(whole))
    if len(numbers) == len(values):
        return FloatDistribution(float(min(numbers)), float(max(numbers)))
    return CategoricalDistribution(sorted({_label(value) for value in values}))


def _objective_values(record: TrialRecord, directions: Sequence[str]) -> list[float]:
    if len(directions) > 1:
        return list(record.objectives.values())
    return [] if record.value is None else [record.value]


def _label(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def importances(study: optuna.Study) -> dict[str, float]:
    """Parameter -> share of the objective's variation that it explains (PED-ANOVA), the largest first.

    Empty for fewer than four complete trials, for a constant objective, and where no parameter varies in all trials.
    """
    import optuna

    complete = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    if len(complete) < 4 or len({trial.value for trial in complete}) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
        except (ValueError, RuntimeError):  # no parameter that all trials have, or none that varies
            return {}


def study_figures(records: Sequence[TrialRecord], objectives: Mapping[str, str]) -> tuple[Figure, ...]:
    """History, learning curves, importance, parallel coordinates, slices, contours, Pareto front, timeline.

    objectives: metric -> minimize | maximize. A figure for which the trials hold no data is left out.
    """
    from optuna import visualization

    metric, directions = next(iter(objectives)), list(objectives.values())
    study = to_optuna_study(records, directions)
    if not study.get_trials(deepcopy=False):
        return ()
    out = []
    names = list(importances(study))[:MAX_PARAMETERS] if len(directions) == 1 else []
    plots: list[tuple[str, Callable[[], go.Figure]]] = []
    if len(directions) > 1:
        plots.append(("Pareto front", lambda: visualization.plot_pareto_front(study, target_names=list(objectives))))
    else:
        plots += [
            (f"History of {metric}", lambda: visualization.plot_optimization_history(study, target_name=metric)),
            ("Learning curves, as the pruner saw them", lambda: visualization.plot_intermediate_values(study)),
        ]
        if len(names) > 1:
            plots += [
                ("Parallel coordinates",
                 lambda: visualization.plot_parallel_coordinate(study, params=names, target_name=metric)),
                ("Slices", lambda: visualization.plot_slice(study, params=names, target_name=metric)),
                ("Contours of the two most important parameters",
                 lambda: visualization.plot_contour(study, params=names[:2], target_name=metric)),
            ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for title, plot in plots:
            try:
                plotly_figure = plot()
            except (ValueError, RuntimeError):  # Optuna raises these where the trials hold nothing to draw
                continue
            plotly_figure.update_layout(template=None, title=None, showlegend=False)
            spec = json.loads(plotly_figure.to_json())
            if spec["data"]:
                rows = tuple({"trace": trace.get("name", "")} for trace in spec["data"])
                out.append(Figure(title, rows, spec["data"], spec["layout"]))
    if len(directions) == 1:
        out += _importance_figures(study)
    out += timeline(records)
    return tuple(out)


def _importance_figures(study: optuna.Study) -> list[Figure]:
    shares = list(reversed(importances(study).items()))
    if not shares:
        return []
    rows: list[Record] = [{"parameter": name, "share": share} for name, share in shares]
    bar: Record = {
        "type": "bar", "orientation": "h", "x": [share for _, share in shares], "y": [name for name, _ in shares],
    }  # fmt: skip
    note = "PED-ANOVA: which parameters distinguish the best tenth of trials from the rest."
    return [figure("Parameter importance", rows, [bar], "share", "", note, height=120 + 28 * len(rows))]


@dataclass(frozen=True)
class WorkerSpan:
    """The time of one trial on a worker of the timeline."""

    trial: int
    worker: int
    state: str
    start: datetime
    seconds: float


def timeline(records: Sequence[TrialRecord]) -> list[Figure]:
    """Each trial as a bar on the first worker that was free when it started; no figure where no trial ran."""
    ran = sorted(((r.started, r.finished, r) for r in records if r.started and r.finished), key=lambda each: each[:2])
    free: list[datetime] = []  # when each worker becomes free
    spans: list[WorkerSpan] = []
    for start, end, record in ran[:MAX_TRIALS]:
        worker = next((i for i, busy_until in enumerate(free) if busy_until <= start), len(free))
        free[worker : worker + 1] = [end]
        spans.append(WorkerSpan(record.number, worker, str(record.state), start, (end - start).total_seconds()))
    if not spans:
        return []
    rows: list[Record] = [
        {"trial": s.trial, "worker": s.worker, "state": s.state, "start": s.start.isoformat(), "seconds": s.seconds}
        for s in spans
    ]
    traces: list[Record] = []
    for state in dict.fromkeys(span.state for span in spans):
        group = [span for span in spans if span.state == state]
        traces.append({
            "type": "bar", "orientation": "h", "name": state, "base": [span.start.isoformat() for span in group],
            "x": [1000 * span.seconds for span in group], "y": [f"worker {span.worker}" for span in group],
            "text": [f"trial {span.trial}" for span in group], "textposition": "none",
        })  # fmt: skip
    return [figure("Timeline of workers", rows, traces, "", "", barmode="overlay", xaxis={"type": "date"},
                   height=160 + 30 * len(free))]  # fmt: skip
