"""A file that cannot be decoded is named for what it is."""

import io

import pytest

from odvae.video.decoding import VideoError
from odvae.video.images import decode_image
from odvae.video.video_io import examine

CONTENTS = {
    b"<!DOCTYPE html><html>": "it is a web page (HTML)",
    b"\xef\xbb\xbf  <HTML>": "it is a web page (HTML)",
    b"version https://git-lfs.github.com/spec/v1\n": "it is a Git LFS pointer",
    b"<Error><Code>AccessDenied</Code></Error>": "it is XML",
    b"#EXTM3U\n#EXTINF:1,\nb.mp4\n": "it is a playlist",
    b"PK\x03\x04" + bytes(range(99)): "it is a zip archive",
    b"\x1f\x8b" + bytes(range(99)): "it is a gzip archive",
    b"x" * 257 + b"ustar" + bytes(300): "it is a tar archive",
    bytes(500): "it has only zeros",
    "Ein Märchen. ".encode() * 400: "it is text",
}


@pytest.mark.parametrize("content", CONTENTS)
def test_what_is_no_video_is_named_for_what_it_is(content):
    for source in (content, io.BytesIO(content)):
        with pytest.raises(VideoError, match=rf"^x\.mp4: cannot be decoded.*; {CONTENTS[content][:8]}") as caught:
            examine(source, "x.mp4")
        assert CONTENTS[content] in str(caught.value)
    with pytest.raises(VideoError) as caught:
        decode_image(content, "x.png")
    assert CONTENTS[content] in str(caught.value)


def test_an_empty_image_is_said_to_be_empty():
    with pytest.raises(VideoError, match=r"^x\.png: the file is empty \(0 bytes\)$"):
        decode_image(b"", "x.png")


def test_of_noise_nothing_more_is_said():
    with pytest.raises(VideoError, match=r"\)$"):
        examine(bytes(range(1, 256)) * 9, "x.mp4")
