"""Run one function on every node of the Ray cluster that this process has joined."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

ANSWER_TIMEOUT = 120.0  # seconds; each node first starts a process that imports torch
T = TypeVar("T")


@dataclass(frozen=True)
class NodeAnswer(Generic[T]):
    """A node of the cluster and what the function returned there."""

    host: str
    address: str
    resources: dict[str, float]
    answer: T | None = None
    trouble: str = ""  # why there is no answer
    sent: float = 0.0  # time of the request by this machine's clock, seconds since the epoch
    received: float = 0.0  # time of the answer by this machine's clock
    node_id: str = ""  # Ray's


def run_on_each_node(
    function: Callable[..., T], *arguments: str, seconds: float = ANSWER_TIMEOUT
) -> list[NodeAnswer[T]]:
    """Call `function(*arguments)` on every living node. Returns one answer per node, ordered by address.

    `function` is found there by its module and name. A node that does not answer within `seconds` is cancelled and has
    `trouble` instead of an answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(function)
    living = {str(node["NodeID"]): node for node in ray.nodes() if node["Alive"]}
    sent = time.time()
    pending = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote(
            *arguments
        ): node_id
        for node_id in living
    }
    answers: dict[str, tuple[T | None, str, float]] = {}
    end = time.monotonic() + seconds
    while pending and time.monotonic() < end:
        for ref in ray.wait(list(pending), num_returns=1, timeout=0.5)[0]:
            node_id, now = pending.pop(ref), time.time()
            try:
                answers[node_id] = ray.get(ref), "", now
            except ray.exceptions.RayError as error:
                answers[node_id] = None, str(error).strip().splitlines()[-1], now
    for ref, node_id in pending.items():
        ray.cancel(ref, force=True)
        answers[node_id] = None, f"no answer within {seconds:.0f} s", time.time()
    result = []
    for node_id, node in living.items():
        answer, trouble, received = answers[node_id]
        resources = {name: amount for name, amount in node["Resources"].items() if not name.startswith("node:")}
        host, address = node["NodeManagerHostname"], node["NodeManagerAddress"]
        result.append(NodeAnswer(host, address, resources, answer, trouble, sent, received, node_id))
    return sorted(result, key=lambda node: (node.address, node.host))
