"""The diffusers pipeline: sizes, seeds, conditions, guidance, offloading."""

import numpy as np
import pytest
import torch
from accelerate.hooks import CpuOffload
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from small_networks import CLASSES, make_dit, make_unet
from small_pipeline import PROMPTS, generate, pipeline_of, quiet

from ldm import TextToVideoPipeline
from ldm.diffusion.settings import ObjectiveSettings
from ldm.sampling.decode import PIECE, decode_in_pieces
from ldm.sampling.pipeline_inputs import class_indices
from ldm.sampling.sample_requests import user_requests
from ldm.sampling.schedulers import make_scheduler
from odvae.clips.clip import fit_frames
from odvae.per_frame import PerFrameVAE
from odvae.running.errors import InputError
from odvae.video.pixels import to_float


def test_videos_have_the_trained_size_or_any_requested_size(pipeline):
    assert generate(pipeline, PROMPTS[:2], [0, 1]).shape == (2, 9, 32, 32, 3)
    frames = generate(pipeline, PROMPTS[0], [0], num_frames=5, height=16, width=48, output_type="pt")
    assert frames.shape == (1, 5, 3, 16, 48)
    assert 0 <= frames.min() < frames.max() <= 1
    assert generate(pipeline, PROMPTS[0], [0], output_type="latent").shape == (1, 4, 3, 4, 4)


def test_a_video_is_the_same_to_the_last_bit_alone_and_among_others_in_any_order(pipeline):
    alone = np.concatenate([generate(pipeline, PROMPTS[i], [i]) for i in range(3)])
    assert np.array_equal(generate(pipeline, PROMPTS, [0, 1, 2]), alone)
    assert np.array_equal(generate(pipeline, PROMPTS[::-1], [2, 1, 0])[::-1], alone)
    assert np.abs(alone[0] - generate(pipeline, PROMPTS[0], [5])[0]).max() > 0.01


def test_batches_of_several_differ_by_rounding_and_the_last_is_filled_up(pipeline):
    alone, shapes = generate(pipeline, PROMPTS, [0, 1, 2]), []
    seen = pipeline.transformer.register_forward_pre_hook(lambda _, inputs: shapes.append(len(inputs[0])))
    together = generate(pipeline, PROMPTS, [0, 1, 2], batch_size=2)
    seen.remove()
    assert np.abs(together - alone).max() < 1e-4
    assert set(shapes) == {4}  # two videos, each with and without its prompt


def test_prompt_and_guidance_matter_and_guidance_1_is_the_plain_prediction(pipeline):
    plain, guided = (generate(pipeline, PROMPTS[0], [0], guidance_scale=scale) for scale in (1.0, 4.0))
    assert np.abs(plain - guided).max() > 1e-3
    assert np.abs(plain - generate(pipeline, PROMPTS[1], [0], guidance_scale=1.0)).max() > 1e-3
    same = generate(pipeline, PROMPTS[0], [0], guidance_scale=4.0, negative_prompt=PROMPTS[0])
    assert np.abs(plain - same).max() < 1e-4  # v + s (v - v) = v
    never = generate(pipeline, PROMPTS[0], [0], guidance_scale=4.0, guidance_interval=(0.0, 0.0))
    assert np.array_equal(never, plain)
    assert np.abs(generate(pipeline, PROMPTS[0], [0], guidance_scale=4.0, guidance_rescale=0.7) - guided).max() > 1e-4


