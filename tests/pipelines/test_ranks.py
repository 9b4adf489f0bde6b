"""Two ranks give the results of one rank."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from scripts import fresh, on_ranks, succeed
from stages import BIN, WEIGHTS, command

pytestmark = pytest.mark.slow


def same_weights(a: Path, b: Path, tolerance: float):
    first, second = load_file(a / WEIGHTS), load_file(b / WEIGHTS)
    worst = max(float((first[name] - second[name]).abs().max()) for name in first)
    assert first.keys() == second.keys()
    assert worst <= tolerance, worst
    return worst


REGULARIZED = [
    "vae.regularizers.local_correlation.weight=1.0",
    "vae.regularizers.latent_masking={fractions: [0.5], probabilities: [1.0]}",
    "vae.regularizers.equivariance.probability=0.5",
]


@pytest.mark.parametrize("regularizers", [[], REGULARIZED], ids=["plain", "regularized"])
def test_ranks_micro_steps_and_batch_make_the_same_vae_when_their_product_is_the_same(run, tmp_path, regularizers):
    """With the gan on. By plain gradient descent: Adam would blow rounding up where a gradient is nearly zero."""
    common = list(regularizers)
    common += ["vae.loss.gan.optimizer=sgd", "vae.loss.gan.betas=null", "vae.image_phase.images_per_clip=1"]
    common += [f"vae.{phase}.optimizer=sgd" for phase in ("image_phase", "video_phase")]
    torchrun = [BIN / "torchrun", "--standalone", "--nproc_per_node", "2"]
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
            succeed(*command("train_vae", folder, *common, *split))
        else:
            fresh(*torchrun, *command("train_vae", folder, *common, *split), ACCELERATE_USE_CPU="true")
        state = json.loads((folder / "vae/checkpoints/step_00000006/state.json").read_text())
        assert state["ranks"] == ranks
        same_weights(tmp_path / "1x1x4/vae", folder / "vae", 1e-6)


def test_two_ranks_encode_and_train_the_ldm_as_one_rank_with_the_same_global_batch(run, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    shutil.copytree(run / "shards", two / "shards")
    one.mkdir()
    shutil.copytree(run / "vae", two / "vae")
    on_ranks(2, *command("encode_latents", two))
    for path in (run / "latents").glob("*.tar"):
        assert (two / "latents" / path.name).read_bytes() == path.read_bytes()

    succeed(*command("train_ldm", two, "ldm.optimization.optimizer=sgd"))
    (two / "ldm").rename(one / "ldm")
    halves = ["ldm.optimization.batch_size=1", "ldm.optimization.gradient_accumulation_steps=2"]
    on_ranks(2, *command("train_ldm", two, "ldm.optimization.optimizer=sgd", *halves))
    same_weights(one / "ldm", two / "ldm", 1e-6)


def test_two_ranks_report_the_scores_of_one(run, tmp_path):
    for stage in ("shards", "vae", "samples"):
        shutil.copytree(run / stage, tmp_path / "run" / stage)
    on_ranks(2, *command("evaluate_ldm", tmp_path / "run"))
    one, two = (json.loads((folder / "report/report.json").read_text()) for folder in (run, tmp_path / "run"))
    for part in ("generated", "reconstructed", "real"):
        assert two["distances"]["random"][part]["frechet"] == pytest.approx(
            one["distances"]["random"][part]["frechet"], rel=1e-3, abs=1e-4
        )
    for name in ("prompt_accuracy", "prompt_accuracy_reconstructed"):
        assert {k: two[name][k] for k in ("color", "shape", "n")} == {k: one[name][k] for k in ("color", "shape", "n")}
    assert two["flicker"]["added"] == pytest.approx(one["flicker"]["added"], rel=1e-3)
