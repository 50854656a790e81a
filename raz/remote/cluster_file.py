"""Check a cluster file offline, before anything costs money. Every fault is reported with its line.

Nothing is contacted. The file is validated against Ray's schema and by Ray's own validation. For AWS, each node type is
compared with botocore's model of EC2, and Ray's real bootstrap runs against a mock of AWS where moto is installed.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from raz.errors import RazError, flatten_errors, raise_all
from raz.remote.shared_folders import LOOKUP_OPTION, command_faults, volume_faults
from raz.utils.suggestions import did_you_mean
from raz.utils.yamlfile import Document, Problems, YamlPath, parse

Section = dict[str, Any]  # a part of the file, valid by Ray's schema
PLACEHOLDER = "FILL_IN"
SECURITY_GROUP = "SecurityGroupIds: [sg-…] in each node_config; cluster/README.md makes the group"
LISTS = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands",
)  # fmt: skip
PROVIDER = {
    "aws": ("type", "region", "availability_zone", "cache_stopped_nodes", "use_internal_ips", "security_group",
            "key_pair", "cloudwatch", "disable_node_updaters"),
    "gcp": ("type", "region", "availability_zone", "project_id", "cache_stopped_nodes", "use_internal_ips",
            "gcp_credentials", "disable_node_updaters"),
    "local": ("type", "head_ip", "worker_ips", "coordinator_address"),
}  # fmt: skip
_SECRET = re.compile(r"\b(AKIA[0-9A-Z]{16})\b|(AWS_SECRET_ACCESS_KEY|RAY_AUTH_TOKEN|PASSWORD)=(?!\$)\S+", re.IGNORECASE)
_PIN = re.compile(r"\bray(?:\[[\w,-]+\])?==([\w.]+)")
_PYTHON = re.compile(r"(?:--python |python)(3\.\d+)\b")


@dataclass(frozen=True)
class ClusterFileReport:
    """A file without faults: its kind (aws, gcp, local, kubernetes, slurm), and which checks could not run here."""

    kind: str
    notes: tuple[str, ...] = ()


def check_file(path: Path, name: str = "") -> ClusterFileReport:
    """Check a whole file, called `name` in messages.

    Raises RazError(s) with every fault and its line, and OSError when the file cannot be read.
    """
    name = name or str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RazError(f"{name}:1", f"byte {error.object[error.start]:#04x} is not UTF-8", "save it as UTF-8") from None
    if path.suffix == ".sh":
        return _check_script(text, name, path)
    if re.search(r"^apiVersion:", text, re.MULTILINE):
        return _check_kubernetes(text, name)
    document = parse(text, name, strict=False, aliases=True)
    problems = Problems(document)
    problems.faults += placeholders(text, name)
    provider = document.data.get("provider")
    kind = provider.get("type") if isinstance(provider, dict) else None
    if kind not in PROVIDER:
        problems.add(
            ("provider", "type"), f"provider.type is {kind!r}, expected one of {', '.join(PROVIDER)}",
            did_you_mean(str(kind), PROVIDER),
        )  # fmt: skip
        problems.raise_if_any()
    from raz.remote.ray_validation import ray_validation_errors, schema_errors

    violations = list(schema_errors(document))
    problems.faults += violations
    if not violations:
        _rules(document, problems, str(kind))
        notes: list[str] = []
        if not problems.faults:  # Ray's own code stops at the first fault, and without a line
            problems.faults += ray_validation_errors(document)
        if kind == "aws":
            from raz.remote.ray_validation import aws_errors

            errors, notes = aws_errors(document, bootstrap=not problems.faults)
            problems.faults += errors
    problems.raise_if_any()
    if kind == "gcp":
        notes = ["the node types were not checked against Google Cloud: there is no mock of it"]
    return ClusterFileReport(str(kind), tuple(notes))


def placeholders(text: str, name: str) -> list[RazError]:
    """One error for each line that still holds a placeholder outside its comments."""
    errors = []
    for number, line in enumerate(text.splitlines(), 1):
        code, _, comment = line.partition(" #")
        if PLACEHOLDER in code and not code.lstrip().startswith("#"):
            errors.append(RazError(f"{name}:{number}", f"{PLACEHOLDER} is not filled in", comment.strip()))
    return errors


def _commands(document: Document, key: str) -> Iterator[tuple[tuple[str | int, ...], str]]:
    data: Section = document.data
    for i, command in enumerate(data.get(key) or []):
        yield (key, i), str(command)


def _rules(document: Document, problems: Problems, kind: str) -> None:
    """Settings that Ray accepts and that would break a sweep or expose the cluster."""
    data: Section = document.data
    problems.keys(("provider",), data["provider"], PROVIDER[kind], ("type",))
    for key in LISTS:
        if key not in data:
            problems.add((), f"{key} is missing: Ray fills in its own, such as an open dashboard", f"{key}: []")
    _versions(document, problems)
    _start(document, problems)
    _mounts(document, problems)
    for key in LISTS:
        for path, command in _commands(document, key):
            for fault in command_faults(command):
                problems.add(path, fault, f"-o hard,{LOOKUP_OPTION}")
            if _SECRET.search(command):
                problems.add(path, "the file contains a secret", "file_mounts, or the machine's own role")
            stderr = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False).stderr
            if stderr:
                what = stderr.splitlines()[0].rpartition("line ")[2].partition(": ")[2]
                problems.add(path, f"no shell command: {what}", "in YAML a # after a space begins a comment: quote it")
    if kind == "local":
        _hosts(data["provider"], problems)
    else:
        _nodes(data, problems, kind)


def _versions(document: Document, problems: Problems) -> None:
    installed, python = metadata.version("ray"), f"{sys.version_info.major}.{sys.version_info.minor}"
    requirement = f"ray[default,tune]=={installed}"
    pins = 0
    for path, command in _commands(document, "setup_commands"):
        for pin in _PIN.findall(command):
            pins += 1
            if pin != installed:
                problems.add(path, f"Ray {pin} on the nodes, {installed} on this machine", requirement)
        for version in set(_PYTHON.findall(command)):
            if version != python:
                problems.add(path, f"Python {version} on the nodes, {python} on this machine", f"python{python}")
    if not pins:
        problems.add(("setup_commands",), "no command pins Ray's version", f"pip install '{requirement}'")
    if not any("RAY_AUTH_MODE=token" in command for key in LISTS for _, command in _commands(document, key)):
        problems.add(("setup_commands",), "nothing sets RAY_AUTH_MODE=token: anyone who reaches a port can run code",
                   "export RAY_AUTH_MODE=token in ~/.bashrc")  # fmt: skip


def _start(document: Document, problems: Problems) -> None:
    ports = []
    for key, head in (("head_start_ray_commands", True), ("worker_start_ray_commands", False)):
        commands = list(_commands(document, key))
        starts = [(path, command) for path, command in commands if "ray start" in command]
        if key in document.data and not starts:
            problems.add((key,), f"{key} has no `ray start`")
        if starts and not any("ray stop" in command for _, command in commands):
            problems.add((key,), "`ray stop` is missing before `ray start`: a second `ray up` would fail", "- ray stop")
        for path, command in starts:
            for host in re.findall(r"--dashboard-host[= ](\S+)", command):
                if host not in ("127.0.0.1", "localhost"):
                    problems.add(path, f"the dashboard listens on {host}", "--dashboard-host=127.0.0.1")
            if head and "--head" not in command:
                problems.add(path, "the head starts without --head")
            if head and "--autoscaling-config" not in command:
                problems.add(path, "no --autoscaling-config: no worker would ever be started",
                           "--autoscaling-config=~/ray_bootstrap_config.yaml")  # fmt: skip
            if not head and "$RAY_HEAD_IP" not in command:
                problems.add(path, "a worker does not join the head", "--address=$RAY_HEAD_IP:6379")
            pattern = r"--port[= ](\d+)" if head else r"\$RAY_HEAD_IP:(\d+)"
            ports += [(path, port) for port in re.findall(pattern, command)]
    if len({port for _, port in ports}) > 1:
        problems.add(ports[-1][0], f"workers join port {ports[-1][1]}, the head listens on {ports[0][1]}")


def _mounts(document: Document, problems: Problems) -> None:
    data: Section = document.data
    mounts = data.get("file_mounts") or {}
    if not any(str(remote).endswith(".ray/auth_token") for remote in mounts):
        problems.add(("file_mounts",), "the token does not reach the nodes", "~/.ray/auth_token: ~/.ray/auth_token")
    for remote, local in mounts.items():
        path, source = ("file_mounts", remote), Path(os.path.expanduser(str(local)))
        if source.name == "auth_token":
            if not source.is_file():
                problems.add(
                    path, f"{local} does not exist", "ray get-auth-token --generate && chmod 600 ~/.ray/auth_token"
                )
            elif source.stat().st_mode & 0o077:
                problems.add(path, f"{local} may be read by others on this machine", f"chmod 600 {local}")
        elif not source.exists():
            problems.add(
                path, f"{local} does not exist, seen from {os.getcwd()}", "run it in the top folder of a clone"
            )


def _hosts(provider: Section, problems: Problems) -> None:
    head, workers = provider.get("head_ip"), provider.get("worker_ips")
    if not isinstance(head, str) or not isinstance(workers, list):
        problems.add(("provider",), "head_ip or worker_ips is missing")
        return
    named = {head}
    for i, worker in enumerate(workers):
        if worker in named and PLACEHOLDER not in str(worker):
            problems.add(("provider", "worker_ips", i), f"{worker} is named twice")
        named.add(worker)
    hosts: list[tuple[YamlPath, object]] = [(("provider", "head_ip"), head)]
    hosts += [(("provider", "worker_ips", i), worker) for i, worker in enumerate(workers)]
    for path, host in hosts:
        if not re.fullmatch(r"[A-Za-z0-9_.:-]+", str(host)) or (
            re.fullmatch(r"[\d.]+", str(host)) and not _is_ip_address(str(host))
        ):
            problems.add(path, f"{host!r} is no address")


def _is_ip_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _nodes(data: Section, problems: Problems, kind: str) -> None:
    types, head = data.get("available_node_types") or {}, data.get("head_node_type")
    if head not in types:
        problems.add(
            ("head_node_type",), f"head_node_type {head!r} is none of the node types", did_you_mean(str(head), types)
        )
    for name, node in types.items():
        path = ("available_node_types", name)
        config, min_workers, max_workers = node["node_config"], node.get("min_workers", 0), node.get("max_workers", 0)
        if min_workers > max_workers and name != head:
            problems.add((*path, "min_workers"), f"min_workers {min_workers} is more than max_workers {max_workers}")
        spot = "InstanceMarketOptions" in config or "SPOT" in str(config.get("scheduling"))
        if name == head and spot:
            what = "the head is a spot machine: the run ends when it is reclaimed"
            problems.add((*path, "node_config"), what, "on demand")
        if kind == "aws":
            _check_aws_node(config, (*path, "node_config"), problems, head=name == head)
        if kind == "gcp" and not isinstance(config.get("scheduling", {}), dict):
            where = (*path, "node_config", "scheduling")
            problems.add(where, "scheduling is a list, expected a mapping", "{provisioningModel: SPOT}")
        for i, disk in enumerate(config.get("disks") or []):
            image = str((disk.get("initializeParams") or {}).get("sourceImage", "")) if isinstance(disk, dict) else ""
            if "/family/" in image or not image:
                problems.add(
                    (*path, "node_config", "disks", i), "the image is not pinned", "images/NAME, not family/NAME"
                )
    autoscales = any(
        node.get("max_workers", 0) > node.get("min_workers", 0) for name, node in types.items() if name != head
    )
    if autoscales and head in types and "most_cpus" not in str(types[head].get("resources")):
        what = "most_cpus is missing from its resources: a run without workers asks for one, no more"
        problems.add(
            ("available_node_types", str(head)), what,
            "most_cpus and most_gpus: what all workers have together",
        )  # fmt: skip
    for key in ("image", "head_image", "worker_image"):
        reference = (data.get("docker") or {}).get(key)
        if reference and "@sha256:" not in reference:
            problems.add(("docker", key), f"the image {reference} is not pinned", "NAME@sha256:DIGEST")
    if kind == "aws":
        _network(data["provider"], problems)


def _check_aws_node(config: Section, path: tuple[str, ...], problems: Problems, *, head: bool) -> None:
    image = config.get("ImageId")
    if image is None:
        problems.add(path, "ImageId is missing: Ray would take an Ubuntu 18.04", "ImageId: ami-…")
    elif PLACEHOLDER not in str(image) and not re.fullmatch(r"ami-[0-9a-f]{8,17}", str(image)):
        problems.add((*path, "ImageId"), f"the image {image!r} is not pinned", "ami- and 8 to 17 hexadecimal digits")
    if head and "IamInstanceProfile" not in config:
        problems.add(path, "IamInstanceProfile is missing: Ray would make a role that may do everything in EC2 and S3",
                   "IamInstanceProfile: {Name: raz-head}")  # fmt: skip
    _security_groups(config, path, problems)
    options = config.get("MetadataOptions")
    if not isinstance(options, dict) or options.get("HttpTokens") != "required":
        problems.add((*path, "MetadataOptions"), "IMDSv1 is on: any process may read the machine's credentials",
                   "MetadataOptions: {HttpTokens: required}")  # fmt: skip


def _network(provider: Section, problems: Problems) -> None:
    region = str(provider.get("region"))
    for zone in str(provider.get("availability_zone", region)).split(","):
        if not zone.strip().startswith(region):
            problems.add(("provider", "availability_zone"), f"zone {zone.strip()} is not in region {region}")
    if "security_group" in provider:
        what = "in a group that Ray fills, its own rule opens port 22 to everybody, whatever rules stand here"
        problems.add(("provider", "security_group"), what, SECURITY_GROUP)


def _security_groups(config: Section, path: tuple[str, ...], problems: Problems) -> None:
    """Ray leaves the groups alone that a node type names, and opens port 22 of those that it makes to 0.0.0.0/0."""
    groups = config.get("SecurityGroupIds") or []
    for group in groups if isinstance(groups, list) else ():
        if PLACEHOLDER not in str(group) and not re.fullmatch(r"sg-[0-9a-f]{8,17}", str(group)):
            what = f"{group!r} is no security group"
            problems.add((*path, "SecurityGroupIds"), what, "sg- and 8 to 17 hexadecimal digits")
    if not groups and "NetworkInterfaces" not in config:  # an interface brings groups of its own, else Ray refuses it
        what = "SecurityGroupIds is missing: Ray would make a group that opens port 22 to everybody"
        problems.add(path, what, SECURITY_GROUP)


def _check_kubernetes(text: str, name: str) -> ClusterFileReport:
    """Check each document of the file by itself; line numbers are those of the whole file."""
    errors, installed, line, kinds = placeholders(text, name), metadata.version("ray"), 0, []
    for part in re.split(r"^---\n", text, flags=re.MULTILINE):
        document = parse("\n" * line + part, name, strict=False)
        line += part.count("\n") + 1
        problems = Problems(document)
        kinds.append(str(document.data.get("kind")))
        for path, fault in volume_faults(document.data):
            problems.add(path, fault, f"mountOptions: [hard, {LOOKUP_OPTION}]")
        if document.data.get("kind") == "RayCluster":
            raw = document.data.get("spec")
            spec: Section = raw if isinstance(raw, dict) else {}
            version = spec.get("rayVersion")
            if str(version) != installed:
                problems.add(
                    ("spec", "rayVersion"), f"Ray {version} on the pods, {installed} on this machine", installed
                )
            for path, value in _leaves(document.data):
                if path[-1] == "image" and "@sha256:" not in str(value):
                    problems.add(path, f"the image {value} is not pinned", "NAME@sha256:DIGEST")
                if path[-1] == "dashboard-host" and value not in ("127.0.0.1", "localhost"):
                    problems.add(path, f"the dashboard listens on {value}", "127.0.0.1")
                if path[-1] == "serviceType" and value in ("LoadBalancer", "NodePort"):
                    problems.add(path, f"a service of type {value} is open to the outside", "kubectl port-forward")
            if "RAY_AUTH_MODE" not in str(spec):
                problems.add(("spec",), "nothing sets RAY_AUTH_MODE=token")
        errors += problems.faults
    if "RayCluster" not in kinds:
        errors.append(RazError(f"{name}:1", f"no RayCluster in it, but {', '.join(kinds)}"))
    _raise(errors)
    return ClusterFileReport("kubernetes", ("the operator's schema was not checked: kubectl apply --dry-run=server",))


def _leaves(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], object]]:
    """(path, value) of every scalar below a value of the file."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, (*path, key))
    else:
        yield path, value


