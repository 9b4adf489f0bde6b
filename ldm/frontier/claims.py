"""What others have published about compression, as claims that a frontier tests: measured here, and the verdict.

A generator's scores are compared by their seeds: one point is better than another where its worst seed is above the
other's best. Reconstructions are compared clip by clip, with bootstrap intervals. What was not measured is "open".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from statistics import mean

from ldm.evaluation.intervals import Interval, known_difference, paired_difference
from ldm.frontier.results import compression_of
from ldm.frontier.scores import Measure, Score, measure_of, scores_of
from ldm.study.claims import memory_claim, speed_claim
from ldm.study.verdicts import Claim, Verdict, all_of, between, verdict_of
from odvae.running.json_objects import JsonObject

FEWER_STEPS = 0.8  # of the steps to the same accuracy, in every seed: what a regularizer has to reach
LOST = 0.5  # dB of PSNR that it may cost
REGULARIZERS = {
    "local_correlation": "SSVAE (2512.05394: 3x faster convergence)",
    "latent_masking": "SSVAE (2512.05394: 3x faster convergence)",
    "equivariance": "EQ-VAE (2502.09509: up to 7x faster convergence)",
}


@dataclass(frozen=True)
class Point:
    """A point's result, as the claims read it."""

    name: str
    role: str
    rate: str  # e.g. 4x8x8
    channels: int
    changes: tuple[str, ...]
    clips: Mapping[str, tuple[float, ...]]  # "psnr" and, of moving pixels alone, "motion": of each clip
    cost: JsonObject  # of the generator
    scores: Mapping[str, Score]  # by budget
    curves: Mapping[int, tuple[tuple[int, float], ...]]  # of each seed: (steps, score), by steps

    @property
    def time(self) -> int:
        return int(self.rate.split("x")[0])

    @property
    def space(self) -> str:
        return self.rate.partition("x")[2]

    @property
    def regularizer(self) -> str | None:
        words = [one.partition("vae.regularizers.")[2].partition("=")[0] for one in self.changes]
        return next(filter(None, words), None)


def read_point(result: JsonObject, measure: Measure) -> Point:
    found, vae = compression_of(result), result.section("vae")
    clips = vae.get("clips") or []
    curves: dict[int, list[tuple[int, float]]] = {}
    for row in result["generators"]:
        if (value := measure.of(row)) is not None:
            curves.setdefault(row["seed"], []).append((row["steps"], value))
    return Point(
        result.text("point"),
        result.text("role"),
        found["rate"],
        found["channels"],
        tuple(result["changes"]),
        {key: tuple(clip[key] for clip in clips if key in clip) for key in ("psnr", "motion")},
        result.section("cost").section("generator"),
        scores_of(result, measure),
        {seed: tuple(sorted(rows)) for seed, rows in curves.items()},
    )


def frontier_claims(results: Sequence[JsonObject], reference: str, budget: str) -> list[Claim]:
    """All claims, given the results so far, the name of the reference, and the budget at which to compare, in words."""
    measure = measure_of(results)
    points = [read_point(result, measure) for result in results]
    base = next((one for one in points if one.name == reference), None)
    rates = sorted((one for one in points if one.role == "rate"), key=lambda one: one.time)
    same = [] if base is None else [one for one in rates if (one.space, one.channels) == (base.space, base.channels)]
    channels = [
        one for one in points if base is not None and one.rate == base.rate and one.role in ("rate", "channels")
    ]
    return [
        *paper_claims({one.rate: one for one in same}, budget),
        *initialization_claims(base, next((one for one in points if one.role == "initialization"), None)),
        *channel_claims(channels, budget),
        *time_claims({one.time: one for one in same}),
        *trade_claims(points, budget),
        *regularizer_claims(points, measure),
    ]


def open_claim(text: str, wanted: str, missing: str) -> Claim:
    return Claim(text, wanted, f"not measured: {missing}", "open")


def gain_of(ours: Point, theirs: Point, key: str = "psnr") -> tuple[float | None, Interval | None]:
    """By how many dB one point's reconstructions of the same clips are better, and the interval."""
    a, b = ours.clips[key], theirs.clips[key]
    interval = known_difference(a, b)
    return (None if interval is None else mean(a) - mean(b)), interval


def in_decibels(gain: float | None, interval: Interval | None) -> str:
    return "no scores of the same clips" if gain is None else f"{gain:+.2f} dB {between(interval)}"


