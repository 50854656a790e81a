"""What a run will cost: trials, distinct stages, device hours, wall time and disk. Imports neither torch nor Ray.

The trials of a fixed design and of a table are known. A search draws its trials as it learns, so its plan is an
estimate: the mean over several sets of random draws (with `proposals`, the cheapest of as many candidates each). A
sampler that settles on a few values shares more. A plan prunes nothing, and assumes early stopping only where similar
stages stopped early.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from raz.config import TrialConfig
from raz.errors import RazError
from raz.pipeline.graph import STAGES, Node
from raz.pipeline.keys import stage_keys
from raz.planning.cost_aware import WorkTracker
from raz.planning.cost_model import BOUNDS, PRIORS, START_SECONDS, ZERO, Bound, CostModel, Estimate
from raz.planning.schedule import max_live_trials
from raz.planning.simulate import Schedule, StageVisit, simulate, simulate_without_sharing
from raz.planning.work_order import trial_order
from raz.spec.ablation import TABLE_SPLITS, TableTrial
from raz.spec.search_space import SEARCH_SPLITS, SearchSpace
from raz.store.cache import StageCache
from raz.utils.formatting import size
from raz.utils.json_types import JsonLike

Choice = TypeVar("Choice")

DRAWS = 5  # sets of random trials that stand for those that a search will draw


@dataclass(frozen=True)
class PlannedStage:
    """One distinct stage of a plan."""

    node: Node
    seconds: Estimate
    measured: bool  # from similar stages in the store; otherwise from a prior
    stored: bool  # in the store
    size: float  # bytes
    needs: tuple[str, ...]


@dataclass(frozen=True)
class TrialSet:
    """Trials, each as the keys of its stages in order, and their distinct stages by key."""

    trials: tuple[tuple[str, ...], ...]
    stages: Mapping[str, PlannedStage]

    def visits(self, bound: Bound, *, stored: bool = True) -> list[list[StageVisit]]:
        """The trials for the simulator, at the given bound of each stage's seconds. With `stored`, stages in the store
        take no time."""
        visits = {}
        for key, stage in self.stages.items():
            seconds = 0.0 if stored and stage.stored else stage.seconds.at(bound)
            visits[key] = StageVisit(key, seconds, STAGES[stage.node.stage].kind != "computed", stage.needs)
        return [[visits[key] for key in trial] for trial in self.trials]

    def total_seconds(self, keys: Iterable[str]) -> Estimate:
        """The sum over these stages on one device."""
        total = ZERO
        for key in keys:
            total += self.stages[key].seconds
        return total

    @property
    def missing(self) -> list[str]:
        """The keys of the stages that the store lacks."""
        return [key for key, stage in self.stages.items() if not stage.stored]


@dataclass(frozen=True)
class StageSummary:
    """The stages of one name in a plan, as means over its sets of draws."""

    stage: str
    distinct: float
    stored: float
    seconds: Estimate  # of those that the store lacks
    measured: bool  # whether the estimates of all of these are from similar stages


@dataclass(frozen=True)
class Plan:
    """What a run will cost. Of several sets of draws all figures are means."""

    name: str
    kind: str  # search | table
    trials: int  # that are still to run
    done: int  # trials that are finished
    exact: bool  # whether all trials are known, none drawn
    rows: tuple[StageSummary, ...]
    device_seconds: Estimate  # of the stages that the store lacks, on one device
    alone_seconds: Estimate  # if every trial made all of its stages, as plain training does, on one device
    wall_seconds: Estimate  # of the run on `devices`
    devices: int
    device: str  # cpu | cuda
    disk: float  # bytes of the stages that the store lacks
    skipped: int = 0  # trials whose values are invalid together

    @property
    def stages(self) -> float:
        return sum(row.distinct for row in self.rows)

    @property
    def stored(self) -> float:
        return sum(row.stored for row in self.rows)

    def as_json(self) -> dict[str, JsonLike]:
        """The document of `raz-sweep run --dry-run --json`."""

        def rounded(seconds: Estimate) -> dict[str, float]:
            return {bound: round(seconds.at(bound), 3) for bound in BOUNDS}

        return {
            "name": self.name, "kind": self.kind, "trials": self.trials, "done": self.done, "exact": self.exact,
            "stages": {
                row.stage: {
                    "distinct": round(row.distinct, 2), "stored": round(row.stored, 2), "seconds": rounded(row.seconds),
                    "measured": row.measured,
                }
                for row in self.rows
            },
            "device": self.device, "devices": self.devices, "device_seconds": rounded(self.device_seconds),
            "without_sharing_seconds": rounded(self.alone_seconds), "wall_seconds": rounded(self.wall_seconds),
            "disk_bytes": round(self.disk), "skipped": self.skipped,
        }  # fmt: skip


class _RandomSuggest:
    """A SuggestApi that draws each parameter at random, as the first trials of a search are drawn."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def suggest_categorical(self, name: str, choices: Sequence[Choice], /) -> Choice:
        return self._random.choice(list(choices))

    def suggest_int(self, name: str, low: int, high: int, /, *, step: int = 1, log: bool = False) -> int:
        if log:
            return min(high, max(low, round(math.exp(self._random.uniform(math.log(low), math.log(high))))))
        return self._random.randrange(low, high + 1, step)

    def suggest_float(
        self, name: str, low: float, high: float, /, *, step: float | None = None, log: bool = False
    ) -> float:
        if step is not None:
            return low + step * self._random.randrange(round((high - low) / step) + 1)
        if log:
            return math.exp(self._random.uniform(math.log(low), math.log(high)))
        return self._random.uniform(low, high)


