"""Figures of a study: Optuna's own where it has them, of trials rebuilt from the index, and a timeline of workers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raz.report.figures.style import figure
from raz.report.layout import Figure

if TYPE_CHECKING:
    import optuna

    from raz.study.records import TrialRecord

MOST_TRIALS = 500  # in a figure of Optuna's: more make a page slow and no picture clearer
MOST_PARAMETERS = 6  # in a grid of panels


def to_optuna_study(records: Sequence[TrialRecord], directions: Sequence[str]) -> optuna.Study:
    """An Optuna study in memory of the finished trials, at most MOST_TRIALS spread over all."""
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    done = [
        r
        for r in records
        if (r.state == "pruned" and len(directions) == 1)
        or (r.state == "complete" and len(_values(r, directions)) == len(directions))
    ]
    step = max(1, -(-len(done) // MOST_TRIALS))
    done = done[::step]
    seen: dict[str, list[Any]] = {}
    for record in done:
        for name, value in record.values.items():
            seen.setdefault(name, []).append(value)
    spaces: dict[str, Any] = {}
    for name, values in seen.items():
        kinds = {type(value) for value in values}
        if kinds == {int}:
            spaces[name] = IntDistribution(min(values), max(values))
        elif kinds <= {int, float}:
            spaces[name] = FloatDistribution(float(min(values)), float(max(values)))
        else:
            spaces[name] = CategoricalDistribution(sorted({_label(value) for value in values}))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=[optuna.study.StudyDirection[name.upper()] for name in directions])
    for record in done:
        params = {
            name: _label(value) if isinstance(spaces[name], CategoricalDistribution) else value
            for name, value in record.values.items()
        }
        complete = record.state == "complete"
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.COMPLETE if complete else optuna.trial.TrialState.PRUNED,
                params=params, distributions={name: spaces[name] for name in params},
                values=_values(record, directions) if complete else None, intermediate_values=dict(record.steps),
            )
        )  # fmt: skip
    return study


def _values(record: TrialRecord, directions: Sequence[str]) -> list[float]:
    if len(directions) > 1:
        return list(record.objectives.values())
    return [] if record.value is None else [record.value]


def _label(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def importances(study: optuna.Study) -> dict[str, float]:
    """Share of the objective's variation that each parameter explains (PED-ANOVA); empty where it cannot be told."""
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
    """History, learning curves, importance, parallel coordinates, slices, contours, Pareto front, timeline."""
    import optuna.visualization as drawn

    metric, directions = next(iter(objectives)), list(objectives.values())
    study = to_optuna_study(records, directions)
    if not study.get_trials(deepcopy=False):
        return ()
    out = []
    names = list(importances(study))[:MOST_PARAMETERS] if len(directions) == 1 else []
    several = len(names) > 1
    makers: list[tuple[str, Any]] = []
    if len(directions) > 1:
        makers.append(("Pareto front", lambda: drawn.plot_pareto_front(study, target_names=list(objectives))))
    else:
        makers += [
            (f"History of {metric}", lambda: drawn.plot_optimization_history(study, target_name=metric)),
            ("Learning curves, as the pruner saw them", lambda: drawn.plot_intermediate_values(study)),
        ]
        if several:
            makers += [
                ("Parallel coordinates",
                 lambda: drawn.plot_parallel_coordinate(study, params=names, target_name=metric)),
                ("Slices", lambda: drawn.plot_slice(study, params=names, target_name=metric)),
                ("Contours of the two that matter most",
                 lambda: drawn.plot_contour(study, params=names[:2], target_name=metric)),
            ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for title, make in makers:
            try:
                drawing = make()
            except (ValueError, RuntimeError):  # Optuna says so where the trials hold nothing to draw
                continue
            drawing.update_layout(template=None, title=None, showlegend=False)
            spec = json.loads(drawing.to_json())
            if spec["data"]:
                out.append(Figure(title, tuple({"trace": t.get("name", "")} for t in spec["data"]), spec))
    if len(directions) == 1:
        out += _importance(study)
    out += timeline(records)
    return tuple(out)


def _importance(study: optuna.Study) -> list[Figure]:
    found = importances(study)
    rows = [{"parameter": name, "share": share} for name, share in reversed(found.items())]
    if not rows:
        return []
    bar = {"type": "bar", "orientation": "h", "x": [r["share"] for r in rows], "y": [r["parameter"] for r in rows]}
    note = "PED-ANOVA: which parameters tell the best tenth of trials from the rest."
    return [figure("What matters", rows, [bar], "share", "", note, height=120 + 28 * len(rows))]


def timeline(records: Sequence[TrialRecord]) -> list[Figure]:
    """Each trial as a bar on the first worker that was free when it started."""
    ran = sorted(((r.started, r.finished, r) for r in records if r.started and r.finished), key=lambda each: each[:2])
    free: list[Any] = []
    rows: list[dict[str, Any]] = []
    for start, end, record in ran[:MOST_TRIALS]:
        lane = next((i for i, busy in enumerate(free) if busy <= start), len(free))
        free[lane : lane + 1] = [end]
        rows.append({"trial": record.number, "worker": lane, "state": record.state, "start": start.isoformat(),
                     "seconds": (end - start).total_seconds()})  # fmt: skip
    if not rows:
        return []
    traces = []
    for state in dict.fromkeys(row["state"] for row in rows):
        of = [row for row in rows if row["state"] == state]
        traces.append({
            "type": "bar", "orientation": "h", "name": state, "base": [row["start"] for row in of],
            "x": [1000 * row["seconds"] for row in of], "y": [f"worker {row['worker']}" for row in of],
            "text": [f"trial {row['trial']}" for row in of], "textposition": "none",
        })  # fmt: skip
    return [figure("Timeline of workers", rows, traces, "", "", barmode="overlay", xaxis={"type": "date"},
                   height=160 + 30 * len(free))]  # fmt: skip
