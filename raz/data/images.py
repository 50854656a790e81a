"""One image file to RGB, whatever it holds.

The rule for what is not 8-bit RGB: grey is repeated, palettes are looked up, CMYK is converted by the plain formula (no
colour profile), alpha is left out (the colours beneath it stay), 16 bits are cut to their upper 8. Refused: animations
and files of several pages (which one is meant?), and pixels in floating point or 32 bits (which range is meant?).
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from raz.errors import RazError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")
BAND = 512  # rows that are converted at a time
_SWAPPED_SIDES = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)  # what PIL raises on damage


def decode(data: bytes, where: str) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of an image file's bytes, turned upright as its EXIF orientation says.

    See the module for what becomes of other colours and depths. Raises RazError for bytes that are no image, a damaged
    one, and one that is refused.
    """
    try:
        with _open_image(data, where) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            upright: Image.Image = image
            if upright.mode.startswith("I"):  # 16-bit grey; PIL's own conversion clips at 255
                wide = np.asarray(upright).astype(np.int64)
                if wide.max(initial=0) > 65535 or wide.min(initial=0) < 0:
                    raise RazError(where, "has pixels of 32 bits, expected 8 or 16", "save it with 8 or 16 bits")
                grey = np.clip(wide >> 8 if wide.max(initial=0) > 255 else wide, 0, 255).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            return rgb_array(upright)
    except _DECODE_ERRORS as error:
        raise _damage_error(where, error) from error


def rgb_array(image: Image.Image) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 of a picture in any mode of 8 bits; a writable array of its own.

    A band of rows at a time: at once, PIL would hold three copies of the picture beside the array.
    """
    width, height = image.size
    out = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, BAND):
        bottom = min(top + BAND, height)
        band = image.crop((0, top, width, bottom)) if height > BAND else image
        out[top:bottom] = np.asarray(band if band.mode == "RGB" else band.convert("RGB"))
    return out


def size_of(data: bytes, where: str) -> tuple[int, int]:
    """(H, W) of the upright image, from its header; a file that ends early is told from its last bytes.

    Raises RazError when there is no header, or when the end is missing and decoding fails too.
    """
    try:
        with _open_image(data, where) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) in _SWAPPED_SIDES
            marked = image.format in ("JPEG", "MPO", "PNG")
    except _DECODE_ERRORS as error:
        raise _damage_error(where, error) from error
    if not marked or (b"\xff\xd9" not in data[-64:] and b"IEND" not in data[-64:]):  # no end of JPEG, no end of PNG:
        decode(data, where)  # a longer tail is legal, and other formats have no mark, so decoding decides
    return (width, height) if turned else (height, width)


def _open_image(data: bytes, where: str) -> Image.Image:
    """The image with its header read. Raises RazError for what is refused, PIL's own errors on damage."""
    if not data:
        raise RazError(where, "is empty (0 bytes), expected an image", "copy the file again")
    image = Image.open(io.BytesIO(data))
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # MPO: a photograph with its preview or depth behind it
        raise RazError(where, f"is animated or has several pages ({frames}), expected one picture", "save one as PNG")
    if image.mode == "F":
        raise RazError(where, "has pixels in floating point, expected 8 or 16 bits", "save it with 8 or 16 bits")
    return image


def _damage_error(where: str, error: Exception) -> RazError:
    if isinstance(error, UnidentifiedImageError):
        return RazError(where, "is no image that can be read", "copy the file again")
    return RazError(where, f"damaged image ({error})", "copy the file again")
