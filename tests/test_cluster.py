"""Cluster files: the shipped ones are right once filled in, and each planted fault is reported with its line."""

from __future__ import annotations

import importlib.util
import json
import sys
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raz.cli.cluster import cluster_files
from raz.cli.main import app
from raz.errors import RazError, RazErrorGroup
from raz.remote.cluster_file import ClusterFileReport, check_file
from raz.remote.shared_folders import command_faults, volume_faults

ROOT = Path(__file__).resolve().parents[1]
FILLED = {
    "gpu": (("FILL_IN/32", "203.0.113.7/32"), ("ami-FILL_IN", "ami-0123456789abcdef0"), ("fs-FILL_IN", "fs-0123abcd")),
    "onprem": (("head FILL_IN", "head 10.0.0.1"), ("[FILL_IN]", "[10.0.0.2, 10.0.0.3]"),
               ("user FILL_IN", "user alice"), ("key FILL_IN", "key ~/.ssh/id_ed25519")),
    "gcp": (("FILL_IN", "raz-project"),),
    "kuberay": (("FILL_IN@sha256:FILL_IN", f"registry.example/raz@sha256:{'a' * 64}"), ("FILL_IN", "nfs")),
    "slurm": (("=FILL_IN", "=/shared/x"),),
}  # fmt: skip
BOTO = importlib.util.find_spec("boto3") is not None


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a token, a clone as the working folder, and this machine's versions in the files."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("not-a-secret")
    (tmp_path / ".ray" / "auth_token").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    return tmp_path


def filled(name: str, folder: Path, *changes: tuple[str, str]) -> Path:
    source = cluster_files()[name]
    text = source.read_text()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    text = text.replace("python3.11 ", f"python{python} ").replace("--python 3.11", f"--python {python}")
    text = text.replace("2.60.0", metadata.version("ray"))
    for old, new in (*FILLED[name], *changes):
        assert old in text, old
        text = text.replace(old, new)
    out = folder / source.name
    out.write_text(text)
    return out


def faults(path: Path) -> list[RazError]:
    with pytest.raises(RazError) as reported:
        check_file(path)
    return list(reported.value.faults) if isinstance(reported.value, RazErrorGroup) else [reported.value]


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(FILLED))
def test_a_shipped_file_is_right_once_it_is_filled_in(name: str, clone: Path) -> None:
    assert isinstance(check_file(filled(name, clone)), ClusterFileReport)


def test_every_shipped_file_is_tested() -> None:
    assert set(cluster_files()) == set(FILLED)


@pytest.mark.parametrize("name", sorted(FILLED))
def test_each_placeholder_is_told_with_its_line(name: str, clone: Path) -> None:
    lines = cluster_files()[name].read_text().splitlines()
    expected = {i for i, line in enumerate(lines, 1) if "FILL_IN" in line and not line.lstrip().startswith("#")}
    reported = {int(f.where.rpartition(":")[2]) for f in faults(cluster_files()[name]) if "FILL_IN is not" in f.what}
    assert reported == expected
    if name not in ("kuberay", "slurm"):  # all in one block at the top
        first = next(i for i, line in enumerate(lines, 1) if line.strip() == "fill_in:")
        assert min(expected) > first
        assert not [
            line for line in lines[first : max(expected)] if line.startswith(tuple("abcdefghijklmnopqrstuvwxyz"))
        ]


