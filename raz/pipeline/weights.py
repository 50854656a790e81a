"""Files of pretrained weights. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from raz.errors import RazError

HALF = ("bfloat16", "float16")


def weights_text(record: Mapping[str, str]) -> str:
    """What a manifest's record of pretrained weights says: `FILE, stored in half precision (float16)`. Empty for an
    empty record, of a backbone from scratch or of an earlier version."""
    name, dtype = record.get("name", ""), record.get("dtype", "")
    return f"{name}, stored in half precision ({dtype})" if any(half in dtype for half in HALF) else name


def weights_file(weights: str) -> Path:
    """The path of a file of weights. Raises RazError when there is no such file."""
    path = Path(weights).expanduser()
    if not path.is_file():
        raise RazError(
            "backbone.weights", f"{weights!r} is no file, expected imagenet, none or a state dict's path",
            "give the path of weights in the layout of torchvision (vgg16) or of timm (other networks)",
        )  # fmt: skip
    return path
