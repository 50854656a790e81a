"""Every node of the Ray that is joined, asked the same."""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass
from typing import Any

PATIENCE = 120.0  # seconds for a node to answer; a process that imports torch is started on it


@dataclass(frozen=True)
class NodeAnswer:
    """A machine of the cluster, and what it said."""

    host: str
    address: str
    resources: dict[str, float]
    answer: Any = None
    trouble: str = ""  # why there is no answer
    asked: float = 0.0  # by this machine's clock, seconds since the epoch
    heard: float = 0.0


def run_on_each_node(function: str, *arguments: Any, seconds: float = PATIENCE) -> list[NodeAnswer]:
    """What `package.module:function` returns on every living node, in the order of their addresses."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(_call)
    about = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    asked = time.time()
    pending = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(name, soft=False)).remote(
            function, arguments
        ): name
        for name in about
    }
    heard: dict[str, tuple[Any, str, float]] = {}
    end = time.monotonic() + seconds
    while pending and time.monotonic() < end:
        for ref in ray.wait(list(pending), num_returns=1, timeout=0.5)[0]:
            name, now = pending.pop(ref), time.time()
            try:
                heard[name] = ray.get(ref), "", now
            except ray.exceptions.RayError as error:
                heard[name] = None, str(error).strip().splitlines()[-1], now
    for ref, name in pending.items():
        ray.cancel(ref, force=True)
        heard[name] = None, f"no answer within {seconds:.0f} s", time.time()
    found = []
    for name, node in about.items():
        answer, trouble, now = heard[name]
        found.append(
            NodeAnswer(
                node["NodeManagerHostname"], node["NodeManagerAddress"],
                {k: v for k, v in node["Resources"].items() if not k.startswith("node:")}, answer, trouble, asked, now,
            )
        )  # fmt: skip
    return sorted(found, key=lambda node: (node.address, node.host))


def _call(function: str, arguments: tuple[Any, ...]) -> Any:
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)(*arguments)
