"""Samples videos from prompts, classes or images into mp4 files; `samples.jsonl` records what determines each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from ldm.diffusion.objective import objective_of
from ldm.networks.attention_backends import check_backend, use_backend
from ldm.networks.factory import load_network
from ldm.networks.network import NetworkLoader
from ldm.networks.provenance import Provenance, weights_folder
from ldm.networks.text_encoder import load_text_encoder
from ldm.pipeline import TextToVideoPipeline
from ldm.sampling.pipeline_inputs import latent_shape
from ldm.sampling.sample_requests import USER, Request
from ldm.sampling.sample_table import SAMPLE_TABLE, SampleTable, lossless_file, made_before, read_sample_rows
from ldm.sampling.schedulers import make_scheduler
from ldm.sampling.settings import SamplerName, SampleSettings
from odvae.clips.clip import DEFAULT_FPS, fit_frames
from odvae.running.distributed import decide_on_main_process, wait_for_everyone
from odvae.running.errors import InputError
from odvae.running.files import atomic_file
from odvae.running.hashing import file_fingerprint, weights_fingerprint
from odvae.running.precision import autocast, uses_bf16
from odvae.running.progress import progress_bar
from odvae.running.run_folder import code_version
from odvae.running.stage import Stage
from odvae.running.text import check_is_file
from odvae.storage.mirror import errors_named, everything, fetched, models
from odvae.video.decoding import decoding
from odvae.video.frame_grid import frame_grid, save_gif, save_image
from odvae.video.images import decode_image
from odvae.video.pixels import to_float, to_uint8
from odvae.video.video_io import decode, encode_lossless, encode_video
from odvae.video_vae import VAELoader, load_vae

CONTACT_SHEET_VIDEOS = 16


def load_pipeline(
    vae_folder: Path,
    ldm_folder: Path,
    sampler: SamplerName | None = None,
    ema_decay: float | None = None,
    *,
    load_vae: VAELoader = load_vae,
    load_network: NetworkLoader = load_network,
) -> TextToVideoPipeline:
    """The pipeline of a run, with the weights of its main EMA or of one of `extra_ema_decays`.

    Raises InputError where a component is missing or is not the one that the LDM was trained with.
    """
    here = fetched(ldm_folder, models)
    with errors_named(here, ldm_folder):
        weights = weights_folder(here, ema_decay)
        transformer, provenance = load_network(weights), Provenance.load(weights)
    vae = load_vae(vae_folder)
    found = weights_fingerprint(vae)
    if found != provenance.vae_sha256:
        raise InputError(
            f"{ldm_folder} was trained with another VAE: its vae_sha256 is {provenance.vae_sha256[:16]}..., "
            f"that of {vae_folder} is {found[:16]}...; train the LDM again in another run folder"
        )
    objective = objective_of(transformer.config)
    scheduler = make_scheduler(sampler or ("euler" if objective.prediction == "flow" else "ddim"), objective)
    if transformer.config.text_width is None:
        return TextToVideoPipeline(vae, transformer, scheduler)
    name, sha256 = provenance.text_encoder_in(ldm_folder), provenance.text_sha256
    text = load_text_encoder(name)
    if (found := weights_fingerprint(text.model)) != sha256:
        raise InputError(
            f"{name} is another text encoder ({found[:16]}...) than the one {ldm_folder} was trained with "
            f"({sha256[:16]}...)"
        )
    return TextToVideoPipeline(vae, transformer, scheduler, text.model, text.tokenizer, name, sha256)


def sample_videos(
    requests: Sequence[Request],
    settings: SampleSettings,
    vae_folder: Path,
    ldm_folder: Path,
    folder: Path,
    *,
    load_vae: VAELoader = load_vae,
    load_network: NetworkLoader = load_network,
) -> list[Path]:
    """Generate the requested videos into `folder`, divided among the ranks. Returns their files.

    Batches whose videos are there already, made by the same request, settings and weights, are not made again, so a
    stopped command goes on. Rows of the same files in samples.jsonl are replaced. A video is decoded and written in
    pieces, so memory does not depend on its length.
    """
    state = PartialState()
    decide_on_main_process(lambda: read_sample_rows(fetched(folder, everything)))  # raises where none can be added
    loaders: dict[str, Any] = {"load_vae": load_vae, "load_network": load_network}
    pipeline = load_pipeline(vae_folder, ldm_folder, settings.sampler, settings.ema_decay, **loaders).to(state.device)
    pipeline.set_progress_bar_config(disable=True)
    if pipeline.transformer.config.text_width is None and pipeline.transformer.config.class_names is None:
        settings = settings.model_copy(update={"guidance_scale": 1.0})  # there is nothing to guide towards
    set_attention(pipeline, settings, state)
    provenance = Provenance.load(fetched(ldm_folder, models))
    rate = settings.fps or provenance.frame_rate or DEFAULT_FPS
    rows = _rows(requests, settings, rate, provenance, pipeline)
    with Stage(folder, fetches=everything) as stage:
        made = decide_on_main_process(lambda: made_before(stage.folder, rows, settings))
        if made and state.is_main_process:
            print(f"{len(made)} of {len(requests)} videos are in {folder} already, with the same settings and weights")
        if state.is_main_process:
            SampleTable(stage).forget(rows.keys() - made)
        wait_for_everyone()
        mine = requests[state.process_index :: state.num_processes]
        with (
            autocast(settings.precision, state.device),
            progress_bar("sampling", 0, len(mine), unit="video") as bar,
            SampleTable(stage) as table,
        ):
            for batch in _batches(mine, settings.batch_size):
                if not all(request.file in made for request in batch):
                    for request, latents in zip(batch, generate_latents(pipeline, batch, settings), strict=True):
                        _write(stage.folder / request.file, pipeline, latents, settings, rate)
                        table.add(rows[request.file])
                bar.update(len(batch))
        shown = [request.file for request in requests[:CONTACT_SHEET_VIDEOS]]
        stage.exchange(lambda names: {*shown, SAMPLE_TABLE}.intersection(names))
        if state.is_main_process:
            if stage.mirror is not None:  # each machine has written a table of its own
                with SampleTable(stage) as table:
                    for row in rows.values():
                        table.add(row)
            _write_contact_sheet([stage.folder / file for file in shown], stage.folder)
    return [folder / request.file for request in requests]


def set_attention(pipeline: TextToVideoPipeline, settings: SampleSettings, state: PartialState) -> None:
    """Let the network compute attention as `settings.attention_backend` says. Raises InputError where it cannot."""
    network, backend = pipeline.transformer, settings.attention_backend
    shape = latent_shape(network, pipeline.vae, settings.frames, settings.height, settings.width)
    shapes = [(settings.batch_size * (1 if settings.guidance_scale == 1 else 2), shape)]
    dtype = torch.bfloat16 if uses_bf16(settings.precision, state.device) else network.dtype
    note = check_backend("sample.attention_backend", backend, network, shapes, state.device, dtype, gradients=False)
    if note is not None and state.is_main_process:
        print(note, flush=True)
    use_backend(network, backend)


def _write(
    path: Path, pipeline: TextToVideoPipeline, latents: torch.Tensor, settings: SampleSettings, rate: float
) -> None:
    """Decode latents (c, k, h, w) in pieces into an mp4 of `rate` frames per second and, by the settings, a lossless
    file and a GIF."""
    _, _, h, w = latents.shape
    pieces = pipeline.decode_in_pieces(latents[None])
    frames: Iterator[np.ndarray] = (frame for piece in pieces for frame in to_uint8(piece[0]))
    factor = pipeline.vae.spatial_compression_ratio
    if settings.lossless:
        lossless = lossless_file(path)
        with atomic_file(lossless) as file:
            file.write(encode_lossless(frames, h * factor, w * factor, rate))
        frames = decode(lossless, str(lossless))
    with atomic_file(path) as file:
        file.write(encode_video(frames, h * factor, w * factor, rate))
    if settings.gif:
        save_gif(path.with_suffix(".gif"), decode(path, str(path)), rate)
    else:
        path.with_suffix(".gif").unlink(missing_ok=True)  # of the video that was replaced


def _batches(requests: Sequence[Request], size: int) -> Iterator[Sequence[Request]]:
    """Batches of requests, either all with or all without a first frame."""
    for with_image in (False, True):
        chosen = [request for request in requests if (request.image is not None) == with_image]
        for first in range(0, len(chosen), size):
            yield chosen[first : first + size]


def generate_latents(
    pipeline: TextToVideoPipeline, requests: Sequence[Request], settings: SampleSettings
) -> torch.Tensor:
    """Latents (b, c, k, h, w) of a batch of requests, each from the request's seed."""
    prompts = [request.prompt for request in requests]
    negative_prompts = [request.negative_prompt for request in requests]
    labels = [request.class_label for request in requests]
    unconditional = prompts[0] is None and labels[0] is None
    images = [request.image for request in requests]
    return pipeline(
        None if prompts[0] is None else prompts,
        negative_prompts if any(negative_prompts) else None,
        None if labels[0] is None else labels,
        [_read_image(pipeline, image, settings) for image in images if image is not None] or None,
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
        truncate_prompts=settings.truncate_prompts or requests[0].group != USER,  # held-out captions: as in training
        output_type="latent",
    ).frames


