"""Requests that a pipeline cannot fulfil: errors that name what is allowed."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from small_networks import CLASSES, make_dit
from small_pipeline import PROMPTS, generate, pipeline_of

from ldm import TextToVideoPipeline
from ldm.diffusion.settings import ObjectiveSettings
from ldm.sampling.schedulers import make_scheduler
from odvae.running.errors import InputError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 8}, "4k\\+1, .*found 8, nearest: 5 or 9"),
        ({"height": 20}, "height must be a multiple of 8, .*found 20"),
        ({"height": 40}, "not multiples of patch_size"),
        ({"num_frames": 0}, "num_frames must be an integer >= 1 or None, found 0"),
        ({"num_frames": 9.0}, "num_frames must be an integer >= 1 or None, found 9.0"),
        ({"height": -8}, "height must be an integer"),
        ({"width": "32"}, "width must be an integer >= 1 or None, found '32'"),
        ({"output_type": "gif"}, "allowed are np, pt, pil, latent"),
        ({"num_inference_steps": 0}, "num_inference_steps must be an integer >= 1, found 0"),
        ({"num_inference_steps": None}, "num_inference_steps must be an integer >= 1, found None"),
        ({"num_inference_steps": 2.5}, "num_inference_steps must be an integer >= 1, found 2.5"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, found 0"),
        ({"guidance_scale": None}, "guidance_scale must be a number >= 0 .*; found None"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a number"),
        ({"guidance_scale": True}, "guidance_scale must be a number"),
        ({"guidance_rescale": 7}, "guidance_rescale must be a number from 0 to 1, found 7"),
        ({"guidance_interval": (0.8, 0.2)}, r"must be \(lowest, highest\), found \(0\.8, 0\.2\): no step would be"),
        ({"guidance_interval": 0.5}, r"guidance_interval must be two noise levels, \(lowest, highest\), found 0.5"),
        (
            {"generator": 5},
            r"generator must be a torch.Generator.* found 5; for a seed: torch.Generator\(\).manual_seed",
        ),
        ({"generator": [5]}, "generator must be a torch.Generator.* found 5"),
        ({"generator": [torch.Generator()] * 2}, "1 videos need one generator or 1, found 2"),
        ({"negative_prompt": 5}, "negative_prompt must be a text or a list of texts, found 5"),
        ({"negative_prompt": [None]}, "negative_prompt must be a text or a list of texts, found a list with None"),
        ({"prompt": []}, r"prompt must be a text or a list of texts, found \[\]"),
        ({"prompt": 5}, "prompt must be a text or a list of texts, found 5"),
        ({"prompt": ["a red circle", 5]}, "prompt must be a text or a list of texts, found a list with 5"),
        ({"prompt": None}, "this network needs a prompt"),
        ({"class_label": "run"}, "class_label was given, but this network does not take one"),
        ({"negative_prompt": ["a", "b"]}, "1 prompts need one negative_prompt or 1, found 2"),
        ({"num_videos": 2}, "num_videos is for unconditional networks"),
    ],
)
def test_impossible_requests_are_errors_that_name_what_is_allowed(pipeline, options, message):
    def computed(*_):
        raise AssertionError("something was computed before the arguments were checked")

    parts = (pipeline.transformer, pipeline.vae.decoder, pipeline.text_encoder)
    seen = [part.register_forward_pre_hook(computed) for part in parts]
    try:
        with pytest.raises(InputError, match=message):
            pipeline(**{"prompt": PROMPTS[0], **options})
    finally:
        for hook in seen:
            hook.remove()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_label": []}, "class_label must be a name or index of a class, or a list of them, found "),
        ({"class_label": 1.5}, "class_label must be a name or index of a class"),
        ({"class_label": "run", "negative_prompt": "blurry"}, "negative_prompt was given, but this network does not"),
        ({"class_label": "run", "prompt": "a circle"}, "prompt was given, but this network does not take one"),
        ({}, "this network needs a class_label"),
    ],
)
def test_a_network_for_classes_refuses_what_it_does_not_take(vae, options, message):
    with pytest.raises(InputError, match=message):
        pipeline_of(vae, class_names=CLASSES)(**options)
    counted = pipeline_of(vae, class_names=CLASSES)(class_label=np.int64(1), num_inference_steps=1).frames
    assert counted.shape[0] == 1


@pytest.mark.parametrize("number", [0, -1, 1.5, True])
def test_a_number_of_videos_that_is_none_is_an_error(vae, number):
    with pytest.raises(InputError, match="num_videos must be an integer >= 1 or None"):
        pipeline_of(vae)(num_videos=number)


def test_prompts_that_are_empty_or_too_long_are_errors_and_may_be_cut_as_in_training(pipeline):
    for empty in ("", "   ", ["a red circle", ""]):
        with pytest.raises(InputError, match="a prompt is empty"):
            pipeline(empty)
    long = "a red circle moves left " * 3
    with pytest.raises(InputError, match="a prompt has 17 tokens, but the network was trained with 8"):
        pipeline(long)
    assert generate(pipeline, long, [0], truncate_prompts=True, output_type="latent").isfinite().all()


def test_a_wrong_number_of_generators_is_an_error(pipeline):
    with pytest.raises(InputError, match="2 videos need one generator or 2, found 1"):
        pipeline(PROMPTS[:2], generator=[torch.Generator()])


def test_components_of_other_runs_are_refused(vae, text):
    other = make_dit(latent_channels=8, text_width=16, text_tokens=8)
    with pytest.raises(InputError, match="the VAE has 4 latent channels, but the network was trained on"):
        TextToVideoPipeline(vae, other, make_scheduler("euler", ObjectiveSettings()), text.model, text.tokenizer)
    with pytest.raises(InputError, match="DDIMScheduler does not fit a network that predicts flow"):
        TextToVideoPipeline(vae, make_dit(), DDIMScheduler(), text.model, text.tokenizer)
