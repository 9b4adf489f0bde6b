"""The model card of a VAE, from its folder and, where that is in a run folder, from the run's records."""

from __future__ import annotations

from pathlib import Path

from ldm.report.card_scores import recorded_command, render_card, report_protocols, report_scores
from odvae.report_file import read_report
from odvae.running.hashing import weights_fingerprint
from odvae.running.json_objects import JsonObject
from odvae.running.run_folder import RunFolder
from odvae.running.text import read_text_file
from odvae.video_vae import compression_of, load_vae


def vae_card(folder: Path, name: str) -> str:
    """The card of the VAE in `folder`, titled `name`."""
    vae, settings = load_vae(folder), folder / "experiment.yaml"
    temporal, spatial = compression_of(vae)
    report = read_report(RunFolder(folder.resolve().parent))
    of_vae = JsonObject({key: report[key] for key in ("reconstruction",) if report.has(key)}, report.source)
    return render_card(
        "vae_card.md.j2",
        name=name,
        kind=type(vae).__name__,
        module=type(vae).__module__,
        temporal=temporal,
        spatial=spatial,
        channels=vae.config.latent_channels,
        parameters=sum(value.numel() for value in vae.state_dict().values()),
        streamable=vae.streamable,
        sha256=weights_fingerprint(vae),
        results=report_scores(of_vae),
        protocols=report_protocols(of_vae),
        command=recorded_command(folder),
        settings=read_text_file(settings) if settings.is_file() else "",
    )
