"""Reading of samples for scoring."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from ldm.evaluate import read_samples
from ldm.evaluation.protocols import PROTOCOLS
from ldm.evaluation.scorers import SampleFiles, Scorers, measure_reconstructions, measure_samples
from odvae.clips.settings import DataSettings
from odvae.clips.video_set import VideoSet
from odvae.packing.packing import pack_folder
from odvae.running.errors import InputError
from odvae.video.video_io import encode_lossless, write_video

DATA = DataSettings(frames=17, height=16, width=16)


def test_samples_missing_broken_or_of_another_size_are_named(tmp_path):
    with pytest.raises(InputError, match=r"holds no samples to score; make them with: .*sample_video"):
        read_samples(tmp_path)
    write_video(tmp_path / "short.mp4", np.zeros((9, 16, 16, 3), np.uint8), 8)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    files = SampleFiles([tmp_path / name for name in ("none.mp4", "short.mp4", "broken.mp4")], DATA)
    for number, message in enumerate(
        [
            r"none\.mp4 is missing",
            r"short\.mp4: .*\(9, 16, 16, 3\), expected \(17, 16",
            r"broken\.mp4.*cannot be decoded",
        ]
    ):
        with pytest.raises(InputError, match=message):
            files[number]


def test_a_lossless_file_is_scored_in_place_of_the_mp4(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (17, 16, 16, 3), dtype=np.uint8)
    write_video(tmp_path / "a.mp4", frames, 8)
    (tmp_path / "a.mkv").write_bytes(encode_lossless(iter(frames), 16, 16, 8))
    scorers = Scorers([], PROTOCOLS["clip"], DATA.model_copy(update={"workers": 0}), False, 1)
    digests = [
        measure_samples([{"file": "a.mp4", "prompt": None, **more}], tmp_path, scorers, set())[0]["digest"]
        for more in ({"lossless": "a.mkv"}, {})
    ]
    assert digests[0] == hashlib.sha256(frames.tobytes()).hexdigest() != digests[1]


def test_single_images_have_no_flicker(tmp_path, vae):
    data = DATA.model_copy(update={"frames": 1, "workers": 0, "held_out": 0.5})
    (tmp_path / "images").mkdir()
    for value in range(8):
        Image.new("RGB", (16, 16), (30 * value, 0, 0)).save(tmp_path / f"images/{value}.png")
    pack_folder(tmp_path / "images", tmp_path / "shards")
    scorers = Scorers([], PROTOCOLS["clip"], data, False, 2)
    (row, *_) = measure_reconstructions(
        [(one, 0) for one in VideoSet(tmp_path / "shards", data, "?").train], vae, scorers
    )
    assert "flicker" not in row
    write_video(tmp_path / "a.mp4", np.zeros((1, 16, 16, 3), np.uint8), 8)
    assert "steadiness" not in measure_samples([{"file": "a.mp4", "prompt": None}], tmp_path, scorers, set())[0]
