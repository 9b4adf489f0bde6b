"""Videos of several codecs and containers, and images of several modes and formats."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import av
import numpy as np
from PIL import Image

from ldm.fuzzing.containers import PNG
from ldm.fuzzing.kind import Kind, Valid
from ldm.fuzzing.mutations import BYTES
from ldm.sample import read_first_frame
from odvae.clips.clip import clip_frames, frame_count, load_clip
from odvae.clips.settings import DataSettings
from odvae.shards.facts import examine_sample
from odvae.shards.samples import Member, Sample
from odvae.video.images import decode_image, examine_image
from odvae.video.video_io import decode, examine

SIZE, FRAMES = 16, 6

# (extension, container, codec, pixel format, options)
_VIDEOS = (
    ("mp4", "mp4", "libx264", "yuv420p", {"preset": "ultrafast", "bf": "2"}),
    ("mov", "mov", "mjpeg", "yuvj420p", {}),
    ("m4v", "mov", "prores_ks", "yuv422p10le", {}),
    ("mkv", "matroska", "ffv1", "yuva420p", {}),
    ("webm", "webm", "libvpx-vp9", "yuv420p", {"deadline": "realtime"}),
    ("avi", "avi", "mpeg4", "yuv420p", {}),
    ("mpg", "mpeg", "mpeg1video", "yuv420p", {}),
    ("ts", "mpegts", "mpeg2video", "yuv420p", {}),
    ("m2ts", "mpegts", "libx264", "yuv420p", {"preset": "ultrafast"}),
    ("gif", "gif", "gif", "rgb8", {}),
    ("flv", "flv", "flv", "yuv420p", {}),
    ("wmv", "asf", "wmv2", "yuv420p", {}),
    ("mxf", "mxf", "mpeg2video", "yuv422p", {}),
    ("m2v", "mpeg2video", "mpeg2video", "yuv420p", {}),
)


def video_bytes(container: str, codec: str, pixel_format: str, options: dict[str, str], step: int = 40) -> bytes:
    """A video of a few tiny frames, each `step` brighter than the one before."""
    written = io.BytesIO()
    with av.open(written, "w", format=container) as opened:
        stream = opened.add_stream(codec, rate=25, options={**options, "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, pixel_format
        if container in ("mp4", "matroska"):
            stream.codec_context.sample_aspect_ratio = 2
        for number in range(FRAMES):
            pixels = np.full((SIZE, SIZE, 3), step * number % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pixel_format)
            frame.pts = number
            opened.mux(stream.encode(frame))
        opened.mux(stream.encode(None))
    return written.getvalue()


def healthy_video() -> bytes:
    return video_bytes("mp4", "libx264", "yuv420p", {"preset": "ultrafast"}, step=30)


def _make_videos(_: Path) -> Sequence[Valid]:
    return [Valid(f"video.{end}", video_bytes(*rest), BYTES) for end, *rest in _VIDEOS]


def _read_video(context: Path, name: str, data: bytes, folder: Path, rng: Random) -> None:
    """As packing examines a file, as a sample's video whose facts are known from before or are found now, and whole."""
    path = folder / name
    path.write_bytes(data)
    way = rng.randrange(4)
    if way == 0:
        examine(path, name)
        return
    if way == 1:
        for _ in decode(data, name):
            pass
        return
    sample = Sample("video", path, {"mp4": Member(0, len(data))})
    settings = random_clips(rng)
    if way == 2:
        sample = replace(sample, facts=examine_sample(sample))
        last = frame_count(sample, settings.fps) - settings.span
        load_clip(sample, settings, rng.choice((0, max(0, last))))
    else:
        for _ in clip_frames(sample, settings, rng.randrange(FRAMES)):
            pass


def random_clips(rng: Random) -> DataSettings:
    """Settings of clips of a few frames, by number or by time."""
    return DataSettings(
        frames=rng.randrange(1, 4),
        height=SIZE,
        width=SIZE,
        fps=rng.choice((None, 15, 60)),
        held_out=0.5,
        workers=0,
    )


_MODES = {
    "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "jpg": ("L", "RGB", "CMYK"),
    "webp": ("RGB", "RGBA"),
    "bmp": ("1", "L", "RGB"),
    "tif": ("1", "L", "I;16", "F", "RGBA", "CMYK", "LAB"),  # Pillow 12 does not read the YCbCr that it writes
    "avif": ("RGB", "RGBA"),
}


def image_bytes(kind: str, mode: str, turned: bool = False) -> bytes:
    """A tiny image with a slope; `turned`: with an orientation in its EXIF."""
    gray = (np.arange(SIZE * SIZE).reshape(SIZE, SIZE) % 256).astype(np.uint8)
    if mode == "I;16":
        image = Image.fromarray(gray.astype(np.uint16) * 200)
    elif mode == "LAB":
        image = Image.frombytes("LAB", (SIZE, SIZE), np.repeat(gray, 3).tobytes())
    else:
        image = Image.fromarray(gray).convert("RGB").convert(mode)
    options: dict = {}
    if turned:
        exif = Image.Exif()
        exif[0x0112], exif[0x010F] = 6, "a camera"
        options["exif"] = exif
    written = io.BytesIO()
    image.save(written, {"jpg": "jpeg", "tif": "tiff"}.get(kind, kind), **options)
    return written.getvalue()


def _make_images(_: Path) -> Sequence[Valid]:
    images = [(kind, mode, False) for kind, modes in _MODES.items() for mode in modes]
    images += [(kind, "RGB", True) for kind in ("png", "jpg", "webp", "tif")]
    return [
        Valid(f"image.{kind}", image_bytes(kind, mode, turned), PNG if kind == "png" else BYTES)
        for kind, mode, turned in images
    ]


def _read_image(context: Path, name: str, data: bytes, folder: Path, rng: Random) -> None:
    """As packing does, as a clip of one frame, and as the first frame of a video that is sampled."""
    way = rng.randrange(3)
    if way == 0:
        examine_image(data, name)
        decode_image(data, name)
        return
    path = folder / name
    path.write_bytes(data)
    if way == 1:
        sample = Sample("image", path, {name.rpartition(".")[2]: Member(0, len(data))})
        load_clip(replace(sample, facts=examine_sample(sample)), DataSettings(frames=1, height=SIZE, width=SIZE))
    else:
        read_first_frame(path, SIZE, SIZE)


VIDEO = Kind("video", _make_videos, _read_video, share=30, guarded=True)
IMAGE = Kind("image", _make_images, _read_image, share=40, guarded=True)
