"""Training of the LDM: conditioning, EMA, no synchronization, logging, errors."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_ldm import SMALL_DIT, SMALL_UNET, WEIGHTS, settings, train
from torch.utils._python_dispatch import TorchDispatchMode

from ldm.diffusion.settings import ObjectiveSettings
from ldm.diffusion.timesteps import alpha_sigma
from ldm.latents.manifest import load_manifest
from ldm.networks.conditioning import NO_LABEL
from ldm.networks.settings import ConditioningSettings, DiTSettings
from ldm.sample import load_pipeline, sample_videos
from ldm.sampling.sample_requests import user_requests
from ldm.sampling.settings import SampleSettings
from ldm.train import new_network, train_ldm
from ldm.training.diffusion_batches import LatentData
from ldm.training.settings import LDMSettings
from ldm.training.throughput import forward_flops
from ldm.training.validation import _equal_shares
from odvae.clips.samplers import BatchPlan
from odvae.measuring import matmul_rate
from odvae.running.errors import InputError
from odvae.running.files import read_json_lines
from odvae.training.ema import EMA
from odvae.training.settings import OptimizationSettings
from odvae.video.video_io import decode, examine

CPU = torch.device("cpu")


def rows(folder):
    return read_json_lines(folder / "metrics.jsonl")


KINDS = {
    "text": ({}, {"prompts": ["a large red circle moves left"], "class_labels": []}),
    "class": ({"kind": "class"}, {"prompts": [], "class_labels": ["red"]}),
    "none": ({"kind": "none"}, {"prompts": [], "class_labels": []}),
    "first frame": ({"kind": "none", "first_frame": 0.5}, {"prompts": [], "class_labels": []}),
}


@pytest.mark.parametrize(("network", "kind"), [*itertools.product([{}], KINDS), ({"unet": SMALL_UNET}, "text")])
def test_every_condition_trains_on_rendered_videos_and_samples(ldm_run, tmp_path, monkeypatch, network, kind):
    monkeypatch.setattr("ldm.training.diffusion_batches.DEFAULT_FPS", 1.0)
    conditioning, asked = KINDS[kind]
    chosen = settings(**network, conditioning=ConditioningSettings(**conditioning), sample_every=4, num_visualized=1)
    train(ldm_run, tmp_path / "ldm", chosen)
    assert (tmp_path / "ldm/strips/000004.png").is_file()
    assert len(list(decode(tmp_path / "ldm/videos/000004.mp4", "x"))) == 9
    assert examine(tmp_path / "ldm/videos/000004.mp4", "x").fps == 8.0  # the clips' rate
    image = None
    if kind == "first frame":
        image = tmp_path / "first.png"
        Image.fromarray(np.full((40, 64, 3), 200, np.uint8)).save(image)
    requests = user_requests(seed=5, image=image, count=2, **asked)
    sampling = SampleSettings(num_inference_steps=2, gif=True, lossless=True)
    files = sample_videos(requests, sampling, ldm_run / "vae", tmp_path / "ldm", tmp_path / "samples")
    assert [file.stem[-5:] for file in files] == ["seed5", "seed6"]
    assert all(len(list(decode(file, "x"))) == 9 for file in files)
    assert all(len(list(decode(file.with_suffix(".gif"), "x"))) == 9 for file in files)
    for file in files:
        exact, shown = (np.stack(list(decode(path, "x"))).ravel() for path in (file.with_suffix(".mkv"), file))
        assert 0.7 < np.corrcoef(exact, shown)[0, 1] < 1  # H.264 changes an untrained network's noise
    assert (tmp_path / "samples/contact_sheet.png").is_file()
    recorded = read_json_lines(tmp_path / "samples/samples.jsonl")
    assert [row["seed"] for row in recorded] == [5, 6]
    assert all(
        row["ldm_sha256"] and row["vae_sha256"] and row["num_inference_steps"] == 2 and row["commit"]
        for row in recorded
    )
    assert ("image_sha256" in recorded[0]) == (kind == "first frame")


@pytest.mark.parametrize("prediction", ["flow", "v"])
def test_the_loss_falls_where_there_is_something_to_learn(ldm_run, tmp_path, prediction):
    objective = ObjectiveSettings(prediction=prediction, min_snr_gamma=5.0)
    every = {"validate_every": 100, "checkpoint_every": 100, "log_every": 10, "learning_rate": 4e-3}
    conditioning = ConditioningSettings(kind="none")
    chosen = settings(100, "adamw", objective=objective, conditioning=conditioning, optimization=every)
    train(ldm_run, tmp_path / "ldm", chosen)
    losses = [row["loss"] for row in rows(tmp_path / "ldm") if "loss" in row]
    print(losses)
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_a_run_logs_its_speed_and_the_held_out_loss_of_each_quarter(ldm_run, tmp_path):
    train(ldm_run, tmp_path / "ldm", settings(peak_tflops=2.0))
    logged = rows(tmp_path / "ldm")
    speed = logged[-2]
    assert speed["tokens_per_second"] > 0
    assert speed["mfu"] == pytest.approx(speed["model_tflops"] / 2.0)
    assert 0 < speed["mfu_of_matmul_rate"] < 1.5  # of a measured rate, beside other work
    assert 0 <= speed["data_wait_share"] < 1
    quarters = [logged[-1][f"held_out_loss_q{i}"] for i in (1, 2, 3, 4)]
    assert logged[-1]["held_out_loss"] == pytest.approx(sum(quarters) / 4)


def data_of(ldm_run, device=CPU, **conditioning):
    manifest = load_manifest(ldm_run / "latents")
    return LatentData(ldm_run / "latents", manifest, ConditioningSettings(**conditioning), ObjectiveSettings(), device)


def test_validation_times_lie_in_the_quarters_of_trainings_times(ldm_run):
    data = data_of(ldm_run)
    entries = data.held_out(next(iter(data.latents.held_out)), [0, 1])
    edges = torch.sigmoid(torch.special.ndtri(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])))
    for quarter, batch in enumerate(data.validation_batches(entries)):
        assert (edges[quarter] <= batch.time).all()
        assert (batch.time <= edges[quarter + 1]).all()


def test_noise_differs_each_time_a_clip_is_used_and_conditions_drop_by_their_share(ldm_run):
    data = data_of(ldm_run, kind="class", cond_dropout=0.5, first_frame=0.25)
    batches = list(itertools.islice(data.training_batches(BatchPlan(8), seed=1), 40))
    labels = torch.cat([batch.condition.label for batch in batches])
    given = torch.cat([batch.condition.first_frame_given for batch in batches])
    times = torch.cat([batch.time for batch in batches])
    assert abs((labels == NO_LABEL).float().mean() - 0.5) < 0.1
    assert abs(given.float().mean() - 0.25) < 0.1
    assert len(times.unique()) == 320
    alpha, sigma = (value.view(-1, 1, 1, 1, 1) for value in alpha_sigma(batches[0].time, ObjectiveSettings()))
    x = batches[0].noisy - sigma * batches[0].target  # what the path says the data is
    assert torch.allclose(x[:, :, :1], batches[0].condition.first_frame, atol=1e-5)
    assert torch.allclose(alpha + sigma, torch.ones_like(alpha))


def test_ranks_and_accumulation_divide_the_same_samples(ldm_run):
    data = data_of(ldm_run)
    whole = next(data.training_batches(BatchPlan(8), seed=0, start_step=3))
    parts = [
        batch
        for rank in (0, 1)
        for batch in itertools.islice(data.training_batches(BatchPlan(2, 2, rank, ranks=2), seed=0, start_step=3), 2)
    ]
    order = [0, 2, 1, 3]  # micro-step by micro-step
    assert torch.equal(torch.cat([parts[i].noisy for i in order]), whole.noisy)


def test_every_rank_validates_as_many_batches_and_every_clip_once():
    for count, batch_size, ranks in itertools.product((1, 5, 8), (2, 4), (1, 2, 3)):
        shares = [list(_equal_shares(count, batch_size, rank, ranks)) for rank in range(ranks)]
        assert len({len(share) for share in shares}) == 1
        numbers = [n for share in shares for batch in share for n in batch if n < count]
        assert sorted(numbers) == list(range(count))


def test_ema_is_exponential_and_can_be_swapped_into_the_network():
    layer = torch.nn.Linear(1, 1, bias=False)
    average = EMA(layer, decay=0.5)
    expected = 0.0
    for step, value in enumerate([1.0, 3.0, 2.0, 5.0], start=1):
        layer.weight.data.fill_(value)
        average.update(step)
        decay = min(0.5, 1 - step ** (-2 / 3))
        expected = decay * expected + (1 - decay) * value
    with average.in_network():
        assert float(layer.weight) == pytest.approx(expected)
        assert not layer.training
    assert float(layer.weight) == 5.0
    assert layer.training


def test_further_ema_weights_are_saved_and_can_be_sampled_from(ldm_run, tmp_path):
    train(ldm_run, tmp_path / "ldm", settings(optimization={"extra_ema_decays": (0.0, 0.5)}))
    main, last = load_file(tmp_path / "ldm" / WEIGHTS), load_file(tmp_path / "ldm/ema_0" / WEIGHTS)
    assert main.keys() == last.keys()
    assert any(not torch.equal(main[name], last[name]) for name in main)
    trained = load_file(tmp_path / "ldm/checkpoints/step_00000004/model.safetensors")
    assert all(torch.equal(trained[name], last[name]) for name in last)  # decay 0: the last weights themselves
    pipeline = load_pipeline(ldm_run / "vae", tmp_path / "ldm", ema_decay=0.5)
    half = load_file(tmp_path / "ldm/ema_0.5" / WEIGHTS)
    assert all(torch.equal(tensor, half[name]) for name, tensor in pipeline.transformer.state_dict().items())
    with pytest.raises(InputError, match=r"ema_0\.9 does not exist; further EMA weights in .*: ema_0, ema_0\.5"):
        load_pipeline(ldm_run / "vae", tmp_path / "ldm", ema_decay=0.9)


class WaitsForTheDevice(TorchDispatchMode):
    """Counts the reads of a tensor's value by the host, each of which makes a GPU wait."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*args, **(kwargs or {}))


