"""Manifests: written as they are spelled in every store there is, read with the fields of earlier versions missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raz.errors import RazError
from raz.store.cache import StageCache, StageKey
from raz.store.manifest import Manifest, read_manifest
from raz.utils.json_types import JsonObject

KEY = StageKey("zoom", 1, {"zooming.k_z": 3}, {"points@val": "ab"}, {"val": "cd"})
MADE = Manifest(
    "zoom2@val", 1.5, "cpu", {"torch": "2.7"}, {"depth": 2, "counting.sizes": [1.0]}, ("packs/toy.rgb",), 3, 0.25
)


def test_a_manifest_is_spelled_as_in_every_store(tmp_path: Path) -> None:
    folder = StageCache(tmp_path).publish(KEY, lambda place: (place / "a.txt").write_text("a") and None, MADE).folder
    document = json.loads((folder / "manifest.json").read_text())
    assert document == {
        "stage": "zoom2@val", "seconds": 1.5, "device": "cpu", "versions": {"torch": "2.7"},
        "config": {"depth": 2, "counting.sizes": [1.0]}, "read": ["packs/toy.rgb"], "best_epoch": 3, "best_value": 0.25,
        "key": {
            "stage": "zoom", "version": 1, "inputs": {"zooming.k_z": 3}, "needs": {"points@val": "ab"},
            "data": {"val": "cd"},
        },
        "files": {"a.txt": "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"},
    }  # fmt: skip
    found = read_manifest(folder)
    assert found.to_json() == Manifest.from_json(document).to_json()
    assert (found.needs, found.data) == ({"points@val": "ab"}, {"val": "cd"})
    assert StageKey.of_manifest(found) == KEY
    assert StageKey.of_manifest(found).key == folder.name


def test_fields_of_later_versions_may_be_missing() -> None:
    found = Manifest.from_json({"key": {}, "files": {}})
    assert found == Manifest()
    assert found.read is None
    assert found.to_json().keys() == {"stage", "seconds", "device", "versions", "config", "key", "files"}
    with pytest.raises(ValueError, match="a stage's key has"):
        StageKey.of_manifest(found)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"key": None}, "key"), ({"files": None}, "files"), ({"files": {"a": 1}}, "files.a"),
        ({"key": {"needs": []}}, "needs"), ({"key": {"data": {"val": 1}}}, "key.data.val"),
        ({"seconds": "1"}, "seconds"),
        ({"versions": {"torch": 2}}, "versions.torch"), ({"config": []}, "config"), ({"read": "packs"}, "read"),
        ({"best_epoch": 1.5}, "best_epoch"), ({"devices": {"counting": 1}}, "devices.counting"),
    ],
)  # fmt: skip
def test_a_damaged_manifest_is_no_manifest(change: JsonObject, named: str, tmp_path: Path) -> None:
    document: JsonObject = {"key": {}, "files": {}, **change}
    with pytest.raises(ValueError, match=f"^{named} "):
        Manifest.from_json(document)
    cache = StageCache(tmp_path)
    artifact = cache.publish(KEY, lambda place: (place / "a.txt").write_text("a") and None, MADE)
    (artifact.folder / "manifest.json").write_text(json.dumps(document))
    assert cache.find(KEY) is None


def test_a_failure_is_noted_and_read_back(tmp_path: Path) -> None:
    from raz.errors import TrialFailure
    from raz.store.failures import Device

    cache = StageCache(tmp_path)
    cpu, gpu = Device("cpu"), Device("A10", 24)
    assert cache.failure(KEY, cpu) is None
    cache.record_failure(KEY, TrialFailure("stage zoom", "the device's memory is full", "a hint", reason="oom"), gpu)
    assert cache.failure(KEY, cpu) is None, "another device may have more memory"
    failure = cache.failure(KEY, gpu)
    assert isinstance(failure, RazError)
    assert (failure.where, failure.what, failure.hint, failure.reason) == (
        "stage zoom", "the device's memory is full", "a hint", "oom",
    )  # fmt: skip
    cache.paths.failure(KEY.stage, KEY.key).write_text('{"where": 1}')
    assert cache.failure(KEY, gpu) is None
