"""Evaluation protocols: which frames and clips are scored."""

import numpy as np
import pytest

from ldm.evaluation.protocols import PROTOCOLS
from odvae.clips.settings import DataSettings
from odvae.running.errors import InputError

DATA = DataSettings(frames=17, height=16, width=16)


def test_a_protocol_takes_its_frames_from_the_front_of_generated_and_from_anywhere_in_real_videos():
    clips = np.arange(17, dtype=np.uint8).reshape(1, 17, 1, 1, 1).repeat(3, axis=-1)
    assert PROTOCOLS["clip"].select(clips)[0, :, 0, 0, 0].tolist() == list(range(17))
    assert PROTOCOLS["stylegan-v-16f"].select(clips)[0, :, 0, 0, 0].tolist() == list(range(16))
    starts = [PROTOCOLS["stylegan-v-16f"].random_start(40, DATA, 0, index) for index in range(200)]
    assert (min(starts), max(starts)) == (0, 23)  # the last clip ends with the video
    assert starts == [PROTOCOLS["stylegan-v-16f"].random_start(40, DATA, 0, index) for index in range(200)]


def test_strided_protocols_need_and_take_long_clips():
    with pytest.raises(InputError, match=r"needs clips of 121 frames, found data\.frames=17"):
        PROTOCOLS["stylegan-v-128f-8"].check(17)
    clips = np.arange(129, dtype=np.uint8).reshape(1, 129, 1, 1, 1)
    assert PROTOCOLS["stylegan-v-128f-8"].select(clips)[0, :, 0, 0, 0].tolist() == list(range(0, 128, 8))
