"""Prompts, classes or images -> videos: one seed a video, mp4 files and `samples.jsonl` with all that made each."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from pydantic import Field

from ldm.demo.videos import prompts as demo_prompts
from ldm.diffusion import objective_of
from ldm.networks.conditioning import ConditioningSettings
from ldm.networks.factory import load_network
from ldm.networks.text_encoder import load_text_encoder
from ldm.pipeline import TextToVideoPipeline
from ldm.sampling.sample_table import add_sample_rows, read_sample_rows
from ldm.sampling.schedulers import SamplerName, make_scheduler
from ldm.train import PROVENANCE, ema_folder
from odvae.clips.clip import fit_frames
from odvae.clips.video_set import VideoSet
from odvae.running.distributed import decide_on_main_process
from odvae.running.errors import InputError
from odvae.running.files import read_json, written_aside
from odvae.running.hashing import file_fingerprint, weights_fingerprint
from odvae.running.progress import progress_bar
from odvae.running.run_folder import code_version
from odvae.running.seeds import derive_seed
from odvae.running.settings import Settings
from odvae.running.stage import Stage
from odvae.video.files import decode, encode_video
from odvae.video.frame_grid import save_gif, save_picture, strip
from odvae.video.pixels import to_float, to_uint8
from odvae.video_vae import load_vae

HELD_OUT, UNSEEN, ASKED = "held_out", "unseen", "asked"
ON_CONTACT_SHEET = 16  # videos


class SampleSettings(Settings):
    renamed_section: ClassVar = "samples"
    renamed_keys: ClassVar = {"steps": "num_inference_steps", "guidance": "guidance_scale"}

    sampler: SamplerName | None = None
    """diffusers' scheduler: euler, heun, dpmsolver++ or unipc for rectified flow; ddim, dpmsolver++ or unipc for the
    others; null: euler or ddim."""
    num_inference_steps: int = Field(20, ge=1)
    """Steps of the sampler."""
    guidance_scale: float = Field(3.0, ge=1)
    """Classifier-free guidance; 1 is none."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Noise levels (0 data, 1 noise) within which guidance acts."""
    guidance_rescale: float = Field(0.0, ge=0, le=1)
    """How far guided answers get back the spread of unguided ones, against oversaturation."""
    ema_decay: float | None = None
    """Whose averaged weights are used: one of `ldm.optimization.extra_ema_decays`; null: the run's main ones."""
    batch_size: int = Field(1, ge=1)
    """Videos made at a time on each rank. With 1 a video is the same to the last bit whichever others are made; more
    are faster where the network is small, and then a video differs by rounding with its place among others."""
    frames: int | None = Field(None, ge=1)
    """Frames a video, as many as the VAE takes; null: as trained."""
    height: int | None = Field(None, ge=1)
    """Height in pixels; null: as trained."""
    width: int | None = Field(None, ge=1)
    """Width in pixels; null: as trained."""
    count: int = Field(96, ge=1)
    """Videos made for the evaluation when nothing is asked for: of held-out captions, or of all classes in turn."""
    unseen_count: int = Field(0, ge=0)
    """Demo videos only: prompts for combinations of shape, color and motion that training never saw."""
    fps: float = Field(8.0, gt=0)
    """Frames per second of the files."""
    gif: bool = False
    """Write a GIF beside each mp4."""


@dataclass(frozen=True)
class Request:
    """One video to make."""

    file: str
    seed: int
    group: str
    prompt: str | None = None
    negative_prompt: str = ""
    class_label: str | int | None = None
    image: str | None = None  # file of the given first frame
    source: str | None = None  # the held-out video the caption is of


def evaluation_requests(
    settings: SampleSettings,
    conditioning: ConditioningSettings,
    classes: Sequence[str],
    videos: VideoSet,
    seed: int,
    demo: bool,
) -> list[Request]:
    """The requests an evaluation needs: captions of held-out videos (and for the demo unseen combinations), every class
    in turn, or just as many videos.
    """
    if settings.unseen_count and not demo:
        raise InputError("sample.unseen_count is for demo videos: other captions have no combinations to leave out")
    numbered = [(f"{HELD_OUT}_{i:04d}.mp4", derive_seed(seed, HELD_OUT, i)) for i in range(settings.count)]
    if conditioning.kind == "none":
        return [Request(file, own_seed, HELD_OUT) for file, own_seed in numbered]
    if conditioning.kind == "class":
        return [
            Request(file, own_seed, HELD_OUT, class_label=classes[i % len(classes)])
            for i, (file, own_seed) in enumerate(numbered)
        ]
    captioned = [(sample, text) for sample in videos.held_out if (text := sample.read_text())]
    if not captioned:
        raise InputError("the held-out videos have no captions; give --prompt")
    requests = []
    for i, (file, own_seed) in enumerate(numbered):
        sample, caption = captioned[i % len(captioned)]
        requests.append(Request(file, own_seed, HELD_OUT, caption, source=sample.key))
    for i, prompt in enumerate(demo_prompts(settings.unseen_count, seed, unseen=True) if demo else []):
        requests.append(Request(f"{UNSEEN}_{i:04d}.mp4", derive_seed(seed, UNSEEN, i), UNSEEN, prompt))
    return requests


