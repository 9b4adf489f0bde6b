"""The compression frontier: equal compute, one training scored at several budgets, results that can be compared."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripts import succeed
from small import REPOSITORY

from ldm.frontier.page import write_frontier
from ldm.frontier.point import PointRunner
from ldm.frontier.results import is_finished, markdown, minutes_of, read_results, result_file, rows_of
from ldm.frontier.scores import PROMPTED, Measure, Score, answers, best_of, measure_of
from ldm.frontier.settings import FrontierSettings
from ldm.frontier.sharing import shared_stages
from ldm.frontier.side_by_side import HEADING
from ldm.study.runner import StageRunner
from odvae.running.errors import InputError
from odvae.running.files import read_json, write_json, write_text
from odvae.running.json_objects import JsonObject
from odvae.running.settings import load_settings
from odvae.video.video_io import write_video

CONFIG = REPOSITORY / "configs/study/frontier_smallest.yaml"


def result(settings, point, accuracies, psnr=25.0, rate="4x8x8", **changes):
    """A result as `PointRunner` writes it; `accuracies`: budget -> the accuracy of each seed."""
    generators = [
        {"seed": seed, "budgets": [budget], "steps": 9, "ceiling": dict.fromkeys(("color", "shape", "motion"), 0.95),
         "prompt_accuracy": {"color": value, "shape": value - 0.1, "motion": value + 0.1}}
        for budget, values in accuracies.items() for seed, value in enumerate(values)
    ]  # fmt: skip
    cost = {
        "vae": {"compression": rate, "encode_gflops": 1.0, "decode_gflops": 2.0},
        "generator": {"latent_shape": [4, 3, 4, 4], "tokens": 12, "steps_per_second": 5.0, "memory_growth_mb": 9.0},
    }
    return {
        "point": point, "changes": list(settings.points[point].changes), "role": settings.points[point].role,
        "shared": settings.shared(), "vae": {"psnr": psnr, "ssim": 0.9, "n": 3, "motion": {"psnr": 20.5}}, "cost": cost,
        "generators": generators, "minutes": {"point": 1.5, "shared": {"image_vae_1": 1.0}}, "machine": "2 cores",
        "commit": "abc",
    } | changes  # fmt: skip


def write_results(settings, *results):
    for one in results:
        write_json(f"{settings.results}/{one['point']}.json", one)


@pytest.fixture
def written(frontier, tmp_path):
    (tmp_path / "results").mkdir()
    write_results(
        frontier,
        result(frontier, "1x8x8-c4", {"0.02 minutes": [0.5]}, rate="1x8x8"),
        result(frontier, "4x8x8-c4", {"0.02 minutes": [0.8, 0.9]}),
        result(frontier, "4x8x8-c8", {"0.02 minutes": [0.7]}, psnr=28.0),
    )
    return frontier


def test_a_point_is_finished_with_all_seeds_and_budgets_and_not_run_again(frontier, tmp_path):
    (tmp_path / "results").mkdir()
    settings = frontier.model_copy(update={"minutes": (1.0,), "pflop": (0.5,)})
    seeds = settings.points["4x8x8-c4"].seeds
    whole = {"1 minutes": [0.5] * len(seeds), "0.5 PFLOP": [0.6] * len(seeds)}
    assert not is_finished(settings, "4x8x8-c4")
    for scores, expected in (
        (whole, True),
        (whole | {"0.5 PFLOP": [0.6]}, False),
        ({"1 minutes": whole["1 minutes"]}, False),
    ):
        write_results(settings, result(settings, "4x8x8-c4", scores))
        assert is_finished(settings, "4x8x8-c4") is expected
    write_results(settings, result(settings, "4x8x8-c4", whole))
    made = result_file(settings, "4x8x8-c4").read_bytes()
    runner = PointRunner(settings.folder, 1, None, CONFIG, settings, ())
    assert runner.run_point("4x8x8-c4").read_bytes() == made
    assert not settings.folder.exists()
    other = settings.model_copy(update={"minutes": (2.0,)})
    with pytest.raises(InputError, match=r"4x8x8-c4\.json was made by other settings.*\n  minutes"):
        PointRunner(settings.folder, 1, None, CONFIG, other, ()).run_point("4x8x8-c4")
    assert result_file(settings, "4x8x8-c4").read_bytes() == made


def test_the_table_says_whose_speed_a_point_has(frontier, tmp_path):
    (tmp_path / "results").mkdir()
    speed = {"of": "4x8x8-c8", "steps_per_second": 7.5}
    write_results(frontier, result(frontier, "4x8x8-c4", {"1 minutes": [0.5]}, budget_speed=speed))
    rows = rows_of(read_results(frontier)[0], PROMPTED)
    assert (rows[0]["generator_steps_per_second"], rows[0]["speed_of"]) == (7.5, "4x8x8-c8")
    assert "| 7.50 (of 4x8x8-c8) |" in markdown(rows, PROMPTED)
    assert "of 4x8x8-c8, the same work" in write_frontier(frontier).read_text()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reference=2x8x8", "reference='2x8x8' is not among the points"),
        ("points.x={changes: [vae.model.temporal_compression_ratio=16]}", "16"),
        ("points.x={changes: [vae.model.temporal_compression_ratio=3]}", "3"),
        ("points.x={changes: [vae.model.chanels=3]}", r"points\.x:\n  vae\.model\.chanels: unknown key"),
        ("points.x={changes: [data.frames=5]}", "'data.frames=5' is not in the section vae"),
        ("points.X={}", "'X' must be of lower-case letters"),
        ("experiment.data.frames=7", "7"),
        ("experiment.ldm.optimization.lr_schedule=cosine", "must be constant, since one training is scored"),
        ("minutes=[]", None),
        ("minutes=[-1]", "all must be above 0"),
        ("experiment.vae.video_phase=null", "must have an image_phase and a video_phase"),
        (
            "points.x={changes: [vae.image_phase=null, vae.init_image_vae=x]}",
            r"points\.x: vae must have an image_phase",
        ),
        ("points.4x8x8-c4={changes: [vae.image_phase=null, vae.init=random]}", "and not the reference"),
        ("points.shared={}", "'shared' is the name of another folder"),
        ("points.x={speed_of: y}", r"points\.x\.speed_of='y' is not a point with its own speed: .*4x8x8-c8"),
        ("points.4x8x8-c8={speed_of: 4x8x8-c8}", r"points\.4x8x8-c8\.speed_of='4x8x8-c8' is not a point"),
    ],
)
def test_what_cannot_be_compared_is_named_before_any_work(override, message):
    if message is None:
        load_settings(FrontierSettings, CONFIG, [override])  # pflop is left
        return
    with pytest.raises(InputError, match=message):
        load_settings(FrontierSettings, CONFIG, [override])


def test_a_point_is_best_only_where_no_seed_of_another_reaches_it():
    best, tie, low = Score("a", (0.8, 0.9)), Score("b", (0.6, 0.82)), Score("c", (0.5, 0.79))
    assert best_of([low, best, tie]) == (best, [tie])


def test_the_answer_of_each_budget_says_how_sure_it_is(written):
    results, missing = read_results(written)
    assert missing == ["8x8x8-c4"]
    assert answers(results, PROMPTED)["0.02 minutes"].startswith("4x8x8-c4: 85.0% (80.0% to 90.0% over 2 seeds)")
    assert "some points have one seed only" in answers(results, PROMPTED)["0.02 minutes"]
    write_results(written, result(written, "1x8x8-c4", {"0.02 minutes": [0.5, 0.82]}, rate="1x8x8"))
    assert "not separable here from 1x8x8-c4" in answers(read_results(written)[0], PROMPTED)["0.02 minutes"]
    write_results(written, result(written, "1x8x8-c4", {"0.02 minutes": [0.5, 0.52]}, rate="1x8x8"))
    assert (
        "all its seeds are better than all seeds of the others"
        in answers(read_results(written)[0], PROMPTED)["0.02 minutes"]
    )


def test_rows_have_the_rate_and_what_is_kept(written):
    row = rows_of(read_results(written)[0], PROMPTED)[1]
    assert (row["compression"], row["channels"], row["rate"]) == (256, 4, "4x8x8")
    assert row["values_per_pixel_value"] == pytest.approx(4 / 768)
    assert row["ceiling"] == pytest.approx(0.95)


def test_the_page_has_a_picture_a_table_and_says_what_is_missing(written):
    page = write_frontier(written).read_text()
    assert "1 still to come (8x8x8-c4)" in page
    assert "not separable" in page or "one seed only" in page
    results = Path(written.results)
    assert (results / "frontier.png").stat().st_size > 10_000
    assert not (results / "frontier.gif").exists()  # no videos are in the working folder
    table = (results / "frontier.md").read_text().splitlines()
    assert table[3].startswith(
        "| 4x8x8-c4 | 4x8x8 | 4 | 25.00 | 20.50 | – | 12 | 5.00 | 95.0% | 85.0% (80.0% to 90.0%) |"
    )
    assert any(line.startswith("- rate, 0.02 minutes: 4x8x8-c4: 85.0%") for line in table)
    assert sum(line.endswith("| open |") for line in table) == page.count(">open<") > 3
    assert json.loads((written.folder / "frontier.json").read_text())["missing"] == ["8x8x8-c4"]


def test_the_rates_videos_of_one_caption_stand_side_by_side(written):
    video = np.zeros((5, 32, 32, 3), np.uint8)
    for gray, name in enumerate(("1x8x8-c4", "4x8x8-c4", "4x8x8-c8")):
        samples = written.folder / name / "seed_0" / "samples"
        samples.mkdir(parents=True)
        write_video(samples / "0.mp4", video + 80 * gray, 8)
        row = {"file": "0.mp4", "group": "held_out", "prompt": "a large red circle moves left", "fps": 8.0}
        write_text(samples / "samples.jsonl", json.dumps(row) + "\n")
    page = write_frontier(written).read_text()
    assert page.count("data:video/mp4") == 3
    with Image.open(Path(written.results) / "frontier.gif") as image:
        assert image.n_frames == 1  # five equal frames are stored as one
        assert image.size == (2 * 36, HEADING + 36)  # the third point is not of the role rate
        grays = [image.convert("L").getpixel((36 * column + 18, HEADING + 18)) for column in range(2)]
    assert grays == pytest.approx([0, 80], abs=6)


def test_videos_without_a_judge_are_compared_by_their_distance(written):
    """Of two points, the one with the lower distance is the best, on the page, in the picture and in the claims."""
    for name, values in (("1x8x8-c4", (3.0, 4.0)), ("4x8x8-c4", (1.0, 2.0))):
        rows = [{"seed": seed, "budgets": ["0.02 minutes"], "steps": 9, "ceiling": None, "prompt_accuracy": None,
                 "frechet": value, "distance": "FVD"} for seed, value in enumerate(values)]  # fmt: skip
        rate = name.partition("-")[0]
        write_results(written, result(written, name, {}, rate=rate, generators=rows))
    (Path(written.results) / "4x8x8-c8.json").unlink()
    results = read_results(written)[0]
    assert measure_of(results) == Measure("FVD, lower is better", lower_is_better=True)
    page = write_frontier(written).read_text()
    assert "4x8x8-c4: 1.5 (1 to 2 over 2 seeds); all its seeds are better than all seeds of the others" in page
    table = (Path(written.results) / "frontier.md").read_text()
    assert "| 3.5 (3 to 4) |" in table
    assert "| 1.5 (1 to 2) against 3.5 (3 to 4) | holds |" in table
    results[0]["generators"][0]["distance"] = "KVD"
    with pytest.raises(InputError, match="have distances that cannot be compared: 'KVD' in"):
        measure_of(results)


def test_results_of_other_settings_are_refused_by_name(written):
    other = result(written, "4x8x8-c8", {}, changes=["vae.model.latent_channels=16"])
    write_results(written, other)
    with pytest.raises(InputError, match=r"4x8x8-c8\.json was made by other settings.*\n  points\.changes: was"):
        read_results(written)
    changed = written.model_copy(update={"minutes": (3.0,)})
    with pytest.raises(InputError, match=r"was made by other settings, and cannot be compared:\n  minutes"):
        read_results(changed)
    with pytest.raises(InputError, match="has no result of any point"):
        read_results(written.model_copy(update={"results": str(written.folder / "none")}))


def test_minutes_of_a_shared_stage_count_once(written):
    assert minutes_of(read_results(written)[0]) == 3 * 1.5 + 1.0


def test_a_damaged_result_is_named(written):
    path = f"{written.results}/4x8x8-c4.json"
    write_json(path, {key: value for key, value in read_json(path).items() if key != "cost"})
    with pytest.raises(InputError, match=r"4x8x8-c4\.json was damaged: it has no 'cost'"):
        read_results(written)


@pytest.mark.slow
def test_a_point_runs_from_videos_to_its_result_and_goes_on(frontier, monkeypatch):
    """A generator is trained once, and scored at both budgets; the same command again runs nothing."""
    commands = []

    def once(self, marker, words):
        if not marker.is_file():
            commands.append(words[1])
            succeed(*words[1:])
            marker.parent.mkdir(exist_ok=True)
            write_json(marker, {"command": " ".join(words), "minutes": 0.1})

    monkeypatch.setattr(StageRunner, "once", once)
    overrides = (f"run={frontier.run}", f"results={frontier.results}")
    settings = frontier.model_copy(update={"minutes": (), "pflop": (1e-7, 2e-7)})
    runner = PointRunner(settings.folder, 1, None, CONFIG, settings, overrides)
    assert (runner.run_point("1x8x8-c4", "latents") / "manifest.json").is_file()
    assert "tools/compression_frontier.py" not in commands[1:]
    assert read_json(runner.run_point("1x8x8-c4", "cost"))["generator"]["step_gflops"] > 0
    assert "tools/run_stages.py" not in commands
    found = JsonObject(read_json(runner.run_point("1x8x8-c4")), "result")
    steps = [row["steps"] for row in found["generators"]]
    assert len(steps) == 2
    assert steps[0] < steps[1]
    assert found.section("cost").section("vae")["compression"] == "1x8x8"
    clips = [clip["psnr"] for clip in found.section("vae")["clips"]]
    assert found.section("vae").number("psnr") == pytest.approx(sum(clips) / len(clips))
    assert min(clips) > 5
    assert found["generators"][0]["judged_videos"] == 4
    assert commands.count("tools/run_stages.py") == 2
    assert commands.count("pipelines/train_vae.py") == 2  # the image VAE, and the video VAE
    assert found.section("minutes")["shared"] == {stage: 0.1 for stage in shared_stages(settings, "1x8x8-c4")}
    before = len(commands)
    runner.run_point("1x8x8-c4")
    assert len(commands) == before
    assert write_frontier(settings).is_file()
