"""An offloaded pipeline gives the same videos, with diffusers' machinery on the one device that is always there."""

import accelerate
import numpy as np
import pytest
import torch
from small_networks import make_dit, make_unet
from small_pipeline import PROMPTS, make_components, make_pipeline, seeded, small_text_encoder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return small_text_encoder(tmp_path_factory.mktemp("text") / "learned")


def videos_of(pipeline) -> np.ndarray:
    image = torch.zeros(3, 32, 32)
    return pipeline(PROMPTS[:2], generator=seeded(0, 1), num_inference_steps=2, image=image).frames


@pytest.fixture(params=[make_dit, make_unet])
def pipeline(request, text):
    return make_pipeline(make_components(text, make=request.param, first_frame=True))


def check_equal(pipeline, expected):
    try:
        for _ in range(2):
            assert np.array_equal(videos_of(pipeline), expected)
    finally:  # the text encoder is shared
        pipeline.remove_all_hooks()


def test_offloaded_model_by_model(pipeline):
    expected = videos_of(pipeline)
    pipeline.enable_model_cpu_offload(device="cpu")
    check_equal(pipeline, expected)


def test_offloaded_layer_by_layer(pipeline):
    expected = videos_of(pipeline)
    # What enable_sequential_cpu_offload does; that names the device "cpu:0", which accelerate's hooks cannot use.
    for name in ("text_encoder", "transformer", "vae"):
        accelerate.cpu_offload(getattr(pipeline, name), torch.device("cpu"))
    assert all(parameter.is_meta for parameter in pipeline.transformer.parameters())
    assert all(parameter.is_meta for parameter in pipeline.vae.parameters())
    check_equal(pipeline, expected)


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_offloaded_to_disk_in_groups(pipeline, kind, tmp_path):
    expected = videos_of(pipeline)
    blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    device = torch.device("cpu")
    for name in ("transformer", "vae"):
        options = {"offload_to_disk_path": str(tmp_path / name), **blocks}
        getattr(pipeline, name).enable_group_offload(device, offload_type=kind, **options)
    for _ in range(2):
        assert np.array_equal(videos_of(pipeline), expected)


def test_a_transformer_stored_as_fp8_makes_videos_near_those_of_the_whole_one(pipeline):
    expected = videos_of(pipeline)
    pipeline.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    difference = np.abs(videos_of(pipeline) - expected)
    assert 0 < difference.mean() < 0.1