def _check_script(text: str, name: str, path: Path) -> ClusterFileReport:
    errors = placeholders(text, name)
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    for number, message in re.findall(r"line (\d+): (.*)", done.stderr):
        errors.append(RazError(f"{name}:{number}", message))
    for number, line in enumerate(text.splitlines(), 1):
        for host in re.findall(r"--dashboard-host[= ](\S+)", line):
            if host not in ("127.0.0.1", "localhost"):
                errors.append(RazError(f"{name}:{number}", f"the dashboard listens on {host}", "127.0.0.1"))
    if "RAY_AUTH_MODE=token" not in text:
        errors.append(RazError(f"{name}:1", "nothing sets RAY_AUTH_MODE=token"))
    notes = ["your site's Slurm did not check it: sbatch --test-only"]
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", "-f", "gcc", str(path)], capture_output=True, text=True, check=False)
        for number, message in re.findall(r":(\d+):\d+: (?:warning|error): (.*)", done.stdout):
            errors.append(RazError(f"{name}:{number}", message))
    else:
        notes.append("shellcheck is not installed")
    _raise(errors)
    return ClusterFileReport("slurm", tuple(notes))


def _raise(errors: list[RazError]) -> None:
    def line(error: RazError) -> int:
        return int(error.where.rpartition(":")[2])

    flat = [one for error in errors for one in flatten_errors(error)]
    raise_all(sorted(flat, key=line))


def cluster_file(cluster: Path | None) -> Path:
    """The cluster file of `--cluster`. Raises RazError if none was given, if it does not exist, and for each
    placeholder that is not filled in."""
    if cluster is None:
        raise RazError("--cluster", "no cluster file was given", "--cluster cluster/gpu.yaml, or RAZ_CLUSTER")
    if not cluster.is_file():
        raise RazError("--cluster", f"there is no file {cluster}", "raz-sweep cluster where")
    raise_all(placeholders(cluster.read_text(encoding="utf-8"), str(cluster)))
    return cluster