@pytest.mark.parametrize("make", [make_dit, make_unet])
def test_class_labels_are_names_or_indices_and_guidance_leads_away_from_no_class(vae, make):
    pipeline = pipeline_of(vae, make=make, class_names=CLASSES)

    def one(label, **options):
        return generate(pipeline, None, [0], class_label=label, num_frames=5, **options)

    assert np.array_equal(one("jump"), one(1))
    assert np.abs(one("jump") - one("swim")).max() > 1e-3
    assert np.abs(one("jump") - one("jump", guidance_scale=1.0)).max() > 1e-3
    assert generate(pipeline, None, [0, 1], class_label=["run", 2]).shape[0] == 2
    assert class_indices(("2", 2, "10", 0, "1"), names=["10", "2"]) == [1, 1, 0, 0, 1]
    for unknown in ("fly", 3, -1):
        with pytest.raises(InputError, match="is unknown; allowed are 0 to 2 or their names: run, jump, swim"):
            one(unknown)


def test_an_unconditional_network_generates_the_requested_number_of_videos(vae):
    pipeline = pipeline_of(vae)
    assert generate(pipeline, None, [0, 1], num_videos=2).shape == (2, 9, 32, 32, 3)
    with pytest.raises(InputError, match="prompt was given, but this network does not take one"):
        generate(pipeline, PROMPTS[0], [0])


