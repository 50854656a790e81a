"""Trials' ways through the stage tree, weighed: in which order known trials begin, and what each has before it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from raz.config import TrialConfig
from raz.errors import RazError
from raz.pipeline.graph import node_keys, topological_order
from raz.planning.cost_model import CostModel, DatasetSizes, stage_gflop
from raz.planning.schedule import order_by_new_work

# Of no data set: in which order trials begin depends on the design alone, so it is the same on every machine.
NOMINAL = DatasetSizes({"train": 100, "val": 20, "test": 50}, {"train": 0.1, "val": 0.1, "test": 0.1})


def nominal_work(config: TrialConfig, splits: tuple[str, ...], seeds: Sequence[int] = ()) -> dict[str, float]:
    """The stages of a trial and the work in each (GFLOP at NOMINAL sizes). The keys name what is shared, and are none
    of a store: no data is opened."""
    way: dict[str, float] = {}
    for each in [replace(config, seed=seed) for seed in seeds] or [config]:
        keys = node_keys(each, splits, lambda split: split, lambda weights: weights)
        resolved = each.resolved()
        way |= {key.key: stage_gflop(resolved, node, NOMINAL) for node, key in keys.items()}
    return way


def trial_order(
    configs: Sequence[TrialConfig | None],
    splits: tuple[str, ...],
    seeds: Sequence[int] = (),
    done: Iterable[TrialConfig] = (),
) -> list[int]:
    """In which order to begin these trials so that no slot idles (`spread`), after those that are done. None stands
    for one that cannot be run."""
    made = {key for config in done for key in nominal_work(config, splits, seeds)}
    return order_by_new_work(
        [{} if config is None else nominal_work(config, splits, seeds) for config in configs], made
    )


def expected_seconds(config: TrialConfig, splits: tuple[str, ...], prices: CostModel) -> dict[str, float]:
    """What each stage of a trial, by its name, is expected to take: the likely seconds of a plan. Empty where the data
    set cannot be opened, which the trial itself will tell."""
    try:
        path = topological_order(config.resolved(), splits)
        return {str(node): prices.seconds(config, node)[0].likely for node in path}
    except RazError:
        return {}
