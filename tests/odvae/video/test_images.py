"""Image files of every kind are decoded as displayed, or are errors with the reason."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from odvae.video.decoding import VideoError
from odvae.video.images import decode_image, examine_image


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


FIELDS = np.array([[1, 2, 3], [4, 5, 6]], np.uint8) * 40


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [[1, 2, 3], [4, 5, 6]]),
        (2, [[3, 2, 1], [6, 5, 4]]),
        (3, [[6, 5, 4], [3, 2, 1]]),
        (4, [[4, 5, 6], [1, 2, 3]]),
        (5, [[1, 4], [2, 5], [3, 6]]),
        (6, [[4, 1], [5, 2], [6, 3]]),
        (7, [[6, 3], [5, 2], [4, 1]]),
        (8, [[3, 6], [2, 5], [1, 4]]),
        (0, [[1, 2, 3], [4, 5, 6]]),
        (77, [[1, 2, 3], [4, 5, 6]]),
    ],
)
def test_every_orientation_is_applied_and_invalid_ones_are_ignored(orientation, expected):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(FIELDS), "PNG", exif=exif)
    pixels = decode_image(data, "x")
    assert (pixels[:, :, 0] // 40).tolist() == expected
    facts = examine_image(data, "x")
    assert (facts.height, facts.width, facts.images) == (*pixels.shape[:2], 1)


@pytest.mark.parametrize(
    "tag",
    [
        struct.pack("<HHI4s", 0x0112, 2, 4, b"six\0"),  # a text
        struct.pack("<HHI4s", 0x0112, 5, 1, b"\xff\xff\xff\x7f"),  # a ratio that lies outside
        struct.pack("<HHI4s", 0x0112, 3, 0x7FFFFFFF, b"\1\0\0\0"),  # two billion of them
        struct.pack("<HHI4s", 0x0112, 99, 1, b"\6\0\0\0"),  # of no type
        b"\x12\x01",  # cut
    ],
)
def test_odd_exif_does_not_matter(tag):
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + tag
    data = saved(Image.new("RGB", (8, 6), (10, 200, 30)), "JPEG", exif=exif, quality=100)
    assert decode_image(data, "x").shape == (6, 8, 3)


def test_transparency_is_on_white_in_every_mode():
    clear = [
        Image.new("RGBA", (4, 4), (9, 9, 9, 0)),
        Image.new("LA", (4, 4), (9, 0)),
        Image.new("RGBA", (4, 4), (9, 9, 9, 0)).quantize(4),
    ]
    for image in clear:
        assert (decode_image(saved(image, "PNG"), "x") == 255).all(), image.mode
    keyed = saved(Image.new("RGB", (4, 4), (9, 9, 9)), "PNG", transparency=(9, 9, 9))
    assert (decode_image(keyed, "x") == 255).all()
    half = decode_image(saved(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG"), "x")
    assert (half == 127).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(kind):
    steps = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    pixels = decode_image(saved(Image.fromarray(steps), kind), "x")
    assert np.array_equal(pixels, np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2))


def test_floats_in_0_to_1_are_scaled_and_unknown_ranges_are_errors():
    half = np.full((4, 4), 0.5, np.float32)
    assert (decode_image(saved(Image.fromarray(half), "TIFF"), "x") == 127).all()
    assert (decode_image(saved(Image.fromarray(half * 200), "TIFF"), "x") == 100).all()
    for wrong in (half * 1e6, half * np.nan, -half):
        with pytest.raises(VideoError, match=r"x\.tif: cannot be read as an image"):
            decode_image(saved(Image.fromarray(wrong), "TIFF"), "x.tif")
    with pytest.raises(VideoError, match="unknown range"):
        decode_image(saved(Image.fromarray(np.full((4, 4), 1 << 20, np.int32)), "TIFF"), "x.tif")


@pytest.mark.parametrize(
    ("mode", "kind", "color", "expected"),
    [
        ("CMYK", "JPEG", (255, 0, 0, 0), (0, 255, 255)),
        ("CMYK", "TIFF", (0, 255, 255, 0), (255, 0, 0)),
        ("L", "JPEG", 77, (77, 77, 77)),
        ("1", "PNG", 1, (255, 255, 255)),
        ("YCbCr", "JPEG", (77, 128, 128), (77, 77, 77)),
        ("RGB", "AVIF", (200, 30, 30), (200, 30, 30)),
        ("RGB", "WEBP", (200, 30, 30), (200, 30, 30)),
    ],
)
def test_every_color_mode_becomes_rgb(mode, kind, color, expected):
    image = Image.new(mode, (16, 16), color)
    try:
        data = saved(image, kind, **({"quality": 100} if kind != "TIFF" else {}))
    except (KeyError, OSError):
        pytest.skip(f"this Pillow does not write {kind}")
    assert np.abs(decode_image(data, "x")[8, 8].astype(int) - expected).max() <= 6


def test_palettes_are_looked_up():
    fields = Image.fromarray(np.stack([FIELDS, FIELDS // 2, 255 - FIELDS], axis=2))
    few = fields.quantize(16)
    assert np.array_equal(decode_image(saved(few, "PNG"), "x"), np.asarray(few.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_an_animation_is_its_first_frame_with_the_number_of_frames(kind):
    pictures = [Image.new("RGB", (16, 16), (color, 0, 0)) for color in (250, 10, 120)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(pictures[0], kind, save_all=True, append_images=pictures[1:], **options)
    assert decode_image(data, "x")[8, 8].tolist() == [250, 0, 0]
    assert examine_image(data, "x").images == 3


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"II*\0\xff\xff\xff\x7f"])
def test_a_file_that_is_not_an_image_is_a_reproducible_error(data):
    with pytest.raises(VideoError, match=r"^x\.png: (cannot be read as an image \(|the file is empty)") as error:
        decode_image(data, "x.png")
    assert "0x" not in str(error.value)
    with pytest.raises(VideoError, match=r"^x\.png: "):
        examine_image(data, "x.png")


def test_a_truncated_image_is_named():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for kind in ("PNG", "JPEG", "TIFF", "WEBP"):
        data = saved(Image.fromarray(noise), kind)
        with pytest.raises(VideoError, match="cannot be read as an image"):
            decode_image(data[: len(data) // 2], "x")
