"""`raz-sweep doctor`: what this machine has.

With --cluster every node of a Ray that is up is asked, also whether it sees the same store and images.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raz.inspection import machine_checks
from raz.inspection.machine_checks import Check, Status, exit_code, render
from raz.remote.nodes import NodeAnswer, run_on_each_node
from raz.store.s3 import bucket_for
from raz.utils.provenance import environment_versions

CLOCK_WARN_SECONDS = 2.0  # seconds a clock may differ before it is said; nothing but S3's signatures depends on it
CLOCK_FAIL_SECONDS = 300.0  # S3 refuses requests of 900
MARK = ".raz-doctor-"


@dataclass(frozen=True)
class NodeReport:
    """A node, and how it is."""

    host: str
    address: str
    checks: tuple[Check, ...]


def examine_cluster(store: Path, data_root: Path | None) -> list[NodeReport]:
    """Asks every node of the Ray that this process has joined. A mark is left in the store meanwhile: a node that does
    not see it has another store."""
    with _marked(store) as mark:
        nodes = run_on_each_node(f"{__name__}:examine_here", str(store), str(data_root) if data_root else "", mark)
    return [NodeReport(node.host, node.address, tuple(_checks(node))) for node in nodes]


@contextmanager
def _marked(store: Path) -> Iterator[str]:
    mark, bucket = f"{MARK}{uuid.uuid4().hex}", bucket_for(store)
    if bucket is not None:
        bucket.write(mark, b"")
    else:
        store.mkdir(parents=True, exist_ok=True)
        (store / mark).touch()
    try:
        yield mark
    finally:
        if bucket is not None:
            bucket.remove(mark)
        else:
            (store / mark).unlink(missing_ok=True)


def examine_here(store: str, data_root: str, mark: str) -> dict[str, Any]:
    """On a node: its checks, its versions, and when it began and ended by its own clock."""
    began = time.time()
    place = Path(store)
    checks = [
        machine_checks.python(),
        machine_checks.devices(),
        machine_checks.memory(),
        machine_checks.shared_memory(),
        *machine_checks.disk(place),
        shared(place, mark),
    ]
    if data_root:
        checks.append(images(Path(data_root)))
    told = {name: version for name, version in environment_versions().items() if name != "commit"}
    return {"checks": [asdict(check) for check in checks], "versions": told, "began": began, "ended": time.time()}


def shared(store: Path, mark: str) -> Check:
    """Whether this node sees what was written on the machine that asks, and may write itself."""
    bucket = bucket_for(store)
    try:
        if bucket is None:
            seen = (store / mark).exists()
        else:
            bucket.write(f"{mark}-{os.getpid()}", b"")
            bucket.remove(f"{mark}-{os.getpid()}")
            seen = bucket.read(mark) is not None
    except OSError as error:
        return Check("same store", "fail", str(error.strerror), "the node's own role, or its environment, gives access")
    where = bucket.url if bucket is not None else str(store)
    if not seen:
        hint = "mount the same folder at the same path on every node, or use --store s3://…"
        return Check("same store", "fail", f"{where} is another folder here than on the machine that asks", hint)
    return Check("same store", "ok", f"{where} is the one of the machine that asks")


def images(root: Path) -> Check:
    """Whether the data root is there; one that stands for a bucket is only asked for, not mirrored."""
    bucket = bucket_for(root)
    try:
        count = len(os.listdir(root)) if bucket is None else len(bucket.names())
    except OSError as error:
        return Check("images", "fail", f"{root}: {error.strerror}", "mount it on every node, or --data-root s3://…")
    where = bucket.url if bucket is not None else str(root)
    return Check("images", "ok" if count else "fail", f"{where}, {count} entries", "there is nothing in it")


def _checks(node: NodeAnswer) -> Iterator[Check]:
    offered = ", ".join(f"{name} {n:g}" for name, n in sorted(node.resources.items()) if name in ("CPU", "GPU"))
    if node.trouble:
        yield Check("answer", "fail", node.trouble, "is raz-sweep installed there, and of this version?")
        return
    yield Check("ray", "ok", f"offers {offered or 'no CPU and no GPU: it trains nothing'}")
    yield from (Check(**check) for check in node.answer["checks"])
    yield _versions(node.answer["versions"])
    yield clock(node)


def _versions(theirs: dict[str, str]) -> Check:
    mine = {name: version for name, version in environment_versions().items() if name != "commit"}
    other = [f"{name} {theirs.get(name)} (here {mine[name]})" for name in mine if theirs.get(name) != mine[name]]
    if other:
        return Check("versions", "fail", ", ".join(other), "install the same on every node: `ray up` again")
    return Check("versions", "ok", "as on this machine")


def clock(node: NodeAnswer) -> Check:
    """The node worked between `asked` and `heard`, so its clock is off by `least` to `most` seconds."""
    least, most = node.answer["ended"] - node.heard, node.answer["began"] - node.asked
    off = max(least, -most, 0.0)
    if off <= CLOCK_WARN_SECONDS:
        return Check("clock", "ok", f"agrees, to what can be told ({least:+.1f} to {most:+.1f} s)")
    status: Status = "fail" if off > CLOCK_FAIL_SECONDS else "warn"
    way = "ahead of" if least > 0 else "behind"
    return Check("clock", status, f"at least {off:.0f} s {way} this machine's", "start an NTP client on the node")


def cluster_lines(found: Sequence[NodeReport]) -> list[str]:
    """The same for people."""
    lines = []
    for node in found:
        lines += [f"node {node.host} ({node.address})", *(f"  {line}" for line in render(node.checks).splitlines())]
    bad = sum(exit_code(node.checks) for node in found)
    return [*lines, f"{len(found)} nodes, {bad} with faults"]


def cluster_json(found: Sequence[NodeReport]) -> dict[str, Any]:
    nodes = [{"ok": exit_code(node.checks) == 0, **asdict(node)} for node in found]
    return {"ok": all(node["ok"] for node in nodes), "nodes": nodes}
