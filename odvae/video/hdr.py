"""Tone mapping of high dynamic range (PQ, HLG) to SDR: BT.2100 frames with BT.2020 primaries -> 8-bit BT.709.

Code values are converted to display light in cd/m2: PQ by its EOTF (SMPTE ST 2084), HLG by its inverse OETF and the
OOTF of a 1000 cd/m2 display (BT.2100, gamma 1.2). The unit is reference white, 203 cd/m2 (BT.2408). From about half of
it to 1000 cd/m2, the EETF of BT.2390 compresses the light to the white of the result, for each channel separately. The
curve is the same for all frames, so it causes no flicker.
"""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np

Transfer = Literal["sdr", "pq", "hlg"]

WHITE, PEAK = 203.0, 1000.0  # cd/m2
_GAMMA = 2.4  # of the display that shows the result (BT.1886)

# BT.2020 primaries -> BT.709 primaries, linear light (BT.2087, inverse of its matrix M2).
_TO_709 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], np.float32
)
_LUMINANCE_2020 = np.array([0.2627, 0.6780, 0.0593], np.float32)
_LEVELS = 4096  # entries of the tables that are indexed by the square root of light


def tone_map(coded: np.ndarray, transfer: Transfer) -> np.ndarray:
    """uint16 (h, w, 3), R'G'B' of BT.2020 primaries over the full range -> uint8 (h, w, 3) of BT.709."""
    if transfer == "pq":
        light = _pq_table()[coded]  # tone-mapped, white is 1
    else:
        scene = _hlg_table()[coded]
        light = _tone_curve_table()[_level(scene * np.power(scene @ _LUMINANCE_2020, 0.2)[..., None])]
    return _display_table()[_level(light @ _TO_709.T)]


def pq_light(code: np.ndarray) -> np.ndarray:
    """PQ's EOTF (ST 2084): code value in [0, 1] -> cd/m2."""
    power = np.power(code, 1 / 78.84375)
    return 1e4 * np.power(np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power), 1 / 0.1593017578125)


def pq_code(light: np.ndarray) -> np.ndarray:
    """The inverse of `pq_light`."""
    power = np.power(light / 1e4, 0.1593017578125)
    return np.power((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power), 78.84375)


def hlg_light(code: np.ndarray) -> np.ndarray:
    """HLG's inverse OETF (BT.2100): code value in [0, 1] -> scene light in [0, 1]."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)


def roll_off(light: np.ndarray) -> np.ndarray:
    """EETF of BT.2390: light in cd/m2, clamped to PEAK -> light relative to WHITE; linear below about 96 cd/m2."""
    peak = float(pq_code(np.array(PEAK)))
    code = np.minimum(pq_code(light) / peak, 1)
    most = float(pq_code(np.array(WHITE))) / peak
    knee = 1.5 * most - 0.5
    t = np.clip((code - knee) / (1 - knee), 0, 1)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    return pq_light(np.where(code < knee, code, spline) * peak) / WHITE


def _level(light: np.ndarray) -> np.ndarray:
    """Table index of light in [0, 1]; the square root gives finer steps in dark regions."""
    return (np.sqrt(np.clip(light, 0, 1)) * (_LEVELS - 1) + 0.5).astype(np.int32)


@functools.cache
def _pq_table() -> np.ndarray:
    """16-bit PQ code -> tone-mapped light."""
    return roll_off(pq_light(np.arange(1 << 16) / 65535)).astype(np.float32)


@functools.cache
def _hlg_table() -> np.ndarray:
    """16-bit HLG code -> scene light."""
    return hlg_light(np.arange(1 << 16) / 65535).astype(np.float32)


@functools.cache
def _tone_curve_table() -> np.ndarray:
    """Level of display light over PEAK -> tone-mapped light."""
    return roll_off(PEAK * (np.arange(_LEVELS) / (_LEVELS - 1)) ** 2).astype(np.float32)


@functools.cache
def _display_table() -> np.ndarray:
    """Level of light -> 8-bit code for a display of gamma 2.4."""
    light = (np.arange(_LEVELS) / (_LEVELS - 1)) ** 2
    return np.rint(255 * light ** (1 / _GAMMA)).astype(np.uint8)
