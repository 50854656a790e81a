"""How late a node sees the files of others: processes with emulated lookup caches in the place of machines, and Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from raz.inspection import machine_checks
from raz.remote.visibility import FILES, Look, Sighting, check_sighting, prepare, sightings, watch, write_files
from raz.store import late_view
from raz.store.late_view import mount_faults
from tests.heads import RAY, family, head, raz
from tests.lookup_cache import HERE, emulated, environment

LONG = 3600.0  # s: such a cache outlives the test
WATCH = """
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from raz.remote.visibility import watch
for look in watch(Path(sys.argv[1]), float(sys.argv[2])):
    print(look.value, flush=True)
"""


def node(folder: Path, seconds: float, variables: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WATCH, str(folder), str(seconds)]
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True, cwd=HERE)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_nodes_tell_what_they_see_of_a_file_that_another_wrote(tmp_path: Path) -> None:
    store, other = tmp_path.resolve() / "store", tmp_path.resolve() / "other"
    folder = prepare(store)
    nodes = {
        "plain": node(folder, 240.0, environment(tmp_path / "a", store, 0.0)),
        "cached": node(folder, 240.0, environment(tmp_path / "b", store, LONG)),
        "stubborn": node(folder, 2.0, environment(tmp_path / "c", store, LONG, listing_refreshes=False)),
        "another folder": node(other / folder.name, 2.0, environment(tmp_path / "d", other, 0.0)),
    }
    try:
        assert [line(process) for process in nodes.values()] == ["ready"] * 4
        write_files(folder)
        assert sorted([line(nodes["plain"]), line(nodes["plain"])]) == ["by name", "folder opened"]
        assert line(nodes["cached"]) == "folder opened"
        for name in ("stubborn", "another folder"):
            assert nodes[name].communicate(timeout=240)[0] == ""
    finally:
        for process in nodes.values():
            process.kill()
            process.wait(60)


def test_a_name_is_seen_once_the_cache_forgets_that_it_was_missing(tmp_path: Path) -> None:
    store = tmp_path.resolve()
    with emulated(store, LONG) as cache:
        folder = prepare(store)
        looks = watch(folder)
        assert next(looks) is Look.READY
        code = "import sys; from pathlib import Path; from raz.remote.visibility import write_files"
        subprocess.run(
            [sys.executable, "-c", f"{code}; write_files(Path(sys.argv[1]))", str(folder)], check=True, cwd=HERE
        )
        assert next(looks) is Look.FOLDER_OPENED
        cache.missing.clear()
        assert list(looks) == [Look.BY_NAME]


def test_what_a_sighting_says() -> None:
    quick = check_sighting(Sighting("head", {Look.FOLDER_OPENED: 0.1, Look.BY_NAME: 0.2}))
    assert (quick.status, quick.found) == ("ok", "head: a new file after 0.1 s")
    late = check_sighting(Sighting("head", {Look.FOLDER_OPENED: 0.1, Look.BY_NAME: 31.4}))
    assert (late.status, late.found) == ("warn", "head: a new file after 0.1 s if it opens the folder, else after 31 s")
    assert "lookupcache=positive" in late.hint
    slow = check_sighting(Sighting("head", {Look.FOLDER_OPENED: 15.0, Look.BY_NAME: 15.1}))
    assert (slow.status, slow.found) == ("warn", "head: a new file after 15.0 s")
    assert "missing names" in slow.hint
    half = check_sighting(Sighting("head", {Look.FOLDER_OPENED: 0.1}))
    assert (half.status, "else not within 120 s" in half.found) == ("warn", True)
    never = check_sighting(Sighting("head", {}))
    assert (never.status, never.found) == ("fail", "head: did not see a new file within 120 s")
    assert "same folder" in never.hint
    assert check_sighting(Sighting("head", {}, "its process died")).status == "fail"


def test_a_file_that_is_there_is_seen_at_once(tmp_path: Path) -> None:
    folder = prepare(tmp_path)
    write_files(folder)
    assert list(watch(folder, 60.0)) == [Look.READY, *FILES]
    assert list(watch(prepare(tmp_path), 0.0)) == [Look.READY]


OPTIONS = [
    ("nfs4", "rw,vers=4.1,hard,lookupcache=pos,local_lock=none", ()),
    ("nfs4", "rw,vers=4.1,hard", ("lookupcache",)),
    ("nfs", "rw,vers=3,hard,lookupcache=none,nolock", ("locks",)),
    ("efs", "tls,lookupcache=positive,nocto", ("nocto",)),
    ("nfs4", "rw,soft,noac", ("soft",)),
    ("nfs4", "rw,lookupcache=all,softerr,local_lock=flock", ("lookupcache", "locks", "soft")),
    ("nfs4", "rw,actimeo=0", ()),
    ("ext4", "rw", ()),
    ("fuse.sshfs", "rw", ()),
]


@pytest.mark.parametrize(("kind", "options", "words"), OPTIONS)
def test_what_harms_a_mount(kind: str, options: str, words: tuple[str, ...]) -> None:
    faults = mount_faults(kind, options.split(","))
    assert len(faults) == len(words)
    assert all(word in fault for word, fault in zip(words, faults, strict=True))


def test_the_mount_of_a_store_is_told_where_other_machines_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    monkeypatch.setattr(late_view, "MOUNTS", str(mounts))
    for options, expected in (("rw,lookupcache=pos", [("ok", "nfs4 at /shared")]), ("rw", None)):
        mounts.write_text(f"1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:2 / /shared rw - nfs4 server:/ {options}\n")
        told = [(check.status, check.found) for check in machine_checks.check_mount(Path("/shared/store"))]
        assert told == expected or (told[0][0] == "warn" and "lookupcache=positive is missing" in told[0][1])
        assert expected is None or told == expected
    assert machine_checks.check_mount(Path("/home/store")) == []


@pytest.mark.usefixtures("ray_session")
def test_the_node_of_a_session_sees_its_own_files(tmp_path: Path) -> None:
    import ray

    store = tmp_path / "store"
    seen = sightings(store, 60.0)
    assert set(seen) == {ray.get_runtime_context().get_node_id()}
    [sighting] = seen.values()
    assert (set(sighting.seconds), sighting.trouble) == (set(FILES), "")
    assert check_sighting(sighting).status != "fail"
    assert list(store.iterdir()) == []  # nothing is left


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_doctor_asks_two_nodes_of_a_real_head(tmp_path: Path) -> None:
    """Two nodes on this machine; the processes of one have a lookup cache, as of a machine of its own."""
    store = tmp_path.resolve() / "store"
    with head(1) as up:
        variables = environment(tmp_path / "site", store, 12.0)
        kept = {name: value for name, value in variables.items() if not name.startswith("RAY_")}
        words = ["start", "--block", f"--address={up.address}", "--num-cpus=1", "--object-store-memory=100000000"]
        process = subprocess.Popen(
            [*RAY, *words, "--disable-usage-stats"], start_new_session=True, stdout=subprocess.DEVNULL,
            env=kept | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": up.token}, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            nodes: list[dict[str, Any]] = []
            end = time.monotonic() + 300
            while len(nodes) < 2 and time.monotonic() < end:  # until the second one has joined
                told = raz("doctor", "--cluster", "--address", up.address, "--store", store, "--json",
                           env=up.environment)  # fmt: skip
                nodes = json.loads(told.stdout)["nodes"]
        finally:
            began = family(process.pid)
            process.kill()
            for pid in began:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait(60)
    assert told.returncode == 0, told.stdout + told.stderr
    checks = [{check["name"]: check for check in node["checks"]} for node in nodes]
    assert sorted("mount" in found for found in checks) == [False, True]
    for found in checks:
        assert "a new file after" in found["sees files of"]["found"]
    assert list(store.iterdir()) == []
