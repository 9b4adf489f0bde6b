"""Generation of one video for the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm.app.limits import Limits, number, whole_number
from ldm.app.model import Model
from ldm.report.page import data_uri, render_page
from odvae.clips.clip import DEFAULT_FPS, fit_frames
from odvae.running.errors import InputError
from odvae.running.precision import autocast
from odvae.video.images import decode_image, examine_image
from odvae.video.pixels import to_float, to_uint8
from odvae.video.video_io import encode_video

LARGEST_SEED = 2**53 - 1  # the largest whole number that a browser keeps exactly

# Called after each step with the share that is done, 0 to 1, and what is being done.
Progress = Callable[[float, str], Any]


@dataclass(frozen=True)
class Request:
    """What a visitor asks for, as it was typed; `generate` checks it."""

    prompt: str = ""
    negative_prompt: str = ""
    class_name: str | None = None
    image: bytes | None = None
    """A file with the first frame."""
    seed: Any = 0
    steps: Any = 20
    guidance_scale: Any = 3.0
    frames: Any = 17


def generate(model: Model, request: Request, progress: Progress = lambda share, what: None) -> str:
    """The generated video as a piece of HTML. The same request gives the same video.

    Raises InputError for what the model or the limits do not allow.
    """
    video = generate_video(model, request, progress)
    _, _, t, h, w = video.shape
    frames = to_uint8(video[0])
    condition = request.prompt.strip() if model.takes_text else request.class_name if model.classes else "unconditional"
    return render_page(
        "app_generated.html.j2",
        video=data_uri(encode_video(iter(frames), h, w, model.settings.fps or DEFAULT_FPS), "video/mp4"),
        condition=condition,
        details=f"{t} frames of {w}x{h}, seed {request.seed:.0f}, {request.steps:.0f} steps"
        + (f", guidance {request.guidance_scale:g}" if model.takes_text or model.classes else ""),
        file=f"seed_{request.seed:.0f}.mp4",
    )


def generate_video(model: Model, request: Request, progress: Progress = lambda share, what: None) -> Tensor:
    """The generated video (1, 3, t, h, w) in [-1, 1]."""
    pipeline, limits = model.pipeline, model.limits
    frames = whole_number(request.frames, "the length", 1, model.longest)
    steps = whole_number(request.steps, "the number of steps", 1, limits.steps)
    guidance = number(request.guidance_scale, "guidance", 1, limits.guidance_scale)
    seed = whole_number(request.seed, "the seed", 0, LARGEST_SEED)
    _, height, width = model.video_size
    conditions = _conditions(model, request, height, width)

    def after_step(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        progress((step + 1) / (steps + 1), f"step {step + 1} of {steps}")
        return tensors

    progress(0, "starting")
    with model.lock, torch.no_grad(), autocast(model.settings.precision, pipeline.device):
        latents = pipeline(
            **conditions,
            num_frames=frames,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(seed),
            guidance_interval=model.settings.guidance_interval,
            guidance_rescale=model.settings.guidance_rescale,
            output_type="latent",
            callback_on_step_end=after_step,
        ).frames
        return torch.cat(list(pipeline.decode_in_pieces(latents)), dim=2).float()


def _conditions(model: Model, request: Request, height: int, width: int) -> dict[str, Any]:
    """The pipeline's arguments for the conditions that this model takes."""
    found: dict[str, Any] = {}
    if model.takes_text:
        for name, text in (("the prompt", request.prompt), ("the negative prompt", request.negative_prompt)):
            if len(text) > model.limits.prompt_characters:
                raise InputError(
                    f"{name} has {len(text)} characters; at most {model.limits.prompt_characters} are allowed"
                )
        if not request.prompt.strip():
            raise InputError("the prompt is empty: describe the video that you want")
        found = {"prompt": request.prompt.strip(), "negative_prompt": request.negative_prompt.strip() or None}
    if model.classes:
        if request.class_name not in model.classes:
            raise InputError(f"choose a class; found {request.class_name!r}")
        found = {"class_label": request.class_name}
    if model.takes_first_frame and request.image is not None:
        found["image"] = read_image(request.image, "the first frame", height, width, model.limits)
    return found


def read_image(data: bytes, name: str, height: int, width: int, limits: Limits) -> Tensor:
    """An image file as first frame (3, height, width) in [-1, 1]: scaled to cover this size, and center cropped.

    Raises InputError for what is no image, or too large.
    """
    limits.check_upload(data, name)
    facts = examine_image(data, name)
    limits.check_file_pixels(facts.height, facts.width, name)
    return to_float(fit_frames(decode_image(data, name)[None], height, width))[:, 0]
