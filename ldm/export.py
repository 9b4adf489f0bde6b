"""Exports a trained run as one diffusers pipeline folder, with a model card from the run's records."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ldm.latents.manifest import MANIFEST, TEXT_ENCODER_FOLDER
from ldm.networks.lora import LORA_WEIGHTS
from ldm.networks.provenance import Provenance, weights_folder
from ldm.pipeline import TextToVideoPipeline
from ldm.publish import publish
from ldm.report.card_scores import recorded_command, render_card, report_protocols, report_scores
from ldm.sample import load_pipeline
from ldm.sampling.settings import SampleSettings
from odvae.architecture.frame_counts import video_frames
from odvae.report_file import fetched_run, read_report
from odvae.running.errors import InputError
from odvae.running.files import atomic_folder, read_json_lines
from odvae.running.hashing import weights_fingerprint
from odvae.running.json_objects import JsonObject
from odvae.running.run_folder import RunFolder, code_version
from odvae.running.settings import read_yaml
from odvae.running.stage import Stage
from odvae.running.text import read_text_file
from odvae.storage.mirror import everything, models
from odvae.training.checkpoints import checkpoint_facts, checkpoints_of


def export_pipeline(
    folders: RunFolder, samples: SampleSettings, out: Path, copy_text_encoder: bool = False, push: str | None = None
) -> None:
    """Write VAE, network, scheduler, text encoder and model card of a run into `out`, atomically.

    Of a LoRA, the network is its base with the adapter merged into it. A text encoder trained by the run, or by the run
    that this one was fine-tuned from, is copied. Any other is referenced by its name and the hash of its weights and
    loaded at its first use, unless `copy_text_encoder` is set. With `push`, the pipeline is also published as this
    repository on the Hugging Face hub. Raises InputError where a part is missing or does not belong to the others, or
    `out` holds something else.
    """
    folders = fetched_run(folders, vae=models, ldm=_models_and_steps, latents=_text_encoder_files, report=models)
    with Stage(out, replaces_folder=True, fetches=everything) as stage:
        if stage.state.is_main_process:
            is_there = stage.folder.exists() if stage.mirror is None else bool(stage.mirror.listing)
            if is_there and not (stage.folder / "model_index.json").is_file():
                raise InputError(f"{out} exists and is no pipeline folder: choose another, or remove it")
            pipeline = assemble_pipeline(folders, samples, push or str(out), copy_text_encoder)
            with atomic_folder(stage.folder) as temporary:
                pipeline.save_pretrained(temporary)
            if push:
                publish(stage.folder, push)


def _models_and_steps(names: Collection[str]) -> list[str]:
    return [*models(names), *(name for name in names if name.endswith("/state.json"))]


def _text_encoder_files(names: Collection[str]) -> list[str]:
    return [name for name in names if name.startswith(f"{TEXT_ENCODER_FOLDER}/")]


def assemble_pipeline(
    folders: RunFolder, samples: SampleSettings, name: str, copy_text_encoder: bool
) -> TextToVideoPipeline:
    """The run's pipeline with its model card, titled `name`, ready to be saved."""
    pipeline = load_pipeline(folders.vae, folders.ldm, samples.sampler, samples.ema_decay)
    pipeline.register_to_config(model_card=write_card(pipeline, folders, samples, name, copy_text_encoder))
    if _trained_by_run(pipeline) or copy_text_encoder:
        pipeline.register_to_config(text_encoder_name=None)  # it is in the folder
    elif pipeline.text_encoder is not None:
        pipeline.register_modules(text_encoder=None, tokenizer=None)
    return pipeline


