"""Whole studies: this engine against plain Ray Tune + OptunaSearch with the same trainable and the same trials.

    python benchmarks/bench_study.py [--part 0.05] [--slots 4] [--only loo] [--real]

Plain Ray Tune is what one writes without an engine: each trial makes all its stages in its own process, and Tune runs
as many trials as there are slots. A third side is the best of that: the trials share one store, whose leases let each
stage be made once, and a trial that waits for a stage holds its slot. All sides run on one Ray session (its start is
apart), with reused processes and without pruning. By default a stage waits a part of its likely price instead of
computing (`_waiting.py`); `--real` trains small networks for a few epochs. Either way the metrics must be equal to the
last bit.

Printed per study: trials, wall seconds of both and their ratio, trained epochs of both, and ours against the tree's
floor, the longer of all distinct stages over the slots and the longest chain of them. Against the floor the time until
the first stage begins is apart (processes that load torch); in the ratio of both sides it counts. Aims: 10x for fusion,
3x for leave-one-out, 7x for the grid, 2x for everything, 1.25x for the third side, 1.10 of the floor where stages take
over 10 minutes in all.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
from _waiting import RUN, alone, first_stage, prepare, seconds

from raz.config import TrialConfig, from_parameters, parameters
from raz.engine.events import NullEvents
from raz.engine.ray_session import session
from raz.engine.trial_runner import DEFAULT_RUN_TRIAL
from raz.pipeline.keys import stage_keys
from raz.planning.cost_model import CostModel
from raz.planning.schedule import max_live_trials
from raz.planning.simulate import StageVisit, simulate
from raz.planning.work_order import trial_order
from raz.spec.base_config import open_spec
from raz.spec.search_space import Pruning, SearchSpace
from raz.spec.space_yaml import parse_space
from raz.study.ledger import open_ledger
from raz.utils.yamlfile import parse

SHARED, SHARED_AIM = "Ray Tune over one store", 1.25
LOO = {
    "study": "loo", "base": {"preset": "tiny", "dataset": "toy", "set": {"fusion.rule": "grid"}},
    "design": {"sampler": "loo", "seeds": [0, 1, 2]},
    "parameters": {
        "counting.kernel": {"choice": ["raz", "csrnet"]}, "localization.gamma": {"choice": [100, 1]},
        "attention.sigma_z": {"choice": [3, 5]}, "zooming.anchors": {"choice": ["paper", "one-scale"]},
        "zooming.k_z": {"choice": [10, 1]}, "zooming.sampling": {"choice": ["attention", "uniform"]},
        "depth": {"choice": [2, 1]}, "peaks.threshold": {"choice": ["fitted", 0.5]},
        "fusion.rule": {"choice": ["grid", "average", "density", "localization"]},
    },
}  # fmt: skip
GRID = {
    "study": "grid", "base": {"preset": "tiny", "dataset": "toy"}, "design": {"sampler": "grid"},
    "parameters": {
        "localization.gamma": {"choice": [10, 100]}, "attention.sigma_z": {"choice": [2, 5]},
        "zooming.k_z": {"choice": [4, 10]}, "zooming.anchors": {"choice": ["paper", "square", "one-scale"]},
        "fusion.rule": {"choice": ["grid", "average", "density", "localization"]},
    },
}  # fmt: skip
SMALL = {
    "dataset": "toy", "backbone.width": 0.0625, "counting.channels": [8], "localization.channels": [8],
    "localization.upsample": [8, 6, 4], "attention.channels": 4, "input.scale": 0.25, "depth": 2,
    **{f"{part}.epochs": 2 for part in ("counting.train", "localization.train", "attention.train", "raz.train")},
    **{f"{part}.crop": 32 for part in ("counting.train", "localization.train", "attention.train", "raz.train")},
    "raz.attention_train.epochs": 2, "raz.attention_train.crop": 32,
}  # fmt: skip
REAL = {
    "study": "real", "base": {"preset": "tiny", "set": SMALL}, "design": {"sampler": "grid"},
    "parameters": {
        "localization.gamma": {"choice": [10, 100]}, "zooming.k_z": {"choice": [2, 4]},
        "fusion.rule": {"choice": ["density", "average"]},
    },
}  # fmt: skip
AIMS = {"fusion": 10.0, "loo": 3.0, "grid": 7.0, "everything": 2.0}
LONG = 600.0  # seconds of stages in all, from which on the aim against the floor counts


@dataclass(frozen=True)
class Side:
    wall: float
    start: float  # seconds of it until the first stage began to wait; 0 where none does
    epochs: int
    metrics: list[dict[str, float]]  # by trial


def spaces(real: bool) -> list[SearchSpace]:
    if real:
        return [parse_space(parse(json.dumps(REAL), "real.yaml"))]
    found = [
        replace(parse_space(open_spec("search_spaces/fusion.yaml")[0]), trials=60),
        parse_space(parse(json.dumps(LOO), "loo.yaml")),
        parse_space(parse(json.dumps(GRID), "grid.yaml")),
        replace(parse_space(open_spec("search_spaces/everything.yaml")[0]), trials=60),
    ]
    return [replace(space, pruning=Pruning()) for space in found]


def epochs_in(store: Path) -> int:
    """Epochs that were trained below a folder, over all the stores in it."""
    total = 0
    for path in store.glob("**/stages/*/*/curve.json"):
        total += max((int(point["epoch"]) for point in json.loads(path.read_text())), default=0)
    return total


def ours(space: SearchSpace, store: Path, run_trial: str, slots: int) -> tuple[Side, list[TrialConfig]]:
    """The study as `raz-sweep run` runs it, without what follows the search (the test images)."""
    from raz.engine.trial_source import StudySource
    from raz.engine.tune_runner import run_tuned  # imports Ray, which reads what `session` has set

    began, clock = time.monotonic(), time.time()
    with open_ledger(store, space) as ledger:
        ledger.recover(space.target)
        if space.fixed:
            ledger.order_queue()
        run_tuned(
            StudySource(ledger), store, run_trial=run_trial, events=NullEvents(), jobs=slots, threads=space.threads
        )
        wall = time.monotonic() - began
        records = ledger.records()
    wrong = [record for record in records if record.state != "complete"]
    if wrong:
        sys.exit(f"{space.study}: trial {wrong[0].number} {wrong[0].state}: {wrong[0].message}")
    configs = [from_parameters(record.config) for record in records]
    start = max(0.0, first_stage(store) - clock)
    return Side(wall, start, epochs_in(store), [dict(record.metrics) for record in records]), configs


def plain(configs: list[TrialConfig], store: Path, run_trial: str, slots: int, *, shared: bool) -> Side:
    """The same trials by Ray Tune and Optuna alone. shared: in one store, whose leases let each stage be made once."""
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    search = OptunaSearch(
        {"trial": optuna.distributions.IntDistribution(0, len(configs) - 1)}, metric="mae", mode="min",
        points_to_evaluate=[{"trial": i} for i in range(len(configs))],
    )  # fmt: skip
    constants = {
        "run_trial": run_trial, "store": str(store), "shared": shared,
        "configs": json.dumps([parameters(config) for config in configs]),
    }  # fmt: skip
    began = time.monotonic()
    results = tune.Tuner(
        tune.with_resources(alone, {"cpu": 1}), param_space=constants,
        tune_config=tune.TuneConfig(
            search_alg=search, num_samples=len(configs), max_concurrent_trials=slots, reuse_actors=True,
        ),
        run_config=tune.RunConfig(storage_path=str(store / "tune"), verbose=0),
    ).fit()  # fmt: skip
    wall = time.monotonic() - began
    if results.num_errors:
        sys.exit(f"plain Ray Tune: {results.errors[0]}")
    done = [results[i] for i in range(len(results))]
    found = {(result.config or {})["trial"]: json.loads((result.metrics or {})["found"]) for result in done}
    return Side(wall, 0.0, epochs_in(store), [found[i] for i in range(len(configs))])


def steps_of(configs: list[TrialConfig], store: Path) -> list[list[StageVisit]]:
    """The stages of each trial in order, each with the seconds that it waits."""
    keys = [stage_keys(config) for config in configs]
    return [
        [
            StageVisit(key.key, seconds(store, config, node), node.stage != "score", tuple(key.needs.values()))
            for node, key in nodes.items()
        ]
        for config, nodes in zip(configs, keys, strict=True)
    ]


def compare(space: SearchSpace, part: float, slots: int, real: bool, only_ours: bool) -> None:
    name, run_trial = space.study, DEFAULT_RUN_TRIAL if real else RUN
    with tempfile.TemporaryDirectory(prefix="raz-bench-") as folder:
        store, private = Path(folder) / "ours", Path(folder) / "plain"
        for root in (store, private / "False", private / "True"):
            root.mkdir(parents=True)
            prepare(root, part, CostModel(store, device="cpu").sizes(space.base))
        own, configs = ours(space, store, run_trial, slots)
        if not real:
            steps = steps_of(configs, store)
            if space.fixed:
                steps = [steps[i] for i in trial_order(configs, ("val",))]
            best = simulate(steps, slots, max_live_trials(slots, eager=space.overcommits))
            all_, floor = best.busy / part, best.floor
            aim = ", aim 1.10" if all_ > LONG else ""
            print(
                f"{name}: {own.wall:.1f} s, {own.start:.1f} of them Ray's start, the rest "
                f"{(own.wall - own.start) / floor:.2f} of the floor of {floor:.1f} s{aim} (simulated "
                f"{best.makespan / floor:.2f}); stages of {all_ / 60:.0f} min in all, at {part:g} of their seconds",
                flush=True,
            )
        if only_ours:
            return
        for label, shared, wanted in (("plain Ray Tune", False, AIMS.get(name)), (SHARED, True, SHARED_AIM)):
            other = plain(configs, private / str(shared), run_trial, slots, shared=shared)
            if own.metrics != other.metrics:
                sys.exit(f"{name}: the metrics of ours and of {label} differ")
            aim = f", aim {wanted:g}x" if wanted is not None else ""
            print(
                f"{name}: {len(configs)} trials, metrics equal; ours {own.wall:.1f} s and {own.epochs} epochs, {label} "
                f"{other.wall:.1f} s and {other.epochs} epochs: {other.wall / own.wall:.2f}x{aim}, "
                f"{other.epochs / own.epochs:.1f}x fewer epochs", flush=True,
            )  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--part", type=float, default=0.05, help="of a stage's likely seconds that it waits")
    options.add_argument("--slots", type=int, default=4, help="stages, or trials of plain Ray Tune, at a time")
    options.add_argument("--only", default="", help="of fusion, loo, grid, everything: those with this word")
    options.add_argument("--ours", action="store_true", help="without plain Ray Tune: against the floor only")
    options.add_argument("--real", action="store_true", help="train small networks instead of waiting")
    given = options.parse_args()
    print(f"{given.slots} slots, load {', '.join(f'{load:.1f}' for load in os.getloadavg())}")
    with session(given.slots):
        for space in spaces(given.real):
            if given.only in space.study:
                compare(space, given.part, given.slots, given.real, given.ours)


if __name__ == "__main__":
    main()
