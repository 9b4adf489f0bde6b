"""An open video file and the stream in it that players show: its frames from the start, from a number, from a time."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
from av import VideoFrame
from av.stream import Disposition
from av.video.stream import VideoStream as AVStream

from odvae.video.decoding import VideoError

# What a video is read from.
Source = bytes | Path | BinaryIO | io.RawIOBase

# Where a frame's number is known to be a keyframe's: (frame number, its time in the stream's units).
Keyframe = tuple[int, int]

# Containers that give each frame its own time, so that a frame has the same one wherever decoding begins. In others
# (MPEG program streams, for one) some times are guessed from what was read before.
_TIMED_CONTAINERS = {"mov", "mp4", "matroska", "webm"}

# Pictures in a video file that are not the video: a cover, a chapter's thumbnail.
_PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails
_PICTURE_CODECS = {"mjpeg", "png", "bmp", "gif", "tiff", "webp"}


class VideoStream:
    """An open video file and its video stream; used as a context, within `decoding`, which names its errors."""

    def __init__(self, source: Source, name: str) -> None:
        self.source, self.name = (io.BytesIO(source) if isinstance(source, bytes) else source), name
        if source == b"" or (isinstance(source, Path) and source.stat().st_size == 0):
            raise VideoError(f"{name}: the file is empty (0 bytes)")

    def __enter__(self) -> VideoStream:
        path = self.source if isinstance(self.source, Path) else None
        self.container = av.open(
            str(path) if path else self.source,
            metadata_errors="replace",  # tags are not read, and many are not UTF-8
            container_options={"protocol_whitelist": "file" if path else ""},  # or a playlist opens what it likes
        )
        try:
            self.stream = self._shown_stream()
        except BaseException:
            self.container.close()
            raise
        self.stream.codec_context.thread_count = 1  # parallelism comes from the loader's processes
        self.rate = float(self.stream.average_rate or self.stream.guessed_rate or 25)
        self.time_base = self.stream.time_base or Fraction(1, 1000)
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def _shown_stream(self) -> AVStream:
        """Of the video streams that are not pictures the default one, else the largest, else the first.

        One that is coded as pictures are counts as a video only where there is no other: not every cover says it is.
        """
        if self.container.format.name == "concat":
            raise VideoError(f"{self.name}: is a list of other files, not a video")
        streams = [stream for stream in self.container.streams.video if stream.codec_context is not None]
        videos = [stream for stream in streams if not stream.disposition & _PICTURES]
        if not videos:
            found = "only an attached picture (a cover)" if streams else "only " + self._kinds()
            raise VideoError(f"{self.name}: has no video stream, {found}")

        def rank(stream: AVStream) -> tuple[bool, bool, int]:
            is_default = bool(stream.disposition & Disposition.default)
            return stream.codec_context.name not in _PICTURE_CODECS, is_default, stream.width * stream.height

        return max(videos, key=rank)  # the first of equals

    def _kinds(self) -> str:
        return ", ".join(sorted({stream.type for stream in self.container.streams})) or "nothing that can be decoded"

    @property
    def pixel_aspect(self) -> Fraction | None:
        """A stored pixel's width over its height; None where the file does not say."""
        return self.stream.sample_aspect_ratio

    @property
    def has_exact_times(self) -> bool:
        """Whether a frame has the same time wherever in the file decoding began."""
        return not _TIMED_CONTAINERS.isdisjoint(self.container.format.name.split(","))

    def frames(self) -> Iterator[VideoFrame]:
        """All frames from here on, as the decoder gives them."""
        return self.container.decode(self.stream)

    def numbered_frames(self, start: int, keyframes: Sequence[Keyframe]) -> Iterator[tuple[int, VideoFrame]]:
        """Frames with their numbers, from some frame at or before `start` on."""
        place = bisect_right([number for number, _ in keyframes], start) - 1
        if place > 0:
            first, time = keyframes[place]
            if frames := self.from_keyframe(time):
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
        seeks = start > 0 and first.pts is not None and self.has_exact_times
        found = self.from_keyframe(target, exactly=False) if seeks else None
        if found is None:
            self._rewind()
            found = self.frames()
        time = -1 / self.rate
        for frame in found:
            time = time + 1 / self.rate if frame.pts is None else float((frame.pts - origin) * self.time_base)
            yield time, frame

    def from_keyframe(self, time: int, exactly: bool = True) -> Iterator[VideoFrame] | None:
        """Frames from the keyframe at `time` (or the last one before it) on; None, rewound, where seeking fails.

        Frames that come before the keyframe in time but after it in the file lean on what was skipped: left out.
        """
        try:
            self.container.seek(time, stream=self.stream, backward=True)
        except av.error.FFmpegError:  # a format that cannot seek
            self._rewind()
            return None
        frames = self.frames()
        early = time if exactly else float("-inf")  # some formats seek to a keyframe before
        keyframe = next((one for one in frames if one.key_frame and (one.pts is None or one.pts >= early)), None)
        if keyframe is None or keyframe.pts is None or keyframe.pts > time or (exactly and keyframe.pts != time):
            self._rewind()
            return None
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
