"""Image files, through Pillow: clips of one frame, shown as a viewer shows them."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from odvae.video.decoding import VideoError, decoding

# What transparent images are laid on.
BACKGROUND = "white"

_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageFacts:
    """What an image file is, as shown."""

    height: int
    width: int
    pictures: int
    """How many it holds: an animation's frames, a TIFF's pages. The first is the image."""


def decode_image(data: bytes | BinaryIO, name: str) -> np.ndarray:
    """An image as uint8 RGB (h, w, 3): upright as its EXIF says, transparency laid on white; the first of several.

    16-bit values are scaled, and so are fractions in [0, 1]. Raises VideoError, which names the file, where it cannot
    be read.
    """
    with _opened(data, name) as image:
        turn = _TURNS.get(_orientation(image))
        pixels = _rgb(image, name)
        if turn is None:
            return pixels
        return np.array(Image.fromarray(pixels).transpose(turn))


def examine_image(data: bytes | BinaryIO, name: str) -> ImageFacts:
    """Its facts, from its header: whether its pixels can be decoded, `decode_image` says."""
    with _opened(data, name) as image:
        width, height = image.size
        turned = _orientation(image) in (5, 6, 7, 8)
        return ImageFacts(width if turned else height, height if turned else width, getattr(image, "n_frames", 1))


@contextlib.contextmanager
def _opened(data: bytes | BinaryIO, name: str) -> Iterator[Image.Image]:
    with decoding(name, "read as an image"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about odd metadata and large sizes
        try:
            image = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)
        except UnidentifiedImageError:
            raise VideoError(f"{name}: cannot be read as an image (of no kind that is known)") from None
        with image:
            yield image


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 (upright) where there is none or it makes no sense: the picture is still one."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # EXIF is written by anything, and Pillow's parser answers with errors of every type
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def _rgb(image: Image.Image, name: str) -> np.ndarray:
    """uint8 (h, w, 3) of any of Pillow's modes."""
    if image.mode.startswith("I"):
        return _gray(np.asarray(image).astype(np.int64), name)
    if image.mode == "F":
        values = np.asarray(image)
        if not np.isfinite(values).all():
            raise VideoError(f"{name}: cannot be read as an image (has pixels that are not finite)")
        return _gray(values * 65535 if values.min() >= 0 and values.max() <= 1 else values * 256, name)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def _gray(values: np.ndarray, name: str) -> np.ndarray:
    """Gray of 16 bits -> uint8 (h, w, 3)."""
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise VideoError(f"{name}: cannot be read as an image (its pixels are beyond 16 bits, of unknown range)")
    return np.repeat((values.astype(np.int64) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