def compare_seeds(ours: Point, theirs: Point, budget: str) -> tuple[str, Verdict]:
    """Whether all seeds of one point are better than all of another's at a budget, in words and as a verdict."""
    a, b = ours.scores.get(budget), theirs.scores.get(budget)
    if a is None or b is None:
        return f"no scores at {budget}", "open"
    words = f"{a} against {b}"
    if min(len(a.by_seed), len(b.by_seed)) < 2:
        return f"{words}, one seed", "open"
    return words, "holds" if a.beats(b) else "does not hold" if b.beats(a) else "not separable"


def paper_claims(by_rate: Mapping[str, Point], budget: str) -> Iterator[Claim]:
    """OD-VAE (2409.01199), Table 2, in ratios: 4x8x8 against 1x8x8."""
    base, per_frame = by_rate.get("4x8x8"), by_rate.get("1x8x8")
    speed = "OD-VAE (2409.01199): the generator makes more steps a second on 4x8x8 than on 1x8x8"
    memory = "OD-VAE: its step needs less memory on 4x8x8"
    accuracy = f"OD-VAE: with an equal budget ({budget}) it is better on 4x8x8"
    wanted = ("at least 3x (paper: 2.07x)", "at most 0.45x (paper: 0.41x)", "all seeds above all of 1x8x8")
    if base is None or per_frame is None:
        yield from (open_claim(text, want, "4x8x8 and 1x8x8 of the same channels")
                    for text, want in zip((speed, memory, accuracy), wanted, strict=True))  # fmt: skip
        return
    yield speed_claim(speed, wanted[0], base.cost, per_frame.cost, 3)
    if (claim := memory_claim(memory, wanted[1], base.cost, per_frame.cost, 0.45)) is not None:
        yield claim
    measured, verdict = compare_seeds(base, per_frame, budget)
    yield Claim(accuracy, wanted[2], measured, verdict)


def initialization_claims(base: Point | None, scratch: Point | None) -> Iterator[Claim]:
    text = "IV-VAE (2411.06449): beginning from an image VAE hampers temporal compression"
    wanted = "a VAE from random weights keeps moving pixels better, at equal operations"
    if base is None or scratch is None:
        yield open_claim(text, wanted, "a point of the role initialization")
        return
    gain, interval = gain_of(scratch, base, "motion")
    yield Claim(text, wanted, f"{scratch.name}: {in_decibels(gain, interval)}", verdict_of(interval, at_least=0.0))


def channel_claims(points: Sequence[Point], budget: str) -> Iterator[Claim]:
    text = "VA-VAE (2501.01423): more channels reconstruct better"
    other = "VA-VAE: and are harder to generate"
    wanted, harder = "each PSNR above that with fewer", f"all seeds below all of fewer channels, at {budget}"
    ordered = sorted(points, key=lambda one: one.channels)
    if len(ordered) < 2:
        yield open_claim(text, wanted, "points of several channels")
        yield open_claim(other, harder, "points of several channels")
        return
    pairs = list(zip(ordered[1:], ordered[:-1], strict=True))
    gains = [(f"{more.channels} over {less.channels}", *gain_of(more, less)) for more, less in pairs]
    measured = "; ".join(f"{words} {in_decibels(gain, interval)}" for words, gain, interval in gains)
    yield Claim(text, wanted, measured, all_of([verdict_of(interval, at_least=0.0) for _, _, interval in gains]))
    found = [(less, more, *compare_seeds(less, more, budget)) for more, less in pairs]
    measured = "; ".join(f"{less.channels} against {more.channels}: {words}" for less, more, words, _ in found)
    yield Claim(other, harder, measured, all_of([verdict for *_, verdict in found]))


def time_claims(by_time: Mapping[int, Point]) -> Iterator[Claim]:
    text = "2501.05442: beyond 4x in time, without more channels, quality falls fast"
    wanted = "moving pixels lose more from 4x to 8x than from 2x to 4x"
    if not {2, 4, 8} <= by_time.keys():
        yield open_claim(text, wanted, "2x, 4x and 8x of the same channels")
        return
    two, four, eight = (by_time[time].clips["motion"] for time in (2, 4, 8))
    if not len(two) == len(four) == len(eight) > 1:
        yield open_claim(text, wanted, "scores of the same clips")
        return
    first = [a - b for a, b in zip(two, four, strict=True)]
    second = [a - b for a, b in zip(four, eight, strict=True)]
    interval = paired_difference(second, first)
    measured = f"{mean(second):.2f} against {mean(first):.2f} dB, {mean(second) - mean(first):+.2f} {between(interval)}"
    yield Claim(text, wanted, measured, verdict_of(interval, at_least=0.0))


