"""Generation behind the page: the pipeline's videos, and clear errors for what a visitor may type."""

import io
import json
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small_app import small_model, video_bytes
from small_networks import CLASSES

from ldm.app.generate import LARGEST_SEED, Request, generate, generate_video
from ldm.app.limits import Limits
from ldm.app.model import load
from odvae.running.errors import InputError

REQUEST = Request(prompt="a red circle moves left", seed=3, steps=2, guidance_scale=2.0, frames=9)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("text") / "encoder")


def png(width=20, height=30) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 200, np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def test_the_video_is_the_pipelines(model):
    shares = []
    found = generate_video(model, REQUEST, lambda share, what: shares.append(share))
    generator = torch.Generator().manual_seed(3)
    expected = model.pipeline(
        "a red circle moves left", num_inference_steps=2, guidance_scale=2.0, generator=generator, output_type="pt"
    ).frames
    assert torch.equal(found.transpose(1, 2) / 2 + 0.5, expected)
    assert shares == [0, 1 / 3, 2 / 3]
    assert not torch.equal(found, generate_video(model, replace(REQUEST, seed=4)))


def test_a_prompt_is_text_on_the_page_and_never_html(model):
    page = generate(model, replace(REQUEST, prompt="red <b>", frames=1))
    assert "red &lt;b&gt;" in page
    assert "red <b>" not in page
    assert 'src="data:video/mp4;base64,' in page


def test_two_at_once_get_what_each_gets_alone(model):
    requests = [replace(REQUEST, seed=seed, frames=5, guidance_scale=1.0 + 2 * seed) for seed in range(3)]
    alone, together = [generate_video(model, request) for request in requests], {}

    def work(i: int) -> None:
        together[i] = generate_video(model, requests[i])

    threads = [threading.Thread(target=work, args=[i]) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(together[i], alone[i]) for i in range(3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "  "}, "the prompt is empty"),
        ({"prompt": "a" * 1001}, "the prompt has 1001 characters; at most 1000"),
        ({"prompt": "a red circle " * 20}, "tokens"),
        ({"negative_prompt": "a" * 1001}, "the negative prompt has 1001 characters"),
        ({"seed": None}, "the seed must be a whole number, found None"),
        ({"seed": -1}, f"the seed must be from 0 to {LARGEST_SEED}, found -1"),
        ({"seed": 0.5}, "the seed must be a whole number, found 0.5"),
        ({"seed": float("nan")}, "the seed must be a whole number, found nan"),
        ({"seed": float("inf")}, "the seed must be a whole number, found inf"),
        ({"steps": 101}, "the number of steps must be from 1 to 100, found 101"),
        ({"steps": "7"}, "the number of steps must be a whole number, found '7'"),
        ({"guidance_scale": 99.0}, "guidance must be a number from 1 to 15, found 99"),
        ({"guidance_scale": float("nan")}, "guidance must be a number"),
        ({"frames": 8}, "num_frames must be 4k.1, .* found 8"),
        ({"frames": 10_001}, "the length must be from 1 to 17, found 10001"),
    ],
)
def test_what_a_visitor_may_type_wrongly_is_explained(model, changes, message):
    with pytest.raises(InputError, match=message):
        generate_video(model, replace(REQUEST, **changes))


def test_a_model_of_classes_takes_one_of_them():
    model = small_model(class_names=CLASSES)
    assert (model.takes_text, model.classes, model.takes_first_frame) == (False, CLASSES, False)
    request = Request(class_name="jump", steps=1, frames=1)
    assert generate_video(model, request).shape == (1, 3, 1, 32, 32)
    with pytest.raises(InputError, match="choose a class; found None"):
        generate_video(model, replace(request, class_name=None))
    with pytest.raises(InputError, match="choose a class; found 'fly'"):
        generate_video(model, replace(request, class_name="fly"))


def test_a_first_frame_begins_the_video_and_what_is_no_image_is_refused():
    model = small_model(first_frame=True, limits=Limits(upload_mb=1, file_pixels=50 * 50))
    request = Request(steps=1, frames=1)
    assert model.takes_first_frame
    assert not torch.equal(generate_video(model, replace(request, image=png())), generate_video(model, request))
    for data, message in (
        (b"no image at all", "the first frame: cannot be read as an image .* it is text"),
        (b"", "the first frame: the file is empty"),
        (video_bytes(1), "the first frame: cannot be read as an image"),
        (png(51, 50), "frames of 51x50 pixels; at most 0.0 million"),
        (bytes(1_000_001), "the first frame has 1.0 MB; at most 1 MB are allowed"),
    ):
        with pytest.raises(InputError, match=message):
            generate_video(model, replace(request, image=data))


def test_an_exported_pipeline_is_loaded_and_what_is_none_is_refused(tmp_path, model):
    model.pipeline.save_pretrained(tmp_path / "pipeline")
    loaded = load(tmp_path / "pipeline", torch.device("cpu"))
    assert (loaded.video_size, loaded.takes_text, loaded.longest) == ((9, 32, 32), True, 17)
    assert torch.equal(generate_video(loaded, REQUEST), generate_video(model, REQUEST))
    with pytest.raises(InputError, match="has neither an ldm/ folder nor a model_index"):
        load(tmp_path, torch.device("cpu"))
    with pytest.raises(InputError, match="nothing is not there: give the folder of a run"):
        load(tmp_path / "nothing", torch.device("cpu"))


def test_the_page_begins_as_the_evaluations_samples_were_made_and_damaged_ones_are_named(tmp_path, model):
    def record(**changes):
        """The table of a sample of a visitor's own prompt, and one of a held-out caption."""
        about = {"num_inference_steps": 7, "guidance_scale": 2.5, "fps": 8.0, "prompt": "a blue square", **changes}
        own = {**about, "file": "a.mp4", "group": "user", "num_inference_steps": 99, "prompt": "a cat"}
        rows = [own, {**about, "file": "held_out_0000.mp4", "group": "held_out"}]
        (tmp_path / "samples/samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    model.pipeline.save_pretrained(tmp_path / "pipeline")
    (tmp_path / "samples").mkdir()
    record()
    loaded = load(tmp_path / "pipeline", torch.device("cpu"))
    assert loaded.examples == ["a blue square"]
    assert (loaded.settings.num_inference_steps, loaded.settings.guidance_scale) == (7, 2.5)
    record(guidance_scale="much")
    with pytest.raises(InputError, match=r"samples\.jsonl:\n  guidance_scale: found 'much'"):
        load(tmp_path / "pipeline", torch.device("cpu"))
