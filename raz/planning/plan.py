"""What a run will cost before it is paid: trials, distinct stages, device hours, wall time and disk. No torch, no Ray.

The trials of a fixed design and of a table are known. A search draws its own as it learns, so for it several sets of
random draws are planned (with `proposals` the cheapest of as many each), and the plan says that it is an estimate: a
sampler that settles on a few values shares more.
Nothing is pruned in a plan and no training stops early unless like ones did.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from raz.config import TrialConfig
from raz.errors import RazError
from raz.pipeline.graph import STAGES, Node
from raz.pipeline.keys import stage_keys
from raz.planning.cost_aware import WorkTracker
from raz.planning.cost_model import NOTHING, PRIORS, START_SECONDS, CostModel, Estimate
from raz.planning.schedule import max_live_trials
from raz.planning.simulate import Schedule, StageVisit, simulate, simulate_without_sharing
from raz.planning.work_order import trial_order
from raz.spec.ablation import SPLITS as TABLE_SPLITS
from raz.spec.ablation import TableTrial
from raz.spec.search_space import SPLITS, SearchSpace
from raz.store.cache import StageCache
from raz.utils.formatting import size

DRAWS = 5  # sets of trials that stand for what a search may draw


@dataclass(frozen=True)
class PlannedStage:
    """One distinct stage of a plan."""

    node: Node
    seconds: Estimate
    measured: bool  # on like stages; otherwise a stated prior
    stored: bool
    size: float  # bytes
    needs: tuple[str, ...]


@dataclass(frozen=True)
class TrialSet:
    """A set of trials: the keys that each walks, and every distinct stage once."""

    trials: tuple[tuple[str, ...], ...]
    stages: Mapping[str, PlannedStage]

    def steps(self, of: str, *, stored: bool = True) -> list[list[StageVisit]]:
        """The walks for the simulator at `low`, `likely` or `high` seconds; `stored`: what the store holds is free."""
        made = {}
        for key, work in self.stages.items():
            seconds = 0.0 if stored and work.stored else float(getattr(work.seconds, of))
            made[key] = StageVisit(key, seconds, STAGES[work.node.stage].kind != "computed", work.needs)
        return [[made[key] for key in trial] for trial in self.trials]

    def sum(self, keys: Iterable[str]) -> Estimate:
        total = NOTHING
        for key in keys:
            total += self.stages[key].seconds
        return total

    @property
    def missing(self) -> list[str]:
        return [key for key, work in self.stages.items() if not work.stored]


@dataclass(frozen=True)
class StageSummary:
    """The stages of one kind in a plan, mean over its draws."""

    stage: str
    distinct: float
    stored: float
    seconds: Estimate  # of those the store lacks
    measured: bool


@dataclass(frozen=True)
class Plan:
    """What a run will cost. Seconds are of one device; of several draws all figures are means."""

    name: str
    kind: str  # search | table
    trials: int  # that are still to run
    done: int  # trials the study has already
    exact: bool  # the trials are known
    rows: tuple[StageSummary, ...]
    device_seconds: Estimate  # of stages that the store lacks
    alone_seconds: Estimate  # if every trial made its own, as plain training does
    wall_seconds: Estimate  # on `devices`
    devices: int
    device: str  # cpu | cuda
    disk: float  # bytes, of what is missing
    skipped: int = 0  # draws whose values cannot go together

    @property
    def stages(self) -> float:
        return sum(row.distinct for row in self.rows)

    @property
    def stored(self) -> float:
        return sum(row.stored for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """JSON values only."""

        def of(r: Estimate) -> dict[str, float]:
            return {"low": round(r.low, 3), "likely": round(r.likely, 3), "high": round(r.high, 3)}

        return {
            "name": self.name, "kind": self.kind, "trials": self.trials, "done": self.done, "exact": self.exact,
            "stages": {
                row.stage: {
                    "distinct": round(row.distinct, 2), "stored": round(row.stored, 2), "seconds": of(row.seconds),
                    "measured": row.measured,
                }
                for row in self.rows
            },
            "device": self.device, "devices": self.devices, "device_seconds": of(self.device_seconds),
            "without_sharing_seconds": of(self.alone_seconds), "wall_seconds": of(self.wall_seconds),
            "disk_bytes": round(self.disk), "skipped": self.skipped,
        }  # fmt: skip


class _RandomSuggest:
    """Draws each parameter at random, as a search's first trials are drawn."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def suggest_categorical(self, name: str, choices: Any, /) -> Any:
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
    """`trials` configurations at random, and how many draws could not go together (a run counts these as failed)."""
    dice, thrift, out, skipped = _RandomSuggest(seed), WorkTracker(space), [], 0
    for _ in range(trials):
        proposals = [space.suggest(dice) for _ in range(space.proposals)]
        values = proposals[thrift.cheapest_candidate(proposals)] if space.proposals > 1 else proposals[0]
        try:
            out.append(space.config(values))
        except RazError:
            skipped += 1
            continue
        if space.proposals > 1:
            thrift.add_trial(values, thrift.stage_work(values))
    return out, skipped


