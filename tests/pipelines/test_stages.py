"""Every stage as a user starts it: end to end, killed, on two ranks, interrupted, on a full disk, with bad input."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import REPOSITORY

from ldm import TextToVideoPipeline
from odvae.running.errors import InputError
from odvae.running.files import read_json_lines
from odvae.video.files import write_video
from odvae.video.pixels import to_uint8

BIN = Path(sys.executable).parent
SMALLEST = ["--config", "configs/smallest.yaml"]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def environment(**changes):
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **changes}


def command(script, run, *arguments):
    return [sys.executable, f"pipelines/{script}", *SMALLEST, f"run={run}", *arguments]


def start(words, **options):
    options = {"env": environment(), **options}
    return subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False, **options)


def succeed(words, **options):
    result = start(words, **options)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def fail(words, status=1, **options):
    """The last line a failing command prints; it is one clear line, no traceback."""
    result = start(words, **options)
    assert result.returncode == status, (result.returncode, result.stderr[-3000:])
    assert "Traceback" not in result.stderr
    return result.stderr.strip()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder in which every stage was started with `accelerate launch`, as the README says."""
    folder = tmp_path_factory.mktemp("runs") / "smallest"
    for script in ("train_vae", "encode_latents", "train_ldm", "sample_video", "evaluate_vae", "evaluate_ldm"):
        launch = [str(BIN / "accelerate"), "launch", f"pipelines/{script}.py", *SMALLEST, f"run={folder}"]
        printed = succeed(launch)
        assert "output: " in printed
        assert ("next:   accelerate launch pipelines/" in printed) == (script != "evaluate_ldm")
    return folder


def test_the_stages_leave_what_the_design_promises(run):
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
        assert set(report[name]) >= {"color", "shape", "motion", "n", "chance", "unclear", "protocol"}
        assert set(report[name]["chance"]) == {"color", "shape", "motion"}
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
    path = Path(succeed(command("sample_video.py", run, *arguments)).split()[0])
    first = path.read_bytes()
    path.unlink()
    (tmp_path / "prompts.txt").write_text("a small blue square moves up\n\na large red circle moves left\n")
    printed = succeed(command("sample_video.py", run, "--prompts", str(tmp_path / "prompts.txt"), "--seed", "5"))
    assert str(path) in printed
    assert path.read_bytes() == first


