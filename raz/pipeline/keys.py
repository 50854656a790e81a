"""A trial's keys from its configuration and its data set, without torch: what a plan needs, and a run."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from raz.config import TrialConfig
from raz.data import open_dataset
from raz.data.contract import Dataset
from raz.errors import RazError
from raz.pipeline.cache import StageKey, file_digest
from raz.pipeline.tree import Node, keys_of


@lru_cache(maxsize=4)
def opened(name: str, root: Path | None) -> Dataset:
    """The data set, opened once a process. Raises RazError as `open_dataset`."""
    return open_dataset(name, root)


@lru_cache(maxsize=16)
def _fingerprint(name: str, root: Path | None, split: str) -> str:
    return opened(name, root).fingerprint(split)  # type: ignore[arg-type]


def stage_keys(
    config: TrialConfig, *, data_root: Path | None = None, splits: tuple[str, ...] = ("val",)
) -> dict[Node, StageKey]:
    """Every stage of a trial with its key, in order of need; opens the data set, trains nothing."""
    return keys_of(config, splits, lambda split: _fingerprint(config.dataset, data_root, split), weights_identity)


@lru_cache(maxsize=64)
def _file_identity(path: str, size: int, changed: int) -> str:
    return f"sha256:{file_digest(Path(path))}"


def weights_identity(weights: str) -> str:
    """What goes into a key: the name, or the content of the file. Raises RazError for a missing file."""
    if weights in ("imagenet", "none"):
        return weights
    path = weights_file(weights)
    stat = path.stat()
    return _file_identity(str(path), stat.st_size, stat.st_mtime_ns)


def weights_file(weights: str) -> Path:
    """The state dict's file. Raises RazError when it is not there."""
    path = Path(weights).expanduser()
    if not path.is_file():
        raise RazError(
            "backbone.weights", f"{weights!r} is no file, expected imagenet, none or a state dict's path",
            "give the path of VGG-16 weights in torchvision's layout (features.0.weight …)",
        )  # fmt: skip
    return path
