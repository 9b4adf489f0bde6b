"""The budgets of a frontier's points: equal operations of the VAEs, and steps of the generators."""

import pytest
from small import REPOSITORY

from ldm.frontier.budget import generator_steps, phase_flops, with_equal_steps
from ldm.frontier.point import phase_steps, speed_for
from ldm.frontier.settings import FrontierSettings, PointSettings
from odvae.running.errors import InputError
from odvae.running.files import write_json
from odvae.running.json_objects import JsonObject
from odvae.running.settings import load_settings

STUDIES = REPOSITORY / "configs/study"


@pytest.mark.parametrize("point", ["1x8x8-c4", "8x8x8-c4", "4x8x8-c8"])
def test_both_phases_of_each_point_cost_what_the_references_cost(frontier, point):
    big = {"vae": frontier.experiment.vae.model_copy(update={
        phase: getattr(frontier.experiment.vae, phase).model_copy(update={"steps": 1000, "checkpoint_every": 500})
        for phase in ("image_phase", "video_phase")
    })}  # fmt: skip
    settings = frontier.model_copy(update={"experiment": frontier.experiment.model_copy(update=big)})
    ours, theirs = with_equal_steps(settings, point), with_equal_steps(settings, settings.reference)
    assert theirs.vae.image_phase.steps == theirs.vae.video_phase.steps == 1000
    for phase in ("image_phase", "video_phase"):
        costs = [getattr(one.vae, phase).steps * phase_flops(one)[phase] for one in (ours, theirs)]
        assert costs[0] == pytest.approx(costs[1], rel=2e-3)
    assert ours.vae.video_phase.steps == pytest.approx(2 * ours.vae.video_phase.checkpoint_every, abs=1)
    if point == "1x8x8-c4":  # more latent frames to decode: fewer steps
        assert ours.vae.video_phase.steps < 900
        assert ours.vae.image_phase.steps == 1000


@pytest.mark.parametrize("name", sorted(path.name for path in STUDIES.glob("frontier_*.yaml")))
def test_every_shipped_frontier_has_the_rates_and_equal_operations(name):
    settings = load_settings(FrontierSettings, STUDIES / name)
    times = {settings.experiment_of(point).vae.model.temporal_compression_ratio for point in settings.points}
    assert {1, 4, 8} <= times
    costs = {}
    for point in settings.points:
        experiment = with_equal_steps(settings, point)
        flops = phase_flops(experiment)
        costs[point] = sum(flops[phase] * steps for phase, steps in phase_steps(experiment).items() if steps)
    few = max(phase_steps(settings.experiment).values()) < 100  # a few steps cannot cost the same
    equal = [costs[settings.reference]] * len(costs)
    assert list(costs.values()) == pytest.approx(equal, rel=0.5 if few else 0.02)


def test_without_an_image_phase_the_video_phase_has_the_operations_of_both(frontier):
    point = PointSettings(changes=("vae.init=random", "vae.image_phase=null"), role="initialization")
    settings = frontier.model_copy(update={"points": {**frontier.points, "random": point}})
    video = settings.experiment.vae.video_phase.model_copy(update={"steps": 400})
    image = settings.experiment.vae.image_phase.model_copy(update={"steps": 900})
    vae = settings.experiment.vae.model_copy(update={"image_phase": image, "video_phase": video})
    settings = settings.model_copy(update={"experiment": settings.experiment.model_copy(update={"vae": vae})})
    flops = phase_flops(settings.experiment_of(settings.reference))
    ours = with_equal_steps(settings, "random").vae
    assert ours.image_phase is None
    assert ours.video_phase.steps == round(400 + 900 * flops["image_phase"] / flops["video_phase"]) > 410


def test_budgets_become_steps_of_one_training(frontier):
    settings = frontier.model_copy(update={"minutes": (1.0, 2.0), "pflop": (0.001, 0.0006)})
    points = dict(frontier.points) | {"more": PointSettings(more_minutes=(1.5,))}
    settings = settings.model_copy(update={"points": points})
    cost = {"steps_per_second": 2.0, "step_gflops": 5.0}
    steps = {120: ["1 minutes", "0.0006 PFLOP"], 200: ["0.001 PFLOP"], 240: ["2 minutes"]}
    assert generator_steps(settings, "4x8x8-c8", cost) == steps
    assert generator_steps(settings, "more", cost) == steps | {180: ["1.5 minutes"]}


def test_a_point_may_have_the_speed_of_another_that_does_the_same_work(frontier, tmp_path):
    (tmp_path / "results").mkdir()
    points = dict(frontier.points) | {"x": frontier.points["4x8x8-c8"].model_copy(update={"speed_of": "4x8x8-c4"})}
    settings = frontier.model_copy(update={"points": points})
    cost = JsonObject({"steps_per_second": 3.0, "step_gflops": 10.1}, "cost.json")
    assert speed_for(settings, "4x8x8-c4", cost) == 3.0
    with pytest.raises(InputError, match=r"the speed of 4x8x8-c4 is not measured yet; run first: .* --until cost"):
        speed_for(settings, "x", cost)
    generator = {"step_gflops": 10.0, "steps_per_second": 5.0}
    write_json(tmp_path / "results/4x8x8-c4.json", {"cost": {"generator": generator}})
    assert speed_for(settings, "x", cost) == 5.0
    (tmp_path / "run/4x8x8-c4").mkdir(parents=True)
    write_json(settings.folder / "4x8x8-c4/cost.json", {"generator": generator | {"steps_per_second": 6.0}})
    assert speed_for(settings, "x", cost) == 6.0  # measured here
    with pytest.raises(InputError, match=r"costs 10\.500 GFLOP and one of 4x8x8-c4 10\.000, .* not the same work"):
        speed_for(settings, "x", JsonObject({"step_gflops": 10.5}, "cost.json"))
