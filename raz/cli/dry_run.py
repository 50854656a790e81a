"""`raz-sweep run FILE --dry-run` and `raz-sweep simulate FILE`, from the name that was typed to the printed lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from raz.engine.ray_session import parallel_slots
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
from raz.spec.stage_resources import Resources
from raz.study.remaining import finished_table_trials, run_target, upcoming_trials
from raz.utils.json_types import JsonLike


def _open(
    file: str,
    settings: list[str],
    profile: str | None,
    trials: int | None,
    data_root: Path | None,
    retry: bool = False,
) -> tuple[SearchSpace | AblationTable, Profile | None]:
    """The search space, or the table with its profile. Raises RazError for what the user can put right."""
    source, is_table = open_spec(file, trials=trials, retry=retry)
    if is_table:
        table = parse_table(source, parse_settings(settings), profile, data_root=data_root)
        return table, table.profile(profile)
    return parse_space(source, parse_settings(settings), profile, data_root=data_root), None


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
    costs = CostModel(store, data_root)
    start = 0.0 if inline else START_SECONDS
    if isinstance(spec, AblationTable):
        assert scale is not None
        every = list(spec.trials(scale))
        finished = finished_table_trials(every, store, data_root=data_root, splits=spec.splits)
        draw = trials_of_table((trial for i, trial in enumerate(every) if i not in finished), costs)
        threads = max(trial.config.threads for trial in every)
        return plan_of(
            f"{spec.table} ({scale.name})", "table", [draw], devices=_devices(jobs, threads, {}, inline), costs=costs,
            exact=True, done=len(finished), start=start,
        )  # fmt: skip
    devices = _devices(jobs, spec.threads, spec.resources, inline)
    upcoming = upcoming_trials(spec, store, run_target(spec, trials), slots=devices, retry=retry)
    draws, skipped = draws_of_search(spec, upcoming.left, costs, known=upcoming.known)
    return plan_of(
        spec.study, "search", draws, devices=devices, costs=costs,
        exact=spec.fixed or upcoming.left == len(upcoming.known), done=upcoming.finished,
        skipped=upcoming.invalid + skipped, start=start, eager=spec.overcommits,
    )  # fmt: skip


def _devices(jobs: int | None, threads: int, resources: Mapping[str, Resources], inline: bool) -> int:
    return 1 if inline else jobs if jobs is not None else parallel_slots(threads, resources)


def show_plan(plan: Plan, *, as_json: bool = False) -> str:
    """A plan as it is printed."""
    return json.dumps(plan.as_json(), indent=2) if as_json else "\n".join(plan_lines(plan))


@dataclass(frozen=True)
class Simulation:
    """The schedules of a file's trials on simulated devices, from an empty store."""

    name: str
    trials: int
    stages: int  # distinct ones
    device: str  # cpu | cuda
    shared: Schedule
    plain: Schedule  # of plain training, where no trial shares a stage

    @property
    def speedup(self) -> float:
        """How many times as long plain training takes."""
        return self.plain.makespan / self.shared.makespan if self.shared.makespan else 1.0

    def as_json(self) -> dict[str, JsonLike]:
        """The document of `raz-sweep simulate --json`."""
        return {
            "name": self.name, "trials": self.trials, "stages": self.stages, "devices": self.shared.devices,
            "device": self.device, **_schedule_dict(self.shared), "without_sharing": _schedule_dict(self.plain),
            "speedup": self.speedup,
        }  # fmt: skip


def _schedule_dict(schedule: Schedule) -> dict[str, float]:
    return {
        "makespan_seconds": round(schedule.makespan, 3), "busy_seconds": round(schedule.busy, 3),
        "utilisation": round(schedule.utilisation, 4), "critical_path_seconds": round(schedule.critical_path, 3),
        "floor_seconds": round(schedule.floor, 3),
    }  # fmt: skip


def simulate_file(
    file: str,
    store: Path,
    *,
    devices: int,
    settings: list[str],
    data_root: Path | None = None,
    trials: int | None = None,
    profile: str | None = None,
) -> Simulation:
    """The schedule of a file's trials on `devices`, from an empty store. Raises RazError as `plan_file`."""
    store, data_root = store.expanduser(), data_root and data_root.expanduser()
    spec, scale = _open(file, settings, profile, trials, data_root)
    costs = CostModel(store, data_root)
    draw: TrialSet
    if isinstance(spec, AblationTable):
        assert scale is not None
        name, draw, eager = f"{spec.table} ({scale.name})", trials_of_table(spec.trials(scale), costs), True
    else:
        target = run_target(spec, trials)
        known = design_trials(spec, target) if spec.fixed else []
        draws, _ = draws_of_search(spec, target, costs, known=known, sets=1)
        name, draw, eager = spec.study, draws[0], spec.overcommits
    shared, plain = schedules(draw, devices, eager=eager)
    return Simulation(name, len(draw.trials), len(draw.stages), costs.device, shared, plain)


def show_simulation(simulation: Simulation, *, as_json: bool = False) -> str:
    """A simulation as it is printed."""
    if as_json:
        return json.dumps(simulation.as_json(), indent=2)
    shared, plain = simulation.shared, simulation.plain

    def seconds(value: float) -> str:
        return format_estimate(Estimate(value, value, value)).partition(" (")[0]

    above = f" ({shared.makespan / shared.floor:.2f} times the floor)" if shared.floor else ""
    noun = "device" if shared.devices == 1 else "devices"
    return "\n".join(
        [
            f"{simulation.name}: {simulation.trials} trials, {simulation.stages} distinct stages,"
            f" {shared.devices} simulated {noun}, from an empty store",
            f"makespan        {seconds(shared.makespan)}{above}",
            f"floor           {seconds(shared.floor)}: the longer of critical path and work over devices",
            f"critical path   {seconds(shared.critical_path)}",
            f"device time     {seconds(shared.busy)}, utilisation {100 * shared.utilisation:.0f} %",
            f"without sharing {seconds(plain.makespan)}, device time {seconds(plain.busy)}:"
            f" {simulation.speedup:.1f} times as long",
        ]
    )
