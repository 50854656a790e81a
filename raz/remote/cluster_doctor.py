"""Check every node of a running Ray cluster: devices, versions, clock, access to the store and to the images."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from raz.inspection import machine_checks
from raz.inspection.machine_checks import Check, CheckReport, Status
from raz.remote.nodes import NodeAnswer, run_on_each_node
from raz.remote.visibility import Sighting, check_sighting, sightings
from raz.store.late_view import exists
from raz.store.s3 import bucket_for
from raz.utils.provenance import environment_versions

CLOCK_WARN_SECONDS = 2.0  # only S3's request signatures depend on clocks that agree
CLOCK_FAIL_SECONDS = 300.0  # S3 refuses a request whose clock is off by 900 s
MARKER_PREFIX = ".raz-doctor-"


@dataclass(frozen=True)
class NodeReport:
    """A node and the results of its checks."""

    host: str
    address: str
    checks: tuple[Check, ...]


def examine_cluster(store: Path, data_root: Path | None) -> list[NodeReport]:
    """Check every node of the Ray cluster that this process has joined.

    Meanwhile a marker file lies in the store: a node that does not see it has another store. Then files are written
    into the store of a folder, to see how late nodes see those of others (`raz.remote.visibility`). `store` must be an
    absolute path or the mirror folder of a bucket.
    """
    with _marker_file(store) as mark:
        nodes = run_on_each_node(examine_node, str(store), str(data_root) if data_root else "", mark)
    seen = sightings(store) if bucket_for(store) is None else {}
    return [NodeReport(node.host, node.address, tuple(_checks(node, seen.get(node.node_id)))) for node in nodes]


@contextmanager
def _marker_file(store: Path) -> Iterator[str]:
    mark, bucket = f"{MARKER_PREFIX}{uuid.uuid4().hex}", bucket_for(store)
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


@dataclass(frozen=True)
class NodeFacts:
    """What a node reports of itself; times by its own clock, seconds since the epoch."""

    checks: tuple[Check, ...]
    versions: dict[str, str]  # package -> version
    began: float
    ended: float


def examine_node(store: str, data_root: str, mark: str) -> NodeFacts:
    """Run the checks on the node that calls this. `mark` is the marker file's name in the store; an empty `data_root`
    is not checked."""
    began = time.time()
    checks = [
        machine_checks.check_python(),
        machine_checks.check_devices(),
        machine_checks.check_memory(),
        machine_checks.check_shared_memory(),
        *machine_checks.check_disk(Path(store)),
        *machine_checks.check_mount(Path(store)),
        check_same_store(Path(store), mark),
    ]
    if data_root:
        checks.append(check_images(Path(data_root)))
    return NodeFacts(tuple(checks), _package_versions(), began, time.time())


def _package_versions() -> dict[str, str]:
    from raz.engine.broker import code_digest  # imports Ray

    versions = {name: version for name, version in environment_versions().items() if name != "commit"}
    return {**versions, "source": code_digest()[:12]}  # two trees of one version differ in it


def check_same_store(store: Path, mark: str) -> Check:
    """Whether this node sees the marker file in the store, and, in a bucket, may write there."""
    bucket = bucket_for(store)
    try:
        if bucket is None:
            visible = exists(store / mark)
        else:
            bucket.write(f"{mark}-{os.getpid()}", b"")
            bucket.remove(f"{mark}-{os.getpid()}")
            visible = bucket.read(mark) is not None
    except OSError as error:
        return Check("same store", "fail", str(error.strerror), "the node's own role, or its environment, gives access")
    where = bucket.url if bucket is not None else str(store)
    if not visible:
        hint = "mount the same folder at the same path on every node, or use --store s3://…"
        return Check("same store", "fail", f"{where} is not the folder that the checking machine has there", hint)
    return Check("same store", "ok", f"{where} is the same as on the checking machine")


def check_images(root: Path) -> Check:
    """Whether the data root exists and holds anything. A bucket is only listed, not mirrored."""
    bucket = bucket_for(root)
    try:
        count = len(os.listdir(root)) if bucket is None else len(bucket.names())
    except OSError as error:
        return Check("images", "fail", f"{root}: {error.strerror}", "mount it on every node, or --data-root s3://…")
    where = bucket.url if bucket is not None else str(root)
    return Check("images", "ok" if count else "fail", f"{where}, {count} entries", "there is nothing in it")


def _checks(node: NodeAnswer[NodeFacts], seen: Sighting | None) -> Iterator[Check]:
    offered = ", ".join(f"{name} {n:g}" for name, n in sorted(node.resources.items()) if name in ("CPU", "GPU"))
    if node.answer is None:
        yield Check("answer", "fail", node.trouble, "is raz-sweep installed there, and of this version?")
        return
    yield Check("ray", "ok", f"offers {offered or 'no CPU and no GPU: it trains nothing'}")
    yield from node.answer.checks
    if seen is not None:
        yield check_sighting(seen)
    yield _check_versions(node.answer.versions)
    yield check_clock(node.answer, node.sent, node.received)


def _check_versions(installed: dict[str, str]) -> Check:
    expected = _package_versions()
    other = [
        f"{name} {installed.get(name)} (here {expected[name]})"
        for name in expected
        if installed.get(name) != expected[name]
    ]
    if other:
        return Check("versions", "fail", ", ".join(other), "install the same on every node: `ray up` again")
    return Check("versions", "ok", "as on this machine")


def check_clock(node: NodeFacts, sent: float, received: float) -> Check:
    """Whether the node's clock agrees with this machine's. `sent` and `received` are the times, by this machine's clock
    in seconds since the epoch, of the request to the node and of its answer.

    The node worked in between, so its clock is ahead by at least `ended - received` and at most `began - sent` s.
    """
    least, most = node.ended - received, node.began - sent
    off = max(least, -most, 0.0)
    if off <= CLOCK_WARN_SECONDS:
        return Check("clock", "ok", f"agrees within the precision of the check ({least:+.1f} to {most:+.1f} s)")
    status: Status = "fail" if off > CLOCK_FAIL_SECONDS else "warn"
    direction = "ahead of" if least > 0 else "behind"
    return Check("clock", status, f"at least {off:.0f} s {direction} this machine's", "start an NTP client on the node")


def cluster_lines(reports: Sequence[NodeReport]) -> list[str]:
    """The reports as text, one line per check."""
    lines = []
    for node in reports:
        checks = CheckReport(node.checks).to_text().splitlines()
        lines += [f"node {node.host} ({node.address})", *(f"  {line}" for line in checks)]
    bad = sum(not CheckReport(node.checks).ok for node in reports)
    return [*lines, f"{len(reports)} nodes, {bad} with faults"]


def cluster_json(reports: Sequence[NodeReport]) -> dict[str, object]:
    """The reports as a JSON document; `ok` says that no check failed."""
    nodes = [{"ok": CheckReport(node.checks).ok, **asdict(node)} for node in reports]
    return {"ok": all(node["ok"] for node in nodes), "nodes": nodes}