PLANTED = [
    # file, what stands there, what is planted, a line with it, a word of the message
    ("gpu", "max_workers: 8\nupscaling", "max_worker: 8\nupscaling", "max_worker: 8", "unknown key max_worker"),
    ("gpu", "  cache_stopped_nodes: false", "  cache_stoped_nodes: false", "cache_stoped_nodes", "unknown key"),
    ("gpu", "CidrIp: *ssh_from", "CidrIp: 0.0.0.0/0", "CidrIp: 0.0.0.0/0", "everybody"),
    ("gpu", "FromPort: 22, ToPort: 22", "FromPort: 22, ToPort: 8265", "ToPort: 8265", "open from outside"),
    ("gpu", "ssh_from 203.0.113.7/32", "ssh_from 203.0.113/32", "IpPermissions:+1", "no network"),
    ("gpu", "ami-0123456789abcdef0", "ubuntu-22.04", "ImageId: *image", "not pinned"),
    ("gpu", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "--dashboard-host=0.0.0.0", "dashboard listens"),
    ("gpu", f"'ray[default,tune]=={metadata.version('ray')}'", "'ray[default,tune]==2.9.3'", "ray[default,tune]==2.9.3",
     "Ray 2.9.3 on the nodes"),
    ("gpu", "--seed --python 3", "--seed --python 3.8 --or 3", "--python 3.8", "Python 3.8 on the nodes"),
    ("gpu", "head_node_type: head", "head_node_type: haed", "head_node_type: haed", "none of the node types"),
    ("gpu", "coordinator: 64}", "coordinator: 0.5}", "coordinator: 0.5", "0.5"),
    ("gpu", "    min_workers: 0", "    min_workers: 9", "min_workers: 9", "more than max_workers"),
    ("gpu", "{HttpTokens: required} # IMDSv2", "{HttpTokens: optional}", "HttpTokens: optional", "IMDSv1"),
    ("gpu", "zones us-east-1a", "zones eu-west-1a", "availability_zone:", "not in region"),
    ("gpu", " --autoscaling-config=~/ray_bootstrap_config.yaml", "", "ray start --head", "no worker would"),
    ("gpu", "RAY_AUTH_MODE=token ", "", "setup_commands:", "RAY_AUTH_MODE"),
    ("gpu", "$RAY_HEAD_IP:6379", "$RAY_HEAD_IP:6380", "$RAY_HEAD_IP:6380", "join port 6380"),
    ("gpu", "      IamInstanceProfile: {Name: raz-head}\n", "", "head:+2", "may do everything"),
    ("gpu", "raz: raz\n", "raz: rax\n", "raz: rax", "does not exist"),
    ("gpu", "export RAY_AUTH_MODE", "export AWS_SECRET_ACCESS_KEY=abc RAY_AUTH_MODE", "AWS_SECRET", "secret"),
    ("gpu", "idle_timeout_minutes: 10", "idle_timeout_minutes: soon", "idle_timeout_minutes: soon", "soon"),
    ("gpu", "worker_start_ray_commands:\n  - ray stop\n", "worker_start_ray_commands:\n", "worker_start_ray_commands:",
     "`ray stop` is missing"),
    ("gpu", "CPU: 0, most_cpus: 32, most_gpus: 8,", "CPU: 0,", "  head:", "most_cpus is missing"),
    ("onprem", "/venv/bin:$PATH' >> ~/.bashrc", "/venv/bin:$PATH # mine' >> ~/.bashrc", "# mine'", "no shell command"),
    ("onprem", "10.0.0.3]", "10.0.0.1]", "workers: &workers", "named twice"),
    ("onprem", "head 10.0.0.1", "head 10.0.0.256", "head_ip:", "no address"),
    ("onprem", "type: local", "type: lokal", "type: lokal", "expected one of"),
    ("onprem", "  ~/.ray/auth_token: ~/.ray/auth_token\n", "", "file_mounts:", "token does not reach"),
    ("gcp", "global/images/raz-project", "global/images/family/any", "disks:", "not pinned"),
    ("kuberay", "dashboard-host: 127.0.0.1", "dashboard-host: 0.0.0.0", "dashboard-host: 0.0.0.0", "dashboard listens"),
    ("kuberay", "rayVersion: ", "rayVersion: 1", "rayVersion: 1", "on the pods"),
    ("kuberay", "mountOptions: [hard, lookupcache=positive]", "mountOptions: [hard]", "mountOptions: [hard]",
     "lookupcache=positive is missing"),
    ("kuberay", "  mountOptions: [hard, lookupcache=positive]\n", "", "spec:", "lookupcache=positive is missing"),
    ("gpu", ",lookupcache=positive", "", "mount -t nfs4", "lookupcache=positive is missing"),
    ("gpu", "hard,timeo=600", "soft,timeo=600", "mount -t nfs4", "soft: "),
    ("gcp", "-o hard,timeo=600,retrans=3,lookupcache=positive ", "", "mount -t nfs", "lookupcache=positive is missing"),
    ("gcp", "lookupcache=positive", "lookupcache=none,nocto", "mount -t nfs", "nocto: "),
    ("slurm", "store=/shared/x", "store=FILL_IN", "store=FILL_IN", "not filled in"),
]  # fmt: skip
BY_EC2 = [  # what Ray's schema lets through
    ("gpu", "      InstanceType: g5.xlarge", "      InstanceTyp: g5.xlarge", "InstanceTyp:", "knows no InstanceTyp"),
    ("gpu", "InstanceType: g5.xlarge", "InstanceType: g5.xlarg", "g5.xlarg", "has no InstanceType"),
    ("gpu", "{MarketType: spot}", "{MarketType: spott}", "MarketType: spott", "has no MarketType"),
    ("gpu", "VolumeSize: 150", "VolumeSize: 150GB", "VolumeSize: 150GB", "no whole number"),
]
if BOTO:
    PLANTED += BY_EC2


