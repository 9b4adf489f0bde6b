"""Image files, through Pillow: clips of one frame."""

from __future__ import annotations

import io
import struct
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from odvae.video.files import VideoError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp")


def decode_image(data: bytes | BinaryIO, name: str) -> np.ndarray:
    """An image as uint8 RGB (h, w, 3): turned upright as its EXIF says, transparency laid on white.

    Raises VideoError, which names the file, where it cannot be read.
    """
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16-bit gray
                gray = (np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
                return np.repeat(gray[:, :, None], 3, axis=2)
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            return np.array(image.convert("RGB"))
    except (  # what Pillow raises for broken files
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
        EOFError,
        SyntaxError,
        ValueError,
        struct.error,
    ) as error:
        raise VideoError(f"{name}: cannot be read as an image ({error})") from None