def write_card(
    pipeline: TextToVideoPipeline, folders: RunFolder, samples: SampleSettings, name: str, copied: bool
) -> str:
    """The model card: what the model is, how to use it, what it was trained on, and its scores."""
    settings_text = read_text_file(folders.ldm / "experiment.yaml")
    steps = trained_steps(settings_text, folders.ldm / "experiment.yaml")
    weights = weights_folder(folders.ldm, samples.ema_decay)
    provenance = Provenance.load(weights)
    config, vae = pipeline.transformer.config, pipeline.vae
    t, h, w = config.sample_size
    conditioning, call, task = _conditioning(pipeline)
    checkpoints = checkpoints_of(folders.ldm)
    return render_card(
        "model_card.md.j2",
        name=name,
        task=task,
        network=type(pipeline.transformer).__name__,
        parameters=sum(parameter.numel() for parameter in pipeline.transformer.parameters()),
        vae=type(vae).__name__,
        latent_channels=config.latent_channels,
        temporal_compression_ratio=vae.temporal_compression_ratio,
        spatial_compression_ratio=vae.spatial_compression_ratio,
        call=call,
        conditioning=conditioning,
        objective=pipeline.objective,
        frames=video_frames(t, vae.temporal_compression_ratio),
        height=h * vae.spatial_compression_ratio,
        width=w * vae.spatial_compression_ratio,
        data=provenance.data,
        base_sha256=provenance.base_sha256,
        has_lora=(weights / LORA_WEIGHTS).is_file(),
        steps=steps,
        global_batch=checkpoint_facts(checkpoints[-1])["global_batch"] if checkpoints else "unknown",
        scheduler=type(pipeline.scheduler).__name__,
        text_encoder=_text_encoder(pipeline, copied),
        vae_sha256=provenance.vae_sha256,
        ldm_sha256=weights_fingerprint(pipeline.transformer),
        code=code_version(),
        results=_results(folders),
        protocols=report_protocols(read_report(folders)),
        command=recorded_command(folders.ldm),
        settings=settings_text,
    )


def trained_steps(settings: str, path: Path) -> float:
    """The steps of the training in the text of its settings. Raises InputError, with `path`, where it has none."""
    sections = read_yaml(settings, str(path))
    if not isinstance(sections, dict):
        raise InputError(f"{path} was damaged: expected sections, found {type(sections).__name__}")
    return JsonObject(sections, path).section("ldm").section("optimization").number("steps")


def _conditioning(pipeline: TextToVideoPipeline) -> tuple[str, str, str]:
    """The conditioning in words; the arguments of an example call; the hub's name of the task."""
    config = pipeline.transformer.config
    if config.text_width is not None:
        conditioning, call = f"text, up to {config.text_tokens} tokens", 'prompt="..."'
    elif config.class_names is not None:
        conditioning, call = f"one of {len(config.class_names)} classes", f"class_label={config.class_names[0]!r}"
    else:
        conditioning, call = "nothing", ""
    if config.first_frame:
        conditioning += "; optionally a first frame"
    return conditioning, call, "text-to-video" if config.text_width is not None else "other"


def _results(folders: RunFolder) -> list[tuple[str, str]]:
    """(label, value) of the last held-out loss and of the report's scores."""
    rows = [row for row in read_json_lines(folders.ldm / "metrics.jsonl") if "held_out_loss" in row]
    losses = [
        ("held-out loss", f"{row.number('held_out_loss'):.4f} after {row.number('step')} steps") for row in rows[-1:]
    ]
    return losses + report_scores(read_report(folders))


def _trained_by_run(pipeline: TextToVideoPipeline) -> bool:
    """Whether the text encoder was trained by a run, this one or its base's, and is in the folder of its latents."""
    folder = Path(pipeline.config.text_encoder_name or "")
    return folder.name == TEXT_ENCODER_FOLDER and (folder.parent / MANIFEST).is_file()


def _text_encoder(pipeline: TextToVideoPipeline, copied: bool) -> str | None:
    name = pipeline.config.text_encoder_name
    if name is None:
        return None
    if _trained_by_run(pipeline):
        return "trained on the training captions, in this folder"
    return f"{name}, {'in this folder' if copied else 'loaded from there'}"
