"""Feature networks: preprocessing, results, and which videos they accept."""

import numpy as np
import pytest
import torch
from transformers import (
    VideoMAEConfig,
    VideoMAEForVideoClassification,
)

from ldm.evaluation.features import extract_features, load_network, to_square
from ldm.evaluation.settings import EvalLDMSettings
from odvae.running.errors import InputError

rng = np.random.default_rng(0)


def test_random_features_tell_still_from_moving_and_do_not_depend_on_the_batch():
    still = np.repeat(rng.integers(0, 256, (1, 1, 32, 32, 3), dtype=np.uint8), 8, axis=1)
    moving = np.stack([np.roll(still[:, 0], 2 * i, axis=2) for i in range(8)], axis=1)
    network = load_network("random", EvalLDMSettings())
    features = extract_features(network, np.concatenate([still, moving, still]), batch_size=2)
    assert features.shape == (3, network.dimension)
    assert np.allclose(features[0], features[2], atol=1e-5)
    assert np.abs(features[0] - features[1]).max() > 0.05
    assert "not FVD" in network.distance


def test_squash_keeps_the_whole_frame_and_crop_the_aspect():
    video = torch.zeros(1, 3, 2, 20, 40)
    video[..., :10] = 1  # the left quarter is white
    squashed, cropped = (to_square(video, 8, False, resize) for resize in ("squash", "crop"))
    assert squashed.shape == cropped.shape == (1, 3, 2, 8, 8)
    assert squashed[0, 0, 0, 0].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert cropped[0, 0, 0, 0].abs().max() < 1e-6  # the middle half has none of it


def test_videomae_features_are_its_pooled_tokens_and_need_its_frames(tmp_path):
    torch.manual_seed(0)
    config = VideoMAEConfig(
        image_size=32, num_frames=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    VideoMAEForVideoClassification(config).save_pretrained(tmp_path)
    network = load_network("videomae", EvalLDMSettings(videomae=str(tmp_path)))
    videos = rng.integers(0, 256, (3, 4, 24, 24, 3), dtype=np.uint8)
    features = extract_features(network, videos, batch_size=2)
    assert features.shape == (3, 16)
    assert np.allclose(features[:1], extract_features(network, videos[:1]), atol=1e-5)
    assert not np.allclose(features[:1], extract_features(network, videos[:1, ::-1].copy()), atol=1e-3)  # order counts
    assert "not FVD" in network.distance
    with pytest.raises(InputError, match="takes 4 frames, the protocol gives 17"):
        network.check_frames(17)
    with pytest.raises(InputError, match=r"eval_ldm\.videomae must be"):
        load_network("videomae", EvalLDMSettings())


def test_features_of_another_layout_are_refused():
    with pytest.raises(InputError, match="expected uint8 videos"):
        extract_features(load_network("random", EvalLDMSettings()), np.zeros((2, 4, 8, 8, 3), np.float32))
