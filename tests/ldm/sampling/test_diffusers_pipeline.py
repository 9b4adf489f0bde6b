"""The pipeline takes the arguments of diffusers' pipelines and means the same by them."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.callbacks import MultiPipelineCallbacks, SDCFGCutoffCallback
from small_networks import CLASSES
from small_pipeline import PROMPTS, make_components, make_pipeline, seeded, small_text_encoder

from ldm import TextToVideoPipeline
from ldm.sample import generate_latents
from ldm.sampling.sample_requests import user_requests
from ldm.sampling.schedulers import make_scheduler
from ldm.sampling.settings import SampleSettings
from odvae.running.errors import InputError


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return small_text_encoder(tmp_path_factory.mktemp("text") / "learned")


@pytest.fixture
def components(text):
    return make_components(text)


@pytest.fixture
def pipeline(components):
    return make_pipeline(components)


def latents_of(pipeline, prompt=PROMPTS[0], seeds=(0,), **options):
    options = {"num_inference_steps": 3, "output_type": "latent", **options}
    return pipeline(prompt, generator=seeded(*seeds), **options).frames


def test_embeddings_take_the_place_of_prompts(pipeline):
    expected = latents_of(pipeline, PROMPTS[:2], (0, 1), negative_prompt=PROMPTS[2])
    embeds, negative = pipeline.encode_prompt(PROMPTS[:2], PROMPTS[2])
    assert embeds.shape == negative.shape == (2, 8, 16)
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": negative}
    assert torch.equal(latents_of(pipeline, None, (0, 1), **given), expected)
    with_empty = latents_of(pipeline, None, (0, 1), prompt_embeds=embeds)
    assert torch.equal(with_empty, latents_of(pipeline, PROMPTS[:2], (0, 1)))
    assert not torch.equal(with_empty, expected)


def test_padding_of_embeddings_is_zeros_and_nothing_else_is(pipeline):
    embeds, _ = pipeline.encode_prompt(PROMPTS[0], do_classifier_free_guidance=False)
    words = len(pipeline.tokenizer(PROMPTS[0]).input_ids)
    assert (embeds[0, :words] != 0).all(dim=-1).all()
    assert (embeds[0, words:] == 0).all()


def test_prompts_are_encoded_by_one_pipeline_and_sampled_by_another(components, pipeline):
    text_parts = ("text_encoder", "tokenizer")
    encoder = make_pipeline({name: part if name in text_parts else None for name, part in components.items()})
    sampler = make_pipeline({name: None if name in text_parts else part for name, part in components.items()})
    embeds, negative = encoder.encode_prompt(PROMPTS[0])
    made = latents_of(sampler, None, prompt_embeds=embeds, negative_prompt_embeds=negative)
    assert torch.equal(made, latents_of(pipeline))
    assert latents_of(sampler, None, prompt_embeds=embeds, guidance_scale=1).isfinite().all()
    with pytest.raises(InputError, match="neither a text encoder nor the name of one: give negative_prompt_embeds"):
        latents_of(sampler, None, prompt_embeds=embeds)
    with pytest.raises(InputError, match="neither a text encoder nor the name of one: give prompt_embeds"):
        latents_of(sampler)
    with pytest.raises(InputError, match="no transformer and no scheduler and no vae"):
        encoder(PROMPTS[0])


def test_components_left_out_when_loading_are_named(pipeline, tmp_path):
    expected = latents_of(pipeline)
    pipeline.save_pretrained(tmp_path)
    embeds, negative = pipeline.encode_prompt(PROMPTS[0])
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": negative}
    without_text = TextToVideoPipeline.from_pretrained(tmp_path, text_encoder=None, tokenizer=None)
    assert without_text.text_encoder is None
    assert torch.equal(latents_of(without_text, None, **given), expected)
    without_vae = TextToVideoPipeline.from_pretrained(tmp_path, vae=None)
    assert torch.equal(latents_of(without_vae), expected)
    with pytest.raises(InputError, match="this pipeline has no vae"):
        without_vae(PROMPTS[0])
    with pytest.raises(InputError, match="without a VAE, videos have the size of training"):
        latents_of(without_vae, num_frames=5)
    with pytest.raises(InputError, match="this pipeline has no transformer"):
        TextToVideoPipeline.from_pretrained(tmp_path, transformer=None)(PROMPTS[0])


def test_several_videos_of_a_prompt_follow_each_other(pipeline):
    together = latents_of(pipeline, PROMPTS[:2], (0, 1, 2, 3), num_videos_per_prompt=2)
    alone = [latents_of(pipeline, PROMPTS[i // 2], (i,)) for i in range(4)]
    assert torch.equal(together, torch.cat(alone))
    classes = make_pipeline(make_components(class_names=CLASSES))
    twice = classes(class_label=["run", "swim"], num_videos_per_prompt=2, generator=seeded(0, 1, 2, 3)).frames
    once = classes(class_label=["run", "run", "swim", "swim"], generator=seeded(0, 1, 2, 3)).frames
    assert np.array_equal(twice, once)
    nothing = make_pipeline(make_components())
    assert len(nothing(num_videos=2, num_videos_per_prompt=2, num_inference_steps=1).frames) == 4


def test_given_latents_are_the_noise_to_start_from(pipeline):
    noise = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))[None]
    assert torch.equal(latents_of(pipeline, latents=noise), latents_of(pipeline))
    assert not torch.equal(latents_of(pipeline, latents=-noise), latents_of(pipeline))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_callback_sees_all_videos_after_each_step_and_changes_what_follows(pipeline, batch_size):
    seen = []

    def look(of, step, timestep, tensors):
        assert of is pipeline
        assert {*tensors} == {"latents", "prompt_embeds", "negative_prompt_embeds"}
        seen.append((step, float(timestep), tensors["latents"].shape, tensors["prompt_embeds"].shape))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == of.num_timesteps - 1 else {}

    names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    options = {"callback_on_step_end": look, "callback_on_step_end_tensor_inputs": names, "batch_size": batch_size}
    assert latents_of(pipeline, PROMPTS, (0, 1, 2), **options).abs().sum() == 0
    assert [step for step, *_ in seen] == [0, 1, 2]
    assert seen[0][1] > seen[1][1] > seen[2][1]
    assert {shapes for *_, shapes in seen} == {(3, 8, 16)}
    assert seen[0][2] == (3, 4, 3, 4, 4)


def test_a_callback_changes_guidance_and_embeddings_and_interrupts(pipeline):
    def stronger(of, *_):
        of._guidance_scale += 1

    changed = latents_of(pipeline, guidance_scale=2.0, callback_on_step_end=stronger)
    assert pipeline.guidance_scale == 2.0 + pipeline.num_timesteps == 5.0
    assert not torch.equal(changed, latents_of(pipeline, guidance_scale=2.0))
    assert pipeline.guidance_scale == 2.0

    other, _ = pipeline.encode_prompt(PROMPTS[1])
    names = {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    swapped = latents_of(pipeline, callback_on_step_end=lambda *_: {"prompt_embeds": other}, **names)
    assert not torch.equal(swapped, latents_of(pipeline))

    steps = []

    def stop(of, step, *_):
        steps.append(step)
        of._interrupt = True

    first = latents_of(pipeline, callback_on_step_end=stop)
    assert steps == [0]
    assert not torch.equal(first, latents_of(pipeline))
    assert not pipeline.interrupt  # by the next call


def test_sigmas_and_timesteps_are_the_steps_that_are_taken(pipeline):
    even = np.linspace(1, 1 / 3, 3)
    assert torch.equal(latents_of(pipeline, sigmas=even), latents_of(pipeline))
    assert torch.allclose(latents_of(pipeline, timesteps=1000 * even), latents_of(pipeline), atol=1e-5)
    uneven = latents_of(pipeline, sigmas=[1.0, 0.9, 0.2])
    assert pipeline.num_timesteps == 3
    assert not torch.allclose(uneven, latents_of(pipeline), atol=1e-2)
    pipeline.scheduler = make_scheduler("heun", pipeline.objective)
    with pytest.raises(InputError, match="sigmas was given, but FlowMatchHeunDiscreteScheduler takes only"):
        latents_of(pipeline, sigmas=[1.0, 0.5])


def test_a_schedulers_own_shift_is_used(pipeline):
    before = latents_of(pipeline)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config, shift=3.0)
    shifted = latents_of(pipeline)
    assert not torch.allclose(shifted, before, atol=1e-2)
    even = np.linspace(1, 1 / 3, 3)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config, shift=1.0)
    assert torch.allclose(latents_of(pipeline, sigmas=3 * even / (1 + 2 * even)), shifted, atol=1e-3)
    unipc = make_scheduler("unipc", pipeline.objective)
    pipeline.scheduler = unipc
    plain = latents_of(pipeline)
    pipeline.scheduler = UniPCMultistepScheduler.from_config(unipc.config, flow_shift=3.0)
    assert not torch.allclose(latents_of(pipeline), plain, atol=1e-2)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    with pytest.raises(InputError, match="use_dynamic_shifting"):
        latents_of(pipeline)


def test_max_sequence_length_pads_and_truncates(pipeline):
    embeds, _ = pipeline.encode_prompt("a red circle moves left " * 3, max_sequence_length=6)
    assert embeds.shape == (1, 6, 16)
    assert (embeds != 0).any(dim=-1).all()
    assert latents_of(pipeline, "a red circle moves left " * 3, max_sequence_length=6).isfinite().all()
    with pytest.raises(InputError, match="max_sequence_length=9: the network was trained with 8 tokens"):
        latents_of(pipeline, max_sequence_length=9)


def test_the_settings_of_sampling_truncate_prompts(pipeline):
    requests = user_requests(["a red circle moves left " * 3], class_labels=[], seed=0)
    with pytest.raises(InputError, match=r"sample\.truncate_prompts=true"):
        generate_latents(pipeline, requests, SampleSettings(num_inference_steps=1))
    settings = SampleSettings(num_inference_steps=1, truncate_prompts=True)
    assert generate_latents(pipeline, requests, settings).isfinite().all()


def test_the_vaes_options_and_properties(pipeline):
    assert pipeline.vae_scale_factor == 8
    video = pipeline.video_processor.postprocess_video(torch.zeros(1, 3, 2, 8, 8), output_type="np")
    assert video.shape == (1, 2, 8, 8, 3)
    plain = pipeline(PROMPTS[0], generator=seeded(0), num_inference_steps=1).frames
    pipeline.enable_vae_slicing()
    pipeline.enable_vae_tiling()
    assert pipeline.vae.use_slicing
    assert pipeline.vae.use_tiling
    assert np.array_equal(pipeline(PROMPTS[0], generator=seeded(0), num_inference_steps=1).frames, plain)
    pipeline.disable_vae_slicing()
    pipeline.disable_vae_tiling()
    assert not pipeline.vae.use_slicing
    assert not pipeline.vae.use_tiling


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": []}, r"prompt must be a text or a list of texts, found \[\]"),
        ({"prompt": 5}, "prompt must be a text or a list of texts, found 5"),
        ({"prompt": "a", "prompt_embeds": torch.zeros(1, 8, 16)}, "prompt and prompt_embeds were given"),
        ({"negative_prompt": "a", "negative_prompt_embeds": torch.zeros(1, 8, 16)}, "negative_prompt and negative_pro"),
        ({"prompt": None, "prompt_embeds": torch.zeros(8, 16)}, r"prompt_embeds must be a float tensor .* \(8, 16\)"),
        ({"prompt": None, "prompt_embeds": torch.zeros(1, 8, 5)}, "prompt_embeds have width 5, but the network takes"),
        ({"negative_prompt_embeds": torch.zeros(1, 4, 16)}, r"negative_prompt_embeds are \(1, 4, 16\), but prompt_emb"),
        ({"latents": torch.zeros(1, 4, 3, 4, 5)}, r"latents must be a float tensor .* = \(1, 4, 3, 4, 4\), found"),
        ({"num_videos_per_prompt": 0}, "num_videos_per_prompt must be an integer >= 1"),
        ({"callback_on_step_end": 1}, "callback_on_step_end must be a function"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "has noise; allowed are latents, prompt_embeds"),
        ({"timesteps": [1000], "sigmas": [1.0]}, "timesteps and sigmas were given"),
    ],
)
def test_arguments_that_cannot_be_meant_are_named(pipeline, options, message):
    with pytest.raises(InputError, match=message):
        pipeline(**{"prompt": PROMPTS[0], "num_inference_steps": 1, **options})


def test_ddim_takes_no_timesteps_of_its_own(text):
    from ldm.diffusion.settings import ObjectiveSettings

    objective = ObjectiveSettings(prediction="v")
    parts = make_components(text, objective=objective.model_dump(mode="json"))
    pipeline = make_pipeline({**parts, "scheduler": make_scheduler("ddim", objective)})
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    with pytest.raises(InputError, match="timesteps was given, but DDIMScheduler takes only num_inference_steps"):
        latents_of(pipeline, timesteps=[900, 100])


def test_diffusers_own_callbacks_name_the_tensors_that_they_read(pipeline):
    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=0.5)
    changed = latents_of(pipeline, guidance_scale=4.0, callback_on_step_end=cutoff)
    assert not torch.equal(changed, latents_of(pipeline, guidance_scale=4.0))
    several = MultiPipelineCallbacks([cutoff])
    assert torch.equal(latents_of(pipeline, guidance_scale=4.0, callback_on_step_end=several), changed)
