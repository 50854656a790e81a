"""Order of trials by the new work that each adds, and the expected seconds of a trial's stages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from raz.config import TrialConfig
from raz.errors import RazError
from raz.pipeline.graph import node_keys, topological_order
from raz.planning.cost_model import CostModel, DatasetSizes, stage_gflop
from raz.planning.schedule import order_by_new_work

# Not the sizes of a data set: the order of trials depends on the design alone, so it is the same on every machine.
NOMINAL = DatasetSizes({"train": 100, "val": 20, "test": 50}, {"train": 0.1, "val": 0.1, "test": 0.1})


def nominal_work(config: TrialConfig, splits: tuple[str, ...], seeds: Sequence[int] = ()) -> dict[str, float]:
    """The work in each stage of a trial, in GFLOP at NOMINAL sizes. With `seeds` the trial is run once for each.

    Trials that share a stage have the same key for it. No data set is opened, so these are not the keys of a store.
    """
    work: dict[str, float] = {}
    for each in [replace(config, seed=seed) for seed in seeds] or [config]:
        keys = node_keys(each, splits, lambda split: split, lambda backbone: backbone.weights)
        resolved = each.resolved()
        work |= {key.key: stage_gflop(resolved, node, NOMINAL) for node, key in keys.items()}
    return work


def trial_order(
    configs: Sequence[TrialConfig | None],
    splits: tuple[str, ...],
    seeds: Sequence[int] = (),
    done: Iterable[TrialConfig] = (),
) -> list[int]:
    """The order in which to begin these trials so that no slot idles, as indices (`order_by_new_work`). The stages of
    `done` trials count as made. None stands for a trial that cannot be run."""
    made = {key for config in done for key in nominal_work(config, splits, seeds)}
    return order_by_new_work(
        [{} if config is None else nominal_work(config, splits, seeds) for config in configs], made
    )


def expected_seconds(config: TrialConfig, splits: tuple[str, ...], costs: CostModel) -> dict[str, float]:
    """Expected seconds of each stage of a trial: stage name -> seconds. {} if the data set cannot be opened: the trial
    itself fails with the reason."""
    try:
        path = topological_order(config.resolved(), splits)
        return {str(node): costs.seconds(config, node)[0].likely for node in path}
    except RazError:
        return {}
