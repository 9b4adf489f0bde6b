"""Video files in and out, through PyAV. Frames are uint8 RGB (h, w, 3), as players show them."""

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
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from odvae.running.errors import InputError
from odvae.running.files import atomic_file
from odvae.video.decoding import VideoError, decoding
from odvae.video.display import HDR, Display, transfer_of
from odvae.video.hdr import Transfer
from odvae.video.stream import Keyframe, Source, VideoStream

# Keyframes nearer than this to the one before are not worth remembering: decoding that far takes no time.
KEYFRAME_SPACING = 24

# Where a container's times are not exact, so many frames from a keyframe on must be the same by seeking.
_COMPARED = 3

# More runs of equal steps between frame times than this are not worth remembering.
_MOST_TIME_STEPS = 1000


@dataclass(frozen=True)
class VideoFacts:
    """What decoding a whole file found. Sizes are as shown (upright, square pixels)."""

    frames: int
    height: int
    width: int
    fps: float
    """Frames over seconds: the average rate, where it varies."""
    seconds: float
    """From the first frame to the end of the last."""
    variable_rate: bool
    """Whether some frames are shown for a third longer or shorter than usual."""
    keyframes: list[Keyframe]
    """Where decoding can begin, so that a clip from the middle needs no decoding from the start."""
    transfer: Transfer = "sdr"
    """pq and hlg are of high dynamic range."""
    time_steps: list[tuple[float, int]] | None = None
    """Seconds from a frame to the next, and how many frames in a row have this step. Only for containers in which a
    frame's time is known for sure when decoding began at the file's start; null for the others."""


def decode(data: Source, name: str, hdr: HDR = "tone_map") -> Iterator[np.ndarray]:
    """Frames of a video, uint8 (h, w, 3); `name` stands for it in errors."""
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
    """Frames start, start + stride, ... of a video, uint8 (h, w, 3), `count` of them.

    With `keyframes` (as `examine` lists them) decoding begins at the last one before `start`, else at the file's
    beginning; the frames are the same. Raises VideoError where the file is unreadable or ends too early.
    """
    return _read_numbers(data, name, [start + i * stride for i in range(count)], keyframes, hdr)


def _read_numbers(
    data: Source, name: str, numbers: Sequence[int], keyframes: Sequence[Keyframe], hdr: HDR
) -> Iterator[np.ndarray]:
    """The frames of these ascending numbers, each as often as it is there."""
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
    raise VideoError(f"{name}: ends before frame {numbers[-1]}, which was asked for")


def read_frames_at(
    data: Source,
    name: str,
    times: Sequence[float],
    tail: float | None = None,
    known: VideoFacts | None = None,
    hdr: HDR = "tone_map",
) -> Iterator[np.ndarray]:
    """The frames shown at `times` (seconds after the first frame, ascending), uint8 (h, w, 3), one for each time.

    This is what a clip at a given rate is, also of a video whose own rate varies; a frame may come several times.
    The last frame is taken to be shown for `tail` seconds at least; None: as long as one at the file's own rate.
    With what is `known` of the video (as `examine` found) less may have to be decoded; the frames are the same.
    Raises VideoError where the file is unreadable or ends too early.
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
    steps = [step for step, repeats in known.time_steps or () for _ in range(repeats)]
    shown_at = np.concatenate([[0.0], np.cumsum(steps)])
    rate = known.fps
    tail, rounding = 1 / rate if tail is None else tail, _rounding(rate)
    for time in times:
        if time >= shown_at[-1] + tail + rounding:
            raise _ends_before(name, time)
    numbers = np.searchsorted(shown_at, np.array(times) + rounding, side="right") - 1
    return numbers.clip(min=0).tolist()


def _rounding(rate: float) -> float:
    """How far apart two times may be and still be the same: containers round times, some to whole milliseconds."""
    return 0.25 / rate


def _ends_before(name: str, time: float) -> VideoError:
    return VideoError(f"{name}: ends before {time:.2f} s, which was asked for")


def examine(data: Source, name: str) -> VideoFacts:
    """Decode a whole file, which proves that it can be read, and note what readers need to know of it."""
    count, shape, keyframes = 0, (0, 0), []
    transfer: Transfer = "sdr"
    times: list[int | None] = []
    seen: dict[int, int] = {}  # the pixels' hash of the first frames from each keyframe on
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
            raise VideoError(f"{name}: holds no frame that can be decoded")
        seconds, variable = _duration(times, stream.rate, stream.time_base)
        steps = None
        if not stream.has_exact_times:
            steps = _time_steps(times, stream.time_base)
            keyframes = [one for one in keyframes if _seeking_finds(stream, display, one, seen)]
        return VideoFacts(count, *shape, count / seconds, seconds, variable, keyframes, transfer, steps)


def _seeking_finds(stream: VideoStream, display: Display, keyframe: Keyframe, seen: dict[int, int]) -> bool:
    """Whether seeking to a keyframe gives the frames that decoding from the start gave there."""
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
    """Seconds a video lasts, and whether its rate varies, from the times of its frames."""
    known = [time for time in times if time is not None]
    if len(known) < len(times) or len(known) < 3 or known[-1] <= known[0]:
        return len(times) / rate, False
    gaps = np.diff(np.asarray(known, dtype=np.float64)) * float(time_base)
    usual = max(0.0, float(np.median(gaps)))
    irregular = bool(((gaps > 1.3 * usual) | (gaps < 0.7 * usual)).any())
    return float(gaps.sum()) + usual, irregular


def _time_steps(times: list[int | None], time_base: Fraction) -> list[tuple[float, int]] | None:
    """`VideoFacts.time_steps`; None where times are missing, go back, or are too irregular to be worth it."""
    known = [time for time in times if time is not None]
    if len(known) < len(times):
        return None
    gaps = [after - before for before, after in pairwise(known)]
    runs = [(float(gap * time_base), len(list(run))) for gap, run in groupby(gaps)]
    return runs if min(gaps, default=0) >= 0 and len(runs) <= _MOST_TIME_STEPS else None


def write_video(path: str | Path, frames: np.ndarray, fps: float) -> None:
    """Write uint8 RGB (t, h, w, 3), h and w even, as H.264 mp4 that any browser plays; whole or not at all.

    The bytes depend on the arguments alone (one encoder thread, no time stamp of writing).
    """
    assert frames.dtype == np.uint8, frames.dtype
    _, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise InputError(f"{path}: H.264 needs even sizes, found {width}x{height}")
    with atomic_file(path) as file:
        file.write(encode_video(iter(frames), height, width, fps))


def encode_video(frames: Iterator[np.ndarray], height: int, width: int, fps: float) -> bytes:
    """uint8 RGB frames (height, width, 3), both even -> the bytes of an H.264 mp4.

    Colors are BT.709 of limited range, and the file says so: else players guess, and guess by the size.
    """
    buffer, to_yuv = io.BytesIO(), VideoReformatter()
    with av.open(buffer, "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries = context.color_trc = 1  # BT.709 in both lists of ITU-T H.273
        # Without x264's macroblock tree: in small pictures it reads memory that nobody wrote, and the bytes vary.
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


# swscale's usual shortcuts cost up to two levels of color.
_EXACT = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.FULL_CHR_H_INT
)
