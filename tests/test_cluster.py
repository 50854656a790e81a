"""Cluster files: the shipped ones are right once filled in, and each planted fault is reported with its line."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raz.cli.cluster import cluster_files
from raz.cli.main import app
from raz.engine.ray_internals import bootstrapped, prepared
from raz.errors import RazError, RazErrorGroup
from raz.remote.cluster_file import ClusterFileReport, check_file
from raz.remote.ray_validation import aws_errors
from raz.remote.shared_folders import command_faults, volume_faults
from raz.utils.yamlfile import parse

ROOT = Path(__file__).resolve().parents[1]
FILLED = {
    "gpu": (("sg-FILL_IN", "sg-0123456789abcdef0"), ("ami-FILL_IN", "ami-0123456789abcdef0"),
            ("fs-FILL_IN", "fs-0123abcd")),
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
    ("gpu", "  cache_stopped_nodes: false", "  security_group: {GroupName: mine}", "security_group:", "Ray fills"),
    ("gpu", "      ImageId: *image\n      SecurityGroupIds: *group\n", "      ImageId: *image\n", "gpu_spot:+4",
     "SecurityGroupIds is missing"),
    ("gpu", "[sg-0123456789abcdef0]", "[raz-sweep]", "SecurityGroupIds: *group", "no security group"),
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
    ("gcp", "{provisioningModel: SPOT, onHostMaintenance: TERMINATE}", "[{provisioningModel: SPOT}]", "scheduling:",
     "expected a mapping"),
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


def commands_of_the_readme(folder: Path) -> list[list[str]]:
    """The words of each `aws` that the commands for a new account run; they print sg-made, fs-made and s-made."""
    text = (ROOT / "cluster" / "README.md").read_text()
    found = re.search(r"## AWS: once an account.*?```sh\n(.*?)```", text, re.DOTALL)
    assert found is not None
    printed = """aws() {
      printf '%s\\0' "$@" END >> "$LOG"
      case $2 in
        create-security-group) echo sg-made;; create-file-system) echo fs-made;; describe-subnets) echo s-made;;
      esac
    }
    sleep() { :; }
    """
    log = folder / "log"
    subprocess.run(
        ["bash", "-euc", printed + found[1].replace("FILL_IN", "203.0.113.7")],
        check=True, env={"PATH": os.environ["PATH"], "LOG": str(log), "AWS_REGION": "us-east-1"}, cwd=folder,
    )  # fmt: skip
    commands = log.read_bytes().decode().split("END\0")[:-1]
    return [command.split("\0")[:-1] for command in commands]


def replay(commands: list[list[str]]) -> dict[str, str]:
    """Send the commands to AWS (moto) as its own model names their options. {printed id: id that AWS made}."""
    import boto3

    ids: dict[str, str] = {}
    for service, verb, *words in commands:
        client = boto3.client(service, region_name="us-east-1")
        operation = verb.replace("-", "_")
        model = client.meta.service_model.operation_model(client.meta.method_to_api_mapping[operation])
        members = {name.lower(): (name, shape.type_name) for name, shape in model.input_shape.members.items()}
        arguments: dict[str, object] = {}
        while words:
            option = words.pop(0).removeprefix("--").replace("-", "")
            if option in ("query", "output"):
                words.pop(0)
                continue
            name, kind = members[option]
            if kind == "boolean":
                arguments[name] = True
                continue
            value = words.pop(0)
            for printed, made in ids.items():
                value = value.replace(printed, made)
            if option == "filters":
                filter_name, filter_value = (word.partition("=")[2] for word in value.split(","))
                arguments[name] = [{"Name": filter_name, "Values": [filter_value]}]
            elif kind == "list":
                arguments[name] = json.loads(value) if value.startswith("[") else [value]
            else:
                arguments[name] = value
        answer = getattr(client, operation)(**arguments)
        if verb == "create-security-group":
            ids["sg-made"] = answer["GroupId"]
        elif verb == "create-file-system":
            ids["fs-made"] = answer["FileSystemId"]
        elif verb == "describe-subnets":
            ids["s-made"] = answer["Subnets"][0]["SubnetId"]
    return ids


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("moto") is None, reason="needs raz-sweep[cluster]")
def test_the_machines_that_ray_starts_are_closed_but_to_one_address_and_to_each_other(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What EC2 holds (moto) after the commands for a new account, Ray's real bootstrap, and a start of each type."""
    import boto3
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    commands = commands_of_the_readme(clone)
    with mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        ids = replay(commands)
        group = ids["sg-made"]
        path = filled("gpu", clone, ("sg-0123456789abcdef0", group))
        ec2 = boto3.client("ec2", region_name="us-east-1")
        image = ec2.describe_images()["Images"][0]["ImageId"]
        text = path.read_text().replace("ami-0123456789abcdef0", image)
        document = parse(text, str(path), strict=False, aliases=True)
        config = bootstrapped(prepared(document.data))
        for node in config["available_node_types"].values():
            request = node["node_config"]
            rest = {key: value for key, value in request.items() if key != "SubnetIds"}
            ec2.run_instances(**rest, SubnetId=request["SubnetIds"][0], MinCount=1, MaxCount=1)
        instances = [i for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]]
        held = {g["GroupId"]: g["IpPermissions"] for g in ec2.describe_security_groups()["SecurityGroups"]}
        mounts = boto3.client("efs", region_name="us-east-1")
        target = mounts.describe_mount_targets(FileSystemId=ids["fs-made"])["MountTargets"][0]["MountTargetId"]
        of_files = mounts.describe_mount_target_security_groups(MountTargetId=target)["SecurityGroups"]
        roles = {role["RoleName"]: role["Path"] for role in boto3.client("iam").list_roles()["Roles"]}
    assert len(instances) == 2
    assert [[g["GroupId"] for g in instance["SecurityGroups"]] for instance in instances] == [[group]] * 2
    networks = {
        (entry["CidrIp"], rule["FromPort"], rule["ToPort"])
        for rules in held.values() for rule in rules for entry in rule["IpRanges"]
    }  # fmt: skip
    assert networks == {("203.0.113.7/32", 22, 22)}
    assert not [rule for rules in held.values() for rule in rules if rule.get("Ipv6Ranges") or rule["PrefixListIds"]]
    among = [rule for rule in held[group] if rule["UserIdGroupPairs"]]
    assert [rule["IpProtocol"] for rule in among] == ["-1"]  # all protocols and ports
    assert [pair["GroupId"] for pair in among[0]["UserIdGroupPairs"]] == [group]
    assert of_files == [group]
    assert {"raz-head", "raz-worker"} <= set(roles)
    assert "/aws-service-role/spot.amazonaws.com/" in roles.values()


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("moto") is None, reason="needs raz-sweep[cluster]")
def test_a_group_that_ray_makes_is_found_open(clone: Path) -> None:
    path = filled("gpu", clone, ("      SecurityGroupIds: *group\n", ""))
    document = parse(path.read_text(), str(path), strict=False, aliases=True)
    errors, _ = aws_errors(document, bootstrap=True)
    assert ["opens ports 22 to 22 of ray-autoscaler-raz-gpu to everybody" in error.what for error in errors] == [True]


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
