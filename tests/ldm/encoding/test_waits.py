"""How far decoding runs ahead, and what an encoding waits for."""

import json
import time

import pytest
from small_latents import DATA, encode

from ldm.encoding import encode_shards
from ldm.encoding.encode_shards import decode_slots
from ldm.encoding.settings import EncodeSettings
from ldm.encoding.waits import Waits, describe_waits


def test_decoded_clips_in_memory_follow_the_workers_also_with_a_small_batch():
    assert decode_slots(workers=8, batch_size=1, threads=1) == 32
    assert decode_slots(workers=1, batch_size=16, threads=2) == 48  # a batch a thread, and one in advance
    assert decode_slots(workers=0, batch_size=16, threads=2) == 1  # decoded when asked for


def test_waits_add_up_and_a_wait_for_several_kinds_of_work_is_divided():
    waits = Waits()
    with waits.of("decode"):
        time.sleep(0.03)
    time.sleep(0.02)
    waits.divide(0.01, {"vae": 3.0, "text": 1.0})
    assert waits.seconds["vae"] == pytest.approx(0.0075)
    assert waits.seconds["text"] == pytest.approx(0.0025)
    assert waits.seconds["decode"] >= 0.02
    shares = waits.shares()
    assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
    assert describe_waits(shares).startswith(f"decoding {shares['decode']:.1%}, the VAE")


@pytest.mark.parametrize("stream_frames", [65, 5])
def test_an_encoding_says_that_it_waited_for_slow_decoding(ldm_run, tmp_path, monkeypatch, capsys, stream_frames):
    real = encode_shards._load_piece
    monkeypatch.setattr(encode_shards, "_load_piece", lambda task: (time.sleep(0.1), real(task))[1])
    (tmp_path / "shards").symlink_to(ldm_run / "shards")
    (tmp_path / "vae").symlink_to(ldm_run / "vae")
    settings = EncodeSettings(batch_size=3, stream_frames=stream_frames)
    encode(tmp_path, tmp_path / "latents", encode=settings, data=DATA.model_copy(update={"frames": 9}))
    waits = json.loads((tmp_path / "latents/speed.json").read_text())["waits"]
    assert waits.keys() == {"decode", "vae", "text", "disk", "own"}
    assert max(waits, key=waits.get) == "decode"
    assert f"waited for decoding {waits['decode']:.1%}" in capsys.readouterr().out
