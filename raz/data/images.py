"""Decode an image file to RGB.

Other formats than 8-bit RGB are converted: grey is repeated, palettes are looked up, CMYK is converted without a colour
profile, alpha is dropped (the colours are kept), and 16 bits are reduced to the upper 8. Refused are animations and
files of several pages, where it is unclear which image is meant, and floating-point or 32-bit pixels, whose range is
unknown.
"""

from __future__ import annotations

import hashlib
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from raz.errors import RazError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")
BAND = 512  # rows converted at a time
_SWAPPED_SIDES = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)  # what PIL raises on damage


def decode(data: bytes, where: str) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of an image file's bytes, rotated as its EXIF orientation says.

    See the module for other colours and depths. Raises RazError for bytes that are no image, damaged or refused.
    """
    try:
        with _open_image(data, where) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            upright: Image.Image = image
            if upright.mode.startswith("I"):  # 16-bit grey, which PIL would clip at 255
                wide = np.asarray(upright).astype(np.int64)
                if wide.max(initial=0) > 65535 or wide.min(initial=0) < 0:
                    raise RazError(where, "has pixels of 32 bits, expected 8 or 16", "save it with 8 or 16 bits")
                grey = np.clip(wide >> 8 if wide.max(initial=0) > 255 else wide, 0, 255).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            return rgb_array(upright)
    except _DECODE_ERRORS as error:
        raise _damage_error(where, error) from error


def rgb_array(image: Image.Image) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of an image in any 8-bit mode; a new, writable array.

    Converts a band of rows at a time; otherwise PIL would hold three copies of the image besides the array.
    """
    width, height = image.size
    out = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, BAND):
        bottom = min(top + BAND, height)
        band = image.crop((0, top, width, bottom)) if height > BAND else image
        out[top:bottom] = np.asarray(band if band.mode == "RGB" else band.convert("RGB"))
    return out


def content_digest(pixels: NDArray[np.uint8]) -> str:
    """sha256 (hex) of an image's shape and pixels (H, W, 3): the same picture has the same one under any name."""
    sha256 = hashlib.sha256(repr(pixels.shape).encode())
    sha256.update(np.ascontiguousarray(pixels).data)
    return sha256.hexdigest()


def size_of(data: bytes, where: str) -> tuple[int, int]:
    """(H, W) of the rotated image, read from its header; a truncated file is recognised by its last bytes.

    Raises RazError if there is no header, or if the end is missing and decoding fails too.
    """
    try:
        with _open_image(data, where) as image:
            width, height = image.size
            swapped = image.getexif().get(0x0112, 1) in _SWAPPED_SIDES
            has_end_marker = image.format in ("JPEG", "MPO", "PNG")
    except _DECODE_ERRORS as error:
        raise _damage_error(where, error) from error
    if not has_end_marker or (b"\xff\xd9" not in data[-64:] and b"IEND" not in data[-64:]):  # ends of JPEG and PNG
        decode(data, where)  # more data after the end is legal, and other formats have no end marker: decoding decides
    return (width, height) if swapped else (height, width)


def _open_image(data: bytes, where: str) -> Image.Image:
    """The image with its header read. Raises RazError if it is refused, and PIL's own errors if it is damaged."""
    if not data:
        raise RazError(where, "is empty (0 bytes), expected an image", "copy the file again")
    image = Image.open(io.BytesIO(data))
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # MPO: a photograph followed by its preview or depth map
        raise RazError(where, f"is animated or has several pages ({frames}), expected one picture", "save one as PNG")
    if image.mode == "F":
        raise RazError(where, "has pixels in floating point, expected 8 or 16 bits", "save it with 8 or 16 bits")
    return image


def _damage_error(where: str, error: Exception) -> RazError:
    if isinstance(error, UnidentifiedImageError):
        return RazError(where, "is not a readable image", "copy the file again")
    return RazError(where, f"damaged image ({error})", "copy the file again")
