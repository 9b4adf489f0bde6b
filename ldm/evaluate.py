"""Scores of generated videos: prompt accuracy, distances to real videos, temporal flicker.

Every distance is reported with two baselines: that of other real videos, which is above 0 only because the sets are
finite, and that of the VAE's reconstructions (rFVD on I3D's features), which bounds what a generator on its latents can
reach.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from ldm.demo.accuracy import prompt_accuracy
from ldm.demo.judge import Verdict
from ldm.evaluation.clip_score import CLIPScorer
from ldm.evaluation.features import FeatureNetwork, load_networks
from ldm.evaluation.protocols import PROTOCOLS
from ldm.evaluation.reference_cache import cached_features, describe_clips, given_features
from ldm.evaluation.scorers import Scorers, measure_real, measure_reconstructions, measure_samples
from ldm.evaluation.scores import distance_part
from ldm.evaluation.settings import EvalLDMSettings
from ldm.evaluation.video_sets import VideoSets, check_enough_for, choose_video_sets, count_clips, describe_reference
from ldm.report.page import render_report
from ldm.sampling.sample_requests import HELD_OUT, UNSEEN
from ldm.sampling.sample_table import SAMPLE_TABLE, read_sample_rows
from odvae.architecture.frame_counts import check_clip_size
from odvae.clips.settings import DataSettings
from odvae.clips.video_set import VideoSet
from odvae.flicker import seam_ratio
from odvae.measuring import forbid_tf32
from odvae.report_file import fetched_run, read_report, update_report
from odvae.running.commands import with_config
from odvae.running.errors import InputError
from odvae.running.hashing import weights_fingerprint
from odvae.running.json_objects import JsonObject
from odvae.running.run_folder import RunFolder
from odvae.running.stage import Stage
from odvae.running.text import shorten
from odvae.storage.mirror import errors_named, everything, models
from odvae.video_vae import VAELoader, compression_of, load_vae

PROMPT_ACCURACY_PARTS = ("prompt_accuracy", "prompt_accuracy_unseen", "prompt_accuracy_reconstructed")
JUDGE_PROTOCOL = "exact judge on {videos} (color by hue, shape by overlap, motion by displacement); unclear is wrong"


def evaluate_ldm(
    settings: EvalLDMSettings,
    data: DataSettings,
    videos: VideoSet,
    folders: RunFolder,
    seed: int,
    demo: bool,
    *,
    load_vae: VAELoader = load_vae,
) -> dict:
    """Score the samples, write the scores into report.json, and render the page. Ranks share the videos.

    Raises InputError where samples are missing, unreadable or of another size, where there are too few videos or frames
    for the protocol, and where a feature network's or a reference's file is not the expected one.
    """
    forbid_tf32()
    protocol = PROTOCOLS[settings.protocol]
    protocol.check(data.frames)
    output, samples = folders.report, folders.samples
    folders = fetched_run(folders, vae=models, ldm=models, samples=everything, report=everything)
    read_report(folders)  # raises where it cannot be added to
    with errors_named(folders.samples, samples):
        rows = read_samples(folders.samples)
    networks = load_networks(settings, PartialState().device)
    clips = count_clips(settings, protocol, sum(row["group"] == HELD_OUT for row in rows), videos)
    for network in networks:
        network.check_frames(protocol.frames_of(data.frames))
        check_enough_for(network, clips, settings)
    sets = choose_video_sets(settings, data, videos, rows, seed)
    with Stage(output, fetches=everything) as stage:
        device = stage.state.device
        vae = load_vae(folders.vae).to(device)
        check_clip_size(data.frames, data.height, data.width, compression_of(vae), "data")
        clip = CLIPScorer(settings.clip_model, device) if settings.clip_model else None
        scorers = Scorers(networks, protocol, data, demo, settings.batch_size, clip)

        generated = measure_samples(rows, folders.samples, scorers, {row["file"] for row in sets.generated})
        reconstructed = measure_reconstructions(sets.reference, vae, scorers)
        real = measure_real_sets(settings, sets, scorers, protocol.describe(data, seed), folders.report)

        if stage.state.is_main_process:
            parts: dict[str, Any] = {"duplicates": duplicates_part(generated)}
            parts |= accuracy_parts(generated, reconstructed) if demo else dict.fromkeys(PROMPT_ACCURACY_PARTS)
            parts["clip_score"] = clip_part(generated, settings) if clip else None
            several = data.frames > 1
            parts["flicker"] = flicker_part(generated, reconstructed, compression_of(vae)[0]) if several else None
            origin = {**protocol.describe(data, seed), **origin_of_sets(rows, settings, vae)}
            parts["distances"] = {
                network.name: distances(network, generated, reconstructed, real[network.name], origin, settings, seed)
                for network in networks
            }
            announce_warnings(parts)
            with stage.updating():
                update_report(folders, stage, parts)
                render_report(folders, read_report(folders), settings.num_visualized)
    return read_report(folders)


def distances(
    network: FeatureNetwork,
    generated: list[dict],
    reconstructed: list[dict],
    real: dict[str, np.ndarray],
    protocol: dict,
    settings: EvalLDMSettings,
    seed: int,
) -> dict:
    """The distances to the reference on one network's features: of generated videos, and of both baselines."""
    features = {
        "generated": stack(generated, network),
        "reconstructed": stack(reconstructed, network),
        "real": real["other_real"],
    }
    protocol = {**protocol, **network.describe()}
    return distance_part(network, real["reference"], features, protocol, settings.bootstrap, seed)


