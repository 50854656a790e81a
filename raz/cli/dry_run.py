"""`raz-sweep run FILE --dry-run` and `raz-sweep simulate FILE`: from the name that was typed to the lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raz.planning.cost_model import START_SECONDS, CostModel, Estimate
from raz.planning.plan import (
    Plan,
    TrialSet,
    design_trials,
    draws_of_search,
    format_estimate,
    plan_lines,
    plan_of,
    schedules,
    trials_of_table,
)
from raz.planning.simulate import Schedule
from raz.spec.ablation import AblationTable, Profile
from raz.spec.ablation_yaml import parse_table
from raz.spec.base_config import open_spec, parse_settings
from raz.spec.search_space import SearchSpace
from raz.spec.space_yaml import parse_space
from raz.study.remaining import finished_table_trials, run_target, upcoming_trials
from raz.utils.machine import available_cpus


def _open(
    file: str,
    settings: list[str],
    profile: str | None,
    trials: int | None,
    data_root: Path | None,
    retry: bool = False,
) -> tuple[SearchSpace | AblationTable, Profile | None]:
    source, is_table = open_spec(file, profile=profile, trials=trials, retry=retry)
    if is_table:
        table = parse_table(source, parse_settings(settings), profile, data_root=data_root)
        return table, table.profile(profile)
    return parse_space(source, parse_settings(settings), data_root=data_root), None


def plan_file(
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
) -> Plan:
    """What `raz-sweep run` with the same arguments would cost: of the trials that it would begin. Raises RazError for
    what the user can put right."""
    store, data_root = store.expanduser(), data_root and data_root.expanduser()
    spec, scale = _open(file, settings, profile, trials, data_root, retry)
    prices = CostModel(store, data_root)
    start = 0.0 if inline else START_SECONDS
    if isinstance(spec, AblationTable):
        assert scale is not None
        every = list(spec.trials(scale))
        finished = finished_table_trials(every, store, data_root=data_root, splits=spec.splits)
        draw = trials_of_table((trial for i, trial in enumerate(every) if i not in finished), prices)
        threads = max(trial.config.threads for trial in every)
        return plan_of(
            f"{spec.table} ({scale.name})", "table", [draw], devices=_devices(jobs, threads, inline), prices=prices,
            exact=True, done=len(finished), start=start,
        )  # fmt: skip
    devices = _devices(jobs, spec.threads, inline)
    upcoming = upcoming_trials(spec, store, run_target(spec, trials), slots=devices, retry=retry)
    draws, skipped = draws_of_search(spec, upcoming.left, prices, known=upcoming.known)
    return plan_of(
        spec.study, "search", draws, devices=devices, prices=prices,
        exact=spec.fixed or upcoming.left == len(upcoming.known), done=upcoming.finished,
        skipped=upcoming.invalid + skipped, start=start, eager=spec.overcommits,
    )  # fmt: skip


def _devices(jobs: int | None, threads: int, inline: bool) -> int:
    return 1 if inline else jobs if jobs is not None else max(1, available_cpus() // threads)


def show_plan(plan: Plan, *, as_json: bool = False) -> str:
    """As printed."""
    return json.dumps(plan.as_json(), indent=2) if as_json else "\n".join(plan_lines(plan))


def simulate_file(
    file: str,
    store: Path,
    *,
    devices: int,
    settings: list[str],
    data_root: Path | None = None,
    trials: int | None = None,
    profile: str | None = None,
) -> dict[str, Any]:
    """The schedule of a file's trials on `devices`, from an empty store. Raises RazError as `plan_file`."""
    store, data_root = store.expanduser(), data_root and data_root.expanduser()
    spec, scale = _open(file, settings, profile, trials, data_root)
    prices = CostModel(store, data_root)
    draw: TrialSet
    if isinstance(spec, AblationTable):
        assert scale is not None
        name, draw, eager = f"{spec.table} ({scale.name})", trials_of_table(spec.trials(scale), prices), True
    else:
        target = run_target(spec, trials)
        known = design_trials(spec, target) if spec.fixed else []
        draws, _ = draws_of_search(spec, target, prices, known=known, sets=1)
        name, draw, eager = spec.study, draws[0], spec.overcommits
    shared, plain = schedules(draw, devices, eager=eager)
    return {
        "name": name, "trials": len(draw.trials), "stages": len(draw.stages), "devices": devices,
        "device": prices.kind, **_schedule_dict(shared), "without_sharing": _schedule_dict(plain),
        "speedup": plain.makespan / shared.makespan if shared.makespan else 1.0,
    }  # fmt: skip


def _schedule_dict(schedule: Schedule) -> dict[str, float]:
    return {
        "makespan_seconds": round(schedule.makespan, 3), "busy_seconds": round(schedule.busy, 3),
        "utilisation": round(schedule.utilisation, 4), "critical_path_seconds": round(schedule.critical_path, 3),
        "floor_seconds": round(schedule.floor, 3),
    }  # fmt: skip


def show_simulation(found: Mapping[str, Any], *, as_json: bool = False) -> str:
    """As printed."""
    if as_json:
        return json.dumps(found, indent=2)
    plain = found["without_sharing"]

    def seconds(value: float) -> str:
        return format_estimate(Estimate(value, value, value)).partition(" (")[0]

    floor = found["floor_seconds"]
    above = f" ({found['makespan_seconds'] / floor:.2f} times the floor)" if floor else ""
    noun = "device" if found["devices"] == 1 else "devices"
    return "\n".join(
        [
            f"{found['name']}: {found['trials']} trials, {found['stages']} distinct stages,"
            f" {found['devices']} simulated {noun}, from an empty store",
            f"makespan        {seconds(found['makespan_seconds'])}{above}",
            f"floor           {seconds(floor)}: the longer of critical path and work over devices",
            f"critical path   {seconds(found['critical_path_seconds'])}",
            f"device time     {seconds(found['busy_seconds'])}, utilisation {100 * found['utilisation']:.0f} %",
            f"without sharing {seconds(plain['makespan_seconds'])}, device time {seconds(plain['busy_seconds'])}:"
            f" {found['speedup']:.1f} times as long",
        ]
    )
