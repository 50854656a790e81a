"""The manifest of a finished stage: what it is, how it was made, and the sha256 of each of its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from raz.store.paths import MANIFEST
from raz.utils.json_types import (
    Json,
    JsonLike,
    JsonObject,
    as_float,
    as_int,
    as_list,
    as_object,
    as_str,
    get_object,
    get_str,
    parse_object,
)


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json. A field that an earlier version did not write has its default.

    `StageCache.publish` fills in `key` and `files`.
    """

    stage: str = ""  # str(Node), such as zoom2@val
    seconds: float = 0.0  # of work, over all attempts of a trained stage
    device: str = ""  # cpu, or the name of the GPU
    versions: Mapping[str, str] = field(default_factory=dict)  # package -> version, and the commit
    config: Mapping[str, Json] = field(default_factory=dict)  # parameters of the trial that made the stage
    read: tuple[str, ...] | None = None  # packs and features that the stage read; None: not recorded
    best_epoch: int | None = None  # of a trained stage
    best_value: float | None = None  # of a trained stage: its validation value at the best epoch
    key: Mapping[str, Json] = field(default_factory=dict)  # content of the stage's key (`StageKey.content`)
    files: Mapping[str, str] = field(default_factory=dict)  # name -> sha256 (hex)
    weights: Mapping[str, str] = field(default_factory=dict)  # of the counting stage: its pretrained weights
    # Of the stages of passes 1 and 2: what their networks cost (`raz.pipeline.gflop.ForwardCost.numbers`), by name.
    flop: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    devices: Mapping[str, str] = field(default_factory=dict)  # of a score: each stage behind it -> its device

    @property
    def needs(self) -> dict[str, str]:
        """Node -> key of each stage that it was made from."""
        return _strings(get_object(self.key, "needs"), "key.needs")

    @property
    def data(self) -> dict[str, str]:
        """Split -> fingerprint of the images that it read."""
        return _strings(get_object(self.key, "data"), "key.data")

    def to_json(self) -> dict[str, JsonLike]:
        """JSON values. Optional fields without a value are left out."""
        optional: dict[str, JsonLike] = {
            "read": self.read, "weights": self.weights or None, "best_epoch": self.best_epoch,
            "best_value": self.best_value, "devices": self.devices or None,
            "flop": {name: list(n) for name, n in self.flop.items()} or None,
        }  # fmt: skip
        return {
            "stage": self.stage, "seconds": self.seconds, "device": self.device, "versions": self.versions,
            "config": self.config, "key": self.key, "files": self.files,
            **{name: value for name, value in optional.items() if value is not None},
        }  # fmt: skip

    @classmethod
    def from_json(cls, document: Mapping[str, Json]) -> Manifest:
        """The inverse of `to_json`. `key` and `files` must be there. Raises ValueError for a field of another type."""
        read, epoch, value = document.get("read"), document.get("best_epoch"), document.get("best_value")
        manifest = cls(
            stage=get_str(document, "stage", ""),
            seconds=as_float(document.get("seconds", 0.0), "seconds"),
            device=get_str(document, "device", ""),
            versions=_strings(get_object(document, "versions"), "versions"),
            config=get_object(document, "config"),
            read=None if read is None else tuple(as_str(name, "read") for name in as_list(read, "read")),
            weights=_strings(get_object(document, "weights"), "weights"),
            devices=_strings(get_object(document, "devices"), "devices"),
            best_epoch=None if epoch is None else as_int(epoch, "best_epoch"),
            best_value=None if value is None else as_float(value, "best_value"),
            key=as_object(document.get("key"), "key"),
            files=_strings(as_object(document.get("files"), "files"), "files"),
            flop={
                name: tuple(as_int(n, f"flop.{name}") for n in as_list(numbers, f"flop.{name}"))
                for name, numbers in get_object(document, "flop").items()
            },
        )
        _ = manifest.needs, manifest.data  # raise here, not where they are used
        return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest in the folder of a stage. Raises OSError where there is none, ValueError where it is damaged."""
    return Manifest.from_json(parse_object((folder / MANIFEST).read_text(encoding="utf-8")))


def _strings(values: JsonObject, name: str) -> dict[str, str]:
    return {key: as_str(value, f"{name}.{key}") for key, value in values.items()}
