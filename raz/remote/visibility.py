"""How long each node of a Ray cluster takes to see a file that another node has just written into the store.

Every node first looks for the file while it is missing, so that a client of NFS or EFS remembers that it is. Two files
are written at once, in two folders: one is looked for by its name alone, the other after its folder was opened
(`raz.store.late_view.refresh`), as the sweep looks for stages.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import cast

from raz.inspection.machine_checks import Check
from raz.store import late_view

SEEN_SECONDS = 120.0  # the longest that a node is waited for; lookup caches last up to 60 s
START_SECONDS = 120.0  # for the processes on the nodes to start
LATE_SECONDS = 5.0  # by its name alone: a node that takes longer remembers missing files
PAUSE = 0.1  # seconds between two looks
FOLDER_PREFIX = ".raz-doctor-"  # of a temporary folder in the store
MARK = "mark"


class Look(StrEnum):
    """What a node reports: that it has looked once, then each file that it sees, by how it looked for it."""

    READY = "ready"
    BY_NAME = "by name"
    FOLDER_OPENED = "folder opened"


FILES = (Look.BY_NAME, Look.FOLDER_OPENED)


@dataclass(frozen=True)
class Sighting:
    """Seconds from the writing of each file until a node saw it; a file that it did not see is missing."""

    writer: str  # host
    seconds: Mapping[Look, float]
    trouble: str = ""  # why the node did not look


def prepare(store: Path) -> Path:
    """A new folder in the store for the two files of one measurement."""
    folder = store / f"{FOLDER_PREFIX}{uuid.uuid4().hex}"
    for look in FILES:
        (folder / look.name).mkdir(parents=True)
    return folder


def write_files(folder: Path) -> None:
    """Write both files, by another process than those that watch."""
    for look in FILES:
        (folder / look.name / MARK).write_text("written")


def watch(folder: Path, seconds: float = SEEN_SECONDS) -> Iterator[Look]:
    """Yields READY after the first look at the missing files, then each file as soon as it is seen, for `seconds`."""
    missing = {
        look: late_view.exists if look is Look.FOLDER_OPENED else Path.exists
        for look in FILES
    }  # fmt: skip
    for look, seen in missing.items():
        seen(folder / look.name / MARK)
    yield Look.READY
    end = time.monotonic() + seconds
    while missing and time.monotonic() < end:
        for look in [look for look, seen in missing.items() if seen(folder / look.name / MARK)]:
            del missing[look]
            yield look
        time.sleep(PAUSE if missing else 0.0)


def check_sighting(sighting: Sighting, allowed: float = SEEN_SECONDS) -> Check:
    """How late the node sees files of another: a fault where it does not see them at all."""
    name, seconds = "sees files of", sighting.seconds
    if sighting.trouble:
        return Check(name, "fail", f"{sighting.writer}: {sighting.trouble}", "raz-sweep doctor on that node")
    opened, by_name = seconds.get(Look.FOLDER_OPENED), seconds.get(Look.BY_NAME)
    if opened is None:
        hint = "is the store the same folder on every node? mount it with lookupcache=positive, without nocto"
        return Check(name, "fail", f"{sighting.writer}: did not see a new file within {allowed:.0f} s", hint)
    found = f"{sighting.writer}: a new file after {opened:.1f} s"
    if opened > LATE_SECONDS:
        return Check(name, "warn", found, "every stage waits so long: mount it so that it forgets missing names")
    if by_name is not None and by_name <= LATE_SECONDS:
        return Check(name, "ok", found)
    late = f"after {by_name:.0f} s" if by_name is not None else f"not within {allowed:.0f} s"
    hint = "mount the store with lookupcache=positive, so that no folder has to be opened first"
    return Check(name, "warn", f"{found} if it opens the folder, else {late}", hint)


# ------------------------------------------------------------------ on a cluster


def sightings(store: Path, seconds: float = SEEN_SECONDS) -> dict[str, Sighting]:
    """What each living node of the Ray cluster that this process has joined saw, by the node's id: the files of this
    process; this process's node those of another node, if there is one. Takes at least as long as a lookup cache
    lasts where a node has one."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    living = {str(node["NodeID"]): str(node["NodeManagerHostname"]) for node in ray.nodes() if node["Alive"]}
    seen = _seen_by_nodes(store, living, living[own], seconds)
    other = next((node for node in sorted(living) if node != own), None)
    if other is not None:
        seen[own] = _seen_here(store, other, living[other], seconds)
    return seen


def _seen_by_nodes(store: Path, living: Mapping[str, str], writer: str, seconds: float) -> dict[str, Sighting]:
    """This process writes, a process of each node looks."""
    import ray

    folder = prepare(store)
    function: Callable[..., Iterator[Look]] = watch
    task = ray.remote(num_cpus=0, max_retries=0)(function)
    watches: dict[ray.ObjectRefGenerator, str] = {}
    for node in living:
        options = task.options(num_returns="streaming", scheduling_strategy=_on(node))
        watches[cast(ray.ObjectRefGenerator, options.remote(folder, seconds))] = node
    seen: dict[str, dict[Look, float]] = {node: {} for node in living}
    trouble: dict[str, str] = {}
    ready: set[str] = set()
    written, end = 0.0, time.monotonic() + START_SECONDS
    try:
        while watches and time.monotonic() < end:
            answered = ray.wait(list(watches), num_returns=1, timeout=0.5)[0]
            for stream in cast(list[ray.ObjectRefGenerator], answered):
                node, now = watches[stream], time.monotonic()
                try:
                    look = Look(ray.get(next(stream)))
                except StopIteration:
                    del watches[stream]
                    continue
                except ray.exceptions.RayError as error:
                    trouble[node] = str(error).strip().splitlines()[-1]
                    del watches[stream]
                    continue
                if look is Look.READY:
                    ready.add(node)
                else:
                    seen[node][look] = now - written
            if not written and (ready >= set(watches.values()) or time.monotonic() >= end):
                write_files(folder)
                written = time.monotonic()
                end = written + seconds + START_SECONDS
        for stream, node in watches.items():
            ray.cancel(stream, force=True)
            trouble.setdefault(node, f"no answer within {START_SECONDS:.0f} s")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {node: Sighting(writer, seen[node], trouble.get(node, "")) for node in living}


def _seen_here(store: Path, node: str, writer: str, seconds: float) -> Sighting:
    """A process of the node writes, this one looks."""
    import ray

    folder = prepare(store)
    try:
        looks = watch(folder, seconds)
        next(looks)
        task = ray.remote(num_cpus=0, max_retries=0)(write_files).options(scheduling_strategy=_on(node))
        try:
            ray.get(task.remote(folder), timeout=START_SECONDS)
        except (ray.exceptions.RayError, OSError) as error:
            return Sighting(writer, {}, str(error).strip().splitlines()[-1])
        written = time.monotonic()
        return Sighting(writer, {look: time.monotonic() - written for look in looks})
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _on(node: str) -> object:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)