def draw_trials(space: SearchSpace, trials: int, seed: int) -> tuple[list[TrialConfig], int]:
    """The configurations of `trials` random draws, and the number of draws without one: their values are invalid
    together, and a run counts them as failed."""
    random_trial, tracker, out, skipped = _RandomSuggest(seed), WorkTracker(space), [], 0
    for _ in range(trials):
        candidates = [space.suggest(random_trial) for _ in range(space.proposals)]
        values = candidates[tracker.cheapest_candidate(candidates)] if space.proposals > 1 else candidates[0]
        try:
            out.append(space.config(values))
        except RazError:
            skipped += 1
            continue
        if space.proposals > 1:
            tracker.add_trial(values, tracker.stage_work(values))
    return out, skipped


def collect_stages(
    configs: Iterable[TrialConfig], splits: tuple[str, ...], costs: CostModel, cache: StageCache,
    seeds: Sequence[int] = (),
) -> TrialSet:  # fmt: skip
    """These trials with the cost of each distinct stage. With `seeds` a trial runs once for each, in their order.
    Raises RazError when a data set cannot be opened."""
    stages: dict[str, PlannedStage] = {}
    trials = []
    for config in configs:
        path = [
            (node, key)
            for each in ([replace(config, seed=seed) for seed in seeds] or [config])
            for node, key in stage_keys(each, data_root=costs.data_root, splits=splits).items()
        ]
        trials.append(tuple(key.key for _, key in path))
        for node, key in path:
            if key.key not in stages:
                seconds, measured = costs.seconds(config, node)
                stored = cache.paths.manifest(node.stage, key.key).is_file()
                stages[key.key] = PlannedStage(
                    node, seconds, measured, stored, costs.bytes(config, node), tuple(key.needs.values())
                )
    return TrialSet(tuple(trials), stages)


def draws_of_search(
    space: SearchSpace, trials: int, costs: CostModel, *, known: Sequence[TrialConfig] = (), sets: int = DRAWS
) -> tuple[list[TrialSet], int]:
    """What a search may run next, in several sets: each has the `known` trials, and random draws up to `trials`.

    A fixed design draws none and has one set. Also returns the mean number of invalid draws of a set.
    """
    cache = StageCache(costs.store)
    drawn = 0 if space.fixed else max(0, trials - len(known))
    out, skipped = [], 0
    for i in range(sets if drawn else 1):
        configs, invalid = draw_trials(space, drawn, space.seed + 7919 * i)
        skipped += invalid
        out.append(collect_stages([*known, *configs], SEARCH_SPLITS, costs, cache, space.averaged_seeds))
    return out, round(skipped / len(out))


def design_trials(space: SearchSpace, trials: int) -> list[TrialConfig]:
    """The first `trials` points of a fixed design in the order in which parallel slots begin them, without points whose
    values are invalid together."""
    configs: list[TrialConfig] = []
    for point in space.points[:trials]:
        with suppress(RazError):
            configs.append(space.config(point))
    return [configs[i] for i in trial_order(configs, SEARCH_SPLITS, space.averaged_seeds)]


def trials_of_table(trials: Iterable[TableTrial], costs: CostModel) -> TrialSet:
    """The given trials of a table in the order of a run, which scores both splits."""
    configs = [trial.config for trial in trials]
    order = trial_order(configs, TABLE_SPLITS)
    return collect_stages((configs[i] for i in order), TABLE_SPLITS, costs, StageCache(costs.store))