# Sampling settings in which all scored videos must agree.
COMMON_SETTINGS = (
    "scheduler", "num_inference_steps", "guidance_scale", "guidance_interval", "guidance_rescale", "ema_decay",
    "frames", "height", "width",
)  # fmt: skip


def read_samples(samples: Path) -> list[JsonObject]:
    """The rows of samples.jsonl that an evaluation scores.

    Raises InputError where there are none, and for samples of several LDMs or with different sampling settings.
    """
    path = samples / SAMPLE_TABLE
    command = with_config("sample_video", ", no --prompt")
    rows = [row for row in read_sample_rows(samples) if row["group"] in (HELD_OUT, UNSEEN)]
    if not rows:
        raise InputError(f"{samples} holds no samples to score; make them with: {command}")
    for name in ("ldm_sha256", *COMMON_SETTINGS):
        found = sorted({str(row.get(name)) for row in rows})
        if len(found) > 1:
            raise InputError(
                f"{path} mixes samples of several {name}: {', '.join(found)}; remove {samples} and run: {command}"
            )
    return rows


def measure_real_sets(
    settings: EvalLDMSettings, sets: VideoSets, scorers: Scorers, protocol: dict, report: Path
) -> dict[str, dict[str, np.ndarray]]:
    """Features of the real videos, network's name -> {"reference", "other_real"} -> (n, d): cached, or computed."""
    real: dict[str, dict[str, np.ndarray]] = {}
    for network in scorers.networks:
        real[network.name] = {}
        for kind, clips in (("reference", sets.reference), ("other_real", sets.other_real)):
            description = {"kind": kind, **protocol, **network.describe(), **describe_clips(clips)}

            def measure(network: FeatureNetwork = network, clips: list = clips) -> np.ndarray:
                single = Scorers([network], scorers.protocol, scorers.data, False, scorers.batch_size)
                return stack(measure_real(clips, single), network)

            if settings.reference is None:
                found = cached_features(report / "features", description, measure)
            else:
                found = given_features(Path(settings.reference), description)
            real[network.name][kind] = found
    return real


def stack(rows: list[dict], network: FeatureNetwork) -> np.ndarray:
    """The features (n, d) in the rows of `measure_*`."""
    return np.stack([row["features"][network.name] for row in rows if "features" in row])