def test_the_exported_pipeline_makes_the_very_videos_of_the_sampling_stage(run):
    printed = succeed(command("export_pipeline.py", run))
    folder = run / "pipeline"
    assert f"output: {folder}" in printed
    card = (folder / "README.md").read_text()
    for words in (
        "conditioning | text, up to 8 tokens",
        "held-out loss: ",
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
    assert "is no pipeline folder" in fail(command("export_pipeline.py", run, "--out", str(run / "x")))


def test_running_a_finished_stage_again_changes_nothing(run):
    before = (run / "vae" / WEIGHTS).stat().st_mtime_ns
    succeed(command("train_vae.py", run))
    assert (run / "vae" / WEIGHTS).stat().st_mtime_ns == before


def kill_after(words, checkpoint: Path):
    """Start a command and kill -9 it and its children as soon as a checkpoint is there."""
    process = subprocess.Popen(words, cwd=REPOSITORY, env=environment(), start_new_session=True, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert process.poll() is None, process.stderr.read().decode()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("phase", ["image_vae/checkpoints/step_00000001", "checkpoints/step_00000002"])
def test_vae_training_killed_and_started_again_ends_in_the_same_bits(run, tmp_path, phase):
    shutil.copytree(run / "shards", tmp_path / "run/shards")
    kill_after(command("train_vae.py", tmp_path / "run"), tmp_path / "run/vae" / phase)
    assert not (tmp_path / "run/vae" / WEIGHTS).exists()
    succeed(command("train_vae.py", tmp_path / "run"))
    assert (tmp_path / "run/vae" / WEIGHTS).read_bytes() == (run / "vae" / WEIGHTS).read_bytes()
    rows = [(tmp_path / "run/vae/metrics.jsonl").read_text(), (run / "vae/metrics.jsonl").read_text()]
    assert rows[0] == rows[1]


def test_ldm_training_killed_and_started_again_ends_in_the_same_bits(run, tmp_path):
    for stage in ("vae", "latents"):
        shutil.copytree(run / stage, tmp_path / "run" / stage)
    kill_after(command("train_ldm.py", tmp_path / "run"), tmp_path / "run/ldm/checkpoints/step_00000002")
    assert not (tmp_path / "run/ldm" / WEIGHTS).exists()
    succeed(command("train_ldm.py", tmp_path / "run"))
    assert (tmp_path / "run/ldm" / WEIGHTS).read_bytes() == (run / "ldm" / WEIGHTS).read_bytes()


def on_two_ranks(script, run, *arguments):
    torchrun = [str(BIN / "torchrun"), "--standalone", "--nproc_per_node", "2"]
    words = [*torchrun, *command(script, run, *arguments)[1:]]
    succeed(words, env=environment(ACCELERATE_USE_CPU="true"))


def same_weights(a: Path, b: Path, tolerance: float):
    first, second = load_file(a / WEIGHTS), load_file(b / WEIGHTS)
    worst = max(float((first[name] - second[name]).abs().max()) for name in first)
    assert first.keys() == second.keys()
    assert worst <= tolerance, worst
    return worst


def test_ranks_micro_steps_and_batch_make_the_same_vae_when_their_product_is_the_same(run, tmp_path):
    """With the gan on. By plain gradient descent: Adam would blow rounding up where a gradient is nearly zero."""
    common = ["vae.loss.gan.optimizer=sgd", "vae.loss.gan.betas=null", "vae.image_phase.images_per_clip=1"]
    common += [f"vae.{phase}.optimizer=sgd" for phase in ("image_phase", "video_phase")]
    for ranks, gradient_accumulation_steps, batch in ((1, 1, 4), (1, 2, 2), (2, 2, 1)):
        folder = tmp_path / f"{ranks}x{gradient_accumulation_steps}x{batch}"
        shutil.copytree(run / "shards", folder / "shards")
        split = []
        for phase in ("image_phase", "video_phase"):
            split += [
                f"vae.{phase}.gradient_accumulation_steps={gradient_accumulation_steps}",
                f"vae.{phase}.batch_size={batch}",
            ]
        if ranks == 1:
            succeed(command("train_vae.py", folder, *common, *split))
        else:
            on_two_ranks("train_vae.py", folder, *common, *split)
        state = json.loads((folder / "vae/checkpoints/step_00000006/state.json").read_text())
        assert state["ranks"] == ranks
        same_weights(tmp_path / "1x1x4/vae", folder / "vae", 1e-6)


def test_two_ranks_encode_and_train_the_ldm_as_one_rank_with_the_same_global_batch(run, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    shutil.copytree(run / "shards", two / "shards")
    one.mkdir()
    shutil.copytree(run / "vae", two / "vae")
    on_two_ranks("encode_latents.py", two)
    for path in (run / "latents").glob("*.tar"):
        assert (two / "latents" / path.name).read_bytes() == path.read_bytes()

    succeed(command("train_ldm.py", two, "ldm.optimization.optimizer=sgd"))
    (two / "ldm").rename(one / "ldm")
    halves = ["ldm.optimization.batch_size=1", "ldm.optimization.gradient_accumulation_steps=2"]
    on_two_ranks("train_ldm.py", two, "ldm.optimization.optimizer=sgd", *halves)
    same_weights(one / "ldm", two / "ldm", 1e-6)


def test_two_ranks_report_the_scores_of_one(run, tmp_path):
    for stage in ("shards", "vae", "samples"):
        shutil.copytree(run / stage, tmp_path / "run" / stage)
    on_two_ranks("evaluate_ldm.py", tmp_path / "run")
    one, two = (json.loads((folder / "report/report.json").read_text()) for folder in (run, tmp_path / "run"))
    for part in ("generated", "reconstructed", "real"):
        assert two["distances"]["random"][part]["frechet"] == pytest.approx(
            one["distances"]["random"][part]["frechet"], rel=1e-3, abs=1e-4
        )
    for name in ("prompt_accuracy", "prompt_accuracy_reconstructed"):
        assert {k: two[name][k] for k in ("color", "shape", "n")} == {k: one[name][k] for k in ("color", "shape", "n")}
    assert two["flicker"]["added"] == pytest.approx(one["flicker"]["added"], rel=1e-3)


def test_ctrl_c_saves_a_checkpoint_says_so_and_the_same_command_goes_on(run, tmp_path):
    shutil.copytree(run / "shards", tmp_path / "run/shards")
    words = command("train_vae.py", tmp_path / "run", "vae.video_phase.checkpoint_every=1000")
    process = subprocess.Popen(words, cwd=REPOSITORY, env=environment(), stdout=subprocess.PIPE, text=True)
    metrics = tmp_path / "run/vae/metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command again to go on" in printed
    assert list((tmp_path / "run/vae/checkpoints").glob("step_*"))
    succeed(words)
    assert (tmp_path / "run/vae" / WEIGHTS).read_bytes() == (run / "vae" / WEIGHTS).read_bytes()


def test_a_full_disk_ends_with_a_clear_error_and_what_was_there_stays(run, tmp_path):
    shutil.copytree(run / "shards", tmp_path / "run/shards")
    words = command("train_vae.py", tmp_path / "run")

    def small_files():  # no file may grow beyond 40 kB: the first checkpoint does not fit
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    message = fail(words, preexec_fn=small_files)
    assert "error: " in message
    assert "run the same command again" in message
    assert not list((tmp_path / "run/vae").rglob("step_*"))
    assert (tmp_path / "run/shards/00000.tar").read_bytes() == (run / "shards/00000.tar").read_bytes()


def test_an_output_folder_that_cannot_be_written_is_named_before_any_work(run, tmp_path):
    shutil.copytree(run / "shards", tmp_path / "shards")
    (tmp_path / "run").write_text("a file where the run folder should be")
    message = fail(command("train_vae.py", tmp_path / "run", f"data.shards={tmp_path / 'shards'}"))
    assert "cannot write into output folder" in message
    assert str(tmp_path / "run") in message


@pytest.mark.parametrize(
    ("script", "needs", "message"),
    [
        ("train_vae.py", "demo_videos=null", "python tools/make_shards.py FOLDER_OF_VIDEOS"),
        ("encode_latents.py", "", "accelerate launch pipelines/train_vae.py"),
        ("train_ldm.py", "", "accelerate launch pipelines/encode_latents.py"),
        ("sample_video.py", "", "accelerate launch pipelines/train_ldm.py"),
        ("evaluate_ldm.py", "", "accelerate launch pipelines/sample_video.py"),
    ],
)
def test_a_stage_without_its_input_names_the_command_that_makes_it(run, tmp_path, script, needs, message):
    if not needs:
        shutil.copytree(run / "shards", tmp_path / "run/shards")
    assert message in fail(command(script, tmp_path / "run", *([needs] if needs else [])))


def test_a_vae_changed_after_encoding_is_refused_by_trainer_and_sampler(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    weights = load_file(tmp_path / "run/vae" / WEIGHTS)
    weights["decoder.conv_out.bias"] += 0.01
    from safetensors.torch import save_file

    save_file(weights, tmp_path / "run/vae" / WEIGHTS, metadata={"format": "pt"})
    message = fail(command("train_ldm.py", tmp_path / "run"))
    assert "was encoded by another VAE" in message
    assert "encode_latents.py" in message
    assert "was trained with another VAE" in fail(command("sample_video.py", tmp_path / "run", "--prompt", "x"))


def test_a_run_with_other_settings_is_not_mixed_into_the_same_folder(run):
    message = fail(command("train_vae.py", run, "vae.video_phase.learning_rate=5e-3"))
    assert "vae.video_phase.learning_rate: was 0.001, now 0.005" in message
    assert "choose another run folder" in message


def test_a_broken_clip_in_a_shard_is_named(run, tmp_path):
    shard = tmp_path / "run/shards/00000.tar"
    shard.parent.mkdir(parents=True)
    data = (run / "shards/00000.tar").read_bytes()
    shard.write_bytes(data.replace(b"moov", b"xxxx"))
    message = fail(command("train_vae.py", tmp_path / "run"))
    assert "00000.tar:" in message
    assert "cannot be decoded as a video" in message


def test_a_tracker_gets_numbers_and_pictures(run, tmp_path):
    shutil.copytree(run / "shards", tmp_path / "board/shards")
    succeed(command("train_vae.py", tmp_path / "board", "tracker=tensorboard"))
    events = sorted((tmp_path / "board/vae").rglob("events.out.tfevents.*"), key=lambda path: path.stat().st_size)
    assert b"validation_psnr" in events[-1].read_bytes()
    assert b"strips" in events[-1].read_bytes()


def test_wandb_works_offline(run, tmp_path):
    pytest.importorskip("wandb", reason="needs the wandb extra")
    shutil.copytree(run / "shards", tmp_path / "offline/shards")
    offline = environment(WANDB_MODE="offline", WANDB_SILENT="true", HOME=str(tmp_path))
    succeed(command("train_vae.py", tmp_path / "offline", "tracker=wandb"), env=offline)
    runs = list((tmp_path / "offline/vae").rglob("offline-run-*/*.wandb"))
    assert len(runs) == 2  # the image phase and the video phase
    assert any((path.parent / "files/media/images").is_dir() for path in runs)


def test_wandb_gets_the_videos_of_fixed_prompts(run, tmp_path):
    pytest.importorskip("wandb", reason="needs the wandb extra")
    for stage in ("shards", "vae", "latents"):
        shutil.copytree(run / stage, tmp_path / stage)
    offline = environment(WANDB_MODE="offline", WANDB_SILENT="true", HOME=str(tmp_path))
    succeed(command("train_ldm.py", tmp_path, "tracker=wandb", "ldm.sample_every=6"), env=offline)
    assert list((tmp_path / "ldm").rglob("offline-run-*/files/media/videos/*.mp4"))


def test_an_image_vae_stands_in_for_the_video_vae_in_every_stage(run, tmp_path):
    folder = tmp_path / "frames"
    shutil.copytree(run / "shards", folder / "shards")
    for script in ("train_vae", "encode_latents", "train_ldm", "sample_video", "evaluate_vae", "evaluate_ldm"):
        succeed(command(f"{script}.py", folder, "vae.video_phase=null"))
    assert json.loads((folder / "vae/config.json").read_text())["_class_name"] == "PerFrameVAE"
    (shape,) = json.loads((folder / "latents/manifest.json").read_text())["buckets"].values()
    assert shape[1] == 9  # one latent a frame
    report = json.loads((folder / "report/report.json").read_text())
    assert "frame by frame" in report["reconstruction"]["modes"]["tiled"]["not measured"]


def test_help_lists_the_settings_and_a_bad_key_ends_with_status_1(run):
    printed = succeed([sys.executable, "pipelines/train_ldm.py", "--help"])
    assert "ldm.optimization.learning_rate  [float, default 0.0001]" in printed
    assert "unknown key; did you mean steps?" in fail(command("train_vae.py", run, "vae.video_phase.stps=3"))
