"""The values in report.json that pages and cards show, and that they are what they are shown as."""

from __future__ import annotations

from collections.abc import Iterator

from ldm.demo.accuracy import attributes_of
from odvae.running.json_objects import JsonObject

# The sets of videos that a distance is measured for, and their labels on the page.
SETS = {
    "generated": "generated",
    "reconstructed": "reconstructed by the VAE (baseline)",
    "real": "other real videos (baseline)",
}

_ACCURACIES = ("prompt_accuracy", "prompt_accuracy_unseen", "prompt_accuracy_reconstructed")


def distance_parts(report: JsonObject) -> Iterator[tuple[str, JsonObject]]:
    """Each feature network's name, and its distances; there may be none."""
    distances = report.section("distances") if report.has("distances") else JsonObject({}, report.source)
    for network, part in distances.items():
        if isinstance(part, dict):  # the others are the command and the commit
            yield network, distances.section(network)


def interval_of(part: JsonObject, key: str) -> tuple[float, float] | None:
    """The 95% interval of the value `key`; None where there is none."""
    name = f"{key}_interval"
    if part[name] is None:
        return None
    low, high = part.numbers(name, 2)
    return low, high


def check_source(part: JsonObject) -> None:
    """Raise InputError unless a part has the command and the commit that made it."""
    part.text("command")
    part.text("commit")


def check_shown(report: JsonObject) -> None:
    """Raise InputError, with the file and the key, where a value that the report page shows is not as it must be."""
    report.text("commit")
    report.text("version")
    _check_has(report, *_ACCURACIES, "clip_score")
    report.section("distances")
    for stage in report.section("minutes"):
        report.section("minutes").number(stage)
    if "reconstruction" in report:
        _check_numbers(report.section("reconstruction"), "psnr", "ssim", "n")
    for name in _ACCURACIES:
        if report.has(name):
            _check_accuracy(report.section(name))
    if report.has("clip_score"):
        _check_numbers(report.section("clip_score"), "value", "n")
    for _, part in distance_parts(report):
        _check_distances(part)
    _check_has(report, "flicker")
    if report.has("flicker"):
        _check_flicker(report.section("flicker"))


def _check_flicker(flicker: JsonObject) -> None:
    _check_numbers(flicker, "added", *(["seam_ratio"] if flicker["seam_ratio"] is not None else []))
    _check_numbers(
        flicker.section("steadiness"), *(name for name, one in flicker["steadiness"].items() if one is not None)
    )
    _check_has(flicker, "protocol")


def vae_measures(report: JsonObject) -> list[tuple[str, float, str]]:
    """(What, value, comparison or unit) of the VAE's latents and moving pixels; none before the VAE was evaluated.

    Raises InputError where one of them is not a number.
    """
    if "reconstruction" not in report or "motion" not in report.section("reconstruction"):
        return []
    latents, motion = (report.section("reconstruction").section(name) for name in ("latents", "motion"))
    white = latents.section("low_frequency_share_of_white_noise")
    drops = latents.section("noise").section("psnr_drop")
    shown = [
        (motion, "psnr", "PSNR of moving pixels", "dB"),
        (motion, "mae", "error of moving pixels", "of 255 levels"),
    ]
    for name in latents.section("low_frequency_share"):
        compared = f"white noise: {white.number(name):.3f}" if white.has(name) else ""
        shown.append((latents.section("low_frequency_share"), name, f"{name} energy at low frequencies", compared))
    shown += [
        (latents, "effective_rank", "effective rank of the channels", f"of {len(latents.numbers('mean'))}"),
        (latents, "local_correlation", "local correlation", ""),
        (latents, "bits_per_pixel", "bits a pixel, to each channel's Gaussian", ""),
        (latents, "kl_bits_per_pixel", "bits a pixel, to N(0, 1)", ""),
    ]
    shown += [(drops, level, f"loss of PSNR by noise of {level} deviations", "dB") for level in drops]
    return [(label, part.number(key), note) for part, key, label, note in shown if part.has(key)]


def _check_numbers(part: JsonObject, *keys: str) -> None:
    for key in keys:
        part.number(key)


def _check_has(part: JsonObject, *keys: str) -> None:
    for key in keys:
        part[key]


def _check_accuracy(part: JsonObject) -> None:
    attributes = attributes_of(part)
    _check_numbers(part, *attributes, "n")
    _check_numbers(part.section("chance"), *attributes)
    part.section("unclear").number("shape")
    _check_has(part, "protocol")


def _check_distances(part: JsonObject) -> None:
    part.text("name")
    part.text("kernel_name")
    part.number("n")
    part.texts("warnings")
    _check_has(part, "protocol")
    for name in SETS:
        one = part.section(name)
        scores = ["inception_score"] if "reference" in part else []
        at_infinity = ["frechet_at_infinity"] if one["frechet_at_infinity"] is not None else []
        _check_numbers(one, "frechet", "kernel", "n", *scores, *at_infinity)
        for key in ("frechet", "kernel"):
            interval_of(one, key)
