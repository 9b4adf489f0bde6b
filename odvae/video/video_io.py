"""Decoding, examining and encoding of video files with PyAV. Frames are uint8 RGB (h, w, 3), as players show them."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby, islice, pairwise
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from odvae.running.errors import InputError
from odvae.running.files import atomic_file
from odvae.video.decoding import VideoError, decoding
from odvae.video.display import HDR, Display, transfer_of
from odvae.video.hdr import Transfer
from odvae.video.stream import Keyframe, Source, VideoStream

# Minimum distance of recorded keyframes, in frames: decoding over this distance is fast.
KEYFRAME_SPACING = 24

# In containers without exact times, this many frames are compared to check that seeking to a keyframe works.
_COMPARED = 3

# Time steps are not recorded if they have more runs of equal values than this.
_MAX_TIME_STEPS = 1000


@dataclass(frozen=True)
class VideoFacts:
    """Facts of a video, found by decoding the whole file. Sizes are as displayed (upright, square pixels)."""

    frames: int
    height: int
    width: int
    fps: float
    """Frames divided by seconds; the average rate if it varies."""
    seconds: float
    """Duration, from the first frame to the end of the last."""
    variable_rate: bool
    """Whether some frames are shown for a third longer or shorter than the median."""
    keyframes: list[Keyframe]
    """Keyframes at which decoding can start, so that reading a clip does not decode everything before it."""
    transfer: Transfer = "sdr"
    """Transfer function; "pq" and "hlg" are high dynamic range."""
    time_steps: list[tuple[float, int]] | None = None
    """(seconds from a frame to the next, number of successive frames with this step). Only for containers in which a
    frame's time is reliable only if decoding started at the beginning of the file; null for others."""


def decode(data: Source, name: str, hdr: HDR = "tone_map") -> Iterator[np.ndarray]:
    """Yield all frames of a video, uint8 (h, w, 3). Raises VideoError, which names it `name`, if it is unreadable."""
    with decoding(name), VideoStream(data, name) as stream:
        display = Display(name, stream.pixel_aspect, hdr)
        for frame in stream.frames():
            yield display.rgb(frame)


def read_frames(
    data: Source,
    name: str,
    start: int,
    count: int,
    stride: int = 1,
    keyframes: Sequence[Keyframe] = (),
    hdr: HDR = "tone_map",
) -> Iterator[np.ndarray]:
    """Yield frames start, start + stride, ... of a video, uint8 (h, w, 3), `count` in total.

    With `keyframes` (from `examine`) decoding starts at the last one before `start`, otherwise at the beginning of the
    file; the frames are the same. Raises VideoError if the file is unreadable or ends too early.
    """
    return _read_numbers(data, name, [start + i * stride for i in range(count)], keyframes, hdr)


def _read_numbers(
    data: Source, name: str, numbers: Sequence[int], keyframes: Sequence[Keyframe], hdr: HDR
) -> Iterator[np.ndarray]:
    """Yield the frames with these ascending numbers, repeated ones included."""
    waiting = list(reversed(numbers))
    with decoding(name), VideoStream(data, name) as stream:
        display = Display(name, stream.pixel_aspect, hdr)
        for number, frame in stream.numbered_frames(numbers[0], keyframes):
            if number != waiting[-1]:
                continue
            pixels = display.rgb(frame)  # converting costs more than decoding: only these
            while waiting and waiting[-1] == number:
                yield pixels
                waiting.pop()
            if not waiting:
                return
    raise VideoError(f"{name}: ends before frame {numbers[-1]}, which was requested")


def read_frames_at(
    data: Source,
    name: str,
    times: Sequence[float],
    tail: float | None = None,
    known: VideoFacts | None = None,
    hdr: HDR = "tone_map",
) -> Iterator[np.ndarray]:
    """Yield the frames shown at `times` (seconds after the first frame, ascending), uint8 (h, w, 3), one for each time.

    This resamples a video, also one with a variable rate, to a given rate; a frame may be repeated. The last frame is
    assumed to be shown for at least `tail` seconds; None: for one frame period of the file. `known` facts (from
    `examine`) can save decoding; the frames are the same. Raises VideoError if the file is unreadable or ends too
    early.
    """
    if known is not None and known.time_steps is not None:
        numbers = _numbers_at(times, tail, known, name)
        yield from _read_numbers(data, name, numbers, known.keyframes, hdr)
        return
    waiting, shown, time = list(times), None, 0.0
    with decoding(name), VideoStream(data, name) as stream:
        display = Display(name, stream.pixel_aspect, hdr)
        rounding = _rounding(stream.rate)
        tail = 1 / stream.rate if tail is None else tail
        for time, frame in stream.timed_frames(times[0]):
            while waiting and shown is not None and time > waiting[0] + rounding:
                yield display.rgb(shown)
                waiting.pop(0)
            if not waiting:
                return
            shown = frame
        while waiting and shown is not None and waiting[0] < time + tail + rounding:
            yield display.rgb(shown)
            waiting.pop(0)
    if waiting:
        raise _ends_before(name, waiting[0])


def _numbers_at(times: Sequence[float], tail: float | None, known: VideoFacts, name: str) -> list[int]:
    """The number of the frame shown at each of `times`."""
    steps, repeats = zip(*known.time_steps, strict=True) if known.time_steps else ((), ())
    shown_at = np.concatenate([[0.0], np.cumsum(np.repeat(np.array(steps, np.float64), np.array(repeats, np.int64)))])
    rate = known.fps
    tail, rounding = 1 / rate if tail is None else tail, _rounding(rate)
    for time in times:
        if time >= shown_at[-1] + tail + rounding:
            raise _ends_before(name, time)
    numbers = np.searchsorted(shown_at, np.array(times) + rounding, side="right") - 1
    return numbers.clip(min=0).tolist()


