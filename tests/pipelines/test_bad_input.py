"""Invalid inputs of the stages give one clear line."""

import shutil

import pytest
from safetensors.torch import load_file
from scripts import fail
from stages import WEIGHTS, command

pytestmark = pytest.mark.slow


def test_an_output_folder_that_cannot_be_written_is_named_before_any_work(run, tmp_path):
    shutil.copytree(run / "shards", tmp_path / "shards")
    (tmp_path / "run").write_text("a file where the run folder should be")
    message = fail(*command("train_vae", tmp_path / "run", f"data.shards={tmp_path / 'shards'}"))
    assert "cannot write into output folder" in message
    assert str(tmp_path / "run") in message


@pytest.mark.parametrize(
    ("script", "needs", "message"),
    [
        ("train_vae", "demo_videos=null", "python tools/make_shards.py FOLDER_OF_VIDEOS"),
        ("encode_latents", "", "accelerate launch pipelines/train_vae.py"),
        ("train_ldm", "", "accelerate launch pipelines/encode_latents.py"),
        ("sample_video", "", "accelerate launch pipelines/train_ldm.py"),
        ("evaluate_ldm", "", "accelerate launch pipelines/sample_video.py"),
    ],
)
def test_a_stage_without_its_input_names_the_command_that_makes_it(run, tmp_path, script, needs, message):
    if not needs:
        shutil.copytree(run / "shards", tmp_path / "run/shards")
    assert message in fail(*command(script, tmp_path / "run", *([needs] if needs else [])))


def test_a_vae_changed_after_encoding_is_refused_by_trainer_and_sampler(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    weights = load_file(tmp_path / "run/vae" / WEIGHTS)
    weights["decoder.conv_out.bias"] += 0.01
    from safetensors.torch import save_file

    save_file(weights, tmp_path / "run/vae" / WEIGHTS, metadata={"format": "pt"})
    message = fail(*command("train_ldm", tmp_path / "run"))
    assert "was encoded by another VAE" in message
    assert "encode_latents.py" in message
    assert "was trained with another VAE" in fail(*command("sample_video", tmp_path / "run", "--prompt", "x"))


def test_a_run_with_other_settings_is_not_mixed_into_the_same_folder(run):
    message = fail(*command("train_vae", run, "vae.video_phase.learning_rate=5e-3"))
    assert "vae.video_phase.learning_rate: was 0.001, now 0.005" in message
    assert "choose another run folder" in message


def test_a_broken_clip_in_a_shard_is_named(run, tmp_path):
    shard = tmp_path / "run/shards/00000.tar"
    shard.parent.mkdir(parents=True)
    data = (run / "shards/00000.tar").read_bytes()
    shard.write_bytes(data.replace(b"moov", b"xxxx"))
    message = fail(*command("train_vae", tmp_path / "run"))
    assert "00000.tar:" in message
    assert "cannot be decoded as a video" in message
