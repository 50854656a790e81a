"""`resources:` of a file: what each stage may take of a machine. It says where a stage runs, never what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raz.pipeline.graph import STAGES
from raz.utils.suggestions import did_you_mean
from raz.utils.yamlfile import Document, Problems, describe_value

ALL = "all"  # every stage that has no line of its own
MOST_CPUS, MOST_GPUS = 1024, 64


@dataclass(frozen=True)
class Resources:
    """What a stage asks for; None where the file leaves it to the engine (its threads, a GPU if it can use one)."""

    cpus: int | None = None
    gpus: float | None = None  # a fraction up to 1 shares a device, above that whole ones

    def or_default(self, other: Resources) -> Resources:
        """These, and `other` where they are silent."""
        return Resources(other.cpus if self.cpus is None else self.cpus, other.gpus if self.gpus is None else self.gpus)


def resources_for(resources: Mapping[str, Resources], stage: str) -> Resources:
    """What a stage asks for: its own line of `resources:` over that of `all`."""
    return resources.get(stage, Resources()).or_default(resources.get(ALL, Resources()))


def read_resources(document: Document, faults: Problems, threads: int) -> dict[str, Resources]:
    """`resources: {counting: {cpus: 2, gpus: 0.5}, all: {cpus: 1}}`; `threads` are those of the hungriest trial."""
    raw = document.data.get("resources", {})
    example = "counting: {cpus: 2, gpus: 0.5}"
    if not isinstance(raw, dict):
        faults.add(("resources",), f"resources is {describe_value(raw)}, expected stages with cpus and gpus", example)
        return {}
    out: dict[str, Resources] = {}
    for stage, body in raw.items():
        place = ("resources", stage)
        if stage not in STAGES and stage != ALL:
            faults.add(place, f"unknown stage {stage!r} of resources", did_you_mean(stage, (*STAGES, ALL)))
        elif not isinstance(body, dict):
            faults.add(place, f"resources.{stage} is {describe_value(body)}, expected cpus and gpus", example)
        else:
            faults.keys(place, body, ("cpus", "gpus"))
            out[stage] = Resources(_cpus(stage, body, faults, threads), _gpus(stage, body, faults))
    return out


def _cpus(stage: str, body: Mapping[str, Any], faults: Problems, threads: int) -> int | None:
    if "cpus" not in body:
        return None
    cpus, place = body["cpus"], ("resources", stage, "cpus")
    if isinstance(cpus, bool) or not isinstance(cpus, int) or not 1 <= cpus <= MOST_CPUS:
        faults.add(
            place, f"resources.{stage}.cpus is {describe_value(cpus)}, expected a whole number from 1 to {MOST_CPUS}"
        )
        return None
    if cpus < threads:  # fewer would change how long a stage takes, and on some machines its last bits
        faults.add(place, f"resources.{stage}.cpus is {cpus}, fewer than the {threads} threads of a trial",
                   f"cpus: {threads}, or fewer threads")  # fmt: skip
    return cpus


def _gpus(stage: str, body: Mapping[str, Any], faults: Problems) -> float | None:
    if "gpus" not in body:
        return None
    gpus, place = body["gpus"], ("resources", stage, "gpus")
    right = isinstance(gpus, (int, float)) and not isinstance(gpus, bool) and 0 <= gpus <= MOST_GPUS
    if not right or (gpus > 1 and gpus != int(gpus)):
        faults.add(
            place,
            f"resources.{stage}.gpus is {describe_value(gpus)}, expected 0, a fraction up to 1 or a whole "
            f"number of devices",
            "gpus: 0.5",
        )  # fmt: skip
        return None
    return float(gpus)
