"""The compression study: equal budgets, one variable at a time, resuming, and claims tested by the results."""

import json
import sys
import time

import pytest
from small import REPOSITORY

from ldm.report.page import data_uri
from ldm.study.claims import claims
from ldm.study.page import NUM_VISUALIZED, same_captions
from ldm.study.plan import IMAGE, generator_run, vae_runs
from ldm.study.results import collect
from ldm.study.runner import OutOfTime, Runner, record_experiment
from ldm.study.settings import StudySettings
from odvae.running.errors import InputError
from odvae.running.files import read_json, write_json, write_text
from odvae.running.settings import load_settings


@pytest.fixture
def study(tmp_path):
    return load_settings(StudySettings, REPOSITORY / "configs/study/smallest.yaml", [f"run={tmp_path / 'study'}"])


def differences(a: dict, b: dict, prefix: str = "") -> set[str]:
    found = set()
    for key in a.keys() | b.keys():
        if isinstance(a.get(key), dict) and isinstance(b.get(key), dict):
            found |= differences(a[key], b[key], f"{prefix}{key}.")
        elif a.get(key) != b.get(key):
            found.add(prefix + key)
    return found


def test_the_vae_runs_differ_only_in_what_is_compared(study):
    runs = {run.name: run.experiment.model_dump() for run in vae_runs(study)}
    main = runs["variant_4"]
    assert differences(main, runs["variant_1"]) == {"run", "vae.model.variant"}
    assert differences(main, runs["init_average"]) == {"run", "vae.init"}
    assert differences(main, runs["init_random"]) == {"run", "vae.init", "vae.init_image_vae"}
    assert main["vae"]["init_image_vae"] == f"{study.run}/{IMAGE}/vae"
    assert runs[IMAGE]["vae"]["video_phase"] is None


def test_generators_differ_only_in_the_latents_and_then_in_the_steps(study):
    image = generator_run(study, "dit", IMAGE, "steps")
    ours = generator_run(study, "dit", study.main_vae, "steps")
    longer = generator_run(study, "dit", study.main_vae, "time", 77)
    assert differences(image.experiment.model_dump(), ours.experiment.model_dump()) == {"run"}
    assert (image.borrowed["latents"], ours.borrowed["latents"]) == (IMAGE, "variant_4")
    assert differences(ours.experiment.model_dump(), longer.experiment.model_dump()) == {
        "run", "ldm.optimization.steps",
    }  # fmt: skip
    assert longer.experiment.ldm.optimization.steps == 77


def make_runner(study, minutes=None):
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    config = REPOSITORY / "configs/study/smallest.yaml"
    return Runner(study.folder, study.processes, deadline, config, study, ())


def test_a_command_runs_once_and_again_only_where_it_failed(study, tmp_path):
    write = [sys.executable, "-c", f"open({str(tmp_path / 'log')!r}, 'a').write('x')"]
    fail = [sys.executable, "-c", "raise SystemExit(3)"]
    runner, marker = make_runner(study), tmp_path / "done" / "stage.json"
    with pytest.raises(InputError, match="exit status 3"):
        runner.once(marker, fail)
    assert not marker.exists()
    runner.once(marker, write)
    runner.once(marker, write)
    assert (tmp_path / "log").read_text() == "x"
    assert read_json(marker)["commit"]


def test_when_time_is_up_the_stage_is_asked_to_save_and_counts_as_unfinished(study, tmp_path):
    saving = (
        "import signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (open({str(tmp_path / 'saved')!r}, 'w'), sys.exit(143)))\n"
        f"open({str(tmp_path / 'begun')!r}, 'w')\n"
        "time.sleep(60)"
    )
    runner = make_runner(study, minutes=2 / 60)
    with pytest.raises(OutOfTime):
        runner.once(tmp_path / "done" / "stage.json", [sys.executable, "-c", saving])
    assert (tmp_path / "saved").exists()
    marker = tmp_path / "done" / "stage.json"
    assert not marker.exists()
    write_json(marker.with_suffix(".stopped"), {"minutes": 7.0})  # as if it had been stopped after these
    make_runner(study).once(marker, [sys.executable, "-c", ""])
    assert 7 <= read_json(marker)["minutes"] < 8
    assert [path.name for path in marker.parent.iterdir()] == ["stage.json"]


def test_equal_time_is_decided_once_from_the_measured_minutes(study):
    for name, minutes in (("slow", 6.0), ("fast", 2.0)):
        (study.folder / name / "ldm").mkdir(parents=True)
        write_json(study.folder / name / "ldm" / "stage.json", {"minutes": minutes, "finished": True})
    runner = make_runner(study)
    assert runner.steps_in_equal_time(100, "slow", "fast") == 300
    write_json(study.folder / "fast" / "ldm" / "stage.json", {"minutes": 3.0})
    assert runner.steps_in_equal_time(100, "slow", "fast") == 300


def test_a_run_begun_with_other_settings_is_refused(study, tmp_path):
    ours, longer = (generator_run(study, "dit", study.main_vae, "steps", steps) for steps in (5, 6))
    record_experiment(tmp_path / "experiment.yaml", ours)
    record_experiment(tmp_path / "experiment.yaml", ours)
    with pytest.raises(InputError, match="begun with other settings"):
        record_experiment(tmp_path / "experiment.yaml", longer)


