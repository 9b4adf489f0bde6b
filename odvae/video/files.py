"""Video files in and out, through PyAV. Frames are uint8 RGB (h, w, 3), turned upright as the file asks."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av import VideoFrame
from av.video.reformatter import VideoReformatter

from odvae.running.errors import InputError
from odvae.running.files import written_aside

VIDEO_EXTENSIONS = ("mp4", "webm", "mkv", "mov", "avi", "m4v", "gif", "mpg", "mpeg")

# Where a frame's number is known to be a keyframe's: (frame number, its time in the stream's units).
Keyframe = tuple[int, int]

# Keyframes nearer than this to the one before are not worth remembering: decoding that far takes no time.
KEYFRAME_SPACING = 24


class VideoError(InputError):
    """A file that cannot be read as a video; the message names it and says why."""


@dataclass(frozen=True)
class VideoFacts:
    """What decoding a whole file found. Sizes are as shown (upright)."""

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


def decode(data: bytes | Path | BinaryIO, name: str) -> Iterator[np.ndarray]:
    """Frames of a video, uint8 (h, w, 3); `name` stands for it in errors."""
    to_rgb = VideoReformatter()  # kept over the frames: a new converter each would cost more than decoding
    with _Stream(data, name) as stream:
        for frame in stream.frames():
            yield _upright_rgb(frame, to_rgb)


def read_frames(
    data: bytes | Path | BinaryIO,
    name: str,
    start: int,
    count: int,
    stride: int = 1,
    keyframes: Sequence[Keyframe] = (),
) -> Iterator[np.ndarray]:
    """Frames start, start + stride, ... of a video, uint8 (h, w, 3), `count` of them.

    With `keyframes` (as `examine` lists them) decoding begins at the last one before `start`, else at the file's
    beginning; the frames are the same. Raises VideoError where the file is unreadable or ends too early.
    """
    to_rgb, found = VideoReformatter(), 0
    with _Stream(data, name) as stream:
        for number, frame in stream.numbered_frames(start, keyframes):
            if number < start or (number - start) % stride:
                continue
            yield _upright_rgb(frame, to_rgb)  # converting costs more than decoding: only these
            found += 1
            if found == count:
                return
    raise VideoError(f"{name}: ends before frame {start + (count - 1) * stride}, which was asked for")


def read_frames_at(
    data: bytes | Path | BinaryIO, name: str, times: Sequence[float], tail: float | None = None
) -> Iterator[np.ndarray]:
    """The frames shown at `times` (seconds after the first frame, ascending), uint8 (h, w, 3), one for each time.

    This is what a clip at a given rate is, also of a video whose own rate varies; a frame may come several times.
    The last frame is taken to be shown for `tail` seconds at least; None: as long as one at the file's own rate.
    Raises VideoError where the file is unreadable or ends too early.
    """
    to_rgb, waiting, shown, time = VideoReformatter(), list(times), None, 0.0
    with _Stream(data, name) as stream:
        rounding = 0.25 / stream.rate  # containers round times, some to whole milliseconds
        tail = 1 / stream.rate if tail is None else tail
        for time, frame in stream.timed_frames(times[0]):
            while waiting and shown is not None and time > waiting[0] + rounding:
                yield _upright_rgb(shown, to_rgb)
                waiting.pop(0)
            if not waiting:
                return
            shown = frame
        while waiting and shown is not None and waiting[0] < time + tail + rounding:
            yield _upright_rgb(shown, to_rgb)
            waiting.pop(0)
    if waiting:
        raise VideoError(f"{name}: ends before {waiting[0]:.2f} s, which was asked for")


def examine(data: bytes | Path | BinaryIO, name: str) -> VideoFacts:
    """Decode a whole file, which proves that it can be read, and note what readers need to know of it."""
    count, shape, keyframes = 0, (0, 0), []
    times: list[int | None] = []
    with _Stream(data, name) as stream:
        for frame in stream.frames():
            near = keyframes and count - keyframes[-1][0] < KEYFRAME_SPACING
            if frame.key_frame and frame.pts is not None and not near:
                keyframes.append((count, frame.pts))
            quarter_turns = round(frame.rotation / 90) % 4
            shape = (frame.width, frame.height) if quarter_turns % 2 else (frame.height, frame.width)
            times.append(frame.pts)
            count += 1
        if count == 0:
            raise VideoError(f"{name}: holds no frame that can be decoded")
        seconds, variable = _duration(times, stream.rate, stream.time_base)
    return VideoFacts(count, *shape, count / seconds, seconds, variable, keyframes)


def declared_frames(data: bytes | Path | BinaryIO, name: str) -> int:
    """The number of frames that a file's header claims; 0 where it claims none. Decodes nothing."""
    with _Stream(data, name) as stream:
        return stream.stream.frames


def _duration(times: list[int | None], rate: float, time_base: Fraction) -> tuple[float, bool]:
    """Seconds a video lasts, and whether its rate varies, from the times of its frames."""
    if None in times or len(times) < 3 or times[-1] <= times[0]:
        return len(times) / rate, False
    gaps = np.diff(np.asarray(times, dtype=np.float64)) * float(time_base)
    usual = float(np.median(gaps))
    irregular = bool(((gaps > 1.3 * usual) | (gaps < 0.7 * usual)).any())
    return float(gaps.sum()) + usual, irregular


