"""Searches of `everything.yaml` with and without `proposals`: what they find for the same work.

    python benchmarks/bench_cost_aware.py [--proposals 2 4 8] [--trials 60] [--studies 20]

No network is trained: a trial's error is a made-up response of its values, drawn anew for each study (an optimum
somewhere in each range; a parameter that a trial does not have costs what it costs on average), and its work is what
the plan counts (GFLOP of the stages that no trial before it had made). Nothing is pruned, and as many trials run at a
time as a run on four slots keeps alive. Each study is run by every number of proposals on the same response and the
same sampler seed, one after the other. Regret is the error of the best trial so far above that of the best choices,
mean over studies ± its standard error. The same work is what one proposal spends on half, and on all, of its trials.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna

from raz.planning.schedule import max_live_trials
from raz.planning.work_order import nominal_work
from raz.spec.base_config import open_spec
from raz.spec.parameter import Parameter
from raz.spec.search_space import Pruning, SearchSpace
from raz.spec.space_yaml import parse_space
from raz.study.ledger import open_ledger
from raz.study.records import Outcome
from raz.study.trial_status import TrialStatus
from raz.utils.json_types import Json, as_float

SLOTS = 4
Response = Callable[[Mapping[str, Any]], float]


def share_of(weight: float, values: tuple[Json, ...], shares: list[float]) -> Callable[[Any], float]:
    return lambda value: weight * shares[values.index(value)]


def squared_distance(weight: float, parameter: Parameter, best: float) -> Callable[[Any], float]:
    scale: Callable[[float], float] = math.log if parameter.log else float
    width = scale(parameter.high) - scale(parameter.low)
    return lambda value: 4 * weight * ((scale(value) - scale(best)) / width) ** 2


def response_of(space: SearchSpace, seed: int) -> Response:
    """Error above the optimum: squared distance from a point in each range, a constant for each choice but the best."""
    dice = random.Random(seed)
    parts: dict[str, Callable[[Any], float]] = {}
    for parameter in space.parameters:
        weight, values = dice.uniform(0.2, 1.0), parameter.values()
        if parameter.kind == "choice":
            shares = [dice.uniform(0.2, 1.0) for _ in values]
            shares[dice.randrange(len(values))] = 0.0
            parts[parameter.name] = share_of(weight, values, shares)
        else:
            parts[parameter.name] = squared_distance(weight, parameter, as_float(dice.choice(values)))
    absent = {p.name: statistics.fmean(parts[p.name](value) for value in p.values()) for p in space.parameters}
    return lambda values: math.fsum(
        part(values[name]) if name in values else absent[name] for name, part in parts.items()
    )


def run(space: SearchSpace, response: Response) -> list[tuple[float, float]]:
    """By trial: GFLOP spent up to it, and the least regret up to it."""
    spent, begun, best, out = 0.0, set[str](), math.inf, []
    with tempfile.TemporaryDirectory(prefix="raz-bench-") as folder, open_ledger(Path(folder), space) as ledger:
        ledger.recover(space.target)
        running: list[tuple[int, float]] = []
        while (got := ledger.ask()) is not None:
            number, values, _ = got
            way = nominal_work(space.config(values), ("val",))
            spent += math.fsum(work for key, work in way.items() if key not in begun)
            begun.update(way)
            error = response(values)
            best = min(best, error)
            out.append((spent, best))
            running.append((number, error))
            if len(running) == max_live_trials(SLOTS, eager=space.overcommits):
                number, error = running.pop(0)
                ledger.tell(number, Outcome(TrialStatus.COMPLETE, metrics={space.metric: error}))
        for number, error in running:
            ledger.tell(number, Outcome(TrialStatus.COMPLETE, metrics={space.metric: error}))
    return out


def at(curve: Sequence[tuple[float, float]], work: float) -> float:
    """The least regret for at most this work."""
    return min((regret for spent, regret in curve if spent <= work), default=curve[0][1])


def shown(regrets: Iterable[float]) -> str:
    """Mean and standard error."""
    values = list(regrets)
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values) / math.sqrt(len(values)):.3f}"


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--proposals", type=int, nargs="+", default=[2, 4, 8])
    asked.add_argument("--trials", type=int, default=60)
    asked.add_argument("--studies", type=int, default=20)
    given = asked.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = replace(parse_space(open_spec("search_spaces/everything.yaml")[0]), trials=given.trials, pruning=Pruning())
    counts = [1, *given.proposals]
    curves: dict[int, list[list[tuple[float, float]]]] = {n: [] for n in counts}
    for seed in range(given.studies):
        response = response_of(space, seed)
        for n in counts:
            curves[n].append(run(replace(space, proposals=n, seed=seed), response))
    half = given.trials // 2
    print(
        f"{given.studies} studies of {given.trials} trials; regret after {half} and {given.trials} trials; work of all"
    )
    print("against one proposal; regret for the work that one proposal spends on half and on all of its trials")
    for n in counts:
        pairs = list(zip(curves[1], curves[n], strict=True))
        work = statistics.fmean(one[-1][0] / own[-1][0] for one, own in pairs)
        by_trials = [shown(own[i - 1][1] for _, own in pairs) for i in (half, given.trials)]
        by_work = [shown(at(own, one[i - 1][0]) for one, own in pairs) for i in (half, given.trials)]
        print(
            f"{n} proposal{'s' if n > 1 else ' '}: {', '.join(by_trials)}; {work:.1f}x less work; {', '.join(by_work)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
