"""The whole pipeline as in the README, and the files it writes."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from scripts import fail, fresh, succeed
from stages import BIN, SMALLEST, STAGES, WEIGHTS, command

from ldm import TextToVideoPipeline
from odvae.running.errors import InputError
from odvae.running.files import read_json_lines
from odvae.video.pixels import to_uint8
from odvae.video.video_io import write_video

pytestmark = pytest.mark.slow


def test_the_stages_write_all_documented_files(run):
    for name in ("shards/00000.tar", "vae/config.json", f"vae/{WEIGHTS}", "vae/experiment.yaml", "vae/metrics.jsonl"):
        assert (run / name).is_file()
    for name in ("latents/00000.tar", "latents/manifest.json", "ldm/config.json", "ldm/metrics.jsonl"):
        assert (run / name).is_file()
    config = json.loads((run / "vae/config.json").read_text())
    assert len(config["latents_mean"]) == len(config["latents_std"]) == 4
    assert all(value > 0 for value in config["latents_std"])
    rows = [json.loads(line) for line in (run / "samples/samples.jsonl").read_text().splitlines()]
    assert {row["group"] for row in rows} == {"held_out", "unseen"}
    assert all((run / "samples" / row["file"]).is_file() for row in rows)


def test_the_report_has_every_number_with_its_protocol_and_a_page_that_plays(run):
    report = json.loads((run / "report/report.json").read_text())
    assert report["reconstruction"]["psnr"] > 5
    assert -1 <= report["reconstruction"]["ssim"] <= 1
    for name in ("prompt_accuracy", "prompt_accuracy_unseen"):
        assert set(report[name]) >= {"color", "shape", "motion", "speed", "n", "chance", "unclear", "protocol"}
        assert set(report[name]["chance"]) == {"color", "shape", "motion", "speed"}
    distances = report["distances"]["random"]
    assert "not FVD" in distances["name"]
    for floor in ("generated", "reconstructed", "real"):
        assert distances[floor]["frechet"] == pytest.approx(distances[floor]["frechet_by_n"][0][1], rel=1e-6)
    parts = [report[name] for name in ("reconstruction", "prompt_accuracy", "prompt_accuracy_reconstructed", "flicker")]
    assert all(part["protocol"] and part["command"] and part["commit"] for part in parts)
    assert distances["protocol"]["frames"] == 9
    table = (run / "report/numbers.csv").read_text()
    assert table.startswith("name,value,low,high,n,protocol,command,commit\n")
    assert "distances.random.generated.frechet," in table
    assert "minutes.vae," in table
    assert report["reconstruction"]["protocol"]["frames"] == 9
    assert len(report["reconstruction"]["latents"]["std"]) == 4
    assert set(report["reconstruction"]["modes"]) == {"whole", "streamed", "tiled"}
    assert set(report["minutes"]) == {"vae", "latents", "ldm", "samples", "report"}
    assert report["commit"]
    page = (run / "report/report.html").read_text()
    assert page.count("data:video/mp4;base64,") >= 3
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_a_prompt_makes_its_video_and_the_same_seed_the_same_file(run, tmp_path):
    arguments = ["--prompt", "a large red circle moves left", "--seed", "5"]
    path = Path(succeed(*command("sample_video", run, *arguments)).split()[0])
    first = path.read_bytes()
    path.unlink()
    (tmp_path / "prompts.txt").write_text("a small blue square moves up\n\na large red circle moves left\n")
    printed = succeed(*command("sample_video", run, "--prompts", str(tmp_path / "prompts.txt"), "--seed", "5"))
    assert str(path) in printed
    assert path.read_bytes() == first


def test_the_exported_pipeline_generates_the_same_videos_as_the_sampling_stage(run):
    printed = succeed(*command("export_pipeline", run))
    folder = run / "pipeline"
    assert f"output: {folder}" in printed
    card = (folder / "README.md").read_text()
    for words in (
        "conditioning | text, up to 16 tokens",
        "held-out loss | ",
        "reconstruction PSNR",
        "learning_rate: 0.001",
    ):
        assert words in card
    pipeline = TextToVideoPipeline.from_pretrained(folder)
    row = read_json_lines(run / "samples/samples.jsonl")[0]
    generator = torch.Generator().manual_seed(row["seed"])
    threads = torch.get_num_threads()
    torch.set_num_threads(row["threads"])
    asked = {
        "num_inference_steps": row["num_inference_steps"],
        "guidance_scale": row["guidance_scale"],
        "generator": generator,
    }
    frames = pipeline(row["prompt"], output_type="pt", **asked).frames
    torch.set_num_threads(threads)
    write_video(run / "again.mp4", to_uint8(frames.transpose(1, 2) * 2 - 1)[0], row["fps"])
    assert (run / "again.mp4").read_bytes() == (run / "samples" / row["file"]).read_bytes()
    shutil.rmtree(folder / "vae")
    with pytest.raises(InputError, match="missing parts: vae; export the run again"):
        TextToVideoPipeline.from_pretrained(folder)
    (run / "x").mkdir()
    assert "is no pipeline folder" in fail(*command("export_pipeline", run, "--out", str(run / "x")))


def test_running_a_finished_stage_again_changes_nothing(run):
    before = (run / "vae" / WEIGHTS).stat().st_mtime_ns
    succeed(*command("train_vae", run))
    assert (run / "vae" / WEIGHTS).stat().st_mtime_ns == before


def test_an_image_vae_replaces_the_video_vae_in_every_stage(run, tmp_path):
    folder = tmp_path / "frames"
    shutil.copytree(run / "shards", folder / "shards")
    every_stage = ("tools/run_stages.py", *SMALLEST, f"run={folder}", "vae.video_phase=null")
    printed = succeed(*every_stage)
    assert re.findall(r"^\$ python pipelines/(\w+)\.py", printed, re.MULTILINE) == list(STAGES)
    assert json.loads((folder / "vae/config.json").read_text())["_class_name"] == "PerFrameVAE"
    (shape,) = json.loads((folder / "latents/manifest.json").read_text())["buckets"].values()
    assert shape[1] == 9  # one latent a frame
    report = json.loads((folder / "report/report.json").read_text())
    assert "frame by frame" in report["reconstruction"]["modes"]["tiled"]["not measured"]


def test_help_lists_the_settings_and_a_bad_key_ends_with_status_1(run):
    printed = fresh(BIN / "python", "pipelines/train_ldm.py", "--help")
    assert "ldm.optimization.learning_rate  [float, default 0.0001]" in printed
    assert "unknown key; did you mean steps?" in fail(*command("train_vae", run, "vae.video_phase.stps=3"))
