"""Files of pretrained weights. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from raz.errors import RazError


def weights_file(weights: str) -> Path:
    """The path of a file of weights. Raises RazError when there is no such file."""
    path = Path(weights).expanduser()
    if not path.is_file():
        raise RazError(
            "backbone.weights", f"{weights!r} is no file, expected imagenet, none or a state dict's path",
            "give the path of weights in the layout of torchvision (vgg16) or of timm (other networks)",
        )  # fmt: skip
    return path
