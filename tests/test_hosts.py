"""Three hosts with SSH, a real `ray up` of the shipped file, a sweep, and a plug that is pulled in mid-stage.

The hosts are namespaces of this machine (tests/hosts.py). What they would have fetched from a package index, this
interpreter's packages give them, so that nothing is downloaded; what the file installs, it installs.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import pytest

from raz.study.records import TrialRecord, read_records
from tests.crowds import write_crowd
from tests.hosts import ROOT, Host, Lab, lab, missing, until
from tests.test_pipeline import MICRO, artifacts

LACKING = next((name for name in ("aiohttp", "hatchling", "pip") if importlib.util.find_spec(name) is None), "")
pytestmark = [
    pytest.mark.hosts,
    pytest.mark.timeout(6 * 600),
    pytest.mark.skipif(bool(LACKING), reason=f"{LACKING} is not installed: pip install -e '.[dev]'"),
]
SWEEP = {
    "study": "three-hosts",
    "base": {"preset": "tiny", "set": {**MICRO, "depth": 1, "localization.train.epochs": 20}},
    "design": {"sampler": "grid"},
    "parameters": {"seed": {"choice": [0, 1, 2]}, "fusion.rule": {"choice": ["average", "localization"]}},
}
RAY, RAZ = f"{sys.executable} -m ray.scripts.scripts", f"{sys.executable} -m raz.cli"
AT = "--cluster ~/onprem.yaml"
UNASKED = "-o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
PATIENCE = float(os.environ.get("RAZ_HOSTS_PATIENCE", "600"))  # seconds for what takes one where nothing else runs


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if lacking := missing():
        pytest.skip(lacking)
    folder = tmp_path_factory.mktemp("hosts") / "lab"
    with lab(folder, hosts=3) as made:
        write_crowd(made.shared / "data")
        for host in made.hosts:
            as_delivered(host)
        token = made.laptop.home / ".ray" / "auth_token"
        token.parent.mkdir()
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        (made.laptop.home / "onprem.yaml").write_text(filled(made))
        (made.laptop.home / "sweep.yaml").write_text(json.dumps(SWEEP))
        yield made
    assert made.left() == []


def as_delivered(host: Host) -> None:
    """An environment where the file looks for one, which has this interpreter's packages but not this project."""
    home = host.home / "raz" / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    packages = [place for place in sys.path if Path(place).name in ("site-packages", "dist-packages")]
    own = next(home.glob("lib/python*/site-packages"))
    (own / "machine.pth").write_text("".join(f"{place}\n" for place in packages))
    ray = home / "bin" / "ray"
    ray.write_text("#!/root/raz/venv/bin/python\nfrom ray.scripts.scripts import main\nmain()\n")
    ray.chmod(0o755)
    pip = host.home / ".config" / "pip" / "pip.conf"
    pip.parent.mkdir(parents=True)
    # pip reads the option's value as that of `build-isolation`
    pip.write_text("[install]\nno-index = true\nno-build-isolation = false\ndisable-pip-version-check = true\n")
    (host.home / ".bashrc").write_text("export RAY_worker_niceness=0\n")  # all hosts share this machine's cores
    (host.home / ".profile").write_text(". ~/.bashrc\n")