def _read_image(pipeline: TextToVideoPipeline, file: str, settings: SampleSettings) -> torch.Tensor:
    """An image file as first frame of the videos' size."""
    _, h, w = pipeline.transformer.config.sample_size
    factor = pipeline.vae.spatial_compression_ratio
    return read_first_frame(Path(file), settings.height or h * factor, settings.width or w * factor)


def read_first_frame(file: Path, height: int, width: int) -> torch.Tensor:
    """An image file, read as make_shards reads images, as first frame (3, height, width) in [-1, 1]: scaled to cover
    this size, and center cropped. Raises InputError where it cannot be read."""
    name = f"--image {file}"
    check_is_file(file, "--image")
    with decoding(name, "read as an image"):
        pixels = decode_image(file.read_bytes(), name)
        return to_float(fit_frames(pixels[None], height, width))[:, 0]


def _rows(
    requests: Sequence[Request],
    settings: SampleSettings,
    rate: float,
    provenance: Provenance,
    pipeline: TextToVideoPipeline,
) -> dict[str, dict[str, Any]]:
    """The rows of samples.jsonl, by file: everything that determines a video's bytes."""
    common = {
        **settings.model_dump(mode="json", exclude={"count", "unseen_count", "gif", "lossless", "file_names"}),
        "fps": rate,
        "precision": "bf16" if uses_bf16(settings.precision, pipeline.device) else "fp32",
        "scheduler": type(pipeline.scheduler).__name__,
        "vae_sha256": provenance.vae_sha256,
        "ldm_sha256": weights_fingerprint(pipeline.transformer),
        "text_sha256": provenance.text_sha256 if pipeline.text_encoder is not None else None,
        "device": str(pipeline.device.type),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **code_version(),
    }
    rows = {}
    for request in requests:
        image = {"image_sha256": file_fingerprint(Path(request.image))} if request.image else {}
        lossless = {"lossless": lossless_file(Path(request.file)).name} if settings.lossless else {}
        rows[request.file] = asdict(request) | common | image | lossless
    return rows


def _write_contact_sheet(files: Sequence[Path], folder: Path) -> None:
    """Write frames of these videos, one row per video, as one image."""
    videos = [np.stack(list(decode(file, str(file)))) for file in files]
    save_image(folder / "contact_sheet.png", frame_grid(videos))
