"""Video files of every kind are decoded as displayed, or are errors with the reason."""

import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image
from small import moving_square

from odvae.running.errors import InputError
from odvae.video.images import decode_image
from odvae.video.video_io import VideoError, decode, encode_lossless, examine, read_frames, read_frames_at, write_video


def make_video(path, codec, pixels, frames, times=None, rate=10):
    """Frames (h, w, 3) or (h, w) of uint8, or of uint16 for 10 bit, at `times` (ms) or at a constant rate."""
    with av.open(str(path), "w") as container:
        height, width = frames[0].shape[:2]
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for i, array in enumerate(frames):
            kind = {2: "gray", 3: "rgb24"}[array.ndim] if array.ndim < 3 or array.shape[2] == 3 else "rgba"
            frame = av.VideoFrame.from_ndarray(array, format=kind)
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def grey_frames(values, height=32, width=48):
    return [np.full((height, width, 3), value, np.uint8) for value in values]


def shown(frames):
    """The gray of each frame."""
    return [round(float(frame.mean())) for frame in frames]


@pytest.mark.parametrize(
    ("codec", "pixels", "tolerance"),
    [
        ("ffv1", "yuv420p10le", 2),
        ("ffv1", "gray", 1),
        ("ffv1", "bgra", 0),
        ("ffv1", "yuva420p", 1),
        ("mjpeg", "yuvj420p", 2),
    ],
)
def test_ten_bit_grey_and_alpha_are_read_as_eight_bit_rgb(tmp_path, codec, pixels, tolerance):
    path = make_video(tmp_path / "x.mkv", codec, pixels, grey_frames([30, 90, 200]))
    frames = list(decode(path, "x"))
    assert frames[0].shape == (32, 48, 3)
    assert frames[0].dtype == np.uint8
    assert np.abs(np.array(shown(frames)) - [30, 90, 200]).max() <= tolerance


def test_odd_sizes_are_read_whole(tmp_path):
    path = make_video(tmp_path / "x.mkv", "ffv1", "bgr0", grey_frames([30, 90], 31, 45))
    assert next(decode(path, "x")).shape == (31, 45, 3)
    assert (examine(path, "x").height, examine(path, "x").width) == (31, 45)


@pytest.mark.parametrize("width", [18, 48, 50, 106])
@pytest.mark.parametrize(("name", "codec", "pixels"), [("x.avi", "mpeg4", "yuv420p"), ("x.gif", "gif", "rgb8")])
def test_widths_that_decoders_pad_are_read(tmp_path, width, name, codec, pixels):
    """In containers without exact times, where frames are compared."""
    path = make_video(tmp_path / name, codec, pixels, grey_frames([0, 255, 0], 32, width))
    facts = examine(path, name)
    assert (facts.frames, facts.height, facts.width) == (3, 32, width)
    frames = list(decode(path, name))
    assert np.abs(np.array(shown(frames)) - [0, 255, 0]).max() <= 3
    assert all(frame.flags.c_contiguous for frame in frames)


def test_a_variable_rate_is_detected_and_resampled_by_the_frame_shown_at_each_time(tmp_path):
    times = [0, 100, 200, 600, 700, 800]
    path = make_video(tmp_path / "x.mkv", "ffv1", "bgr0", grey_frames([10, 20, 30, 40, 50, 60]), times)
    facts = examine(path, "x")
    assert facts.variable_rate
    assert facts.seconds == pytest.approx(0.9)
    ten_a_second = read_frames_at(path, "x", [i / 10 for i in range(9)], tail=0.1)
    assert shown(ten_a_second) == [10, 20, 30, 30, 30, 30, 40, 50, 60]
    assert shown(read_frames_at(path, "x", [0.25, 0.45, 0.65], tail=0.1)) == [30, 30, 40]
    with pytest.raises(VideoError, match=r"my clip: ends before 1\.50 s"):
        list(read_frames_at(path, "my clip", [0.5, 1.5], tail=0.1))


def test_a_frame_in_the_middle_is_the_same_by_seeking_as_by_decoding_from_the_start(tmp_path):
    rng = np.random.default_rng(0)
    write_video(tmp_path / "x.mp4", rng.integers(0, 255, (600, 16, 16, 3), dtype=np.uint8), 30)
    facts = examine(tmp_path / "x.mp4", "x")
    assert len(facts.keyframes) >= 3  # else nothing is sought
    whole = list(decode(tmp_path / "x.mp4", "x"))
    for start in (0, 249, 250, 251, 420, 590):
        sought = list(read_frames(tmp_path / "x.mp4", "x", start, 5, 2, facts.keyframes))
        assert np.array_equal(sought, whole[start : start + 10 : 2])
        timed = list(read_frames_at(tmp_path / "x.mp4", "x", [(start + i) / 30 for i in range(5)], tail=1 / 30))
        assert np.array_equal(timed, whole[start : start + 5])


def test_the_last_frame_is_shown_for_one_frame_period_by_default(tmp_path):
    write_video(tmp_path / "x.mp4", np.stack(grey_frames([10, 20, 30])), 12)
    twice = shown(read_frames_at(tmp_path / "x.mp4", "x", [i / 24 for i in range(6)]))
    assert twice == pytest.approx([10, 10, 20, 20, 30, 30], abs=2)
    with pytest.raises(VideoError, match=r"ends before 0\.29 s"):
        list(read_frames_at(tmp_path / "x.mp4", "x", [7 / 24]))


