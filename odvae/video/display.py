"""Decoded frames as players show them: upright, with square pixels, in 8-bit RGB of BT.709's brightness."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Literal

import numpy as np
from av import VideoFrame
from av.video.reformatter import VideoReformatter

from odvae.running.errors import UnfitError
from odvae.video.hdr import Transfer, tone_map

HDR = Literal["tone_map", "leave_out"]

# How FFmpeg numbers the two transfer functions of HDR (ITU-T H.273).
_TRANSFERS: dict[int, Transfer] = {16: "pq", 18: "hlg"}
HDR_NAMES = {"pq": "PQ (HDR10)", "hlg": "HLG"}

# A pixel's width over its height is believed between 1/4 and 4 (the widest in use is 2), and nearer to 1 than this
# it is the rounding of somebody's aspect ratio, not worth resampling every frame.
_WIDEST, _NEARLY_SQUARE = 4, 0.01


def transfer_of(frame: VideoFrame) -> Transfer:
    """Whether a frame is of standard or of high dynamic range, as its file says."""
    return _TRANSFERS.get(int(frame.color_trc), "sdr")


class Display:
    """Converts the frames of one video; `name` stands for it in errors.

    `pixel_aspect` is a stored pixel's width over its height: frames keep their height and get the width they are
    shown with. HDR frames are tone-mapped, or refused by an UnfitError, as `hdr` says.
    """

    def __init__(self, name: str, pixel_aspect: Fraction | None, hdr: HDR = "tone_map") -> None:
        self.name, self.hdr = name, hdr
        self.stretch = _believed(pixel_aspect)
        self.converter = VideoReformatter()  # kept over the frames: a new one each would cost more than decoding

    def size(self, frame: VideoFrame) -> tuple[int, int]:
        """Height and width of the frame as shown."""
        height, width = frame.height, self._width(frame)
        return (width, height) if _orientation(frame)[0] else (height, width)

    def rgb(self, frame: VideoFrame) -> np.ndarray:
        """uint8 (h, w, 3). Any pixel format: gray is copied to three channels, transparency is dropped."""
        transfer = transfer_of(frame)
        if transfer != "sdr" and self.hdr == "leave_out":
            raise UnfitError(f"{self.name}: is of high dynamic range, {HDR_NAMES[transfer]}, which is left out")
        options: dict[str, Any] = {"width": self._width(frame), "interpolation": "BICUBIC"} if self.stretch != 1 else {}
        if transfer == "sdr":
            pixels = self.converter.reformat(frame, format="rgb24", **options).to_ndarray()
        else:
            pixels = tone_map(self.converter.reformat(frame, format="rgb48le", **options).to_ndarray(), transfer)
        transposed, rows_flipped, columns_flipped = _orientation(frame)
        if not (transposed or rows_flipped or columns_flipped):
            return pixels
        pixels = pixels.transpose(1, 0, 2) if transposed else pixels
        pixels = pixels[::-1] if rows_flipped else pixels
        return np.ascontiguousarray(pixels[:, ::-1] if columns_flipped else pixels)

    def _width(self, frame: VideoFrame) -> int:
        return max(1, round(frame.width * self.stretch))


def _believed(pixel_aspect: Fraction | None) -> float:
    aspect = float(pixel_aspect or 1)
    plausible = 1 / _WIDEST <= aspect <= _WIDEST and abs(aspect - 1) >= _NEARLY_SQUARE
    return aspect if plausible else 1.0


def _orientation(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """(rows and columns are exchanged, then rows flipped, then columns flipped): how a stored frame is shown.

    From the display matrix: a point (x, y) of the stored frame is shown at (a x + c y, b x + d y), up to a shift; an
    angle in between counts as the nearest quarter turn.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    a, b, _, c, d, *_ = (int(value) for value in np.frombuffer(bytes(matrix), "<i4", count=9))
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, b < 0, c < 0
    return False, d < 0, a < 0