def filled(made: Lab) -> str:
    text = (ROOT / "cluster" / "onprem.yaml").read_text()
    workers = ", ".join(host.address for host in made.hosts[1:])
    for old, new in (
        ("head FILL_IN", f"head {made.hosts[0].address}"), ("[FILL_IN]", f"[{workers}]"), ("user FILL_IN", "user root"),
        ("key FILL_IN", "key ~/.ssh/key"), ("tune]==2.60.0", f"tune]=={metadata.version('ray')}"),
    ):  # fmt: skip
        assert old in text, old
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def reference(machines: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the same sweep on the laptop alone, without Ray."""
    store = tmp_path_factory.mktemp("reference") / "store"
    laptop(machines, f"{RAZ} run ~/sweep.yaml --inline --store ~/alone --data-root /shared/data")
    shutil.copytree(machines.laptop.home / "alone", store)
    return store


def laptop(made: Lab, command: str, patience: float = PATIENCE, **variables: str) -> str:
    """What a command prints that is called on the laptop, at the top of the clone."""
    packages = [place for place in sys.path if Path(place).name in ("site-packages", "dist-packages")]
    variables = {"PYTHONPATH": os.pathsep.join([str(ROOT), *packages]), "RAY_worker_niceness": "0", **variables}
    done = made.laptop.run(f"cd {ROOT} && {command}", timeout=patience, **variables)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def in_mid_stage(made: Lab) -> list[Host]:
    """The hosts that train a chain now of which an epoch is kept already; a lease names its holder's process space."""
    store, at = made.shared / "raz-store", {str(host.space): host for host in made.hosts}
    found = []
    for lease in store.glob("leases/*.lease"):
        stage, _, chain = lease.stem.partition("-")
        with suppress(FileNotFoundError):
            fields = lease.read_text().split()
            space = fields[2].rpartition("/")[2] if len(fields) == 5 else ""
            if space in at and (store / "chains" / stage / chain / "checkpoint.pt").exists():
                found.append(at[space])
    return found


def test_a_sweep_survives_its_hosts(machines: Lab, reference: Path) -> None:
    workers = machines.hosts[1:]
    store = machines.shared / "raz-store"

    laptop(machines, f"{RAY} up -y --no-config-cache ~/onprem.yaml")
    until(lambda: all(raylets(host) for host in machines.hosts), PATIENCE, lambda: log_of(machines))
    job = json.loads(laptop(machines, f"{RAZ} submit ~/sweep.yaml {AT} --jobs 6 --json"))["job"]

    # One host goes in mid-stage, with every process of it, and comes back.
    training: list[Host] = []

    def trains() -> bool:
        training[:] = [host for host in in_mid_stage(machines) if host in workers]
        return bool(training)

    until(trains, PATIENCE, lambda: log_of(machines))
    victim = training[0]
    victim.kill()
    assert not victim.processes()
    victim.up()
    until(lambda: raylets(victim) > 0, PATIENCE, lambda: log_of(machines))

    laptop(machines, f"{RAZ} job logs {job} {AT} --follow", PATIENCE)  # exits as the job does
    laptop(machines, f"{RAZ} pull {AT} --store ~/pulled")
    laptop(machines, f"{RAY} down -y ~/onprem.yaml")
    for host in workers:
        laptop(machines, f"ssh -i ~/.ssh/key {UNASKED} root@{host.address} raz/venv/bin/ray stop")
    for host in machines.hosts:
        until(lambda h=host: not h.processes(), 180, lambda h=host: f"{h.name}: {h.processes()}")  # type: ignore[misc]

    check(store, reference)
    assert table(read_records(machines.laptop.home / "pulled", "three-hosts")) == table(
        read_records(store, "three-hosts")
    )


def log_of(made: Lab) -> str:
    """What the head's autoscaler wrote last."""
    logs = Path(f"/proc/{made.hosts[0].pid}/root/tmp/ray/session_latest/logs")
    return "\n".join(path.read_text()[-6000:] for path in sorted(logs.glob("monitor.*")))


def raylets(host: Host) -> int:
    return sum("raylet/raylet" in name for name in host.processes().values())


def check(store: Path, reference: Path) -> None:
    """The sweep's table, curves and weights are those of the laptop, bit for bit, and no study counts as running."""
    records, wanted = read_records(store, "three-hosts"), read_records(reference, "three-hosts")
    assert [record.state for record in records] == [record.state for record in wanted] == ["complete"] * 6
    assert table(records) == table(wanted)
    assert artifacts(store) == artifacts(reference)
    assert not list(store.glob("leases/*.lease"))


def table(records: Sequence[TrialRecord]) -> list[str]:
    return sorted(repr((record.values, record.metrics, record.steps)) for record in records)


GROWING = {
    "cluster_name": "growing", "max_workers": 3, "upscaling_speed": 1.0, "idle_timeout_minutes": 60,
    "provider": {"type": "fake_multinode"}, "auth": {}, "docker": {}, "file_mounts": {}, "cluster_synced_files": [],
    "available_node_types": {
        "ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 3},
    },
    "head_node_type": "ray.head.default",
    **{f"{name}_commands": [] for name in ("initialization", "setup", "head_setup", "worker_setup")},
    **{f"{name}_start_ray_commands": [] for name in ("head", "worker")},
}  # fmt: skip


def test_a_cluster_of_no_workers_grows(machines: Lab, reference: Path) -> None:
    """Ray's own autoscaler, which starts its workers as further processes of one machine (the laptop). How many come
    before so small a sweep has ended depends on the machine's speed."""
    home = machines.laptop.home
    (home / "growing.json").write_text(json.dumps(GROWING))
    laptop(
        machines,
        f"""{RAY} start --head --num-cpus=0 --resources='{{"coordinator":64,"most_cpus":3}}' --port=6379"""
        " --autoscaling-config=/root/growing.json --include-dashboard=false --object-store-memory=100000000"
        " --disable-usage-stats",
        AUTOSCALER_UPDATE_INTERVAL_S="1", RAY_FAKE_CLUSTER="1", RAY_enable_autoscaler_v2="0", RAY_AUTH_MODE="token",
    )  # fmt: skip
    assert raylets(machines.laptop) == 1
    run = f"{RAZ} run ~/sweep.yaml --store ~/store --data-root /shared/data --address auto"
    with ThreadPoolExecutor() as beside:
        ran = beside.submit(laptop, machines, run, 2 * PATIENCE)
        until(lambda: ran.done() or raylets(machines.laptop) > 1, PATIENCE)
        assert raylets(machines.laptop) > 1, ran.result()
        ran.result()
    check(home / "store", reference)
    laptop(machines, f"{RAY} stop --force")
    until(lambda: not machines.laptop.processes(), 60, lambda: str(machines.laptop.processes()))