def test_steps_that_do_not_log_read_no_value_from_the_device(ldm_run, tmp_path):
    counts = []
    for steps in (2, 12):
        every = {"log_every": 1000, "checkpoint_every": 1000, "validate_every": 1000}
        optimization = OptimizationSettings(steps=steps, batch_size=4, learning_rate=1e-3, **every)
        chosen = LDMSettings(dit=SMALL_DIT, optimization=optimization, peak_tflops=1.0)
        with WaitsForTheDevice() as waits:
            train(ldm_run, tmp_path / str(steps), chosen)
        counts.append(waits.count)
    assert counts[0] == counts[1] > 0


@pytest.mark.gpu
def test_a_training_step_never_waits_for_the_gpu(ldm_run, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    from functools import partial

    from ldm.networks.network import predict
    from ldm.training.diffusion_batches import per_sample_mse
    from odvae.training.state import TrainingState

    chosen, device = settings(optimizer="adamw"), torch.device("cuda")
    data = data_of(ldm_run, device)
    network = new_network(chosen, load_manifest(ldm_run / "latents"))
    state = TrainingState(network, chosen.optimization, tmp_path, "none", "sync")
    batches = data.training_batches(BatchPlan(4), seed=0)
    for step in range(1, 6):
        torch.cuda.set_sync_debug_mode("error" if step > 2 else "default")
        batch = next(batches)
        with state.accelerator.autocast():
            loss = (batch.weight * per_sample_mse(partial(predict, state.model), batch)).mean()
        state.accelerator.backward(loss)
        state.apply_gradients(step, {"loss": loss.detach()})
    torch.cuda.set_sync_debug_mode("default")


def test_counted_flops_are_those_of_the_formula(ldm_run):
    chosen = settings(conditioning=ConditioningSettings(kind="none"), dit=DiTSettings(width=64, depth=3, heads=2))
    network = new_network(chosen, load_manifest(ldm_run / "latents"))
    batch = next(data_of(ldm_run, kind="none").training_batches(BatchPlan(2), seed=0))
    n, d, depth, values = 3 * 2 * 2, 64, 3, 4 * 4
    a_block = 2 * n * 12 * d * d + 2 * 2 * n * n * d + 2 * 6 * d * d  # linear layers, attention, modulation
    rest = 2 * n * 2 * values * d + 2 * (256 * d + d * d) + 2 * 2 * d * d  # patches in and out, time, modulation
    positions = 2 * n * (d // 2) * d  # the same for all samples
    assert forward_flops(network, batch) == 2 * (depth * a_block + rest) + positions


def test_the_matmul_rate_is_a_plausible_number():
    assert 1e8 < matmul_rate(CPU, torch.float32) < 1e14


def test_latents_without_captions_or_held_out_clips_are_refused_before_training(ldm_run, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"patch_size=\(1, 3, 2\)"):
        train(ldm_run, tmp_path / "a", settings(dit=DiTSettings(width=32, depth=1, heads=2, patch_size=(1, 3, 2))))
    with pytest.raises(InputError, match="attention_backend=xformers cannot be used on cpu"):
        train(ldm_run, tmp_path / "b", settings(attention_backend="xformers"))
    shutil.copytree(ldm_run / "latents", tmp_path / "latents")
    manifest = json.loads((tmp_path / "latents/manifest.json").read_text())
    (tmp_path / "latents/manifest.json").write_text(json.dumps(manifest | {"classes": []}))
    chosen = settings(conditioning=ConditioningSettings(kind="class"))
    with pytest.raises(InputError, match="the latents' manifest lists no class"):
        train_ldm(chosen, ldm_run / "vae", tmp_path / "latents", tmp_path / "c", 0)
    (tmp_path / "latents/manifest.json").write_text(json.dumps(manifest | {"held_out_entries": 0}))
    with pytest.raises(InputError, match="no held-out clip was encoded"):
        train_ldm(settings(), ldm_run / "vae", tmp_path / "latents", tmp_path / "c", 0)
    (tmp_path / "latents/manifest.json").write_text(json.dumps(manifest | {"captioned_train_entries": 0}))
    with pytest.raises(InputError, match="no training video has a caption"):
        train_ldm(settings(), ldm_run / "vae", tmp_path / "latents", tmp_path / "c", 0)
    (tmp_path / "latents/manifest.json").write_text(json.dumps(manifest))
    encoder = tmp_path / "latents/text_encoder/config.json"
    encoder.write_text(json.dumps(json.loads(encoder.read_text()) | {"vocab_size": 5}))
    with pytest.raises(InputError, match="no training video has a caption"):
        train_ldm(settings(), ldm_run / "vae", tmp_path / "latents", tmp_path / "c", 0)
    assert not list(tmp_path.glob("[abc]"))