def accuracy_parts(generated: list[dict], reconstructed: list[dict]) -> dict:
    """Prompt accuracy of generated videos, of those of held-out combinations, and of reconstructions."""
    parts: dict = {}
    for group, name in ((HELD_OUT, "prompt_accuracy"), (UNSEEN, "prompt_accuracy_unseen")):
        rows = [row for row in generated if row["group"] == group and row["prompt"]]
        parts[name] = accuracy_part(rows, "prompt", "the written files") if rows else None
    parts["prompt_accuracy_reconstructed"] = accuracy_part(reconstructed, "caption", "reconstructions of real clips")
    return parts


def accuracy_part(rows: list[dict], caption: str, videos: str) -> dict:
    verdicts = [Verdict(**row["verdict"]) for row in rows]
    accuracy = prompt_accuracy(verdicts, [row[caption] for row in rows])
    return {**accuracy, "protocol": JUDGE_PROTOCOL.format(videos=videos)}


def clip_part(generated: list[dict], settings: EvalLDMSettings) -> dict | None:
    scores = [row["clip_score"] for row in generated if row["group"] == HELD_OUT and "clip_score" in row]
    if not scores:
        return None
    error = float(np.std(scores, ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else None
    protocol = f"cosine of prompt and frame, mean over frames, then videos; model {settings.clip_model}"
    return {"value": float(np.mean(scores)), "standard_error": error, "n": len(scores), "protocol": protocol}


def flicker_part(generated: list[dict], reconstructed: list[dict], temporal_compression_ratio: int) -> dict:
    """Temporal flicker: added by the VAE, between latent frames, and the steadiness of each kind of video."""
    flicker = torch.from_numpy(np.stack([row["flicker"] for row in reconstructed]))  # (n, t - 1)
    held_out = [row["steadiness"] for row in generated if row["group"] == HELD_OUT]
    return {
        "added": float(flicker.mean()),
        "added_by_step": flicker.mean(axis=0).tolist(),
        "seam_ratio": seam_ratio(flicker, temporal_compression_ratio),
        "steadiness": {
            "real": float(np.mean([row["real_steadiness"] for row in reconstructed])),
            "reconstructed": float(np.mean([row["steadiness"] for row in reconstructed])),
            "generated": float(np.mean(held_out)) if held_out else None,
        },
        "n": len(reconstructed),
        "protocol": "added: mean |frame-to-frame change of the reconstruction - that of the real clip|, in 8-bit "
        "levels; seam_ratio: added flicker between frames of different latent frames over that within one; steadiness: "
        "(255 - mean |change|) / 255 as VBench's temporal flickering; generated videos are those of the written files",
    }


def duplicates_part(generated: list[dict]) -> dict:
    """Generated videos with identical pixels, which reveal a broken seed or a collapsed model."""
    counts = Counter(row["digest"] for row in generated)
    repeated = [row["file"] for row in generated if counts[row["digest"]] > 1]
    return {"n": len(generated), "different": len(counts), "repeated": repeated, "protocol": "equal decoded frames"}


def origin_of_sets(rows: Sequence[dict], settings: EvalLDMSettings, vae: Any) -> dict:
    """The origin of each set of videos, and the models' hashes."""
    lossless = all("lossless" in row for row in rows)
    conditions = "without a condition"
    if rows[0].get("prompt") is not None:
        conditions = "held-out captions"
    elif rows[0].get("class_label") is not None:
        conditions = "classes in turn"
    return {
        "generated": f"read from {'lossless (FFV1)' if lossless else 'H.264 mp4'} files; {conditions}",
        "reference": describe_reference(settings),
        "ldm_sha256": rows[0]["ldm_sha256"],
        "vae_sha256": weights_fingerprint(vae),
    }


def announce_warnings(parts: dict) -> None:
    """Print the warnings of the report."""
    warnings = [f"{part['name']}: {text}" for part in parts["distances"].values() for text in part["warnings"]]
    if repeated := parts["duplicates"]["repeated"]:
        warnings.append(f"{len(repeated)} samples have the same pixels as another: {shorten(repeated)}")
    for warning in warnings:
        print(f"warning: {warning}", flush=True)
