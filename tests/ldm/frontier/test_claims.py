"""Published claims: each verdict follows from the numbers of the points, and from nothing else."""

from __future__ import annotations

import pytest

from ldm.frontier.claims import Point, faster, frontier_claims, steps_to_same
from ldm.frontier.scores import PROMPTED, Measure
from odvae.running.json_objects import JsonObject

BUDGET = "2 minutes"


def point(name, rate="4x8x8", channels=8, role="rate", accuracy=0.8, motion=25.0, psnr=30.0, speed=3.5, memory=40.0,
          changes=(), seeds=3):  # fmt: skip
    """A result whose seeds are .01 apart, and whose clips are the same but for their mean."""
    generators = [
        {"seed": seed, "steps": steps, "budgets": [budget],
         "prompt_accuracy": dict.fromkeys(("color", "shape", "motion"), share * (accuracy + 0.01 * seed))}
        for seed in range(seeds) for steps, budget, share in ((50, "1 minutes", 0.5), (100, BUDGET, 1.0))
    ]  # fmt: skip
    clips = [{"psnr": psnr + k, "motion": motion + k} for k in range(4)]
    cost = {
        "vae": {"compression": rate},
        "generator": {"latent_shape": [channels, 3, 4, 4], "steps_per_second": speed, "memory_growth_mb": memory,
                      "step_seconds": [1 / speed] * 3},
    }  # fmt: skip
    return JsonObject(
        {"point": name, "role": role, "changes": list(changes), "vae": {"clips": clips}, "cost": cost,
         "generators": generators},
        name,
    )  # fmt: skip


REFERENCE = "4x8x8-c8"


def all_points(**changed):
    """Points for which every claim holds, but for what is changed: point -> its values."""
    values = {
        "1x8x8-c8": {"rate": "1x8x8", "accuracy": 0.4, "motion": 27.5, "psnr": 33.0, "speed": 1.0, "memory": 100.0},
        "2x8x8-c8": {"rate": "2x8x8", "accuracy": 0.6, "motion": 26.0, "psnr": 31.0},
        REFERENCE: {},
        "8x8x8-c8": {"rate": "8x8x8", "accuracy": 0.7, "motion": 22.0, "psnr": 28.0},
        "4x8x8-c4": {"channels": 4, "role": "channels", "accuracy": 0.9, "psnr": 28.0},
        "4x8x8-c16": {"channels": 16, "role": "channels", "accuracy": 0.5, "psnr": 32.0},
        "4x8x8-c8-eq": {"role": "regularizers", "accuracy": 1.3, "psnr": 29.8,
                        "changes": ["vae.regularizers.equivariance={}"]},
        "4x8x8-c8-random": {"role": "initialization", "motion": 25.5, "changes": ["vae.init=random"]},
    }  # fmt: skip
    return [point(name, **{**row, **changed.get(name, {})}) for name, row in values.items()]


def verdicts(results):
    claims = frontier_claims(results, REFERENCE, BUDGET)
    return {claim.claim.partition(":")[0] + claim.claim[-12:]: claim.verdict for claim in claims}, claims


def test_every_claim_holds_where_the_numbers_say_so():
    found, claims = verdicts(all_points())
    assert len(found) == len(claims) == 9
    assert set(found.values()) == {"holds"}, found


@pytest.mark.parametrize(
    ("place", "change", "verdict"),
    [
        (0, {REFERENCE: {"speed": 2.9}}, "does not hold"),
        (1, {REFERENCE: {"memory": 46.0}}, "does not hold"),
        (2, {REFERENCE: {"accuracy": 0.3}}, "does not hold"),
        (2, {REFERENCE: {"accuracy": 0.41}}, "not separable"),
        (2, {REFERENCE: {"seeds": 1}}, "open"),
        (3, {"4x8x8-c8-random": {"motion": 24.5}}, "does not hold"),
        (4, {"4x8x8-c16": {"psnr": 29.0}}, "does not hold"),
        (5, {"4x8x8-c16": {"accuracy": 0.95}}, "does not hold"),
        (5, {"4x8x8-c4": {"accuracy": 0.81}}, "not separable"),
        (6, {"8x8x8-c8": {"motion": 24.5}}, "does not hold"),
        (8, {"4x8x8-c8-eq": {"accuracy": 0.8}}, "does not hold"),
        (8, {"4x8x8-c8-eq": {"psnr": 29.0}}, "does not hold"),
    ],
)
def test_each_claim_fails_by_its_own_number(place, change, verdict):
    _, claims = verdicts(all_points(**change))
    assert claims[place].verdict == verdict, claims[place]