class _Stream:
    """An open video file and its first video stream; its errors are VideoErrors that name the file."""

    def __init__(self, data: bytes | Path | BinaryIO, name: str) -> None:
        if data == b"" or (isinstance(data, Path) and data.stat().st_size == 0):
            raise VideoError(f"{name}: the file is empty (0 bytes)")
        self.source, self.name = (io.BytesIO(data) if isinstance(data, bytes) else data), name

    def __enter__(self) -> _Stream:
        with self._errors_named():
            self.container = av.open(str(self.source) if isinstance(self.source, Path) else self.source)
        if not self.container.streams.video:
            self.container.close()
            raise VideoError(f"{self.name}: has no video stream")
        self.stream = self.container.streams.video[0]
        self.stream.codec_context.thread_count = 1  # parallelism comes from the loader's processes
        self.rate = float(self.stream.average_rate or self.stream.guessed_rate or 25)
        self.time_base = self.stream.time_base or Fraction(1, 1000)
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def _errors_named(self) -> _NamedErrors:
        return _NamedErrors(self.name)

    def frames(self) -> Iterator[VideoFrame]:
        """All frames from here on, as the decoder gives them."""
        with self._errors_named():
            yield from self.container.decode(self.stream)

    def numbered_frames(self, start: int, keyframes: Sequence[Keyframe]) -> Iterator[tuple[int, VideoFrame]]:
        """Frames with their numbers, from some frame at or before `start` on."""
        place = bisect_right([number for number, _ in keyframes], start) - 1
        if place > 0:
            first, time = keyframes[place]
            if frames := self._from_keyframe(time):
                yield from enumerate(frames, start=first)
                return
        yield from enumerate(self.frames())

    def timed_frames(self, start: float) -> Iterator[tuple[float, VideoFrame]]:
        """Frames with their times in seconds after the video's first frame, from some frame at or before `start` on."""
        frames = self.frames()
        first = next(frames, None)
        if first is None:
            return
        origin = first.pts or 0
        target = origin + int(start / self.time_base)
        found = self._from_keyframe(target, exactly=False) if start > 0 and first.pts is not None else None
        if found is None:
            self._rewind()
            found = self.frames()
        for number, frame in enumerate(found):
            yield (number / self.rate if frame.pts is None else float((frame.pts - origin) * self.time_base)), frame

    def _from_keyframe(self, time: int, exactly: bool = True) -> Iterator[VideoFrame] | None:
        """Frames from the keyframe at `time` (or the last one before it) on; None, rewound, where seeking fails.

        Frames that come before the keyframe in time but after it in the file lean on what was skipped: left out.
        """
        with self._errors_named():
            try:
                self.container.seek(time, stream=self.stream, backward=True)
            except av.error.FFmpegError:  # a format that cannot seek
                return self._rewind()
            frames = self.frames()
            keyframe = next((frame for frame in frames if frame.key_frame), None)
        if keyframe is None or keyframe.pts is None or keyframe.pts > time or (exactly and keyframe.pts != time):
            return self._rewind()
        return self._in_order_after(keyframe, frames)

    @staticmethod
    def _in_order_after(keyframe: VideoFrame, frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
        yield keyframe
        for frame in frames:
            if frame.pts is None or frame.pts > keyframe.pts:
                yield frame

    def _rewind(self) -> None:
        """Open the file anew: seeking back is what did not work."""
        self.container.close()
        if not isinstance(self.source, Path):
            self.source.seek(0)
        self.__enter__()


class _NamedErrors:
    """Turns FFmpeg's errors into VideoErrors that name the file."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, av.error.FFmpegError):
            raise VideoError(f"{self.name}: cannot be decoded as a video ({error.strerror or error})") from None


def _upright_rgb(frame: VideoFrame, to_rgb: VideoReformatter) -> np.ndarray:
    """Any pixel format (gray, 10 bit, alpha, which is dropped) -> uint8 RGB, rotated as the file says."""
    pixels = to_rgb.reformat(frame, format="rgb24").to_ndarray()
    quarter_turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, quarter_turns)) if quarter_turns else pixels


def write_video(path: str | Path, frames: np.ndarray, fps: float) -> None:
    """Write uint8 RGB (t, h, w, 3), h and w even, as H.264 mp4 that any browser plays; whole or not at all.

    The bytes depend on the arguments alone (one encoder thread, no time stamp of writing).
    """
    assert frames.dtype == np.uint8, frames.dtype
    _, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise InputError(f"{path}: H.264 needs even sizes, found {width}x{height}")
    with written_aside(path) as file:
        file.write(encode_video(iter(frames), height, width, fps))


def encode_video(frames: Iterator[np.ndarray], height: int, width: int, fps: float) -> bytes:
    """uint8 RGB frames (height, width, 3), both even -> the bytes of an H.264 mp4."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # Without x264's macroblock tree: in small pictures it reads memory that nobody wrote, and the bytes vary.
        stream.options = {"crf": "12", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()
