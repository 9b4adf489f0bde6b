"""Training of the latent diffusion model on encoded clips."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor

from ldm.latents.manifest import Manifest, check_latents, load_manifest
from ldm.latents.text_manifest import embed_command
from ldm.networks.attention_backends import Shapes, check_backend
from ldm.networks.network import Network, NetworkFactory
from ldm.networks.provenance import Provenance, ema_folder
from ldm.networks.settings import ConditioningSettings
from ldm.networks.text_encoder import has_vocabulary
from ldm.training.alignment import Alignment, check_not_sharded
from ldm.training.batch_sizes import batch_sizes
from ldm.training.diffusion_batches import LatentData, SampleLoss, per_sample_mse
from ldm.training.image_encoders import ImageEncoder, load_image_encoder
from ldm.training.initial_network import initial_network, new_network
from ldm.training.settings import LDMSettings
from ldm.training.step import apply_model_options, training_step
from ldm.training.throughput import NetworkCost
from ldm.training.validation import log_samples, validate
from odvae.measuring import peaks_of
from odvae.running.account import CHANGED_ENTRY, NOT_ENCODED, Account
from odvae.running.distributed import main_process_first
from odvae.running.errors import InputError
from odvae.running.files import install_folder
from odvae.running.hashing import joined_fingerprint, weights_fingerprint
from odvae.running.precision import uses_bf16
from odvae.running.progress import progress_bar
from odvae.running.stage import Stage, names_of
from odvae.training.optimization import sample_order
from odvae.training.settings import Tracker
from odvae.training.state import TrainingState
from odvae.training.throughput import StepMeter
from odvae.video_vae import VAELoader, VideoVAE, load_vae


def train_ldm(
    settings: LDMSettings,
    vae_folder: Path,
    latents_folder: Path,
    folder: Path,
    seed: int,
    tracker: Tracker = "none",
    *,
    failures_allowed: float = 0.05,
    load_vae: VAELoader = load_vae,
    make_network: NetworkFactory | None = None,
    loss: SampleLoss = per_sample_mse,
) -> None:
    """Train the network on the latents into `folder` (a diffusers model folder), or resume an interrupted run.

    With `settings.init_from`, that network is trained further, or an adapter of it (`settings.lora`).
    For VAEs, networks and losses from outside this project (docs/your_own.md): `load_vae` loads `vae_folder`,
    `make_network` creates the network in place of the one in `settings`, `loss` is minimized.

    An entry of the latents that cannot be read, or is not what was encoded, is named and replaced by another one.

    Raises InputError where the latents are missing, were encoded by another VAE than `vae_folder`'s, or do not fit the
    network, where more than `failures_allowed` of the training entries cannot be read, and where `folder` holds a run
    with other settings. Ctrl-C, SIGTERM and SIGUSR1 save a checkpoint and exit with status 130, 143 or 138.
    """
    state, manifest = PartialState(), load_manifest(latents_folder)
    vae = load_vae(vae_folder)
    check_latents(latents_folder, manifest, weights_fingerprint(vae), vae_folder)
    check_trainable(settings, manifest, latents_folder)
    torch.manual_seed(seed)
    start = initial_network(settings, manifest, make_network)
    network, manifest = start.network, start.normalization(manifest)
    sizes = batch_sizes(settings, network, manifest.buckets)
    check_attention(settings, network, [(sizes[name], shape) for name, shape in manifest.buckets.items()], state)
    own = names_of(make_network=make_network, loss=None if loss is per_sample_mse else loss)
    encoder, aligned = load_encoder(settings)
    sections = {"seed": seed, "ldm": settings, "latents": latents_identity(manifest), **start.record, **aligned, **own}
    with Stage(folder, sections) as stage:
        if stage.finished:
            return
        account = account_of(manifest, settings.conditioning)
        if state.is_main_process and account.without_caption:
            print(f"{account.without_caption} of {account.used} clips have no caption", flush=True)
        data = LatentData(
            latents_folder, manifest, settings.conditioning, settings.objective, state.device, failures_allowed
        )
        averages = fit(network, loss, vae, encoder, settings, sizes, data, stage, seed, tracker)
        for name, reason in data.failures.reasons.items():
            account.used -= 1
            account.leave_out(name, CHANGED_ENTRY, reason)
        if state.is_main_process:
            for name, weights in averages.items():
                with install_folder(stage.folder / name) as temporary:
                    start.save(weights, temporary, lambda: new_network(settings, manifest, make_network))
                    provenance = Provenance.of_latents(manifest, latents_folder, folder, data.frame_rate())
                    start.provenance(provenance, folder / name).save(temporary)
            account.save(stage.folder)
            print(account.table(), flush=True)


def check_trainable(settings: LDMSettings, manifest: Manifest, latents_folder: Path) -> None:
    """Raise InputError for latents without held-out clips, and without captions where the network needs text."""
    if not manifest.held_out_entries:
        raise InputError(
            f"{latents_folder}: no held-out clip was encoded, so no loss could be measured (data.held_out)"
        )
    if settings.conditioning.kind == "text" and manifest.lacks_text:
        raise InputError(f"{latents_folder}: the captions are not embedded yet; run: {embed_command()}")
    own = manifest.own_text_encoder(latents_folder)
    without_words = own is not None and not has_vocabulary(own)
    if settings.conditioning.kind == "text" and (without_words or not manifest.captioned_train_entries):
        raise InputError(
            f"{latents_folder}: no training video has a caption, so nothing can be learned from text; pack and encode "
            "the videos with their captions, or set ldm.conditioning.kind to class or none"
        )


def check_attention(settings: LDMSettings, network: Network, shapes: Shapes, state: PartialState) -> None:
    """Raise InputError for a back end of attention that cannot compute this training's on this device."""
    bf16 = uses_bf16(settings.optimization.precision, state.device)
    dtype = torch.bfloat16 if bf16 else network.dtype
    note = check_backend(
        "ldm.attention_backend", settings.attention_backend, network, shapes, state.device, dtype, gradients=True
    )
    if note is not None and state.is_main_process:
        print(note, flush=True)