def plan_of(
    name: str, kind: str, draws: Sequence[TrialSet], *, devices: int, costs: CostModel, exact: bool, done: int = 0,
    skipped: int = 0, start: float = START_SECONDS, eager: bool = True,
) -> Plan:  # fmt: skip
    """The figures of a run on `devices`, as means over these sets of draws. `start`: seconds until the first stage can
    begin. `eager`: as in `max_live_trials`."""
    alive = max_live_trials(devices, eager=eager)
    n = len(draws)
    summaries = (_summarize(stage, draws) for stage in STAGES)
    device_seconds, alone, disk = ZERO, ZERO, 0.0
    wall = dict.fromkeys(BOUNDS, 0.0)
    for draw in draws:
        device_seconds += draw.total_seconds(draw.missing).times(1 / n)
        for trial in draw.trials:
            alone += draw.total_seconds(trial).times(1 / n)
        disk += sum(draw.stages[key].size for key in draw.missing) / n
        for bound in BOUNDS:
            wall[bound] += simulate(draw.visits(bound), devices, alive).makespan / n
    if device_seconds.high:
        wall = {bound: seconds + start for bound, seconds in wall.items()}
    return Plan(
        name, kind, len(draws[0].trials), done, exact, tuple(row for row in summaries if row is not None),
        device_seconds, alone, Estimate(wall["low"], wall["likely"], wall["high"]), devices, costs.device, disk,
        skipped,
    )  # fmt: skip


def _summarize(name: str, draws: Sequence[TrialSet]) -> StageSummary | None:
    """The stages of this name; None where the trials have none."""
    n = len(draws)
    stages = [stage for draw in draws for stage in draw.stages.values() if stage.node.stage == name]
    if not stages:
        return None
    seconds = ZERO
    for draw in draws:
        missing = (key for key in draw.missing if draw.stages[key].node.stage == name)
        seconds += draw.total_seconds(missing).times(1 / n)
    measured = [stage.measured for stage in stages if not stage.stored]
    stored = sum(stage.stored for stage in stages) / n
    return StageSummary(name, len(stages) / n, stored, seconds, bool(measured) and all(measured))


def schedules(draw: TrialSet, devices: int, *, eager: bool) -> tuple[Schedule, Schedule]:
    """The likely schedule of these trials on `devices` from an empty store, and the schedule of plain training: without
    sharing, one trial on each device."""
    visits = draw.visits("likely", stored=False)
    alive = max_live_trials(devices, eager=eager)
    return simulate(visits, devices, alive), simulate_without_sharing(visits, devices, devices)


def plan_lines(plan: Plan) -> list[str]:
    """The lines that `raz-sweep run --dry-run` prints."""
    about = "" if plan.exact else "about "
    out = [
        f"{plan.kind} {plan.name}: {plan.trials} trials to run" + (f", {plan.done} done before" if plan.done else "")
    ]
    if not plan.exact:
        out.append(f"  an estimate: the search draws its trials as it learns; these are means of {DRAWS} random sets")
    if plan.skipped:
        out.append(f"  {plan.skipped} trials have values that are invalid together, and would fail")
    out.append(f"{about}{plan.stages:.0f} distinct stages, {plan.stored:.0f} of them in the store")
    for row in plan.rows:
        left = row.distinct - row.stored
        cost = f"{format_estimate(row.seconds)} ({'measured' if row.measured else 'prior'})" if left else "in the store"
        out.append(f"  {row.stage:<14} {left:>6.0f} to make  {cost}")
    out.append(
        f"on the {'GPUs' if plan.device == 'cuda' else 'CPU'}: {format_estimate(plan.device_seconds)} of one device"
    )
    if plan.alone_seconds.likely and plan.device_seconds.likely:
        factor = plan.alone_seconds.likely / plan.device_seconds.likely
        out.append(f"without sharing it would be {format_estimate(plan.alone_seconds)}: {factor:.1f} times as much")
    out.append(f"wall time, {plan.devices} at a time: {format_estimate(plan.wall_seconds)}")
    out.append(f"disk: {size(round(plan.disk))}")
    if any(not row.measured and row.distinct > row.stored for row in plan.rows):
        prior = PRIORS[plan.device]
        out.append(f"prior: {prior.likely:g} GFLOP/s ({prior.slow:g} to {prior.fast:g}); {prior.source}")
    return out


def format_estimate(seconds: Estimate) -> str:
    """`2.1 h (1.2 to 4.5 h)`, in the unit that suits the likely value."""
    likely = seconds.likely
    unit, factor = ("h", 3600.0) if likely >= 5400 else ("min", 60.0) if likely >= 90 else ("s", 1.0)
    return (
        f"{_short(likely / factor)} {unit} ({_short(seconds.low / factor)} to {_short(seconds.high / factor)} {unit})"
    )


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 or value == 0 else f"{value:.1f}" if value >= 0.1 else f"{value:.1g}"