def asked_requests(
    prompts: Sequence[str],
    class_labels: Sequence[str],
    seed: int,
    count: int = 1,
    negative_prompt: str = "",
    image: Path | None = None,
) -> list[Request]:
    """Requests a person made: `count` videos of each prompt or class (of nothing where there is neither).

    Their seeds are `seed`, `seed + 1`, ...; a file's name follows from what was asked and its seed.
    """
    if image is not None and not image.is_file():
        raise InputError(f"--image {image}: no such file")
    if any(not prompt.strip() for prompt in prompts):
        raise InputError("a prompt is empty")
    asked: list[tuple[str, dict]] = [(prompt, {"prompt": prompt}) for prompt in prompts]
    asked += [(label, {"class_label": label}) for label in class_labels]
    return [
        Request(
            f"{_slug(name)}_seed{seed + i}.mp4",
            seed + i,
            ASKED,
            negative_prompt=negative_prompt,
            image=str(image) if image else None,
            **what,
        )
        for name, what in asked or [("video", {})]
        for i in range(count)
    ]


def _slug(name: str) -> str:
    """A file name of a prompt; with a part of its hash, where the name alone could be another prompt's too."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60].strip("-") or "video"
    if slug.replace("-", " ") == name:
        return slug
    return f"{slug}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"


def load_pipeline(
    vae_folder: Path, ldm_folder: Path, sampler: SamplerName | None = None, ema_decay: float | None = None
) -> TextToVideoPipeline:
    """The pipeline of a run. Raises InputError when a part is missing or is not the one the LDM was trained with."""
    place = ldm_folder if ema_decay is None else ldm_folder / ema_folder(ema_decay)
    if ema_decay is not None and not place.is_dir():
        found = ", ".join(sorted(path.name for path in ldm_folder.glob("ema_*"))) or "none"
        raise InputError(f"{place} does not exist: averages saved beside the main one in {ldm_folder}: {found}")
    transformer = load_network(place)
    vae, provenance = load_vae(vae_folder), read_json(place / PROVENANCE)
    found = weights_fingerprint(vae)
    if found != provenance["vae_sha256"]:
        raise InputError(
            f"{ldm_folder} was trained with another VAE: its vae_sha256 is {provenance['vae_sha256'][:16]}..., "
            f"that of {vae_folder} is {found[:16]}...; train the LDM again in another run folder"
        )
    objective = objective_of(transformer.config)
    scheduler = make_scheduler(sampler or ("euler" if objective.prediction == "flow" else "ddim"), objective)
    if transformer.config.text_width is None:
        return TextToVideoPipeline(vae, transformer, scheduler)
    beside, sha256 = ldm_folder / provenance["text_encoder"], provenance["text_sha256"]
    name = str(beside.resolve()) if beside.is_dir() else provenance["text_encoder"]
    text = load_text_encoder(name)
    if (found := weights_fingerprint(text.model)) != sha256:
        raise InputError(
            f"{name} is another text encoder ({found[:16]}...) than the one {ldm_folder} was trained with "
            f"({sha256[:16]}...)"
        )
    return TextToVideoPipeline(vae, transformer, scheduler, text.model, text.tokenizer, name, sha256)


def sample_videos(
    requests: Sequence[Request], settings: SampleSettings, vae_folder: Path, ldm_folder: Path, folder: Path
) -> list[Path]:
    """Make the videos into `folder`; ranks share them. Rows of samples.jsonl for the same file are replaced.

    A video is decoded and written piece by piece, so its length does not matter for memory.
    """
    state = PartialState()
    decide_on_main_process(lambda: read_sample_rows(folder))  # whether they can be added to
    pipeline = load_pipeline(vae_folder, ldm_folder, settings.sampler, settings.ema_decay).to(state.device)
    pipeline.set_progress_bar_config(disable=True)
    with Stage(folder) as stage:
        mine = requests[state.process_index :: state.num_processes]
        with progress_bar("sampling", 0, len(mine), unit="video") as bar:
            for batch in _batches(mine, settings.batch_size):
                for request, latents in zip(batch, generate_latents(pipeline, batch, settings), strict=True):
                    _write(folder / request.file, pipeline, latents, settings)
                    bar.update()
        state.wait_for_everyone()
        if state.is_main_process:
            _record(requests, settings, read_json(ldm_folder / PROVENANCE), pipeline, stage)
            _write_contact_sheet([folder / request.file for request in requests[:ON_CONTACT_SHEET]], folder)
    return [folder / request.file for request in requests]


def _write(path: Path, pipeline: TextToVideoPipeline, latents: torch.Tensor, settings: SampleSettings) -> None:
    """Decode latents (c, k, h, w) piece by piece into an mp4, and a GIF where asked for."""
    _, _, h, w = latents.shape
    pieces = pipeline.decode_in_pieces(latents[None])
    frames = (frame for piece in pieces for frame in to_uint8(piece[0]))
    factor = pipeline.vae.spatial_compression_ratio
    with written_aside(path) as file:
        file.write(encode_video(frames, h * factor, w * factor, settings.fps))
    if settings.gif:
        save_gif(path.with_suffix(".gif"), decode(path, str(path)), settings.fps)


def _batches(requests: Sequence[Request], size: int) -> Iterator[Sequence[Request]]:
    """Runs of requests of one kind: with a given first frame or without."""
    for with_image in (False, True):
        alike = [request for request in requests if (request.image is not None) == with_image]
        for first in range(0, len(alike), size):
            yield alike[first : first + size]


def generate_latents(
    pipeline: TextToVideoPipeline, requests: Sequence[Request], settings: SampleSettings
) -> torch.Tensor:
    """Latents (b, c, k, h, w) of requests of one kind, each from its own seed."""
    prompts = [request.prompt for request in requests]
    labels = [request.class_label for request in requests]
    unconditional = prompts[0] is None and labels[0] is None
    images = [request.image for request in requests]
    return pipeline(
        None if prompts[0] is None else prompts,
        [request.negative_prompt for request in requests] if prompts[0] is not None else "",
        None if labels[0] is None else labels,
        None if images[0] is None else [_read_image(pipeline, image, settings) for image in images],
        num_videos=len(requests) if unconditional else None,
        num_frames=settings.frames,
        height=settings.height,
        width=settings.width,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        guidance_interval=settings.guidance_interval,
        guidance_rescale=settings.guidance_rescale,
        generator=[torch.Generator().manual_seed(request.seed) for request in requests],
        batch_size=settings.batch_size,
        truncate_prompts=requests[0].group != ASKED,  # held-out captions are cut as in training
        output_type="latent",
    ).frames


def _read_image(pipeline: TextToVideoPipeline, file: str, settings: SampleSettings) -> torch.Tensor:
    """A picture as first frame, (3, h, w) in [-1, 1]: scaled to cover the videos' size, center cropped."""
    try:
        with Image.open(file) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except OSError as error:
        raise InputError(f"--image {file} cannot be read as a picture: {error}") from None
    _, h, w = pipeline.transformer.config.sample_size
    factor = pipeline.vae.spatial_compression_ratio
    size = (settings.height or h * factor, settings.width or w * factor)
    return to_float(fit_frames(pixels[None], *size))[:, 0]


def _record(
    requests: Sequence[Request],
    settings: SampleSettings,
    provenance: dict,
    pipeline: TextToVideoPipeline,
    stage: Stage,
) -> None:
    """Everything that decides a video's bytes, a row a file; the rows of other files stay."""
    how = {
        **settings.model_dump(mode="json", exclude={"count", "unseen_count", "gif"}),
        "scheduler": type(pipeline.scheduler).__name__,
        "vae_sha256": provenance["vae_sha256"],
        "ldm_sha256": weights_fingerprint(pipeline.transformer),
        "text_sha256": provenance["text_sha256"] if pipeline.text_encoder is not None else None,
        "device": str(pipeline.device.type),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **code_version(),
    }
    made = {}
    for request in requests:
        image = {"image_sha256": file_fingerprint(Path(request.image))} if request.image else {}
        made[request.file] = asdict(request) | how | image
    add_sample_rows(stage, made)


def _write_contact_sheet(files: Sequence[Path], folder: Path) -> None:
    """Frames of the first videos under one another."""
    videos = [np.stack(list(decode(file, str(file)))) for file in files]
    save_picture(folder / "contact_sheet.png", strip(videos))
