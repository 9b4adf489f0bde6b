"""Decoding of image files with Pillow: EXIF orientation applied, transparency on white, 16 bits scaled to 8."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from odvae.video.contents import describe_contents
from odvae.video.decoding import VideoError, decoding

# Background of transparent images.
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
    """Size of an image as displayed, and the number of images in its file."""

    height: int
    width: int
    images: int
    """Number of an animation's frames or a TIFF's pages. The first one is used."""


def decode_image(data: bytes | BinaryIO, name: str) -> np.ndarray:
    """An image as uint8 RGB (h, w, 3): rotated by its EXIF orientation, transparency on white; the first of several.

    16-bit values and floats in [0, 1] are scaled to 8 bits. Raises VideoError, which names the file, if it cannot be
    read.
    """
    with _opened(data, name) as image:
        turn = _TURNS.get(_orientation(image))
        pixels = to_rgb(image, name)
        if turn is None:
            return pixels
        return np.array(Image.fromarray(pixels).transpose(turn))


def examine_image(data: bytes | BinaryIO, name: str) -> ImageFacts:
    """Read an image's facts from its header, without decoding its pixels. Raises VideoError if it is not an image."""
    with _opened(data, name) as image:
        width, height = image.size
        turned = _orientation(image) in (5, 6, 7, 8)
        return ImageFacts(width if turned else height, height if turned else width, _image_count(image))


@contextlib.contextmanager
def _opened(data: bytes | BinaryIO, name: str) -> Iterator[Image.Image]:
    with decoding(name, "read as an image"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata and large sizes
        try:
            image = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)
        except UnidentifiedImageError:
            if data == b"":
                raise VideoError(f"{name}: the file is empty (0 bytes)") from None
            found = describe_contents(data)
            raise VideoError(f"{name}: cannot be read as an image (unknown format){found}") from None
        with image:
            yield image


def _image_count(image: Image.Image) -> int:
    """The number of frames or pages of an image file. Additional images of a photo (MPO: preview, depth map) do not
    count."""
    if image.format == "MPO":
        return 1
    try:
        return getattr(image, "n_frames", 1)
    except Exception:  # a later frame is damaged, which does not matter for the first
        return 1


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 (upright) if it is missing or invalid."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # EXIF may be broken in any way, and Pillow's parser raises errors of many types
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def to_rgb(image: Image.Image, name: str) -> np.ndarray:
    """Convert an image in any of Pillow's modes to uint8 (h, w, 3), transparent ones on white.

    Raises VideoError for pixels that are no colors.
    """
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
    """16-bit gray values (h, w) -> uint8 (h, w, 3)."""
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise VideoError(f"{name}: cannot be read as an image (its pixels have more than 16 bits and an unknown range)")
    return np.repeat((values.astype(np.int64) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