def test_what_is_not_done_yet_is_left_out(study):
    found = collect(study)
    assert found["variants"] == found["modes"] == found["claims"] == []
    assert found["generators"] == {"dit": [], "unet": []}


SPREAD = (-0.3, -0.1, 0.1, 0.3)  # of clips around their mean, the same for all, so that differences have no spread


def vae_row(label, psnr, gflops, curve):
    clips = [psnr + spread for spread in SPREAD]
    return {"label": label, "psnr": psnr, "clip_psnr": clips, "encode_gflops": gflops, "curve": curve}


def generator_row(speed, memory, frechet, accuracy):
    return {
        "steps_per_second": speed, "step_seconds": [0.99 / speed, 1 / speed, 1 / speed, 1.01 / speed],
        "memory_growth_mb": memory, "frechet": frechet, "distance": "FVD",
        "frechet_interval": (frechet - 1, frechet + 1),
        "prompt_accuracy": dict.fromkeys(("color", "shape", "motion"), accuracy), "judged_videos": 100,
    }  # fmt: skip


def judged(**changes):
    values = {
        "psnr": 29.8, "gflops": 5.0, "average": [(1, 20.0), (2, 25.0), (3, 29.0), (4, 31.0)],
        "speed": 3.3, "memory": 40.0, "frechet": 7.5, "accuracy": 0.99, "streamed": 1e-6, "tiled": 29.9,
        "second": 29.5,
    } | changes  # fmt: skip
    main = vae_row("variant 4", values["psnr"], values["gflops"], [(1, 24.0), (2, 26.0), (3, 28.0), (4, 30.0)])
    variants = {1: vae_row("variant 1", 30.0, 10.0, []), 2: vae_row("variant 2", values["second"], 7.0, []),
                3: vae_row("variant 3", 29.2, 5.0, []), 4: main}  # fmt: skip
    modes = [
        {"label": "whole", "psnr": 30.0, "clip_psnr": [30.0] * 3},
        {"label": "streamed", "psnr": 30.0, "difference": values["streamed"]},
        {"label": "tiled", "psnr": values["tiled"], "clip_psnr": [values["tiled"]] * 3, "difference": 0.1},
    ]
    ours = generator_row(values["speed"], values["memory"], values["frechet"], values["accuracy"])
    generators = {"dit": [generator_row(1.0, 100.0, 10.0, 0.9), ours, ours]}
    others = [vae_row("average", 29.0, 5.0, values["average"])]
    return [claim["verdict"] for claim in claims(main, variants, others, modes, generators)]


def test_all_claims_hold_where_the_numbers_say_so():
    assert judged() == ["holds"] * 10


@pytest.mark.parametrize(
    ("place", "change"),
    [
        (0, {"psnr": 29.4, "second": 29.3}),
        (1, {"gflops": 7.0}),
        (2, {"second": 29.9}),
        (3, {"average": [(1, 20.0), (2, 26.1), (3, 27.0), (4, 28.0)]}),  # ahead once in the first half
        (4, {"streamed": 0.01}),
        (5, {"tiled": 29.5}),
        (6, {"speed": 2.9}),
        (7, {"memory": 46.0}),
        (8, {"frechet": 12.5}),
        (9, {"accuracy": 0.7}),
    ],
)
def test_each_claim_fails_by_its_own_number(place, change):
    expected = ["holds"] * 10
    expected[place] = "does not hold"
    assert judged(**change) == expected


@pytest.mark.parametrize(("place", "change"), [(6, {"speed": 3.0}), (8, {"frechet": 10.5}), (9, {"accuracy": 0.92})])
def test_a_claim_whose_interval_has_the_limit_in_it_is_not_separable(place, change):
    assert judged(**change)[place] == "not separable"


def test_without_an_interval_a_claim_is_open():
    main, first = ({"label": name, "psnr": 30.0, "encode_gflops": 5.0, "curve": []} for name in "ab")
    verdicts = [claim["verdict"] for claim in claims(main, {1: first}, [first], [], {})]
    assert verdicts == ["open", "does not hold", "open"]  # the operations are exact: 1.00x


def test_the_page_shows_the_first_captions_with_the_video_of_every_run(tmp_path):
    for run in "ab":
        (tmp_path / run / "samples").mkdir(parents=True)
        rows = [{"file": f"{i}.mp4", "group": "held_out", "prompt": f"caption {i}"} for i in range(NUM_VISUALIZED + 4)]
        for row in rows:
            (tmp_path / run / "samples" / row["file"]).write_bytes(f"{run} {row['file']}".encode())
        write_text(tmp_path / run / "samples/samples.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    shown = same_captions(tmp_path, [{"run": "a", "label": "one"}, {"run": "b", "label": "other"}])
    assert [entry["caption"] for entry in shown] == [f"caption {i}" for i in range(NUM_VISUALIZED)]
    videos = {data_uri(b"a 3.mp4", "video/mp4"), data_uri(b"b 3.mp4", "video/mp4")}
    assert set(shown[3]["videos"].values()) == videos
