"""Checks what photographs take beside a generated crowd: pretrained weights, two packages, a data set."""

from __future__ import annotations

import importlib
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from raz.config import PAPER_BACKBONE, PRESETS, BackboneConfig
from raz.errors import RazError
from raz.inspection.machine_checks import Check

VGG_FILE = "vgg16-397923af.pth"  # torchvision's, of ImageNet weights
VGG_HOST = "https://download.pytorch.org"
PATIENCE = 4.0  # seconds for a host to answer
PACKAGES = {"timm": "networks but VGG-16", "schedulefree": "the optimizer schedule-free"}  # package -> what takes it


def preset_backbones() -> tuple[str, ...]:
    """The names of the pretrained networks that presets take."""
    return tuple(sorted({preset.backbone.name for preset in PRESETS.values() if preset.backbone.weights != "none"}))


def check_weights(name: str, answers: Callable[[str], bool] | None = None) -> Check:
    """Whether the ImageNet weights of a network are there, or can be fetched. `answers`: whether a host does."""
    what, takers = f"weights {name}", _takers(name)
    try:
        origin = _origin(name)
    except RazError as error:
        return Check(what, "fail", error.what, error.hint)
    except ImportError as error:
        return Check(what, "fail", f"timm cannot be imported: {error}", "pip install --force-reinstall timm")
    found = next((file for file in origin.kept if file.is_file()), None)
    if found is not None:
        return Check(what, "ok", f"{found}{takers}")
    reason = "HF_HUB_OFFLINE is set" if origin.forbidden else f"{origin.host} does not answer"
    if not origin.forbidden and (answers or host_answers)(origin.host):
        return Check(what, "ok", f"not here yet, fetched from {origin.host} at first use{takers}")
    hint = f"bring {origin.source} to this machine and --set backbone.weights=FILE"
    return Check(what, "warn", f"not here, and {reason}{takers}", hint)


def _takers(name: str) -> str:
    presets = [preset for preset, config in PRESETS.items() if config.backbone.name == name]
    presets = [preset for preset in presets if PRESETS[preset].backbone.weights == "imagenet"]
    return f" (preset {', '.join(presets)})" if presets else ""


@dataclass(frozen=True)
class _Origin:
    """Where the pretrained weights of a network come from."""

    host: str  # https://…
    source: str  # the file there, for people
    kept: tuple[Path, ...]  # where it is on this machine once it was fetched
    forbidden: bool = False  # whether the environment forbids to fetch it


def _origin(name: str) -> _Origin:
    """Raises RazError for a name that timm does not know, or for which it has no weights."""
    import torch

    kept = Path(torch.hub.get_dir()) / "checkpoints"
    if name == PAPER_BACKBONE:
        return _Origin(VGG_HOST, f"{VGG_HOST}/models/{VGG_FILE}", (kept / VGG_FILE,))
    import timm
    from huggingface_hub import constants

    from raz.pipeline.backbones import HUB_FILES, cached_weights

    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is not None and config.hf_hub_id:
        cached = cached_weights(config.hf_hub_id, config.hf_hub_filename)
        source = f"{config.hf_hub_filename or HUB_FILES[0]} of {constants.ENDPOINT}/{config.hf_hub_id}"
        files = (Path(cached),) if cached else ()
        return _Origin(constants.ENDPOINT, source, files, constants.HF_HUB_OFFLINE)
    if config is not None and isinstance(config.url, str) and config.url:
        host = "/".join(config.url.split("/")[:3])
        return _Origin(host, config.url, (kept / Path(config.url).name,))
    known = "has no pretrained weights" if timm.is_model(name) else f"is no network of timm {timm.__version__}"
    hint = "--backbone vgg16, or timm's name of a network, such as tf_efficientnet_lite0"
    raise RazError("backbone", f"{name} {known}", hint)


def host_answers(url: str, patience: float = PATIENCE) -> bool:
    """Whether a host answers in time, through a proxy if the environment names one. A look-up of names may hang longer
    than any time limit of its own, so it is waited for from outside."""
    answered = threading.Event()

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=patience):
                answered.set()
        except urllib.error.HTTPError:  # it answered
            answered.set()
        except (OSError, ValueError):  # no network, no such host, no certificate
            return

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(patience)
    return answered.is_set()


def check_network(name: str) -> Check:
    """Whether a network can be a backbone: whether it has features at strides 8 and 16."""
    from raz.pipeline.backbones import empty_backbone

    try:
        backbone = empty_backbone(BackboneConfig(name=name, neck=0))
    except RazError as error:
        return Check("backbone", "fail", error.what, error.hint)
    return Check("backbone", "ok", f"{name}: {backbone.channels} channels of features")


def check_weights_file(weights: str, names: Sequence[str]) -> Check:
    """Whether a file holds weights of one of the networks."""
    from raz.pipeline.backbones import pretrained_identity

    faults: list[RazError] = []
    for name in names:
        try:
            pretrained_identity(BackboneConfig(name=name, weights=weights))
        except RazError as error:
            faults.append(error)
        else:
            return Check("weights", "ok", f"{weights}: {name}{_takers(name)}")
    found = "; ".join(dict.fromkeys(error.what for error in faults))
    return Check("weights", "fail", f"{weights}, as {' or '.join(names)}: {found}", faults[-1].hint)


def check_package(name: str) -> Check:
    """Whether a package can be imported, and its version."""
    try:
        importlib.import_module(name)
    except Exception as error:  # a package of another torch raises anything as it is imported
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return Check(name, "fail", f"cannot be imported: {reason}", f"pip install --force-reinstall {name}")
    return Check(name, "ok", f"{metadata.version(name)} can be imported ({PACKAGES[name]})")


def check_photographs(datasets: Sequence[Check], root: Path | None) -> Check:
    """Whether one of the data sets that were found holds photographs."""
    from raz.data import DATASETS

    names = [c.name.removeprefix("data ") for c in datasets if c.name.startswith("data ") and c.found != "generated"]
    if names:
        return Check("photographs", "ok", ", ".join(names))
    first = DATASETS[PRESETS["small"].dataset]
    where = f"none in {root}" if root is not None else "no folder given to look in"
    return Check(
        "photographs", "warn", where,
        f"--data-root DIR, a folder with {first.layout} (from {first.source}); others: raz-sweep data list",
    )  # fmt: skip
