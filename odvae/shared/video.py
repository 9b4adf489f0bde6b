"""Video files in and out, through PyAV. Frames are uint8 RGB (t, h, w, 3)."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av import VideoFrame
from av.video.reformatter import VideoReformatter

from odvae.shared.errors import InputError
from odvae.shared.run_folder import written_aside

VIDEO_EXTENSIONS = ("mp4", "webm", "mkv", "mov", "avi", "m4v", "gif", "mpg", "mpeg")


class VideoError(InputError):
    """A file that cannot be read as a video; the message names it and says why."""


@dataclass(frozen=True)
class VideoFacts:
    """What decoding a whole file found: number of frames, size in pixels as shown, frames per second."""

    frames: int
    height: int
    width: int
    fps: float


def decode(data: bytes | Path, name: str) -> Iterator[np.ndarray]:
    """Frames of a video, uint8 (h, w, 3), turned upright as the file asks; `name` stands for it in errors."""
    to_rgb = VideoReformatter()  # kept over the frames: a new converter each would cost more than decoding
    for frame in _decoded(data, name):
        yield _upright_rgb(frame, to_rgb)


def read_frames(data: bytes | Path, name: str, start: int, count: int, stride: int = 1) -> np.ndarray:
    """Frames start, start + stride, ... of a video, uint8 (count, h, w, 3).

    Raises VideoError where the file is unreadable or ends too early.
    """
    stop = start + (count - 1) * stride + 1
    to_rgb = VideoReformatter()
    frames = itertools.islice(_decoded(data, name), start, stop, stride)
    pixels = [_upright_rgb(frame, to_rgb) for frame in frames]  # converting costs more than decoding: only these
    if len(pixels) < count:
        raise VideoError(f"{name}: ends before frame {stop - 1}, which was asked for")
    return np.stack(pixels)


def _decoded(data: bytes | Path, name: str) -> Iterator[VideoFrame]:
    """Frames as the decoder gives them."""
    if data == b"" or (isinstance(data, Path) and data.stat().st_size == 0):
        raise VideoError(f"{name}: the file is empty (0 bytes)")
    try:
        with av.open(io.BytesIO(data) if isinstance(data, bytes) else str(data)) as container:
            if not container.streams.video:
                raise VideoError(f"{name}: has no video stream")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # parallelism comes from the loader's processes
            yield from container.decode(stream)
    except av.error.FFmpegError as error:
        raise VideoError(f"{name}: cannot be decoded as a video ({error.strerror or error})") from None


def _upright_rgb(frame: VideoFrame, to_rgb: VideoReformatter) -> np.ndarray:
    pixels = to_rgb.reformat(frame, format="rgb24").to_ndarray()
    quarter_turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, quarter_turns)) if quarter_turns else pixels


def examine(data: bytes | Path, name: str) -> VideoFacts:
    """Decode a whole file, which proves that it can be read, and count its frames."""
    count, shape = 0, (0, 0, 3)
    for frame in decode(data, name):
        count, shape = count + 1, frame.shape
    if count == 0:
        raise VideoError(f"{name}: holds no frame that can be decoded")
    source = io.BytesIO(data) if isinstance(data, bytes) else str(data)
    with av.open(source) as container:
        rate = container.streams.video[0].average_rate
    return VideoFacts(frames=count, height=shape[0], width=shape[1], fps=float(rate) if rate else 0.0)


def write_video(path: str | Path, frames: np.ndarray, fps: float) -> None:
    """Write uint8 RGB (t, h, w, 3), h and w even, as H.264 mp4 that any browser plays; whole or not at all.

    The bytes depend on the arguments alone (one encoder thread, no time stamp of writing).
    """
    assert frames.dtype == np.uint8, frames.dtype
    _, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise InputError(f"{path}: H.264 needs even sizes, found {width}x{height}")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "12", "preset": "veryfast", "threads": "1"}
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        container.mux(stream.encode(None))
    with written_aside(path) as file:
        file.write(buffer.getvalue())
