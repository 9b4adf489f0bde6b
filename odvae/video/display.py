"""Conversion of decoded frames to what players show: rotated upright, square pixels, 8-bit RGB, HDR tone-mapped."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Literal

import numpy as np
from av import VideoFrame
from av.video.reformatter import VideoReformatter

from odvae.running.errors import UnfitError
from odvae.video.hdr import Transfer, tone_map

HDR = Literal["tone_map", "leave_out"]

# FFmpeg's numbers of the two HDR transfer functions (ITU-T H.273).
_TRANSFERS: dict[int, Transfer] = {16: "pq", 18: "hlg"}
HDR_NAMES = {"pq": "PQ (HDR10)", "hlg": "HLG"}

# Pixel aspect ratios outside 1/4 to 4 are ignored as errors (the largest in use is 2). Those within 0.01 of 1 are
# ignored as rounding errors, since every frame would have to be resampled.
_WIDEST, _NEARLY_SQUARE = 4, 0.01


def transfer_of(frame: VideoFrame) -> Transfer:
    """The transfer function of a frame: standard ("sdr") or high dynamic range ("pq", "hlg")."""
    return _TRANSFERS.get(int(frame.color_trc), "sdr")


class Display:
    """Converts the frames of one video, which errors call `name`.

    `pixel_aspect` is the width of a stored pixel divided by its height: frames keep their height and get the width with
    which they are shown. HDR frames are tone-mapped, or raise an UnfitError, depending on `hdr`.
    """

    def __init__(self, name: str, pixel_aspect: Fraction | None, hdr: HDR = "tone_map") -> None:
        self.name, self.hdr = name, hdr
        self.stretch = _plausible_aspect(pixel_aspect)
        self.converter = VideoReformatter()  # reused: creating one per frame would take longer than decoding

    def size(self, frame: VideoFrame) -> tuple[int, int]:
        """Height and width of the frame as shown."""
        height, width = frame.height, self._width(frame)
        return (width, height) if _orientation(frame)[0] else (height, width)

    def rgb(self, frame: VideoFrame) -> np.ndarray:
        """uint8 (h, w, 3). Any pixel format: gray is copied to three channels, transparency is dropped."""
        transfer = transfer_of(frame)
        if transfer != "sdr" and self.hdr == "leave_out":
            raise UnfitError(f"{self.name}: has high dynamic range, {HDR_NAMES[transfer]}, left out by hdr=leave_out")
        options: dict[str, Any] = {"threads": 1}  # starting swscale's threads takes longer than converting small frames
        if self.stretch != 1:
            options |= {"width": self._width(frame), "interpolation": "BICUBIC"}
        if transfer == "sdr":
            pixels = self.converter.reformat(frame, format="rgb24", **options).to_ndarray()
        else:
            pixels = tone_map(self.converter.reformat(frame, format="rgb48le", **options).to_ndarray(), transfer)
        transposed, rows_flipped, columns_flipped = _orientation(frame)
        pixels = pixels.transpose(1, 0, 2) if transposed else pixels
        pixels = pixels[::-1] if rows_flipped else pixels
        pixels = pixels[:, ::-1] if columns_flipped else pixels
        return np.ascontiguousarray(pixels)  # FFmpeg pads rows whose width is no multiple of 16

    def _width(self, frame: VideoFrame) -> int:
        return max(1, round(frame.width * self.stretch))


def _plausible_aspect(pixel_aspect: Fraction | None) -> float:
    aspect = float(pixel_aspect or 1)
    plausible = 1 / _WIDEST <= aspect <= _WIDEST and abs(aspect - 1) >= _NEARLY_SQUARE
    return aspect if plausible else 1.0


def _orientation(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """How to display a stored frame: (exchange rows and columns, then flip rows, then flip columns).

    Follows from the display matrix: a point (x, y) of the stored frame is shown at (a x + c y, b x + d y), up to a
    shift. Other angles are rounded to the nearest quarter turn.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    a, b, _, c, d, *_ = (int(value) for value in np.frombuffer(bytes(matrix), "<i4", count=9))
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, b < 0, c < 0
    return False, d < 0, a < 0
