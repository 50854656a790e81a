"""`resources:` of a file: the CPUs and GPUs that each stage reserves. They decide where it runs, not its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raz.pipeline.graph import STAGES
from raz.utils.json_types import Json
from raz.utils.schema import MapOf, Record, Scalar, integer, key
from raz.utils.yamlfile import Problems

ALL = "all"  # every stage that has no line of its own
MOST_CPUS = 1024
_EXAMPLE = "counting: {cpus: 2, gpus: 0.5}"


def _devices(value: Json) -> float | None:
    """A number of GPUs from 0 to 1: a stage trains on one device, and a fraction shares it."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1 else None


@dataclass(frozen=True)
class Resources:
    """What a stage reserves; None leaves it to the engine (as many CPUs as threads, a GPU if the stage can use one)."""

    cpus: int | None = key(integer(1, MOST_CPUS), default=None)
    gpus: float | None = key(
        Scalar(_devices, "0, 1 or a fraction between, since a stage computes on one GPU", "gpus: 0.5"),
        default=None,
    )

    def or_default(self, other: Resources) -> Resources:
        """These, with `other` for what is None."""
        return Resources(other.cpus if self.cpus is None else self.cpus, other.gpus if self.gpus is None else self.gpus)


SCHEMA = MapOf(Record(Resources, "cpus and gpus", _EXAMPLE), "stages with cpus and gpus", _EXAMPLE,
               keys=(*STAGES, ALL), noun="stage")  # fmt: skip


def resources_for(resources: Mapping[str, Resources], stage: str) -> Resources:
    """What a stage reserves: its own line of `resources:`, completed by that of `all`."""
    return resources.get(stage, Resources()).or_default(resources.get(ALL, Resources()))


def check_threads(resources: Mapping[str, Resources], threads: int, problems: Problems) -> None:
    """Note stages with fewer CPUs than a trial has threads: they would run slower, and on some machines the last bits
    of their results would differ."""
    for stage, reserved in resources.items():
        if reserved.cpus is not None and reserved.cpus < threads:
            what = f"resources.{stage}.cpus is {reserved.cpus}, fewer than the {threads} threads of a trial"
            problems.add(("resources", stage, "cpus"), what, f"cpus: {threads}, or fewer threads")
