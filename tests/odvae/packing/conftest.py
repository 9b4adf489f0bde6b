"""A folder of videos, some of them broken, that the tests of packing share."""

import shutil

import pytest
from small import moving_square

from odvae.video.video_io import write_video


@pytest.fixture
def source(tmp_path):
    """Three good videos, one in a sub-folder with the same name as another, and four files that are no videos."""
    folder = tmp_path / "source"
    (folder / "sub").mkdir(parents=True)
    for seed, name in enumerate(["a.mp4", "b.mp4", "sub/a.mp4"]):
        write_video(folder / name, moving_square(9, seed), 8)
        (folder / name).with_suffix(".txt").write_text(f"square {seed}\n")
    whole = (folder / "a.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "song.mp4").write_bytes(b"ID3\x03" + bytes(range(256)) * 20)
    shutil.copy(folder / "b.mp4", folder / "copy_of_b.mp4")
    return folder
