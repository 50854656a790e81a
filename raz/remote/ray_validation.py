"""Validate a cluster file by Ray's own code and by botocore's model of EC2. Nothing is contacted."""

from __future__ import annotations

import copy
import importlib.util
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import cache
from io import StringIO
from typing import Any, Protocol
from unittest import mock

from raz.engine.ray_internals import ClusterConfig, bootstrapped, cluster_schema, prepared, validate
from raz.errors import RazError
from raz.utils.formatting import first_line
from raz.utils.suggestions import did_you_mean
from raz.utils.yamlfile import Document, YamlPath

BOOTSTRAP_PATH = ("provider",)  # Ray's bootstrap reports no line, so its errors are shown here


class Shape(Protocol):
    """botocore's model of a value. `type_name` decides which of the other attributes it has."""

    type_name: str
    members: Mapping[str, Shape]  # of a structure
    member: Shape  # of a list
    enum: Sequence[str]  # of a string


def schema_errors(document: Document) -> Iterator[RazError]:
    """Every violation of the JSON schema that Ray ships, with its line."""
    import jsonschema

    for error in jsonschema.Draft7Validator(cluster_schema()).iter_errors(document.data):
        path: YamlPath = tuple(error.absolute_path)
        prefix = "".join(f"{part}." for part in path)
        if error.validator == "additionalProperties":
            legal = list(error.schema.get("properties", {}))
            patterns = error.schema.get("patternProperties", {})
            for key in error.instance:
                if key not in legal and not patterns:
                    yield RazError(document.where(*path, key), f"unknown key {prefix}{key}", did_you_mean(key, legal))
        else:
            yield RazError(document.where(*path), f"{prefix.rstrip('.') or 'the file'}: {error.message[:200]}")


def ray_validation_errors(document: Document) -> list[RazError]:
    """The first error of Ray's own validation, if any; it stops there."""
    try:
        with _quiet():
            validate(prepared(copy.deepcopy(document.data)))
    except (Exception, SystemExit) as error:  # Ray documents no exception types, and its logger may end the process
        return [RazError(document.where(), f"Ray refuses it: {_first_line(error)}")]
    return []


def aws_errors(document: Document, *, bootstrap: bool) -> tuple[list[RazError], list[str]]:
    """Errors of the node types against botocore's model of EC2, and notes on what could not be checked.

    With `bootstrap`, and where moto is installed, Ray's real bootstrap and the start of each machine also run on a
    mock of AWS.
    """
    if importlib.util.find_spec("botocore") is None or importlib.util.find_spec("boto3") is None:
        return [], ["the node types were not checked against EC2: pip install 'raz-sweep[cluster]'"]
    shape = _run_instances()
    errors = []
    data: dict[str, Any] = document.data
    for name, node in (data.get("available_node_types") or {}).items():
        path = ("available_node_types", name, "node_config")
        errors += [
            RazError(document.where(*where), what, hint)
            for where, what, hint in _compare(node["node_config"], shape, path)
        ]
    if importlib.util.find_spec("moto") is None:
        return errors, ["Ray's bootstrap was not run: pip install 'raz-sweep[cluster]'"]
    if bootstrap and not errors:
        try:
            with _quiet(), tempfile.TemporaryDirectory() as home:
                _dry_bootstrap(copy.deepcopy(document.data), home)
        except (Exception, SystemExit) as error:
            what = f"Ray's bootstrap on a mock of AWS fails: {_first_line(error)}"
            errors.append(RazError(document.where(*BOOTSTRAP_PATH), what))
    return errors, []


@cache
def _run_instances() -> Shape:
    """botocore's shape of the input of EC2's RunInstances."""
    import botocore.session

    model = botocore.session.get_session().get_service_model("ec2")
    shape: Shape = model.operation_model("RunInstances").input_shape
    return shape


