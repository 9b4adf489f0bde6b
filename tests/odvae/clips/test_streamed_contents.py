"""Streamed shards that are cut, compressed or full of the wrong things: what is used, and what is said of the rest."""

import io
import json
import subprocess
import tarfile
import time

import numpy as np
import pytest
from PIL import Image
from small import tar_of
from streams import DATA, stream

from odvae.clips.remote_clips import why_not
from odvae.running.errors import InputError
from odvae.shards.remote_shards import ShardError, read_remote_shard
from odvae.video.video_io import write_video


def test_a_broken_video_costs_only_itself_where_another_shard_has_the_same_key(shards, tmp_path, capsys):
    tar_of(tmp_path / "a.tar", [("0.mp4", b"no video at all")])
    tar_of(tmp_path / "b.tar", [("0.mp4", video(tmp_path, 9, 200))])
    batches = stream(shards, f"{tmp_path}/a.tar::{tmp_path}/b.tar", 8, held_out=1e-9)
    assert all(int(batch["video"].min()) > 150 for batch in batches)
    assert f"left out: {tmp_path}/a.tar:0: cannot be decoded as a video" in capsys.readouterr().err


def test_half_of_a_shard_is_used_and_its_end_is_named(shards, tmp_path, capsys):
    whole = (shards / "00000.tar").read_bytes()
    (tmp_path / "half.tar").write_bytes(whole[: len(whole) * 3 // 5])
    assert len(stream(shards, f"{tmp_path}/half.tar", 3)) == 3
    assert "half.tar: is not a complete tar" in capsys.readouterr().err
    command = f"pipe:head -c {len(whole) * 3 // 5} {shards}/00000.tar; echo broken pipe >&2; exit 9"
    assert len(stream(shards, command, 3)) == 3
    assert "status 9 (broken pipe) before the end of the shard" in capsys.readouterr().err


def test_compressed_shards_are_streamed_and_those_that_cannot_be_are_named(shards, tmp_path):
    subprocess.run(f"gzip -c {shards}/00000.tar > {tmp_path}/0.tar.gz", shell=True, check=True)
    assert len(stream(shards, f"{tmp_path}/0.tar.gz", 2)) == 2
    (tmp_path / "0.tar.lz4").write_bytes(b"\x04\x22\x4d\x18" + bytes(600))
    with pytest.raises(InputError, match=r"is compressed with lz4 .*pipe:COMMAND \| lz4 -dc"):
        stream(shards, f"{tmp_path}/0.tar.lz4")


def video(tmp_path, frames, gray=90):
    write_video(tmp_path / "one.mp4", np.full((frames, 32, 32, 3), gray, np.uint8), 8)
    return (tmp_path / "one.mp4").read_bytes()


def picture():
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("captions", r"5 samples: has no video\n|5 samples: has no video$"),
        ("dots", r"samples: has no video \(several dots in its name\?\)"),
        ("short", r"samples: is shorter than the 5 frames a clip spans"),
        ("images", r"samples: is an image"),
        ("broken", r"could not be used|none of its videos gives a clip"),
    ],
)
def test_a_stream_without_one_usable_video_ends_and_counts_what_it_dropped(shards, tmp_path, kind, reason):
    short = video(tmp_path, 3)
    contents = {
        "captions": lambda i: [(f"{i}.txt", b"a caption")],
        "dots": lambda i: [(f"clip {i}.5s.mp4", short)],
        "short": lambda i: [(f"{i}.mp4", short), (f"{i}.json", b'{"frames": 900}')],
        "images": lambda i: [(f"{i}.png", picture())],
        "broken": lambda i: [(f"{i}.mp4", b"no video at all")],
    }
    tar_of(tmp_path / "x.tar", [member for i in range(5) for member in contents[kind](i)])
    begin = time.monotonic()
    with pytest.raises(InputError, match=f"(?s){reason}"):
        stream(shards, f"{tmp_path}/x.tar", held_out=1e-9)
    assert time.monotonic() - begin < 20


def test_short_videos_in_a_stream_are_no_failures(shards, tmp_path, capsys):
    """Without a count of frames only decoding tells; a third of the stream, failures_allowed notwithstanding."""
    short, long = video(tmp_path, 3), video(tmp_path, 9, 200)
    tar_of(tmp_path / "x.tar", [(f"{i}.mp4", short if i % 3 == 0 else long) for i in range(9)])
    batches = stream(shards, f"{tmp_path}/x.tar", 4, held_out=1e-9, failures_allowed=0.0)
    assert all(int(batch["video"].min()) > 150 for batch in batches)
    assert "is shorter than the 5 frames a clip spans" in capsys.readouterr().err


def test_what_a_foreign_json_says_is_not_believed_and_what_it_lacks_is_found_out():
    data = DATA.model_copy(update={"held_out": 1e-9})
    own = {"sha256": "a" * 64, "frames": 3, "height": 32, "width": 32, "fps": 8.0, "seconds": 0.4}
    own |= {"variable_rate": False, "keyframes": [[0, 0]]}
    for key, about, reason in (
        ("a" * 16, own, "is shorter than the 5 frames a clip spans"),
        ("a" * 16, own | {"frames": 9}, ""),
        ("b" * 16, own, ""),
        ("a" * 16, [1], ""),
    ):
        sample = {"__key__": key, "__url__": "x.tar", "mp4": b"", "json": json.dumps(about).encode()}
        assert why_not(sample, data) == reason
    assert why_not({"__key__": "a", "__url__": "x.tar", "mp4": b"", "json": b"\xff no json"}, data) == ""
    assert why_not({"__key__": "a", "__url__": "x.tar", "jpg": b""}, data) == "is an image"


def test_a_member_that_claims_exabytes_ends_its_shard_and_is_not_skipped_for_ever(tmp_path):
    header = tarfile.TarInfo("readme")  # of no sample, so that it is skipped
    header.size = 2**62
    (tmp_path / "x.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + b"\0" * 2048)
    with pytest.raises(ShardError, match="ends long before the size"):
        list(read_remote_shard(str(tmp_path / "x.tar"), 5))
