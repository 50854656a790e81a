"""How many stages run at a time on what a machine or a cluster has: twice as many trials are alive."""

from __future__ import annotations

from collections.abc import Mapping

from raz.engine.stage_job import gpus_held
from raz.pipeline.graph import STAGES
from raz.spec.stage_resources import Resources, resources_for

TRAINED = tuple(name for name, stage in STAGES.items() if stage.kind == "trained")


def stage_slots(capacity: Mapping[str, float], resources: Mapping[str, Resources], threads: int) -> int:
    """The number of stages that run at a time, 1 at least: on GPUs if there are any and stages use them, else on CPUs.

    capacity: CPUs and GPUs, as {"CPU": 96, "GPU": 8}. resources: of a file, by stage. threads: CPUs of a stage that
    names none. Trained stages are counted, which take nearly all of the time; if they differ, those that use a GPU, and
    of them the one of which most run at a time. A stage computes on one GPU: of those with 0.3 GPUs three share one.
    """
    cpus, devices = capacity.get("CPU", 0.0), int(capacity.get("GPU", 0.0))
    on_gpus, on_cpus = [1], [1]
    for stage in TRAINED:
        reserved = resources_for(resources, stage)
        by_cpus = int(cpus // (reserved.cpus or threads))
        share = gpus_held(reserved.gpus, devices)
        if share and devices:
            on_gpus.append(min(by_cpus, devices * int(1 / share + 1e-9)))
        else:
            on_cpus.append(by_cpus)
    return max(on_gpus) if len(on_gpus) > 1 else max(on_cpus)


def session_cpus(cpus: int, trials: int, resources: Mapping[str, Resources], threads: int) -> int:
    """Logical CPUs of a local session for so many trials on a machine of `cpus`: as many as their stages may use, and
    never fewer than one stage asks for, which Ray would never start."""
    most = max([threads, *(reserved.cpus or 0 for reserved in resources.values())])
    return max(most, min(cpus, trials * most))