def trade_claims(points: Sequence[Point], budget: str) -> Iterator[Claim]:
    text = "VA-VAE, SSVAE: better reconstruction does not mean better generation"
    wanted = f"two points of which one reconstructs better and the other generates better, at {budget}"
    found, known = [], False
    for ours, theirs in permutations(points, 2):
        gain, interval = gain_of(ours, theirs)
        generated, verdict = compare_seeds(theirs, ours, budget)
        known |= interval is not None and verdict != "open"
        if gain is not None and interval is not None and interval[0] > 0 and verdict == "holds":
            words = f"{ours.name} over {theirs.name} {in_decibels(gain, interval)}"
            found.append((gain, f"{words}, and generated the other way round {generated}"))
    if found:
        yield Claim(text, wanted, f"{len(found)} such pairs; {max(found)[1]}", "holds")
    elif known:
        yield Claim(text, wanted, "no such pair", "not separable")
    else:
        yield open_claim(text, wanted, "two points with several seeds")


def regularizer_claims(points: Sequence[Point], measure: Measure) -> Iterator[Claim]:
    """Each regularizer at each rate, against the point of the same rate and channels without one.

    The claim is that its generator comes sooner to a score of the other: of each that this has, but the first.
    """
    wanted = f"its score without it in at most {FEWER_STEPS:g} of the steps in all seeds, at most {LOST} dB lost"
    regularized = [one for one in points if one.regularizer is not None]
    for ours in regularized:
        name = str(ours.regularizer)
        text = f"{REGULARIZERS.get(name, name)}: {name} speeds the generator up, at {ours.rate}"
        theirs = next((one for one in points if is_plain(one, ours)), None)
        if theirs is None:
            yield open_claim(text, wanted, "the point without it")
            continue
        gain, interval = gain_of(ours, theirs)
        seeds = sorted(ours.curves.keys() & theirs.curves.keys())
        goals = sorted({steps for seed in seeds for steps, _ in theirs.curves[seed][1:]})
        if not goals:
            yield open_claim(text, wanted, "a seed of both that is scored at two budgets")
        for goal in goals:
            known = [seed for seed in seeds if goal in dict(theirs.curves[seed])]
            shares = [steps_to_same(ours.curves[one], theirs.curves[one], goal, measure) for one in known]
            steps = ", ".join("never" if share is None else f"{share:.2f}" for share in shares)
            verdicts = [faster(shares), verdict_of(interval, at_least=-LOST)]
            measured = f"steps: {steps}; {in_decibels(gain, interval)}"
            yield Claim(f"{text}, to the score of {goal} steps", wanted, measured, all_of(verdicts))
    if not regularized:
        yield open_claim("SSVAE, EQ-VAE: a regularizer speeds the generator up", wanted, "points with regularizers")


def is_plain(point: Point, regularized: Point) -> bool:
    """Whether a point differs from a regularized one by the regularizer only."""
    left = tuple(one for one in regularized.changes if not one.startswith("vae.regularizers."))
    same = (point.rate, point.channels) == (regularized.rate, regularized.channels)
    return same and point is not regularized and point.changes == left


def faster(shares: Sequence[float | None]) -> Verdict:
    """Whether every seed needs at most `FEWER_STEPS` of the steps; None is a seed that never came so far."""
    if len(shares) < 2:
        return "open"
    reached = [one is not None and one <= FEWER_STEPS for one in shares]
    return "holds" if all(reached) else "not separable" if any(reached) else "does not hold"


def steps_to_same(
    ours: Sequence[tuple[int, float]], theirs: Sequence[tuple[int, float]], goal: int, measure: Measure
) -> float | None:
    """After which share of `goal` steps a generator has the score that the other has after all of them; None: never.

    Between scored steps, scores are interpolated along lines, which on a curve that flattens is late, not early.
    Nothing is known before the first scored step: a score that is reached there counts as reached at it.
    """
    sign = -1 if measure.lower_is_better else 1
    wanted = sign * dict(theirs)[goal]
    before: tuple[int, float] | None = None
    for step, score in ours:
        value = sign * score
        if value >= wanted:
            if before is None or value <= before[1]:
                return step / goal
            return (before[0] + (wanted - before[1]) / (value - before[1]) * (step - before[0])) / goal
        before = (step, value)
    return None