def test_a_wrong_list_of_keyframes_costs_time_but_frames_are_correct(tmp_path):
    write_video(tmp_path / "x.mp4", np.stack(grey_frames(range(0, 240, 8))), 8)
    expected = shown(read_frames(tmp_path / "x.mp4", "x", 20, 3))
    assert shown(read_frames(tmp_path / "x.mp4", "x", 20, 3, keyframes=[(0, 0), (15, 777)])) == expected


def test_a_video_of_one_frame_is_one_and_one_of_none_is_named(tmp_path):
    write_video(tmp_path / "one.mp4", np.stack(grey_frames([77])), 8)
    assert examine(tmp_path / "one.mp4", "one").frames == 1
    with av.open(str(tmp_path / "none.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "bgr0"
        container.start_encoding()
    with pytest.raises(VideoError, match=r"none\.mkv: "):
        examine(tmp_path / "none.mkv", "none.mkv")


def test_audio_without_video_is_named(tmp_path):
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match=r"song\.mp4: has no video stream"):
        examine(tmp_path / "song.mp4", "song.mp4")


def image_bytes(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_images_are_upright_rgb_with_transparency_on_white():
    clear = image_bytes(Image.new("RGBA", (8, 6), (10, 20, 30, 0)), "PNG")
    assert np.array_equal(decode_image(clear, "x"), np.full((6, 8, 3), 255))
    deep = image_bytes(Image.fromarray(np.full((6, 8), 200 * 256, np.uint16)), "PNG")
    assert np.array_equal(decode_image(deep, "x"), np.full((6, 8, 3), 200))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    assert decode_image(image_bytes(Image.new("L", (8, 6), 99), "JPEG", exif=exif), "x").shape == (8, 6, 3)
    with pytest.raises(VideoError, match=r"x\.png: cannot be read as an image"):
        decode_image(clear[:40], "x.png")


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_video_with_a_rotation_tag_is_shown_upright(tmp_path, quarters):
    frames = np.zeros((3, 32, 48, 3), np.uint8)
    frames[:, :16, :24] = 255  # upright, its upper left quarter is white
    write_video(tmp_path / "upright.mp4", frames, 8)
    write_video(tmp_path / "stored.mp4", np.rot90(frames, quarters, axes=(1, 2)).copy(), 8)
    turn_in_header(tmp_path / "stored.mp4", quarters)
    expected, found = (next(decode(tmp_path / name, name)) for name in ("upright.mp4", "stored.mp4"))
    assert found.shape == expected.shape == (32, 48, 3)
    assert np.abs(found.astype(int) - expected).mean() < 3
    facts = examine(tmp_path / "stored.mp4", "stored.mp4")
    assert (facts.height, facts.width) == (32, 48)


def turn_in_header(path, quarters):
    """Let the track header of an mp4 say that players shall turn it clockwise by so many quarters."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # after version, times, track, duration, layer, volume
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarters]
    struct.pack_into(">9i", data, matrix, cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def test_rotated_real_videos_are_shown_upright(shared):
    """The same picture, stored in three turns: corners agree once all are upright."""
    upright = {}
    for turn in (90, 180, 270):
        path = shared / f"edge_videos/decord_video_{turn}.mov"
        frame = next(decode(path, path.name))
        facts = examine(path, path.name)
        assert frame.shape[:2] == (facts.height, facts.width)
        upright[turn] = frame
    assert upright[90].shape == upright[270].shape == (568, 320, 3)
    assert upright[180].shape == (320, 568, 3)


def test_every_awkward_real_file_is_packed_or_named_with_its_reason(shared, tmp_path):
    from odvae.packing.packing import pack_folder

    report = pack_folder(shared / "edge_videos", tmp_path / "out")
    assert report.videos == 14
    assert set(report.rejected) == {
        "edge.json",
        "decord_corrupted.mp4",
        "made_empty.mp4",
        "made_text.mp4",
        "made_truncated_davis_bear.mp4",
    }
    assert report.variable_rate == 1


def test_a_lossless_file_has_the_very_frames(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (5, 18, 26, 3), dtype=np.uint8)
    path = tmp_path / "x.mkv"
    path.write_bytes(encode_lossless(iter(frames), 18, 26, 7.5))
    assert np.array_equal(np.stack(list(decode(path, "x"))), frames)
    assert examine(path, "x").fps == pytest.approx(7.5, rel=0.01)  # Matroska has whole milliseconds


def test_a_written_video_reads_back_nearly_the_same(tmp_path):
    frames = moving_square()
    write_video(tmp_path / "x.mp4", frames, 8)
    again = np.stack(list(decode(tmp_path / "x.mp4", "x.mp4")))
    assert again.shape == frames.shape
    assert np.abs(again.astype(int) - frames).mean() < 6  # chroma has half the resolution
    assert examine(tmp_path / "x.mp4", "x").fps == 8.0


def test_frames_are_taken_by_start_and_stride_and_a_short_video_is_named(tmp_path):
    write_video(tmp_path / "x.mp4", moving_square(9), 8)
    every = np.stack(list(decode(tmp_path / "x.mp4", "x")))
    assert np.array_equal(np.stack(list(read_frames(tmp_path / "x.mp4", "x", 1, 3, 2))), every[[1, 3, 5]])
    with pytest.raises(VideoError, match=r"my clip: ends before frame 9"):
        list(read_frames(tmp_path / "x.mp4", "my clip", 5, 5))


def test_odd_sizes_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="even sizes, found 31x32"):
        write_video(tmp_path / "x.mp4", np.zeros((3, 32, 31, 3), np.uint8), 8)
    assert list(tmp_path.iterdir()) == []
