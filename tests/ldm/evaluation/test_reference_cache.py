"""Cache of reference features."""

import numpy as np
import pytest

from ldm.evaluation.reference_cache import cached_features, describe_clips, given_features
from odvae.running.errors import InputError
from odvae.shards.samples import Member, Sample

rng = np.random.default_rng(0)


def sample(key):
    return Sample(key, None, {"mp4": Member(0, 100), "json": Member(0, 0)})


def test_references_are_measured_once_and_those_of_another_protocol_are_refused_with_the_reason(tmp_path):
    description = {"kind": "reference", "frames": 16, "sha256": "a", **describe_clips([(sample("x"), 0)])}
    features = rng.normal(size=(1, 4)).astype(np.float32)
    times = []

    def measure():
        times.append(1)
        return features

    for _ in range(2):
        assert np.array_equal(cached_features(tmp_path, description, measure), features)
    assert len(times) == 1
    assert np.array_equal(given_features(tmp_path, description), features)
    with pytest.raises(InputError, match=r"another protocol:\n  frames: the file has 16, this evaluation needs 8"):
        given_features(tmp_path, description | {"frames": 8})
    other_clips = describe_clips([(sample("x"), 1)])
    with pytest.raises(InputError, match="clips_sha256"):
        given_features(tmp_path, description | other_clips)
    with pytest.raises(InputError, match="no other features there"):
        given_features(tmp_path, description | {"kind": "other"})
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(b"cut short")
    with pytest.raises(InputError, match="cannot be read as features"):
        cached_features(tmp_path, description, measure)