def collect_stages(
    configs: Iterable[TrialConfig], splits: tuple[str, ...], prices: CostModel, cache: StageCache,
    seeds: Sequence[int] = (),
) -> TrialSet:  # fmt: skip
    """The stages of these trials, each priced once. With `seeds` a trial runs once for each, one after the other."""
    stages: dict[str, PlannedStage] = {}
    trials = []
    for config in configs:
        path = [
            (node, key)
            for each in ([replace(config, seed=seed) for seed in seeds] or [config])
            for node, key in stage_keys(each, data_root=prices.data_root, splits=splits).items()
        ]
        trials.append(tuple(key.key for _, key in path))
        for node, key in path:
            if key.key not in stages:
                seconds, measured = prices.seconds(config, node)
                stored = cache.paths.manifest(node.stage, key.key).is_file()
                stages[key.key] = PlannedStage(
                    node, seconds, measured, stored, prices.bytes(config, node), tuple(key.needs.values())
                )
    return TrialSet(tuple(trials), stages)


def draws_of_search(
    space: SearchSpace, trials: int, prices: CostModel, *, known: Sequence[TrialConfig] = (), sets: int = DRAWS
) -> tuple[list[TrialSet], int]:
    """What a search may run next: the `known` trials, then draws at random until there are `trials`, in several sets.

    A fixed design draws none, so it has one set. Also returns how many drawn values of a set cannot go together.
    """
    cache = StageCache(prices.store)
    drawn = 0 if space.fixed else max(0, trials - len(known))
    out, skipped = [], 0
    for i in range(sets if drawn else 1):
        configs, wrong = draw_trials(space, drawn, space.seed + 7919 * i)
        skipped += wrong
        out.append(collect_stages([*known, *configs], SPLITS, prices, cache, space.averaged_seeds))
    return out, round(skipped / len(out))


def design_trials(space: SearchSpace, trials: int) -> list[TrialConfig]:
    """The first `trials` points of a fixed design in the order in which several slots begin them, without those whose
    values cannot go together."""
    configs: list[TrialConfig] = []
    for point in space.points[:trials]:
        with suppress(RazError):
            configs.append(space.config(point))
    return [configs[i] for i in trial_order(configs, SPLITS, space.averaged_seeds)]


def trials_of_table(trials: Iterable[TableTrial], prices: CostModel) -> TrialSet:
    """These trials of a table in the order of a run, which scores both splits."""
    configs = [trial.config for trial in trials]
    order = trial_order(configs, TABLE_SPLITS)
    return collect_stages((configs[i] for i in order), TABLE_SPLITS, prices, StageCache(prices.store))


def plan_of(
    name: str, kind: str, draws: Sequence[TrialSet], *, devices: int, prices: CostModel, exact: bool, done: int = 0,
    skipped: int = 0, start: float = START_SECONDS, eager: bool = True,
) -> Plan:  # fmt: skip
    """The figures of these draws on `devices`. `start` are the seconds until the first stage can begin."""
    living = max_live_trials(devices, eager=eager)
    n = len(draws)
    rows = []
    for stage in STAGES:
        of = [(draw, [key for key, work in draw.stages.items() if work.node.stage == stage]) for draw in draws]
        if not any(keys for _, keys in of):
            continue
        seconds = NOTHING
        for draw, keys in of:
            seconds += draw.sum(key for key in keys if not draw.stages[key].stored).times(1 / n)
        works = [draw.stages[key] for draw, keys in of for key in keys]
        lacking = [work for work in works if not work.stored]
        rows.append(
            StageSummary(
                stage, len(works) / n, sum(work.stored for work in works) / n, seconds,
                bool(lacking) and all(work.measured for work in lacking),
            )
        )  # fmt: skip
    device_seconds, alone, disk = NOTHING, NOTHING, 0.0
    wall = {"low": 0.0, "likely": 0.0, "high": 0.0}
    for draw in draws:
        device_seconds += draw.sum(draw.missing).times(1 / n)
        for trial in draw.trials:
            alone += draw.sum(trial).times(1 / n)
        disk += sum(draw.stages[key].size for key in draw.missing) / n
        for which in wall:
            wall[which] += simulate(draw.steps(which), devices, living).makespan / n
    if device_seconds.high:
        wall = {which: seconds + start for which, seconds in wall.items()}
    return Plan(
        name, kind, len(draws[0].trials), done, exact, tuple(rows), device_seconds, alone, Estimate(**wall), devices,
        prices.kind, disk, skipped,
    )  # fmt: skip


def schedules(draw: TrialSet, devices: int, *, eager: bool) -> tuple[Schedule, Schedule]:
    """The likely schedule of a draw on `devices`, from an empty store; and that of plain training, without sharing,
    where each trial has a device to itself."""
    steps = draw.steps("likely", stored=False)
    return simulate(steps, devices, max_live_trials(devices, eager=eager)), simulate_without_sharing(
        steps, devices, devices
    )


def plan_lines(plan: Plan) -> list[str]:
    """A plan for a person."""
    about = "" if plan.exact else "about "
    out = [
        f"{plan.kind} {plan.name}: {plan.trials} trials to run" + (f", {plan.done} done before" if plan.done else "")
    ]
    if not plan.exact:
        out.append(f"  an estimate: the search draws its trials as it learns; these are means of {DRAWS} random sets")
    if plan.skipped:
        out.append(f"  {plan.skipped} of the drawn values cannot go together, and would be invalid")
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


def format_estimate(r: Estimate) -> str:
    """`2.1 h (1.2 to 4.5 h)`, in the unit of its likely value."""
    unit, factor = ("h", 3600.0) if r.likely >= 5400 else ("min", 60.0) if r.likely >= 90 else ("s", 1.0)
    return f"{_short(r.likely / factor)} {unit} ({_short(r.low / factor)} to {_short(r.high / factor)} {unit})"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 or value == 0 else f"{value:.1f}" if value >= 0.1 else f"{value:.1g}"
