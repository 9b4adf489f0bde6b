"""Videos are decoded as players show them: stream, orientation, square pixels, standard dynamic range."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace

from odvae.running.errors import UnfitError
from odvae.video.decoding import VideoError
from odvae.video.hdr import hlg_light, pq_code, pq_light
from odvae.video.video_io import decode, encode_video, examine, read_frames_at, write_video


def numbered(count, height=48, width=64):
    """Frames whose number stands in them as black and white bars, one bar a bit."""
    bits = np.arange(count)[:, None] >> np.arange(8) & 1  # (t, 8)
    bars = np.repeat(bits * 255, width // 8, axis=1).astype(np.uint8)
    return np.broadcast_to(bars[:, None, :, None], (count, height, width, 3))


def number_in(frame):
    bar = frame.shape[1] // 8
    return sum(int(frame[:, i * bar + bar // 4 : (i + 1) * bar - bar // 4].mean() > 128) << i for i in range(8))


def write(path, frames, codec="ffv1", pixels="bgr0", change=lambda stream: None, container_format=None):
    with av.open(str(path), "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, _ = frames[0].shape
        stream.pix_fmt, stream.codec_context.gop_size = pixels, 12
        change(stream)
        for pixels_of_one in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_of_one), "rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("aspect", "shown"),
    [
        (Fraction(64, 45), (96, 182)),
        (Fraction(8, 9), (96, 114)),
        (Fraction(2, 1), (96, 256)),
        (Fraction(224, 225), (96, 128)),  # the rounding of an aspect ratio
        (Fraction(1, 100), (96, 128)),  # nonsense
    ],
)
def test_non_square_pixels_are_resampled_to_square_ones(tmp_path, aspect, shown):
    def stretched(stream):
        stream.codec_context.sample_aspect_ratio = aspect

    path = write(tmp_path / "x.mp4", numbered(3, 96, 128), "libx264", "yuv420p", stretched)
    facts = examine(path, "x")
    assert (facts.height, facts.width) == shown
    frames = list(decode(path, "x"))
    assert frames[0].shape == (*shown, 3)
    assert [number_in(frame) for frame in frames] == [0, 1, 2]


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((1, 0, 0, 1), [[1, 2, 3], [4, 5, 6]]),
        ((-1, 0, 0, 1), [[3, 2, 1], [6, 5, 4]]),  # mirrored, as by a phone's front camera
        ((1, 0, 0, -1), [[4, 5, 6], [1, 2, 3]]),
        ((-1, 0, 0, -1), [[6, 5, 4], [3, 2, 1]]),
        ((0, 1, -1, 0), [[4, 1], [5, 2], [6, 3]]),  # a quarter turn, clockwise
        ((0, -1, 1, 0), [[3, 6], [2, 5], [1, 4]]),
        ((0, 1, 1, 0), [[1, 4], [2, 5], [3, 6]]),
    ],
)
def test_rotated_and_mirrored_videos_are_upright(tmp_path, matrix, expected):
    """A stored picture of 2 x 3 fields, numbered by brightness, shown by a display matrix."""
    fields = np.array([[1, 2, 3], [4, 5, 6]], np.uint8) * 40
    picture = np.repeat(np.repeat(fields, 16, axis=0), 16, axis=1)
    a, b, c, d = (value * 65536 for value in matrix)

    def turned(stream):
        stream.set_display_matrix((a, b, 0, c, d, 0, 0, 0, 1 << 30))

    path = write(tmp_path / "x.mp4", [np.repeat(picture[..., None], 3, 2)] * 2, "libx264", "yuv420p", turned)
    frame = next(decode(path, "x"))
    assert frame.shape == (16 * len(expected), 16 * len(expected[0]), 3)
    assert np.rint(frame[8::16, 8::16, 0] / 40).astype(int).tolist() == expected
    facts = examine(path, "x")
    assert (facts.height, facts.width) == frame.shape[:2]


def test_a_cover_image_is_not_the_video(tmp_path):
    """In mp4 it says what it is; in Matroska it may be the first, larger stream and say nothing."""
    for name in ("x.mp4", "x.mkv"):
        with av.open(str(tmp_path / name), "w") as container:
            cover = container.add_stream("mjpeg", rate=1)
            cover.width, cover.height, cover.pix_fmt, cover.disposition = 320, 320, "yuvj420p", Disposition.attached_pic
            video = container.add_stream("libx264", rate=10)
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
            container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((320, 320, 3), np.uint8), "rgb24")))
            container.mux(cover.encode(None))
            for frame in numbered(5):
                container.mux(video.encode(av.VideoFrame.from_ndarray(frame.copy(), "rgb24")))
            container.mux(video.encode(None))
        facts = examine(tmp_path / name, name)
        assert (facts.frames, facts.height, facts.width) == (5, 48, 64)


def test_of_several_streams_the_default_one_is_used_otherwise_the_largest(tmp_path):
    for default, expected in ((0, (32, 32)), (1, (64, 64)), (None, (64, 64))):
        path = tmp_path / "x.mkv"
        with av.open(str(path), "w") as container:
            streams = []
            for i, side in enumerate((32, 64)):
                stream = container.add_stream("ffv1", rate=10)
                stream.width, stream.height, stream.pix_fmt = side, side, "bgr0"
                stream.disposition = Disposition.default if i == default else Disposition.original
                streams.append(stream)
            for stream in streams:
                pixels = np.zeros((stream.height, stream.width, 3), np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
                container.mux(stream.encode(None))
        facts = examine(path, "x")
        assert (facts.height, facts.width) == expected


def test_a_tag_that_is_not_utf8_does_not_matter(tmp_path):
    path = write(tmp_path / "x.mkv", numbered(3), change=lambda stream: stream.metadata.update(title="TITLEHERE"))
    path.write_bytes(path.read_bytes().replace(b"TITLEHERE", b"Caf\xe9\xff\xfe\x80\x81\x82"))
    assert examine(path, "x").frames == 3


def test_a_file_that_lists_other_files_opens_none_of_them(tmp_path):
    write_video(tmp_path / "private.mp4", numbered(3), 8)
    (tmp_path / "x.mp4").write_text("ffconcat version 1.0\nfile private.mp4\n")
    with pytest.raises(VideoError, match=r"x\.mp4: is a list of other files"):
        examine(tmp_path / "x.mp4", "x.mp4")
    with pytest.raises(VideoError, match=r"x\.mp4: "):
        examine(f"ffconcat version 1.0\nfile {tmp_path}/private.mp4\n".encode(), "x.mp4")


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("x.mpg", "mpeg2video"),
        ("x.vob", "mpeg1video"),
        ("x.ts", "libx264"),
        ("x.avi", "mpeg4"),
        ("x.flv", "flv"),
        ("x.wmv", "wmv2"),
        ("x.mxf", "mpeg2video"),
        ("x.mkv", "libx264"),
        ("x.3gp", "libx264"),
    ],
)
def test_reading_by_time_gives_the_frames_that_decoding_from_the_start_gives(tmp_path, name, codec):
    def with_b_frames(stream):
        stream.codec_context.max_b_frames = 0 if codec in ("wmv2", "flv") else 2

    path = write(tmp_path / name, numbered(120), codec, "yuv420p", with_b_frames)
    facts = examine(path, name)
    assert facts.frames == 120
    for start in range(0, 110, 7):
        times = [(start + i) / 25 for i in range(3)]
        for known in (None, facts):
            assert [number_in(frame) for frame in read_frames_at(path, name, times, known=known)] == [
                start, start + 1, start + 2,
            ]  # fmt: skip
    for known in (None, facts):
        with pytest.raises(VideoError, match=r"x: ends before 4\.90 s"):
            list(read_frames_at(path, "x", [4.0, 4.9], known=known))
        slow = [i / 10 for i in range(5)]
        assert [number_in(frame) for frame in read_frames_at(path, "x", slow, known=known)] == [0, 2, 5, 7, 10]
        often = [4.7, 4.72, 4.74, 4.76]
        assert [number_in(frame) for frame in read_frames_at(path, "x", often, known=known)] == [117, 118, 118, 119]


def high_range(path, transfer, luma, red=512):
    """Two frames of one 10-bit BT.2020 color."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p10le"
        for i in range(2):
            frame = av.VideoFrame(32, 32, "yuv420p10le")
            for plane, value in zip(frame.planes, (luma, 512, red), strict=True):
                plane.update(np.full(plane.buffer_size // 2, value, np.uint16).tobytes())
            frame.colorspace, frame.color_range, frame.color_primaries = 9, ColorRange.MPEG, 9
            frame.color_trc, frame.pts, frame.time_base = transfer, i, Fraction(1, 10)
            context = stream.codec_context
            context.colorspace, context.color_range, context.color_primaries, context.color_trc = 9, 1, 9, transfer
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


PQ, HLG = 16, 18


@pytest.mark.parametrize(("transfer", "name"), [(PQ, "pq"), (HLG, "hlg"), (1, "sdr")])
def test_high_dynamic_range_is_named(tmp_path, transfer, name):
    path = high_range(tmp_path / "x.mkv", transfer, 500)
    assert examine(path, "x").transfer == name
    if name == "sdr":
        assert len(list(decode(path, "x", hdr="leave_out"))) == 2
    else:
        with pytest.raises(UnfitError, match=rf"x: has high dynamic range, {name.upper()}.*left out"):
            list(decode(path, "x", hdr="leave_out"))


def test_pq_tone_mapping_is_monotonic_with_reference_white_near_white(tmp_path):
    def gray(light):
        luma = 64 + round(876 * float(pq_code(np.array(light))))
        return next(decode(high_range(tmp_path / "x.mkv", PQ, luma), "x"))[8, 8].astype(int)

    shown = [gray(light) for light in (0.0, 1.0, 10.0, 50.0, 203.0, 1000.0, 4000.0)]
    assert all(np.ptp(pixel) <= 1 for pixel in shown)  # gray stays gray
    levels = [int(pixel[0]) for pixel in shown]
    assert levels == sorted(levels)
    assert (levels[0], levels[-2], levels[-1]) == (0, 255, 255)
    assert abs(levels[3] - 255 * (50 / 203) ** (1 / 2.4)) <= 4  # below the knee: light as it is
    assert 220 <= levels[4] < 250


def test_hlg_is_brighter_than_when_read_as_sdr_and_colors_keep_their_hue(tmp_path):
    def decoded(transfer, **color):
        return next(decode(high_range(tmp_path / "x.mkv", transfer, **color), "x"))[8, 8].astype(int)

    assert decoded(HLG, luma=721)[0] > decoded(1, luma=721)[0]  # 75%: HLG's reference white
    assert abs(decoded(HLG, luma=940)[0] - 255) <= 1
    red = decoded(PQ, luma=450, red=640)
    assert red[0] > red[1] + 60
    assert red[0] > red[2] + 60


def test_the_transfer_functions_are_the_standards():
    """Values of the tables in BT.2408 and ST 2084."""
    assert pq_light(np.array([0.0, 0.5081, 0.5807, 0.7518, 1.0])) == pytest.approx([0, 100, 203, 1000, 10000], rel=0.01)
    assert pq_code(pq_light(np.linspace(0, 1, 11))) == pytest.approx(np.linspace(0, 1, 11), abs=1e-6)
    assert hlg_light(np.array([0.0, 0.5, 0.75, 1.0])) == pytest.approx([0, 1 / 12, 0.265, 1.0], abs=1e-3)


def plain_bt709(frame):
    """The middle pixel of a decoded frame by BT.709's own equations."""
    y, u, v = (float(np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[8, 8]) for plane in frame.planes)
    y, u, v = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    return 255 * np.array([y + 1.5748 * v, y - 0.1873 * u - 0.4681 * v, y + 1.8556 * u])


def test_written_videos_are_tagged_with_their_colors_and_readers_agree_within_three_levels():
    colors = np.random.default_rng(0).integers(0, 256, (150, 3), dtype=np.uint8)
    colors[:8] = [[255 * (i >> bit & 1) for bit in range(3)] for i in range(8)]
    frames = np.broadcast_to(colors[:, None, None, :], (150, 32, 32, 3))
    data = encode_video(iter(frames), 32, 32, 10)
    with av.open(io.BytesIO(data)) as container:
        context = container.streams.video[0].codec_context
        tags = (context.colorspace, context.color_range, context.color_primaries, context.color_trc)
        assert tags == (Colorspace.ITU709, ColorRange.MPEG, 1, 1)
        read = np.array([plain_bt709(frame) for frame in container.decode(video=0)])
    assert np.abs(read.clip(0, 255) - colors).max() <= 3
    ours = np.stack(list(decode(data, "x")))
    assert np.abs(ours[:, 8, 8].astype(int) - colors).max() <= 3