@pytest.mark.long
@pytest.mark.parametrize(("name", "old", "new", "at", "said"), PLANTED, ids=[f"{p[0]}-{p[4]}" for p in PLANTED])
def test_a_planted_fault_is_told_with_its_line(name: str, old: str, new: str, at: str, said: str, clone: Path) -> None:
    path = filled(name, clone, (old, new))
    mark, _, below = at.partition("+")
    lines = path.read_text().splitlines()
    expected = {i + int(below or 0) for i, line in enumerate(lines, 1) if mark in line and not line.startswith("#")}
    reported = [fault for fault in faults(path) if said in fault.what]
    assert reported, [str(fault) for fault in faults(path)]
    assert {int(fault.where.rpartition(":")[2]) for fault in reported} & expected, [fault.where for fault in reported]


def test_a_token_that_others_may_read_is_told(clone: Path) -> None:
    (clone / ".ray" / "auth_token").chmod(0o644)
    assert ["may be read by others" in fault.what for fault in faults(filled("onprem", clone))] == [True]


@pytest.mark.parametrize("rows", [
    ["a0: &a0 [1]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 20))],
    ["a: &a [*a, *a]"],
], ids=["many", "itself"])  # fmt: skip
def test_aliases_of_aliases_do_not_grow_without_bound(rows: list[str], clone: Path) -> None:
    (clone / "bomb.yaml").write_text("\n".join(rows))
    assert any("aliases make" in fault.what for fault in faults(clone / "bomb.yaml"))


def test_the_command_prints_faults_and_exits_2(clone: Path) -> None:
    done = CliRunner().invoke(app, ["cluster", "check", str(cluster_files()["slurm"]), "--json"])
    assert done.exit_code == 2
    assert len(json.loads(done.stdout)["faults"]) == 3
    done = CliRunner().invoke(app, ["cluster", "check", str(filled("onprem", clone))])
    assert done.exit_code == 0, done.output
    assert "no fault found" in done.stdout


def test_where_copies_a_file_once(tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    assert CliRunner().invoke(app, ["cluster", "where", "gpu", "--out", str(out)]).exit_code == 0
    assert out.read_bytes() == (ROOT / "cluster" / "gpu.yaml").read_bytes()
    out.write_text("filled in")
    assert CliRunner().invoke(app, ["cluster", "where", "gpu", "--out", str(out)]).exit_code == 2
    assert out.read_text() == "filled in"
    done = CliRunner().invoke(app, ["cluster", "where", "gpv"])
    assert done.exit_code == 2
    assert "gpu" in done.output


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("moto") is None, reason="needs raz-sweep[cluster]")
def test_rays_real_bootstrap_is_run(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.autoscaler._private.aws.config as aws

    assert check_file(filled("gpu", clone)).notes == ()
    monkeypatch.setattr(aws, "_configure_subnet", lambda config: (_ for _ in ()).throw(ValueError("no subnet at all")))
    assert ["no subnet at all" in fault.what for fault in faults(filled("gpu", clone))] == [True]


def test_the_mounts_of_a_command_and_of_a_volume() -> None:
    good, bad = "mount -t nfs4 -o hard,lookupcache=pos a:/ /b", 'sudo mount -t nfs4 -o hard "$(cat f)":/ /shared'
    assert command_faults(f"mkdir -p /b && {good} && echo done") == []
    assert len(command_faults(f"({bad}) || {good}")) == 1
    assert len(command_faults("mount -t efs fs-1 /b -o tls")) == 1
    assert command_faults("mount -t tmpfs tmpfs /b; mountpoint -q /shared") == []
    for resource, at in (
        ({"kind": "StorageClass", "provisioner": "efs.csi.aws.com"}, ()),
        ({"kind": "PersistentVolume", "spec": {"csi": {"driver": "nfs.csi.k8s.io"}, "mountOptions": ["hard"]}},
         ("spec", "mountOptions")),
        ({"kind": "PersistentVolume", "spec": {"nfs": {}, "mountOptions": ["hard", "lookupcache=positive"]}}, None),
        ({"kind": "StorageClass", "provisioner": "cephfs.csi.ceph.com"}, None),
        ({"kind": "PersistentVolume", "spec": {"hostPath": {"path": "/x"}}}, None),
        ({"kind": "RayCluster", "spec": {}}, None),
    ):  # fmt: skip
        assert [path for path, _ in volume_faults(resource)] == ([] if at is None else [at])