def _compare(value: object, shape: Shape, path: YamlPath) -> Iterator[tuple[YamlPath, str, str]]:
    """(path in the file, fault, hint) wherever a value does not fit botocore's shape."""
    kind = shape.type_name
    if kind == "structure":
        if not isinstance(value, dict):
            yield path, f"{value!r} is no mapping, expected keys with values", ""
            return
        for key, inner in value.items():
            if key not in shape.members:
                yield (*path, key), f"EC2 knows no {key}", did_you_mean(key, shape.members)
            else:
                yield from _compare(inner, shape.members[key], (*path, key))
    elif kind == "list":
        if not isinstance(value, list):
            yield path, f"{value!r} is no list", ""
            return
        for i, inner in enumerate(value):
            yield from _compare(inner, shape.member, (*path, i))
    elif kind == "string":
        if not isinstance(value, str):
            yield path, f"{value!r} is no text", ""
        elif shape.enum and value not in shape.enum:
            yield path, f"EC2 has no {path[-1]} {value!r}", did_you_mean(value, shape.enum)
    elif kind in ("integer", "long") and (isinstance(value, bool) or not isinstance(value, int)):
        yield path, f"{value!r} is no whole number", ""
    elif kind == "boolean" and not isinstance(value, bool):
        yield path, f"{value!r} is neither true nor false", ""


def _dry_bootstrap(raw: ClusterConfig, home: str) -> None:
    """Run Ray's bootstrap, then start one machine of each node type, on moto's mock of AWS."""
    import boto3
    from moto import mock_aws

    fake = {
        "HOME": home,  # bootstrap writes ~/.ssh/*.pem
        "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_SESSION_TOKEN": "testing",
        "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key != "AWS_PROFILE"}
    with (
        mock.patch.dict(os.environ, {**environment, **fake}, clear=True),
        mock_aws(config={"iam": {"load_aws_managed_policies": True}}),
    ):
        config = prepared(raw)
        ec2 = boto3.client("ec2", region_name=config["provider"]["region"])
        iam = boto3.client("iam", region_name=config["provider"]["region"])
        image = ec2.describe_images()["Images"][0]["ImageId"]
        profiles = set()
        groups: dict[str, str] = {}  # group of the file -> one that the mock has, without rules
        for node in config["available_node_types"].values():
            request = node["node_config"]
            request["ImageId"] = image  # the mock does not have the real one
            profiles.add((request.get("IamInstanceProfile") or {}).get("Name"))
            for group in request.get("SecurityGroupIds", []):
                if group not in groups:
                    made = ec2.create_security_group(GroupName=f"raz-{group}", Description="of the file")
                    groups[group] = made["GroupId"]
            if "SecurityGroupIds" in request:
                request["SecurityGroupIds"] = [groups[group] for group in request["SecurityGroupIds"]]
        for profile in profiles - {None}:
            iam.create_instance_profile(InstanceProfileName=profile)
        config = bootstrapped(config)
        for node in config["available_node_types"].values():
            request = node["node_config"]
            rest = {key: value for key, value in request.items() if key != "SubnetIds"}
            ec2.run_instances(**rest, SubnetId=request["SubnetIds"][0], MinCount=1, MaxCount=1)
        for name, rule in open_to_everybody(ec2.describe_security_groups()["SecurityGroups"]):
            raise ValueError(f"it opens ports {rule.get('FromPort')} to {rule.get('ToPort')} of {name} to everybody")


def open_to_everybody(groups: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(name of the group, rule) of each rule by which any address may come in, of groups as EC2 describes them."""
    for group in groups:
        for rule in group["IpPermissions"]:
            networks = [entry["CidrIp"] for entry in rule.get("IpRanges", [])]
            networks += [entry["CidrIpv6"] for entry in rule.get("Ipv6Ranges", [])]
            if any(network.endswith("/0") for network in networks):
                yield group["GroupName"], rule


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Ray's launcher prints and logs; only its result is used."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    with redirect_stdout(StringIO()):
        yield


def _first_line(error: BaseException) -> str:
    """The first line of an error of Ray's launcher or of botocore, whose text may be in `message`."""
    return first_line(error, str(getattr(error, "message", None) or error))[:300]
