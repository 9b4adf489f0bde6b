"""Limits of what a visitor of the page may ask for, and how what lies beyond them is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from odvae.running.errors import InputError


@dataclass(frozen=True)
class Limits:
    """Of one request. They keep a page that several people use from being held or filled up by one of them."""

    upload_mb: int = 64
    """Size of a dropped file."""
    file_pixels: int = 4096 * 2304
    """Pixels of a frame of a dropped video, or of a dropped image, as they are stored."""
    clip_pixels: int = 65 * 256 * 256
    """Pixels of all frames of a clip that is compressed, or of a video that is generated."""
    steps: int = 100
    """Sampling steps."""
    guidance_scale: float = 15.0
    prompt_characters: int = 1000
    waiting: int = 16
    """Requests in the queue."""

    def check_upload(self, data: bytes, name: str) -> None:
        """Raises InputError for a file that is too large."""
        if len(data) > self.upload_mb * 1_000_000:
            raise InputError(
                f"{name} has {len(data) / 1e6:.1f} MB; at most {self.upload_mb} MB are allowed: shorten it first"
            )

    def check_file_pixels(self, height: int, width: int, name: str) -> None:
        """Raises InputError for a video or an image with frames that are too large."""
        if height * width > self.file_pixels:
            raise InputError(
                f"{name} has frames of {width}x{height} pixels; at most {self.file_pixels / 1e6:.1f} million pixels "
                "are allowed"
            )

    def check_clip(self, frames: int, height: int, width: int) -> None:
        """Raises InputError for a clip that is too long and large."""
        if frames * height * width > self.clip_pixels:
            raise InputError(
                f"{frames} frames of {width}x{height} have {frames * height * width / 1e6:.1f} million pixels; at most "
                f"{self.clip_pixels / 1e6:.1f} million are allowed: choose fewer or smaller frames"
            )


def whole_number(value: Any, name: str, low: int, high: int) -> int:
    """A number that a visitor typed, as an integer. Raises InputError, which calls it `name`, for any other."""
    whole = value.is_integer() if isinstance(value, float) else isinstance(value, int) and not isinstance(value, bool)
    if not whole:
        raise InputError(f"{name} must be a whole number, found {value!r}")
    if not low <= value <= high:
        raise InputError(f"{name} must be from {low} to {high}, found {value:.10g}")
    return int(value)


def number(value: Any, name: str, low: float, high: float) -> float:
    """A number that a visitor typed. Raises InputError, which calls it `name`, for any other."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(f"{name} must be a number from {low:g} to {high:g}, found {value!r}")
    return float(value)
