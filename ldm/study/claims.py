"""The paper's claims, as far as a study can test them: what is expected, what was measured, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ldm.demo.accuracy import mean_accuracy
from ldm.evaluation.intervals import Interval, difference_of_shares, known_difference, ratio_of_medians
from ldm.study.verdicts import Claim, Verdict, all_of, between, verdict_of

Row = Mapping[str, Any]
FINAL_VARIANT = 4
ORDER = ((1, 4), (4, 2), (4, 3))  # the first of each pair is the better one, section 4.3


def claims(
    main: Row | None, variants: Mapping[int, Row], others: Sequence[Row], modes: Sequence[Row], generators: Mapping
) -> list[dict]:
    """All claims that can be tested, given the rows of the main variant, of all variants by number, of the other
    initializations, of the modes (c), and of each generator (d)."""
    checks: list[Claim] = []
    first = variants.get(1)
    if main and first and main is not first:
        checks += variant_claims(main, first)
    if {1, 2, 3, FINAL_VARIANT} <= variants.keys():
        checks.append(order_claim(variants))
    if main:
        checks += [initialization_claim(main, other) for other in others]
    checks += mode_claims({row["label"]: row for row in modes})
    for generator, rows in generators.items():
        if len(rows) == 3:
            checks += generator_claims(generator, *rows)
    return [asdict(check) for check in checks]


def gain_of(ours: Row, theirs: Row) -> tuple[float, Interval | None]:
    """By how many dB one VAE's reconstructions are better than another's, of the same clips, and the interval."""
    interval = known_difference(ours.get("clip_psnr") or [], theirs.get("clip_psnr") or [])
    return ours["psnr"] - theirs["psnr"], interval


def variant_claims(main: Row, first: Row) -> list[Claim]:
    """Section 3.2: variant 4 keeps most of variant 1's quality at half of the encoder's operations."""
    gain, interval = gain_of(main, first)
    share = main["encode_gflops"] / first["encode_gflops"]
    return [
        Claim(
            f"a. {main['label']} is nearly as good as variant 1",
            "at most 0.5 dB below",
            f"{gain:+.2f} dB {between(interval)}",
            verdict_of(interval, at_least=-0.5),
        ),
        Claim(
            "a. Its encoder needs about half the operations",
            "0.4x to 0.6x",
            f"{share:.2f}x",
            verdict_of((share, share), at_least=0.4, at_most=0.6),
        ),
    ]


def order_claim(variants: Mapping[int, Row]) -> Claim:
    """Section 4.3: after 150,000 steps, variant 1 is slightly better than 4, and 4 is better than 2 and 3."""
    order = sorted(variants, key=lambda number: -variants[number]["psnr"])
    measured, verdicts = [", ".join(map(str, order))], list[Verdict]()
    for better, worse in ORDER:
        gain, interval = gain_of(variants[better], variants[worse])
        measured.append(f"{better} over {worse} {gain:+.2f} dB {between(interval)}")
        verdicts.append(verdict_of(interval, at_least=0.0))
    return Claim(
        "a. From best to worst, the variants are 1, 4, then 2 and 3",
        "all differences above 0 (paper: after 150,000 steps)",
        "; ".join(measured),
        all_of(verdicts),
    )


def initialization_claim(tail: Row, other: Row) -> Claim:
    """Section 3.3: tail initialization learns fastest.

    The curves are of one training each, so the interval of a lead is not known; it has to be larger than what
    separates the means of these clips at the end.
    """
    values = dict(other["curve"])
    shared = [(step, value - values[step]) for step, value in tail["curve"] if step in values]
    leads = [lead for step, lead in shared if step <= shared[-1][0] / 2]
    gain, interval = gain_of(tail, other)
    verdict: Verdict = "open"
    measured = "no step logged"
    if leads:
        half = None if interval is None else (interval[1] - interval[0]) / 2
        verdict = verdict_of(None if half is None else (min(leads) - half, min(leads) + half), at_least=0.0)
        measured = f"at {sum(lead > 0 for lead in leads)} of {len(leads)}, by {min(leads):+.2f} to {max(leads):+.2f} dB"
        measured += f"; at the end {gain:+.2f} dB {between(interval)}"
    text = f"b. Tail initialization is ahead of {other['label']} in the first half"
    return Claim(text, "at every logged step, by more than the interval at the end", measured, verdict)


def mode_claims(modes: Mapping[str, Row]) -> list[Claim]:
    """Section 3.4 and Table 4."""
    checks = []
    if "streamed" in modes:
        apart = modes["streamed"]["difference"]
        verdict = verdict_of((apart, apart), at_most=1e-3)
        checks.append(Claim("c. Streamed equals whole", "up to 1e-3 (range 2)", f"{apart:.1e}", verdict))
    if "tiled" in modes:
        loss, interval = gain_of(modes["whole"], modes["tiled"])
        wanted, measured = "at most 0.2 dB (paper: 0.07)", f"{loss:+.3f} dB {between(interval, 3)}"
        checks.append(Claim("c. Temporal tiling costs little", wanted, measured, verdict_of(interval, at_most=0.2)))
    return checks


def speed_claim(text: str, wanted: str, ours: Row, theirs: Row, at_least: float) -> Claim:
    """How many times as many training steps a second one generator makes as another."""
    speed = ours["steps_per_second"] / theirs["steps_per_second"]
    seconds = [row.get("step_seconds") or [] for row in (theirs, ours)]
    interval = ratio_of_medians(*seconds) if min(map(len, seconds)) > 1 else None
    return Claim(text, wanted, f"{speed:.2f}x {between(interval)}", verdict_of(interval, at_least=at_least))


def memory_claim(text: str, wanted: str, ours: Row, theirs: Row, at_most: float) -> Claim | None:
    """The memory growth of a generator's training step as a share of another's; None where it was not measured."""
    if not (ours["memory_growth_mb"] and theirs["memory_growth_mb"]):
        return None
    memory = ours["memory_growth_mb"] / theirs["memory_growth_mb"]
    return Claim(text, wanted, f"{memory:.2f}x", verdict_of((memory, memory), at_most=at_most))


def generator_claims(generator: str, image: Row, equal_steps: Row, equal_time: Row) -> list[Claim]:
    """Table 2, in ratios: the generator on OD-VAE's latents over the one on the image VAE's."""
    title = f"d. {generator} on OD-VAE's latents:"
    text = f"{title} training steps per second"
    checks = [speed_claim(text, "at least 3x (paper: 2.07x)", equal_steps, image, 3)]
    text = f"{title} memory growth at equal batch"
    if claim := memory_claim(text, "at most 0.45x (paper: 0.41x)", equal_steps, image, 0.45):
        checks.append(claim)
    checks.append(distance_claim(f"{title} {image['distance'].partition(' on ')[0]} at equal time", equal_time, image))
    if image["prompt_accuracy"]:
        ours, theirs = (mean_accuracy(row["prompt_accuracy"]) for row in (equal_time, image))
        interval = difference_of_shares(ours, theirs, equal_time["judged_videos"], image["judged_videos"])
        measured = f"{ours:.1%} against {theirs:.1%}, {100 * (ours - theirs):+.1f} points "
        measured += between((100 * interval[0], 100 * interval[1]), 1)
        text = f"{title} prompt accuracy at equal time"
        checks.append(Claim(text, "not below", measured, verdict_of(interval, at_least=0.0)))
    return checks


def distance_claim(text: str, ours: Row, theirs: Row) -> Claim:
    """Whether a distance is not above another's; where their intervals overlap, that is not known."""
    verdict: Verdict = "open"
    measured = []
    for row in (ours, theirs):
        low, high = row["frechet_interval"] or (None, None)
        measured.append(f"{row['frechet']:.3g}" + ("" if low is None else f" ({low:.3g} to {high:.3g})"))
    if ours["frechet_interval"] and theirs["frechet_interval"]:
        (low, high), (their_low, their_high) = ours["frechet_interval"], theirs["frechet_interval"]
        verdict = "holds" if high < their_low else "does not hold" if low > their_high else "not separable"
    return Claim(text, "lower, with intervals that do not overlap", " against ".join(measured), verdict)
