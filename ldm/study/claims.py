"""The paper's claims, as far as a study can test them: what is expected, what was measured, whether it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ldm.demo.accuracy import mean_accuracy


@dataclass(frozen=True)
class Claim:
    """One claim. `wanted` states when it holds, with the paper's value where there is one."""

    claim: str
    wanted: str
    measured: str
    holds: bool


def claims(main: dict | None, first: dict | None, others: Sequence[dict], modes: list[dict], generators: dict) -> list:
    """All claims that can be tested, given the rows of the main variant, variant 1, the other initializations, the
    modes (c) and the generators (d)."""
    checks: list[Claim] = []
    if main and first and main is not first:
        checks += variant_claims(main, first)
    if main:
        checks += [initialization_claim(main, other) for other in others]
    checks += mode_claims({row["label"]: row for row in modes})
    for generator, rows in generators.items():
        if len(rows) == 3:
            checks += generator_claims(generator, *rows)
    return [asdict(check) for check in checks]


def variant_claims(main: dict, first: dict) -> list[Claim]:
    """Section 3.2: variant 4 keeps most of variant 1's quality at half of the encoder's operations."""
    gain = main["psnr"] - first["psnr"]
    share = main["encode_gflops"] / first["encode_gflops"]
    return [
        Claim(
            f"a. {main['label']} is nearly as good as variant 1", "at most 0.5 dB below", f"{gain:+.2f} dB", gain > -0.5
        ),
        Claim("a. Its encoder needs about half the operations", "0.4x to 0.6x", f"{share:.2f}x", 0.4 <= share <= 0.6),
    ]


def initialization_claim(tail: dict, other: dict) -> Claim:
    """Section 3.3: tail initialization learns fastest."""
    values = dict(other["curve"])
    shared = [(step, value - values[step]) for step, value in tail["curve"] if step in values]
    leads = [lead for step, lead in shared if step <= shared[-1][0] / 2]
    measured = "no step logged"
    if leads:
        ahead = sum(lead > 0 for lead in leads)
        measured = f"at {ahead} of {len(leads)}, by {min(leads):+.2f} to {max(leads):+.2f} dB"
    text = f"b. Tail initialization is ahead of {other['label']} in the first half"
    return Claim(text, "at every logged step", measured, bool(leads) and min(leads) > 0)


def mode_claims(modes: dict[str, dict]) -> list[Claim]:
    """Section 3.4 and Table 4."""
    checks = []
    if "streamed" in modes:
        apart = modes["streamed"]["difference"]
        checks.append(Claim("c. Streamed equals whole", "up to 1e-3 (range 2)", f"{apart:.1e}", apart < 1e-3))
    if "tiled" in modes:
        loss = modes["whole"]["psnr"] - modes["tiled"]["psnr"]
        checks.append(
            Claim("c. Temporal tiling costs little", "less than 0.2 dB (paper: 0.07)", f"{loss:+.3f} dB", loss < 0.2)
        )
    return checks


def generator_claims(generator: str, image: dict, equal_steps: dict, equal_time: dict) -> list[Claim]:
    """Table 2, in ratios: the generator on OD-VAE's latents over the one on the image VAE's."""
    title = f"d. {generator} on OD-VAE's latents:"
    speed = equal_steps["steps_per_second"] / image["steps_per_second"]
    checks = [Claim(f"{title} training steps per second", "at least 3x (paper: 2.07x)", f"{speed:.2f}x", speed >= 3)]
    if image["memory_growth_mb"] and equal_steps["memory_growth_mb"]:
        memory = equal_steps["memory_growth_mb"] / image["memory_growth_mb"]
        text = f"{title} memory growth at equal batch"
        checks.append(Claim(text, "at most 0.45x (paper: 0.41x)", f"{memory:.2f}x", memory <= 0.45))
    distance = image["distance"].partition(" on ")[0]
    lowest, highest = image["frechet_interval"] or (image["frechet"], image["frechet"])
    measured = f"{equal_time['frechet']:.3g} against {image['frechet']:.3g}"
    text = f"{title} {distance} at equal time"
    wanted = f"not above the image VAE's interval, {lowest:.3g} to {highest:.3g}"
    checks.append(Claim(text, wanted, measured, equal_time["frechet"] <= highest))
    if image["prompt_accuracy"]:
        ours, theirs = (mean_accuracy(row["prompt_accuracy"]) for row in (equal_time, image))
        text = f"{title} prompt accuracy at equal time"
        checks.append(Claim(text, "not below", f"{ours:.1%} against {theirs:.1%}", ours >= theirs))
    return checks
