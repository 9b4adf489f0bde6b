"""The diffusers pipeline: sizes, seeds, conditions, guidance, saving, loading and publishing, errors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.hooks import CpuOffload
from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler
from huggingface_hub import ModelCard
from small_networks import CLASSES, awake, make_dit, make_unet

from ldm import TextToVideoPipeline
from ldm.diffusion.settings import ObjectiveSettings
from ldm.networks.settings import TextSettings
from ldm.networks.text_encoder import learn_text_encoder, load_text_encoder
from ldm.sampling.decode import PIECE, decode_in_pieces
from ldm.sampling.pipeline_inputs import class_indices
from ldm.sampling.sample_requests import user_requests
from ldm.sampling.schedulers import make_scheduler
from odvae.per_frame import PerFrameVAE
from odvae.running.errors import InputError
from odvae.running.hashing import weights_fingerprint

PROMPTS = ["a red circle moves left", "a blue square moves up", "a red square moves right"]
STATISTICS = {"latents_mean": [0.1] * 4, "latents_std": [0.8] * 4}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    learn_text_encoder(PROMPTS, TextSettings(max_tokens=8, width=16, steps=3), folder / "learned", seed=0)
    return load_text_encoder(folder / "learned")


def make_pipeline(vae, text=None, make=make_dit, objective=None, **settings):
    objective = objective or ObjectiveSettings()
    told = {"text_width": 16, "text_tokens": 8} if text else {"text_width": None}
    network = awake(make(**{**told, **STATISTICS, "objective": objective.model_dump(mode="json"), **settings})).eval()
    scheduler = make_scheduler("euler" if objective.prediction == "flow" else "ddim", objective)
    parts = (text.model, text.tokenizer, text.name) if text else ()
    made = TextToVideoPipeline(vae, network, scheduler, *parts)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def pipeline(vae, text):
    return make_pipeline(vae, text)


def generate(pipeline, prompts, seeds, **options):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipeline(prompts, generator=generators, **{"num_inference_steps": 2, **options}).frames


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
    pipeline = make_pipeline(vae, make=make, class_names=CLASSES)

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
    pipeline = make_pipeline(vae)
    assert generate(pipeline, None, [0, 1], num_videos=2).shape == (2, 9, 32, 32, 3)
    with pytest.raises(InputError, match="prompt was given, but this network does not take one"):
        generate(pipeline, PROMPTS[0], [0])


def test_a_given_first_frame_is_the_videos_first_and_changes_the_others(vae, text):
    pipeline = make_pipeline(vae, text, first_frame=True)
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(7)) * 2 - 1
    latents = generate(pipeline, PROMPTS[0], [0], image=image, output_type="latent")
    expected = (vae.encode(image[None, :, None]).latent_dist.mean - 0.1) / 0.8
    assert torch.allclose(latents[:, :, :1], expected, atol=1e-6)
    without = generate(pipeline, PROMPTS[0], [0], output_type="latent")
    assert not torch.allclose(latents[:, :, 1:], without[:, :, 1:], atol=1e-2)
    with pytest.raises(InputError, match=r"image 0 is \(3, 24, 32\), but the videos' first frames are \(3, 32, 32\)"):
        generate(pipeline, PROMPTS[0], [0], image=image[:, :24])
    with pytest.raises(InputError, match="not trained to take a first frame"):
        generate(make_pipeline(vae, text), PROMPTS[0], [0], image=image)


def test_an_image_vaes_latents_give_any_number_of_frames_also_saved_and_loaded(image_vae, tmp_path):
    vae = PerFrameVAE.from_config(image_vae.config)
    vae.load_state_dict(image_vae.state_dict())
    pipeline = make_pipeline(vae.eval())
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
    pipeline = make_pipeline(vae, objective=ObjectiveSettings(prediction=prediction))
    made = generate(pipeline, None, [0])
    pipeline.scheduler = make_scheduler("dpmsolver++", pipeline.objective)
    assert np.abs(generate(pipeline, None, [0]) - made).max() > 0
    pipeline.scheduler = DPMSolverMultistepScheduler()
    with pytest.raises(InputError, match="does not fit the network's objective"):
        generate(pipeline, None, [0])
    pipeline.scheduler = make_scheduler("euler", ObjectiveSettings())
    with pytest.raises(InputError, match=f"does not fit a network that predicts {prediction}"):
        generate(pipeline, None, [0])


@pytest.mark.parametrize("part", ["vae", "transformer", "text_encoder", "tokenizer", "scheduler"])
def test_a_component_that_is_missing_or_incomplete_is_named_with_its_file(pipeline, tmp_path, part):
    pipeline.save_pretrained(tmp_path)
    config = next(path for path in sorted((tmp_path / part).glob("*config.json")))
    text = config.read_text()
    config.unlink()
    with pytest.raises(InputError, match=f"missing parts: {part}/{config.name}; export the run again"):
        TextToVideoPipeline.from_pretrained(tmp_path)
    config.write_text(text[:-10])
    with pytest.raises(InputError, match=rf"{part}/{config.name} is not valid JSON"):
        TextToVideoPipeline.from_pretrained(tmp_path)
    config.write_text(text)
    if weights := sorted((tmp_path / part).glob("*.safetensors")):
        weights[0].write_bytes(weights[0].read_bytes()[:-10])
        with pytest.raises(InputError, match=rf"{part}/{weights[0].name} is truncated"):
            TextToVideoPipeline.from_pretrained(tmp_path)


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_saved_and_loaded_by_either_class_it_gives_bit_identical_videos(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    expected = generate(pipeline, PROMPTS, [0, 1, 2])
    again = quiet(TextToVideoPipeline.from_pretrained(tmp_path))
    assert np.array_equal(generate(again, PROMPTS, [0, 1, 2]), expected)
    foreign = quiet(DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True))
    assert isinstance(foreign, TextToVideoPipeline)
    assert np.array_equal(generate(foreign, PROMPTS, [0, 1, 2]), expected)


def test_a_text_encoder_stored_as_a_reference_is_loaded_when_needed_and_must_be_unchanged(vae, text, tmp_path):
    full = make_pipeline(vae, text)
    bare = TextToVideoPipeline(
        vae, full.transformer, full.scheduler, None, None, text.name, weights_fingerprint(text.model)
    )
    bare.save_pretrained(tmp_path)
    assert not (tmp_path / "text_encoder").exists()
    again = quiet(TextToVideoPipeline.from_pretrained(tmp_path))
    assert np.array_equal(generate(again, PROMPTS[0], [0]), generate(full, PROMPTS[0], [0]))
    again = TextToVideoPipeline.from_pretrained(tmp_path, text_sha256="0" * 64)
    with pytest.raises(InputError, match="is not the text encoder the network was trained with"):
        generate(again, PROMPTS[0], [0])
    again = TextToVideoPipeline.from_pretrained(tmp_path, text_encoder_name=None)
    with pytest.raises(InputError, match="neither a text encoder nor the name of one"):
        generate(again, PROMPTS[0], [0])


def test_a_published_pipeline_has_a_model_card_and_the_file_of_its_class(pipeline, monkeypatch):
    uploaded = {}

    def upload(repo_id, folder_path, **_):
        uploaded.update({str(p.relative_to(folder_path)): p.read_text(errors="replace")
                         for p in Path(folder_path).rglob("*") if p.is_file()})  # fmt: skip

    class Repository:
        repo_id = "me/videos"

    monkeypatch.setattr("diffusers.utils.hub_utils.create_repo", lambda *_, **__: Repository)
    monkeypatch.setattr("diffusers.utils.hub_utils.upload_folder", upload)
    monkeypatch.setattr("diffusers.utils.hub_utils.load_or_create_model_card", lambda *_, **__: ModelCard("a card"))
    monkeypatch.setattr("diffusers.utils.hub_utils.populate_model_card", lambda card: card)
    pipeline.register_to_config(model_card="# What this is\n")
    try:
        pipeline.push_to_hub("me/videos")
    finally:
        pipeline.register_to_config(model_card=None)
    assert uploaded["README.md"] == "# What this is\n"
    assert "from ldm.pipeline import TextToVideoPipeline" in uploaded["pipeline.py"]
    assert json.loads(uploaded["model_index.json"])["_class_name"] == ["pipeline", "TextToVideoPipeline"]
    assert "transformer/config.json" in uploaded


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
        make_pipeline(vae, class_names=CLASSES)(**options)
    counted = make_pipeline(vae, class_names=CLASSES)(class_label=np.int64(1), num_inference_steps=1).frames
    assert counted.shape[0] == 1


@pytest.mark.parametrize("number", [0, -1, 1.5, True])
def test_a_number_of_videos_that_is_none_is_an_error(vae, number):
    with pytest.raises(InputError, match="num_videos must be an integer >= 1 or None"):
        make_pipeline(vae)(num_videos=number)


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
    pipeline = make_pipeline(vae, text, first_frame=True)
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


def test_every_prompt_has_a_file_of_its_own():
    prompts = ["a red circle", "A red circle!", "一只猫在跑步", "一只狗在游泳", "x" * 80, "x" * 81]
    files = [request.file for request in user_requests(prompts, [], seed=3)]
    assert files[0] == "a-red-circle_seed3.mp4"
    assert len(set(files)) == len(prompts)
