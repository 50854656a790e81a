"""One image file to RGB, whatever it holds."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from raz.errors import RazError

SUFFIXES = (".jpg", ".jpeg", ".png")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)  # what PIL raises on damage


def decode(data: bytes, where: str) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of an image file's bytes, turned upright as its EXIF orientation says.

    Grey is repeated, palettes are looked up, alpha is left out (the colours beneath it stay), and 16 bits
    are cut to their upper 8. Raises RazError for bytes that are no image, or a damaged one.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16-bit grey; PIL's own conversion clips at 255
                wide = np.asarray(upright).astype(np.int64)
                grey = np.clip(wide >> 8 if wide.max(initial=0) > 255 else wide, 0, 255).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            return np.array(upright.convert("RGB"), dtype=np.uint8)
    except _BROKEN as error:
        raise _damaged(where, error) from error


def size_of(data: bytes, where: str) -> tuple[int, int]:
    """(H, W) of the upright image, from its header; a file that ends early is told from its last bytes.

    Raises RazError when there is no header, or when the end is missing and decoding fails too.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) in _TURNED
    except _BROKEN as error:
        raise _damaged(where, error) from error
    if b"\xff\xd9" not in data[-64:] and b"IEND" not in data[-64:]:  # no end of JPEG, no end of PNG:
        decode(data, where)  # a longer tail is legal, so decoding decides
    return (width, height) if turned else (height, width)


def _damaged(where: str, error: Exception) -> RazError:
    if isinstance(error, UnidentifiedImageError):
        return RazError(where, "is no image that can be read", "copy the file again")
    return RazError(where, f"damaged image ({error})", "copy the file again")