def test_better_reconstruction_with_worse_generation_needs_a_pair():
    both = {"psnr": 28.0, "accuracy": 0.3}
    results = [point(REFERENCE), point("8x8x8-c8", rate="8x8x8", **both)]
    claim = next(one for one in verdicts(results)[1] if "does not mean" in one.claim)
    assert (claim.verdict, claim.measured) == ("not separable", "no such pair")
    results = [point(REFERENCE), point("8x8x8-c8", rate="8x8x8", psnr=28.0, accuracy=0.9)]
    claim = next(one for one in verdicts(results)[1] if "does not mean" in one.claim)
    assert claim.verdict == "holds"
    assert f"{REFERENCE} over 8x8x8-c8 +2.00 dB" in claim.measured


def test_the_papers_claims_are_of_its_own_rates_whatever_the_reference_is():
    claims = frontier_claims(all_points(), "8x8x8-c8", BUDGET)
    assert [claim.verdict for claim in claims[:3]] == ["holds"] * 3
    without = [one for one in all_points() if one["point"] != REFERENCE]
    assert {claim.verdict for claim in frontier_claims(without, "8x8x8-c8", BUDGET)[:3]} == {"open"}


def test_what_was_not_measured_is_open_and_named():
    _, claims = verdicts([point(REFERENCE)])
    assert {claim.verdict for claim in claims} == {"open"}
    assert all(claim.measured.startswith("not measured: ") for claim in claims)
    assert len(claims) == 9


def test_a_regularizer_is_compared_with_the_point_that_differs_in_nothing_else():
    rate = "vae.model.temporal_compression_ratio=8"
    results = [
        *all_points(),
        point("8x8x8-c8-lcr", rate="8x8x8", role="regularizers", psnr=28.0, accuracy=0.71,
              changes=[rate, "vae.regularizers.local_correlation={}"]),
    ]  # fmt: skip
    results[3]["changes"] = [rate]
    claim = verdicts(results)[1][-1]
    assert claim.claim.startswith("SSVAE")
    assert claim.measured.startswith("steps: 0.99, 0.99, 0.99; +0.00 dB")
    assert claim.verdict == "does not hold"
    for one in results:  # scored once: nothing to be sooner at
        one["generators"] = [row for row in one["generators"] if row["steps"] == 100]
    claim = verdicts(results)[1][-1]
    assert (claim.verdict, claim.measured) == (
        "open", "not measured: a seed of both that is scored at two budgets"
    )  # fmt: skip


def test_steps_to_the_same_accuracy_are_interpolated():
    theirs = [(50, 0.4), (100, 0.6)]
    assert steps_to_same([(50, 0.6), (100, 0.9)], theirs, 100, PROMPTED) == pytest.approx(0.5)
    assert steps_to_same([(50, 0.5), (100, 0.7)], theirs, 100, PROMPTED) == pytest.approx(0.75)
    assert steps_to_same([(50, 0.8)], theirs, 100, PROMPTED) == pytest.approx(0.5)  # not known to be earlier
    assert steps_to_same([(50, 0.3), (100, 0.5)], theirs, 100, PROMPTED) is None
    assert steps_to_same([(25, 0.2), (50, 0.6)], theirs, 50, PROMPTED) == pytest.approx(0.75)


def test_steps_to_the_same_distance_end_where_it_is_as_low():
    theirs, distance = [(50, 9.0), (100, 5.0)], Measure("FVD", lower_is_better=True)
    assert steps_to_same([(50, 9.0), (100, 6.0)], theirs, 100, distance) is None
    assert steps_to_same([(50, 7.0), (100, 3.0)], theirs, 100, distance) == pytest.approx(0.75)
    assert steps_to_same([(50, 4.0), (100, 3.0)], theirs, 100, distance) == pytest.approx(
        0.5
    )  # not known to be earlier


def test_all_seeds_have_to_be_faster():
    assert faster([0.7, 0.8, 0.5]) == "holds"
    assert faster([0.7, 0.9, 0.5]) == "not separable"
    assert faster([None, 0.9]) == "does not hold"
    assert faster([0.5]) == "open"


def test_a_point_knows_its_regularizer():
    fields = {
        "role": "rate",
        "rate": "4x8x8",
        "channels": 8,
        "clips": {},
        "cost": JsonObject({}, ""),
        "scores": {},
        "curves": {},
    }
    assert Point(name="a", changes=("vae.regularizers.masking={}",), **fields).regularizer == "masking"
    assert Point(name="a", changes=("vae.model.latent_channels=4",), **fields).regularizer is None