def _rounding(rate: float) -> float:
    """Maximum difference of times that are considered equal: containers round times, some to milliseconds."""
    return 0.25 / rate


def _ends_before(name: str, time: float) -> VideoError:
    return VideoError(f"{name}: ends before {time:.2f} s, which was requested")


def examine(data: Source, name: str) -> VideoFacts:
    """Decode a whole file, which checks that it is readable, and return its facts. Raises VideoError if it is not."""
    count, shape, keyframes = 0, (0, 0), []
    transfer: Transfer = "sdr"
    times: list[int | None] = []
    seen: dict[int, int] = {}  # frame number -> hash of its pixels, for the first frames from each keyframe on
    with decoding(name), VideoStream(data, name) as stream:
        display = Display(name, stream.pixel_aspect)
        for frame in stream.frames():
            near = keyframes and count - keyframes[-1][0] < KEYFRAME_SPACING
            if frame.key_frame and frame.pts is not None and not near:
                keyframes.append((count, frame.pts))
            if not stream.has_exact_times and keyframes and count - keyframes[-1][0] < _COMPARED:
                seen[count] = _pixels_hash(display, frame)
            shape, transfer = display.size(frame), transfer_of(frame)
            times.append(frame.pts)
            count += 1
        if count == 0:
            raise VideoError(f"{name}: has no frame that can be decoded")
        seconds, variable = _duration(times, stream.rate, stream.time_base)
        steps = None
        if not stream.has_exact_times:
            steps = _time_steps(times, stream.time_base)
            keyframes = [one for one in keyframes if _seeking_finds(stream, display, one, seen)]
        return VideoFacts(count, *shape, count / seconds, seconds, variable, keyframes, transfer, steps)


def _seeking_finds(stream: VideoStream, display: Display, keyframe: Keyframe, seen: dict[int, int]) -> bool:
    """Whether seeking to a keyframe gives the same frames as decoding from the start."""
    number, time = keyframe
    if number == 0:
        return True
    try:
        frames = stream.from_keyframe(time)
        found = [_pixels_hash(display, frame) for frame in islice(frames or (), _COMPARED)]
    except av.error.FFmpegError:
        return False
    return bool(found) and found == [seen[number + i] for i in range(_COMPARED) if number + i in seen]


def _pixels_hash(display: Display, frame: av.VideoFrame) -> int:
    return zlib.crc32(display.rgb(frame))


def _duration(times: list[int | None], rate: float, time_base: Fraction) -> tuple[float, bool]:
    """Duration in seconds, and whether the frame rate varies, from the frames' times."""
    known = [time for time in times if time is not None]
    if len(known) < len(times) or len(known) < 3 or known[-1] <= known[0]:
        return len(times) / rate, False
    gaps = np.diff(np.asarray(known, dtype=np.float64)) * float(time_base)
    median = max(0.0, float(np.median(gaps)))
    irregular = bool(((gaps > 1.3 * median) | (gaps < 0.7 * median)).any())
    return float(gaps.sum()) + median, irregular


def _time_steps(times: list[int | None], time_base: Fraction) -> list[tuple[float, int]] | None:
    """`VideoFacts.time_steps`; None if times are missing, decrease, or are too irregular."""
    known = [time for time in times if time is not None]
    if len(known) < len(times):
        return None
    gaps = [after - before for before, after in pairwise(known)]
    runs = [(float(gap * time_base), len(list(run))) for gap, run in groupby(gaps)]
    return runs if min(gaps, default=0) >= 0 and len(runs) <= _MAX_TIME_STEPS else None


def write_video(path: str | Path, frames: np.ndarray, fps: float) -> None:
    """Write uint8 RGB (t, h, w, 3), h and w even, as an H.264 mp4 that any browser can play, atomically.

    The bytes are a function of the arguments (one encoder thread, no time stamp). Raises InputError for odd sizes.
    """
    assert frames.dtype == np.uint8, frames.dtype
    _, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise InputError(f"{path}: H.264 needs even sizes, found {width}x{height}")
    with atomic_file(path) as file:
        file.write(encode_video(iter(frames), height, width, fps))


def encode_video(frames: Iterator[np.ndarray], height: int, width: int, fps: float) -> bytes:
    """Encode uint8 RGB frames (height, width, 3), both even, as an H.264 mp4; returns its bytes.

    Colors are BT.709 with limited range and tagged as such: otherwise players guess from the frame size.
    """
    buffer, to_yuv = io.BytesIO(), VideoReformatter()
    with av.open(buffer, "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries = context.color_trc = 1  # BT.709 in both lists of ITU-T H.273
        # Without x264's macroblock tree: for small frames it reads uninitialized memory, and the bytes vary.
        stream.options = {"crf": "12", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
        for number, pixels in enumerate(frames):
            frame = to_yuv.reformat(
                av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24"),
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=_EXACT,
                threads=1,
            )
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def encode_lossless(frames: Iterator[np.ndarray], height: int, width: int, fps: float) -> bytes:
    """Encode uint8 RGB frames (height, width, 3) as FFV1 in Matroska, from which they are read bit for bit."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        rate = Fraction(fps).limit_denominator(1000)
        stream = container.add_stream("ffv1", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


# Accurate conversion; swscale's default flags cause errors of up to two color levels.
# BICUBIC, ACCURATE_RND, BITEXACT, FULL_CHR_H_INP, FULL_CHR_H_INT (libswscale/swscale.h), in this order; PyAV has names
# for them only since version 18.
_EXACT = 0x4 | 0x40000 | 0x80000 | 0x4000 | 0x2000