def account_of(manifest: Manifest, conditioning: ConditioningSettings) -> Account:
    """Account of the encoded clips: their number, those without the network's condition, videos that failed."""
    account = Account("encoded clips", used=manifest.train_entries + manifest.held_out_entries)
    for video, reason in manifest.failed.items():
        account.leave_out(video, NOT_ENCODED, reason)
    if conditioning.kind == "text":
        account.without_caption = account.used - manifest.captioned_entries
    if conditioning.kind == "class":
        account.classes = dict(manifest.entries_by_class)
        if without := account.used - sum(account.classes.values()):
            account.notes.append(f"{without} clips have no class: they are trained without one")
    return account


def latents_identity(manifest: Manifest) -> dict[str, str | int]:
    """The properties of latents that must not change when a run is resumed."""
    names = ("vae_sha256", "text_sha256", "train_entries", "held_out_entries")
    text = manifest.separate_text
    of_text = {} if text is None else {"text_shards_sha256": joined_fingerprint([one.sha256 for one in text.shards])}
    return {name: getattr(manifest, name) for name in names} | of_text


def load_encoder(settings: LDMSettings) -> tuple[ImageEncoder | None, dict[str, str]]:
    """The frozen encoder to align with, if any, and its part of the stage's record."""
    if settings.alignment is None:
        return None, {}
    with main_process_first():  # the main process downloads it
        encoder = load_image_encoder(settings.alignment.encoder, settings.alignment.image_size)
    return encoder, {"alignment_sha256": weights_fingerprint(encoder)}


def make_alignment(
    network: Network, encoder: ImageEncoder | None, vae: VideoVAE, settings: LDMSettings, data: LatentData
) -> Alignment | None:
    """The alignment of the network with an encoder, if there is one."""
    if encoder is None or settings.alignment is None:
        return None
    return Alignment(settings.alignment, network, encoder.to(data.device), vae, data.mean, data.std)


def fit(
    network: Network,
    per_sample_loss: SampleLoss,
    vae: VideoVAE,
    encoder: ImageEncoder | None,
    settings: LDMSettings,
    sizes: Mapping[str, int],
    data: LatentData,
    stage: Stage,
    seed: int,
    tracker: Tracker,
) -> dict[str, dict[str, Tensor]]:
    """Train for `optimization.steps` steps. Returns the EMA weights by folder name (on the main process).

    `sizes`: samples per micro-step and rank of each bucket.
    `step` counts completed optimizer steps. Data, noise and learning rate are functions of it, so a run that is killed
    at any point and resumed ends with the same weights.
    """
    optimization, folder = settings.optimization, stage.folder
    apply_model_options(network, settings)
    alignment = make_alignment(network, encoder, vae, settings, data)
    trained = None if alignment is None else alignment.trained_module(seed)
    name = f"{folder.parent.name} LDM"
    state = TrainingState(network, optimization, folder, tracker, name, trained, stage, batch_size=max(sizes.values()))
    if alignment is not None:
        check_not_sharded(state.accelerator)
    accelerator, done = state.accelerator, state.resume()
    order = sample_order(optimization, state.plan)
    batches = data.training_batches(state.plan, seed, done, settings.workers, order, sizes)
    peaks = peaks_of(accelerator.device, accelerator.mixed_precision == "bf16", settings.peak_tflops)
    meter = StepMeter("tokens", NetworkCost(network), state.plan.ranks, peaks)
    progress = progress_bar("training the LDM", done, optimization.steps)

    for step in stage.steps(done + 1, optimization.steps):
        loss_sum, gradient_norm, learning_rate = training_step(state, per_sample_loss, batches, meter, step, alignment)
        progress.update()

        last = step == optimization.steps
        if step % optimization.log_every == 0 or last:
            data.merge_failures(accelerator)
            loss = float(accelerator.reduce(loss_sum, "mean"))
            row = {"loss": loss, "gradient_norm": float(gradient_norm), "learning_rate": learning_rate}
            if alignment is not None:
                row["alignment"] = float(accelerator.reduce(alignment.last, "mean"))
            state.log.row(step, **row, **meter.row(), skipped_steps=state.guard.report(step))
            progress.set_postfix(loss=f"{loss:.4f}", refresh=False)
        with meter.paused():
            if step % optimization.validate_every == 0 or last:
                with state.ema.in_network():
                    clips = settings.validation_clips
                    validate(network, per_sample_loss, data, sizes, clips, state.log, step, accelerator)
            if step % settings.sample_every == 0:
                with state.ema.in_network():
                    log_samples(network, vae, data, settings.num_visualized, state.log, step, accelerator)
            state.save_and_stop_when_due(step, stage)
    progress.close()
    state.log.close()
    names = [".", *map(ema_folder, optimization.extra_ema_decays)]
    main = accelerator.is_main_process
    return {name: average.gather(main) for name, average in zip(names, state.averages, strict=True)}
