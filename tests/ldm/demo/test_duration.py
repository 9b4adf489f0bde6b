"""Time estimate of `make demo`: scaled from a measured run by this machine's speed."""

import json

import pytest

from ldm.demo.duration import NAMES, REFERENCES, Reference, describe, finished_minutes, probe, seconds_left

REFERENCE = Reference(
    probe=0.02,
    seconds={"vae": 100, "latents": 50, "ldm": 200, "samples": 60, "report": 30},
    minutes={"vae": 1.5, "latents": 0.5, "ldm": 3.0, "samples": 0.8, "report": 0.3},
)


def test_before_the_first_stage_a_machine_half_as_fast_is_estimated_at_twice_the_time():
    left = seconds_left(REFERENCE, {}, probed=0.04)
    assert left == {stage: 2 * seconds for stage, seconds in REFERENCE.seconds.items()}


def test_later_the_estimate_uses_the_speed_of_finished_stages_for_the_others():
    left = seconds_left(REFERENCE, {"vae": 4.5, "latents": 1.5}, probed=0.02)
    assert left == {"ldm": 600, "samples": 180, "report": 90}
    assert describe(left) == ("about 14 minutes (training the diffusion model 10, generating videos 3.0, scores 1.5)")


def test_only_finished_stages_of_a_run_count(tmp_path):
    assert finished_minutes(tmp_path) == {}
    for stage, finished in (("vae", True), ("latents", False)):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "stage.json").write_text(json.dumps({"minutes": 2.0, "finished": finished}))
    assert finished_minutes(tmp_path) == {"vae": 2.0}


@pytest.mark.parametrize("name", REFERENCES)
def test_references_have_every_stage(name):
    assert list(REFERENCES[name].seconds) == list(REFERENCES[name].minutes) == list(NAMES)


def test_the_speed_probe_takes_a_moment():
    assert 0 < probe() < 1