def test_a_given_first_frame_is_the_videos_first_and_changes_the_others(vae, text):
    pipeline = pipeline_of(vae, text, first_frame=True)
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(7)) * 2 - 1
    latents = generate(pipeline, PROMPTS[0], [0], image=image, output_type="latent")
    expected = (vae.encode(image[None, :, None]).latent_dist.mean - 0.1) / 0.8
    assert torch.allclose(latents[:, :, :1], expected, atol=1e-6)
    without = generate(pipeline, PROMPTS[0], [0], output_type="latent")
    assert not torch.allclose(latents[:, :, 1:], without[:, :, 1:], atol=1e-2)
    with pytest.raises(InputError, match=r"image 0 is \(3, 24, 32\), but the videos' first frames are \(3, 32, 32\)"):
        generate(pipeline, PROMPTS[0], [0], image=image[:, :24])
    picture = Image.fromarray(
        ((image[:, :, :16] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    )  # of other sizes
    cropped = fit_frames(np.array(picture)[None], 32, 32)
    expected = generate(pipeline, PROMPTS[0], [0], image=to_float(cropped)[:, 0], output_type="latent")
    assert torch.equal(generate(pipeline, PROMPTS[0], [0], image=picture, output_type="latent"), expected)
    assert torch.equal(generate(pipeline, PROMPTS[0], [0], image=[picture], output_type="latent"), expected)
    clear = Image.fromarray(np.zeros((32, 32, 4), np.uint8))
    on_white = generate(pipeline, PROMPTS[0], [0], image=torch.ones(3, 32, 32), output_type="latent")
    assert torch.allclose(generate(pipeline, PROMPTS[0], [0], image=clear, output_type="latent"), on_white, atol=1e-4)
    with pytest.raises(InputError, match=r"must be a PIL image, a tensor .* found <class 'str'>"):
        generate(pipeline, PROMPTS[0], [0], image="first.png")
    with pytest.raises(InputError, match="not trained to take a first frame"):
        generate(pipeline_of(vae, text), PROMPTS[0], [0], image=image)


def test_an_image_vaes_latents_give_any_number_of_frames_also_saved_and_loaded(image_vae, tmp_path):
    vae = PerFrameVAE.from_config(image_vae.config)
    vae.load_state_dict(image_vae.state_dict())
    pipeline = pipeline_of(vae.eval())
    made = generate(pipeline, None, [0], num_frames=6)
    assert made.shape == (1, 6, 32, 32, 3)
    pipeline.save_pretrained(tmp_path)
    again = quiet(TextToVideoPipeline.from_pretrained(tmp_path))
    assert np.allclose(generate(again, None, [0], num_frames=6), made, atol=1e-5)  # the layout in memory may differ


def test_long_videos_are_decoded_in_pieces_that_equal_the_whole(vae):
    latents = torch.randn(1, 4, 11, 2, 2, generator=torch.Generator().manual_seed(8))
    sizes = []
    seen = vae.decoder.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[2]))
    pieces = list(decode_in_pieces(vae, latents, [0.0] * 4, [1.0] * 4))
    seen.remove()
    assert sizes == [PIECE, PIECE, 3]
    whole = vae.decode(latents).sample.clamp(-1, 1)
    assert torch.allclose(torch.cat(pieces, dim=2), whole, atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_every_prediction_samples_with_its_schedulers_and_refuses_the_others(vae, prediction):
    pipeline = pipeline_of(vae, objective=ObjectiveSettings(prediction=prediction))
    made = generate(pipeline, None, [0])
    pipeline.scheduler = make_scheduler("dpmsolver++", pipeline.objective)
    assert np.abs(generate(pipeline, None, [0]) - made).max() > 0
    pipeline.scheduler = DPMSolverMultistepScheduler()
    with pytest.raises(InputError, match="does not fit the network's objective"):
        generate(pipeline, None, [0])
    pipeline.scheduler = make_scheduler("euler", ObjectiveSettings())
    with pytest.raises(InputError, match=f"does not fit a network that predicts {prediction}"):
        generate(pipeline, None, [0])


def test_no_negative_prompt_is_an_empty_one_and_no_guidance_is_up_to_one(pipeline):
    empty = generate(pipeline, PROMPTS[0], [0], negative_prompt="")
    assert np.array_equal(generate(pipeline, PROMPTS[0], [0], negative_prompt=None), empty)
    assert np.array_equal(generate(pipeline, PROMPTS[0], [0]), empty)
    plain = generate(pipeline, PROMPTS[0], [0], guidance_scale=1)
    assert np.array_equal(generate(pipeline, PROMPTS[0], [0], guidance_scale=0), plain)
    assert np.array_equal(generate(pipeline, PROMPTS[0], [0], num_inference_steps=np.int64(2)), empty)


def test_pictures_of_pillow_are_the_same_frames(pipeline):
    frames = generate(pipeline, PROMPTS[:2], [0, 1])
    pictures = generate(pipeline, PROMPTS[:2], [0, 1], output_type="pil")
    assert [len(video) for video in pictures] == [9, 9]
    assert np.array_equal(np.asarray(pictures[1][4]), (frames[1, 4] * 255).round().astype(np.uint8))


def test_model_offloading_brings_each_part_to_the_device_when_it_is_called(vae, text, monkeypatch):
    pipeline = pipeline_of(vae, text, first_frame=True)
    image = torch.zeros(3, 32, 32)
    expected = generate(pipeline, PROMPTS[0], [0], image=image)
    brought, before = [], CpuOffload.pre_forward

    def bring(hook, module, *arguments, **options):
        brought.append(module)
        return before(hook, module, *arguments, **options)

    monkeypatch.setattr(CpuOffload, "pre_forward", bring)
    pipeline.enable_model_cpu_offload(device="cpu")  # diffusers' machinery, on the one device that is always there
    try:
        assert np.array_equal(generate(pipeline, PROMPTS[0], [0], image=image), expected)
        assert {*brought} == {pipeline.text_encoder, pipeline.transformer, pipeline.vae}
        for use in (pipeline.vae.encode, lambda video: pipeline.vae.decode(torch.zeros(1, 4, 1, 4, 4))):
            brought.clear()
            use(image[None, :, None])
            assert {*brought} == {pipeline.vae}
        brought.clear()
        list(pipeline.decode_in_pieces(torch.zeros(1, 4, 3, 4, 4)))
        assert {*brought} == {pipeline.vae}
    finally:
        pipeline.remove_all_hooks()


def test_every_prompt_has_a_file_of_its_own():
    prompts = ["a red circle", "A red circle!", "一只猫在跑步", "一只狗在游泳", "x" * 80, "x" * 81]
    files = [request.file for request in user_requests(prompts, [], seed=3)]
    assert files[0] == "a-red-circle_seed3.mp4"
    assert len(set(files)) == len(prompts)
