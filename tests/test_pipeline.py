"""The diffusers pipeline: sizes, seeds, saving and loading, guidance, errors."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from ldm import DiT, TextToVideoPipeline
from ldm.text import TextSettings, learn_text_encoder, load_text_encoder
from odvae.shared.errors import InputError

PROMPTS = ["a red circle moves left", "a blue square moves up", "a red square moves right"]


@pytest.fixture(scope="module")
def pipeline(vae, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    learn_text_encoder(PROMPTS, TextSettings(max_tokens=8, width=16, steps=3), folder / "learned", seed=0)
    text = load_text_encoder(folder / "learned")
    torch.manual_seed(0)
    statistics = {"latents_mean": [0.1] * 4, "latents_std": [0.8] * 4}
    sizes = {"latent_channels": 4, "width": 32, "depth": 2, "heads": 2, "text_width": 16, "text_tokens": 8}
    dit = DiT(**sizes, sample_size=(3, 4, 4), **statistics)
    for parameter in dit.parameters():  # away from adaLN-Zero's silence
        parameter.data += 0.1 * torch.randn_like(parameter)
    made = TextToVideoPipeline(vae, dit.eval(), FlowMatchEulerDiscreteScheduler(), text.model, text.tokenizer)
    made.set_progress_bar_config(disable=True)
    return made


def generate(pipeline, prompts, seeds, **options):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipeline(prompts, generator=generators, num_inference_steps=3, **options).frames


def test_it_makes_videos_of_the_trained_size_and_of_any_asked_for(pipeline):
    assert generate(pipeline, PROMPTS[:2], [0, 1]).shape == (2, 9, 32, 32, 3)
    frames = generate(pipeline, PROMPTS[0], [0], num_frames=5, height=16, width=48, output_type="pt")
    assert frames.shape == (1, 5, 3, 16, 48)
    assert 0 <= frames.min() < frames.max() <= 1
    assert generate(pipeline, PROMPTS[0], [0], output_type="latent").shape == (1, 4, 3, 4, 4)


def test_a_video_is_the_same_alone_and_in_any_batch(pipeline):
    alone = np.concatenate([generate(pipeline, PROMPTS[i], [i]) for i in range(3)])
    together = generate(pipeline, PROMPTS, [0, 1, 2])
    reordered = generate(pipeline, PROMPTS[::-1], [2, 1, 0])[::-1]
    for other in (together, reordered):
        assert np.abs(other - alone).max() < 1e-4  # batched products round otherwise: a fortieth of a grey level
    assert np.abs(alone[0] - generate(pipeline, PROMPTS[0], [5])[0]).max() > 0.01


def test_prompt_and_guidance_matter_and_guidance_1_is_the_plain_prediction(pipeline):
    plain, guided = (generate(pipeline, PROMPTS[0], [0], guidance_scale=scale) for scale in (1.0, 4.0))
    assert np.abs(plain - guided).max() > 1e-3
    assert np.abs(plain - generate(pipeline, PROMPTS[1], [0], guidance_scale=1.0)).max() > 1e-3
    same = generate(pipeline, PROMPTS[0], [0], guidance_scale=4.0, negative_prompt=PROMPTS[0])
    assert np.abs(plain - same).max() < 1e-4  # v + s (v - v) = v


def test_saved_and_loaded_by_its_class_it_gives_bit_identical_videos(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    again = TextToVideoPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert np.array_equal(generate(again, PROMPTS, [0, 1, 2]), generate(pipeline, PROMPTS, [0, 1, 2]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 8}, "4k\\+1, found 8; nearest: 5 or 9"),
        ({"height": 20}, "height must be a multiple of 8, found 20"),
        ({"output_type": "gif"}, "allowed are np, pt, latent"),
    ],
)
def test_what_it_cannot_make_is_an_error_that_says_what_it_can(pipeline, options, message):
    with pytest.raises(InputError, match=message):
        pipeline(PROMPTS[0], **options)


def test_a_wrong_number_of_generators_is_an_error(pipeline):
    with pytest.raises(InputError, match="2 prompts need one generator or 2, found 1"):
        pipeline(PROMPTS[:2], generator=[torch.Generator()])
