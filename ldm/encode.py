"""Video shards -> latent shards: the VAE's posterior of each clip, and its caption's embedding, written once.

One latent shard a video shard. A shard appears when it is whole; a run that was stopped goes on with the next one.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from accelerate import PartialState
from pydantic import Field
from safetensors.torch import save as save_safetensors
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldm.latents import Manifest, ShardRecord, entry_key, pack_entry
from ldm.text import LEARNED, TextEncoder, TextSettings, learn_text_encoder, load_text_encoder
from odvae.loading import VideoVAE, load_vae
from odvae.shared.checkpoints import begin_stage
from odvae.shared.clips import DataSettings, VideoSet, frame_count, is_held_out, load_clip
from odvae.shared.errors import InputError
from odvae.shared.fingerprints import file_fingerprint, weights_fingerprint
from odvae.shared.pixels import to_float
from odvae.shared.run_folder import StageClock, code_version, read_json, write_json, written_aside
from odvae.shared.settings import Settings
from odvae.shared.shards import Sample, shard_writer
from odvae.shared.tracking import progress_bar
from odvae.statistics import ChannelSums

TEXT_ENCODER_FOLDER = "text_encoder"
EMPTY_TEXT = "empty_text.safetensors"


class LatentSettings(Settings):
    clips_per_video: int = Field(1, ge=1)
    """Clips encoded of each video, their first frames spread evenly over it."""
    batch_size: int = Field(16, ge=1)
    """Clips encoded at a time."""
    dtype: Literal["bf16", "fp16"] = "bf16"
    """How means, standard deviations and text embeddings are stored."""


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class ClipList(Dataset):
    """Every declared clip of some videos, in order: {"video": uint8 (t, h, w, 3), "index": video's place, "start"}."""

    def __init__(self, samples: list[Sample], data: DataSettings, clips_per_video: int) -> None:
        self.samples, self.data, self.clips_per_video = samples, data, clips_per_video

    def __len__(self) -> int:
        return len(self.samples) * self.clips_per_video

    def __getitem__(self, number: int) -> dict:
        index, clip = divmod(number, self.clips_per_video)
        start = clip_start(frame_count(self.samples[index]), self.data.span, clip, self.clips_per_video)
        return {"video": load_clip(self.samples[index], self.data, start), "index": index, "clip": clip, "start": start}


def clip_start(frames: int, span: int, clip: int, clips: int) -> int:
    """First frame of clip number `clip` of `clips`, spread evenly over a video; a single clip begins at frame 0."""
    return 0 if clips == 1 else round(clip * (frames - span) / (clips - 1))


def encode_latents(
    settings: LatentSettings,
    text: TextSettings,
    data: DataSettings,
    videos: VideoSet,
    vae_folder: Path,
    folder: Path,
    seed: int,
) -> None:
    """Encode every video (both splits) into `folder`, or go on where an earlier run stopped; ranks share the shards.

    Raises InputError when the VAE is missing or the folder holds latents of another VAE or other settings.
    """
    state = PartialState()
    vae = load_vae(vae_folder).to(state.device)
    clock = StageClock(folder)
    begin_stage(folder, {"latents": settings, "text": text, "data": data})
    vae_sha256 = weights_fingerprint(vae)
    _check_same_vae(folder, vae_sha256, vae_folder)
    encoder = open_text_encoder(text, videos, folder, seed)
    encoder.model.to(state.device)

    by_shard: dict[Path, list[Sample]] = defaultdict(list)
    for sample in sorted(
        videos.train + videos.held_out, key=lambda sample: (sample.shard, min(sample.members.values()))
    ):
        by_shard[sample.shard].append(sample)
    mine = list(by_shard)[state.process_index :: state.num_processes]
    total = sum(len(by_shard[shard]) for shard in mine) * settings.clips_per_video
    with progress_bar("encoding", 0, total, unit="clip") as bar:
        for shard in mine:
            if not _shard_record(folder, shard).exists():
                _encode_shard(shard, by_shard[shard], settings, text, data, vae, vae_sha256, encoder, folder, bar)
            else:
                bar.update(len(by_shard[shard]) * settings.clips_per_video)
    state.wait_for_everyone()
    if state.is_main_process:
        _write_empty_text(encoder, text, settings, folder)
        _write_manifest(list(by_shard), settings, text, data, vae, vae_sha256, encoder, folder)
        if not clock.finished:
            clock.save(finished=True)
    state.wait_for_everyone()


def open_text_encoder(text: TextSettings, videos: VideoSet, folder: Path, seed: int) -> TextEncoder:
    """The text encoder named by the settings; a learned one is learned once, from the training videos' captions."""
    if text.encoder != LEARNED:
        return load_text_encoder(text.encoder)
    state, learned = PartialState(), folder / TEXT_ENCODER_FOLDER
    if state.is_main_process and not learned.exists():
        captions = [sample.read_text() for sample in videos.train]
        learn_text_encoder([caption for caption in captions if caption], text, learned, seed)
    state.wait_for_everyone()
    return load_text_encoder(learned)


def _encode_shard(
    shard: Path,
    samples: list[Sample],
    settings: LatentSettings,
    text: TextSettings,
    data: DataSettings,
    vae: VideoVAE,
    vae_sha256: str,
    encoder: TextEncoder,
    folder: Path,
    bar,
) -> None:
    """Write one latent shard and its record: count, hash, and the sums that the statistics are made of."""
    clips = ClipList(samples, data, settings.clips_per_video)
    sums = ChannelSums()
    with shard_writer(folder / shard.name) as writer:
        for batch in DataLoader(clips, settings.batch_size, num_workers=data.workers):
            captions = [samples[i].read_text() for i in batch["index"].tolist()]
            mean, std = encode_clips(vae, batch["video"])
            embeddings, masks = encoder.encode(captions, text.max_tokens)
            for i, caption in enumerate(captions):
                source, clip = samples[int(batch["index"][i])], int(batch["clip"][i])
                about = {"caption": caption, "source": source.key, "start": int(batch["start"][i])}
                writer.write(
                    {
                        "__key__": entry_key(source.key, clip),
                        "safetensors": pack_entry(mean[i], std[i], embeddings[i], masks[i], DTYPES[settings.dtype]),
                        "json": json.dumps(about).encode(),
                    }
                )
                if not is_held_out(source.key, data.held_out):
                    sums.add(mean[i], std[i])
            bar.update(len(captions))
    record = {
        "name": shard.name,
        "sha256": file_fingerprint(folder / shard.name),
        "entries": len(clips),
        "source": str(shard),
        "source_sha256": file_fingerprint(shard),
        "shape": list(mean.shape[1:]),
        "vae_sha256": vae_sha256,
        "sums": sums.to_json(),
    }
    _shard_record(folder, shard).parent.mkdir(exist_ok=True)
    write_json(_shard_record(folder, shard), record)


@torch.no_grad()
def encode_clips(vae: VideoVAE, video: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 clips (b, t, h, w, 3) -> posterior mean and std (b, c, k, h, w) in float32."""
    posterior = vae.encode(to_float(video.to(vae.device))).latent_dist
    return posterior.mean.float(), posterior.std.float()


def _shard_record(folder: Path, shard: Path) -> Path:
    return folder / "shards" / f"{shard.stem}.json"


def _records(folder: Path) -> Iterator[dict]:
    for path in sorted((folder / "shards").glob("*.json")):
        yield read_json(path)


def _check_same_vae(folder: Path, vae_sha256: str, vae_folder: Path) -> None:
    for record in _records(folder):
        if record["vae_sha256"] != vae_sha256:
            raise InputError(
                f"{folder / record['name']} was encoded by another VAE ({record['vae_sha256'][:16]}...) than "
                f"{vae_folder} ({vae_sha256[:16]}...); remove {folder} and run the same command again"
            )


def _write_empty_text(encoder: TextEncoder, text: TextSettings, settings: LatentSettings, folder: Path) -> None:
    """The empty caption's embedding, which stands for "no text" in training and guidance."""
    embedding, mask = encoder.encode([""], text.max_tokens)
    tensors = {"text": embedding[0].to(DTYPES[settings.dtype]).cpu(), "text_mask": mask[0].cpu()}
    with written_aside(folder / EMPTY_TEXT) as file:
        file.write(save_safetensors(tensors))


def _write_manifest(
    shards: list[Path],
    settings: LatentSettings,
    text: TextSettings,
    data: DataSettings,
    vae: VideoVAE,
    vae_sha256: str,
    encoder: TextEncoder,
    folder: Path,
) -> None:
    records = [read_json(_shard_record(folder, shard)) for shard in shards]
    sums = sum((ChannelSums.from_json(record["sums"]) for record in records), ChannelSums())
    latents_mean, latents_std = sums.mean_and_std()
    shape = tuple(records[0]["shape"])
    entries, train = sum(record["entries"] for record in records), sums.count // math.prod(shape[1:])
    manifest = Manifest(
        vae_sha256=vae_sha256,
        vae_config={key: value for key, value in vae.config.items() if not key.startswith("_")},
        text_encoder=TEXT_ENCODER_FOLDER if text.encoder == LEARNED else text.encoder,
        text_sha256=weights_fingerprint(encoder.model),
        text_width=encoder.width,
        text_tokens=text.max_tokens,
        data=data.model_dump(mode="json"),
        resize="cover, bicubic, antialiased, centre crop",
        clips_per_video=settings.clips_per_video,
        dtype=settings.dtype,
        held_out=data.held_out,
        shape=shape,
        train_entries=train,
        held_out_entries=entries - train,
        latents_mean=latents_mean,
        latents_std=latents_std,
        shards=[ShardRecord(**{key: record[key] for key in ShardRecord.__annotations__}) for record in records],
        code=code_version(),
    )
    manifest.save(folder)
