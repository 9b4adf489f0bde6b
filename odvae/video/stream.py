"""An open video file: selects the video stream that players show, and reads its frames from a number or a time on."""

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

from odvae.video.contents import describe_contents
from odvae.video.decoding import VideoError

# What a video is read from.
Source = bytes | Path | BinaryIO | io.RawIOBase

# A keyframe: (frame number, pts).
Keyframe = tuple[int, int]

# Tags are not read, and many are not UTF-8. PyAV before version 19 raises an error without this option.
_TAGS = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}

# Containers that store the time of each frame, so that it does not depend on where decoding starts. In others (such as
# MPEG program streams) some times are guessed from the frames read before.
_TIMED_CONTAINERS = {"mov", "mp4", "matroska", "webm"}

# Streams of still images in a video file: a cover, a chapter's thumbnail.
_STILL_IMAGES = Disposition.attached_pic | Disposition.timed_thumbnails
_IMAGE_CODECS = {"mjpeg", "png", "bmp", "gif", "tiff", "webp"}


class VideoStream:
    """Context of an open video file and its video stream. Use it within `decoding`, which converts its errors."""

    def __init__(self, source: Source, name: str) -> None:
        self.source, self.name = (io.BytesIO(source) if isinstance(source, bytes) else source), name
        if source == b"" or (isinstance(source, Path) and source.stat().st_size == 0):
            raise VideoError(f"{name}: the file is empty (0 bytes)")

    def __enter__(self) -> VideoStream:
        path = self.source if isinstance(self.source, Path) else None
        try:
            self.container = av.open(
                str(path) if path else self.source,
                **_TAGS,
                # Without a whitelist, a playlist could open arbitrary files and addresses.
                container_options={"protocol_whitelist": "file" if path else ""},
            )
        except av.error.FFmpegError as error:
            raise VideoError(
                f"{self.name}: cannot be decoded as a video ({error.strerror}){describe_contents(self.source)}"
            ) from error
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
        """The video stream to read: the default one, otherwise the largest, otherwise the first; never a cover image.

        A stream with an image codec is used only if there is no other, since not every cover is marked as one.
        """
        if self.container.format.name == "concat":
            raise VideoError(f"{self.name}: is a list of other files, not a video")
        streams = [stream for stream in self.container.streams.video if stream.codec_context is not None]
        videos = [stream for stream in streams if not stream.disposition & _STILL_IMAGES]
        if not videos:
            if len(streams) < len(self.container.streams.video):
                raise VideoError(f"{self.name}: cannot be decoded as a video (unknown codec, or encrypted)")
            found = "only an attached picture (a cover)" if streams else "only " + self._kinds()
            raise VideoError(f"{self.name}: has no video stream, {found}")

        def rank(stream: AVStream) -> tuple[bool, bool, int]:
            is_default = bool(stream.disposition & Disposition.default)
            return stream.codec_context.name not in _IMAGE_CODECS, is_default, stream.width * stream.height

        return max(videos, key=rank)  # the first of equals

    def _kinds(self) -> str:
        return ", ".join(sorted({stream.type for stream in self.container.streams})) or "nothing that can be decoded"

    @property
    def pixel_aspect(self) -> Fraction | None:
        """Width of a stored pixel divided by its height; None if unknown."""
        return self.stream.sample_aspect_ratio

    @property
    def has_exact_times(self) -> bool:
        """Whether a frame's time does not depend on where decoding started."""
        return not _TIMED_CONTAINERS.isdisjoint(self.container.format.name.split(","))

    def frames(self) -> Iterator[VideoFrame]:
        """The decoder's frames from the current position on."""
        return self.container.decode(self.stream)

    def numbered_frames(self, start: int, keyframes: Sequence[Keyframe]) -> Iterator[tuple[int, VideoFrame]]:
        """Yield (frame number, frame), from a frame at or before number `start` on."""
        i = bisect_right([number for number, _ in keyframes], start) - 1
        if i > 0:
            first, time = keyframes[i]
            if frames := self.from_keyframe(time):
                yield from enumerate(frames, start=first)
                return
        yield from enumerate(self.frames())

    def timed_frames(self, start: float) -> Iterator[tuple[float, VideoFrame]]:
        """Yield (seconds after the video's first frame, frame), from a frame at or before time `start` on."""
        frames = self.frames()
        first = next(frames, None)
        if first is None:
            return
        origin = first.pts or 0
        target = origin + int(start / self.time_base)
        seeks = start > 0 and first.pts is not None and self.has_exact_times
        found = self.from_keyframe(target, exact=False) if seeks else None
        if found is None:
            self._rewind()
            found = self.frames()
        time = -1 / self.rate
        for frame in found:
            time = time + 1 / self.rate if frame.pts is None else float((frame.pts - origin) * self.time_base)
            yield time, frame

    def from_keyframe(self, time: int, exact: bool = True) -> Iterator[VideoFrame] | None:
        """Frames from the keyframe at `time` on, or from the last one before it if not `exact`.

        Frames shown before the keyframe but stored after it depend on skipped frames and are left out. None if seeking
        fails; the position is then the beginning of the file.
        """
        try:
            self.container.seek(time, stream=self.stream, backward=True)
        except av.error.FFmpegError:  # a format that cannot seek
            self._rewind()
            return None
        frames = self.frames()
        early = time if exact else float("-inf")  # some formats seek to an earlier keyframe
        keyframe = next((one for one in frames if one.key_frame and (one.pts is None or one.pts >= early)), None)
        if keyframe is None or keyframe.pts is None or keyframe.pts > time or (exact and keyframe.pts != time):
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
        """Open the file again, since seeking failed."""
        self.container.close()
        if not isinstance(self.source, Path):
            self.source.seek(0)
        self.__enter__()
