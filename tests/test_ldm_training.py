"""Training of the LDM: every condition learns and samples, averages, resume, no waiting, what a run logs."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import REPOSITORY
from PIL import Image
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from ldm.batches import LatentData
from ldm.conditioning import NO_LABEL, ConditioningSettings
from ldm.encode import LatentSettings, encode_latents
from ldm.experiment import Experiment
from ldm.manifest import load_manifest
from ldm.network import DiTSettings, UNetSettings
from ldm.objective import ObjectiveSettings, path
from ldm.sample import SampleSettings, asked_requests, load_pipeline, sample_videos
from ldm.text import TextSettings
from ldm.throughput import forward_flops
from ldm.train import LDMSettings, new_network, train_ldm
from ldm.validation import _equal_shares
from odvae.shared.averages import AveragedWeights
from odvae.shared.clips import DataSettings, VideoSet
from odvae.shared.compute import matmul_rate
from odvae.shared.demo_videos import write_demo_videos
from odvae.shared.errors import InputError
from odvae.shared.optimization import OptimizationSettings
from odvae.shared.packing import pack_folder
from odvae.shared.run_folder import read_json_lines
from odvae.shared.settings import load_settings
from odvae.shared.shards import index_shards, shard_writer
from odvae.shared.video import decode

CPU = torch.device("cpu")
DATA = DataSettings(frames=9, height=32, width=32, held_out=0.25, workers=0)
SMALL_DIT = DiTSettings(width=32, depth=2, heads=2)
SMALL_UNET = UNetSettings(widths=(8, 16), layers_per_level=1, head_width=4, norm_groups=4)
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module", autouse=True)
def _signals_as_before():
    """Training takes over Ctrl-C and SIGTERM; pytest gets them back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def run(tmp_path_factory, vae) -> Path:
    """A run folder with vae/ and latents/ of 16 rendered videos, labelled by colour."""
    folder = tmp_path_factory.mktemp("ldm")
    write_demo_videos(folder / "videos", 16, 9, 32, 8, seed=3, progress=False)
    pack_folder(folder / "videos", folder / "packed")
    (folder / "shards").mkdir()
    samples = index_shards([folder / "packed/00000.tar"])
    with shard_writer(folder / "shards/00000.tar") as writer:
        for sample in samples:
            members = {extension: sample.read(extension) for extension in sample.members}
            about = json.loads(members["json"]) | {"label": sample.read_text().split()[2]}
            writer.write({"__key__": sample.key, **members, "json": json.dumps(about).encode()})
    vae.save_pretrained(folder / "vae")
    videos = VideoSet(folder / "shards", DATA, "?")
    text = TextSettings(max_tokens=8, width=16, steps=3)
    encode_latents(LatentSettings(), text, DATA, videos, folder / "vae", folder / "latents", seed=0)
    return folder


def settings(steps=4, optimizer="sgd", **changes) -> LDMSettings:
    chosen = {"learning_rate": 0.02, "log_every": 1, "checkpoint_every": 2, **changes.pop("optimization", {})}
    optimization = OptimizationSettings(steps=steps, batch_size=4, optimizer=optimizer, **chosen)
    return LDMSettings(**{"model": SMALL_DIT, "unet": SMALL_UNET, "optimization": optimization, **changes})


def train(run, folder, chosen, seed=0):
    train_ldm(chosen, run / "vae", run / "latents", folder, seed)
    return load_file(folder / WEIGHTS)


def rows(folder):
    return read_json_lines(folder / "metrics.jsonl")


KINDS = {
    "text": ({}, {"prompts": ["a large red circle moves left"], "class_labels": []}),
    "class": ({"kind": "class"}, {"prompts": [], "class_labels": ["red"]}),
    "none": ({"kind": "none"}, {"prompts": [], "class_labels": []}),
    "first frame": ({"kind": "none", "first_frame": 0.5}, {"prompts": [], "class_labels": []}),
}


@pytest.mark.parametrize(("network", "kind"), [*itertools.product(["dit"], KINDS), ("unet", "text")])
def test_every_condition_trains_on_rendered_videos_and_samples(run, tmp_path, network, kind):
    conditioning, asked = KINDS[kind]
    chosen = settings(network=network, conditioning=ConditioningSettings(**conditioning), show_every=4, shown=1)
    train(run, tmp_path / "ldm", chosen)
    assert (tmp_path / "ldm/strips/000004.png").is_file()
    assert len(list(decode(tmp_path / "ldm/videos/000004.mp4", "x"))) == 9
    image = None
    if kind == "first frame":
        image = tmp_path / "first.png"
        Image.fromarray(np.full((40, 64, 3), 200, np.uint8)).save(image)
    requests = asked_requests(seed=5, image=image, count=2, **asked)
    sampling = SampleSettings(steps=2, gif=True)
    files = sample_videos(requests, sampling, run / "vae", tmp_path / "ldm", tmp_path / "samples")
    assert [file.stem[-5:] for file in files] == ["seed5", "seed6"]
    assert all(len(list(decode(file, "x"))) == 9 for file in files)
    assert all(len(list(decode(file.with_suffix(".gif"), "x"))) == 9 for file in files)
    assert (tmp_path / "samples/contact_sheet.png").is_file()
    recorded = read_json_lines(tmp_path / "samples/samples.jsonl")
    assert [row["seed"] for row in recorded] == [5, 6]
    assert all(row["ldm_sha256"] and row["vae_sha256"] and row["steps"] == 2 and row["commit"] for row in recorded)
    assert ("image_sha256" in recorded[0]) == (kind == "first frame")


@pytest.mark.parametrize("prediction", ["flow", "v"])
def test_the_loss_falls_where_there_is_something_to_learn(run, tmp_path, prediction):
    objective = ObjectiveSettings(prediction=prediction, zero_terminal_snr=prediction == "v", min_snr_gamma=5.0)
    every = {"validate_every": 100, "checkpoint_every": 100, "log_every": 10, "learning_rate": 4e-3}
    conditioning = ConditioningSettings(kind="none")
    chosen = settings(100, "adamw", objective=objective, conditioning=conditioning, optimization=every)
    train(run, tmp_path / "ldm", chosen)
    losses = [row["loss"] for row in rows(tmp_path / "ldm") if "loss" in row]
    print(losses)
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_a_run_logs_its_speed_and_the_held_out_loss_of_each_quarter(run, tmp_path):
    train(run, tmp_path / "ldm", settings(peak_tflops=2.0))
    logged = rows(tmp_path / "ldm")
    speed = logged[-2]
    assert speed["tokens_per_second"] > 0
    assert speed["peak_share"] == pytest.approx(speed["model_tflops"] / 2.0)
    assert 0 <= speed["data_wait_share"] < 1
    quarters = [logged[-1][f"held_out_loss_q{i}"] for i in (1, 2, 3, 4)]
    assert logged[-1]["held_out_loss"] == pytest.approx(sum(quarters) / 4)


def data_of(run, device=CPU, **conditioning):
    manifest = load_manifest(run / "latents")
    return LatentData(run / "latents", manifest, ConditioningSettings(**conditioning), ObjectiveSettings(), device)


def test_validation_times_lie_in_the_quarters_of_trainings_times(run):
    data = data_of(run)
    entries = data.held_out(next(iter(data.latents.held_out)), [0, 1])
    edges = torch.sigmoid(torch.special.ndtri(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])))
    for quarter, batch in enumerate(data.validation_batches(entries)):
        assert (edges[quarter] <= batch.time).all()
        assert (batch.time <= edges[quarter + 1]).all()


def test_batches_are_drawn_anew_each_time_a_clip_comes_and_conditions_drop_by_their_share(run):
    data = data_of(run, kind="class", dropout=0.5, first_frame=0.25)
    batches = list(itertools.islice(data.training_batches(8, 1, 0, 0, 1, seed=1, done=0), 40))
    labels = torch.cat([batch.condition.label for batch in batches])
    given = torch.cat([batch.condition.first_frame_given for batch in batches])
    times = torch.cat([batch.time for batch in batches])
    assert abs((labels == NO_LABEL).float().mean() - 0.5) < 0.1
    assert abs(given.float().mean() - 0.25) < 0.1
    assert len(times.unique()) == 320
    alpha, sigma = (value.view(-1, 1, 1, 1, 1) for value in path(batches[0].time, ObjectiveSettings()))
    x = batches[0].noisy - sigma * batches[0].target  # what the path says the data is
    assert torch.allclose(x[:, :, :1], batches[0].condition.first_frame, atol=1e-5)
    assert torch.allclose(alpha + sigma, torch.ones_like(alpha))


def test_ranks_and_accumulation_share_out_the_same_samples(run):
    data = data_of(run)
    whole = next(data.training_batches(8, 1, 0, 0, 1, seed=0, done=3))
    parts = [
        batch
        for rank in (0, 1)
        for batch in itertools.islice(data.training_batches(2, 2, 0, rank, 2, seed=0, done=3), 2)
    ]
    order = [0, 2, 1, 3]  # micro-step by micro-step
    assert torch.equal(torch.cat([parts[i].noisy for i in order]), whole.noisy)


def test_every_rank_validates_as_many_batches_and_every_clip_once():
    for count, batch_size, ranks in itertools.product((1, 5, 8), (2, 4), (1, 2, 3)):
        shares = [list(_equal_shares(count, batch_size, rank, ranks)) for rank in range(ranks)]
        assert len({len(share) for share in shares}) == 1
        numbers = [n for share in shares for batch in share for n in batch if n < count]
        assert sorted(numbers) == list(range(count))


def test_averages_are_exponential_and_lend_their_weights():
    layer = torch.nn.Linear(1, 1, bias=False)
    average = AveragedWeights(layer, decay=0.5)
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


def test_further_averages_are_saved_beside_the_first_and_can_be_sampled(run, tmp_path):
    train(run, tmp_path / "ldm", settings(optimization={"extra_ema_decays": (0.0, 0.5)}))
    main, last = load_file(tmp_path / "ldm" / WEIGHTS), load_file(tmp_path / "ldm/ema_0" / WEIGHTS)
    assert main.keys() == last.keys()
    assert any(not torch.equal(main[name], last[name]) for name in main)
    trained = load_file(tmp_path / "ldm/checkpoints/step_00000004/model.safetensors")
    assert all(torch.equal(trained[name], last[name]) for name in last)  # decay 0: the last weights themselves
    pipeline = load_pipeline(run / "vae", tmp_path / "ldm", ema_decay=0.5)
    half = load_file(tmp_path / "ldm/ema_0.5" / WEIGHTS)
    assert all(torch.equal(tensor, half[name]) for name, tensor in pipeline.transformer.state_dict().items())
    with pytest.raises(InputError, match=r"ema_0\.9 does not exist: averages .*: ema_0, ema_0\.5"):
        load_pipeline(run / "vae", tmp_path / "ldm", ema_decay=0.9)


def test_sigterm_saves_and_ends_and_the_same_command_ends_in_the_same_bits(run, tmp_path, monkeypatch):
    expected = train(run, tmp_path / "whole", settings(optimization={"extra_ema_decays": (0.5,)}))
    row = Accelerator.log

    def log_and_be_evicted(self, values, step=None, **kwargs):
        row(self, values, step=step, **kwargs)
        if step == 3 and "loss" in values:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Accelerator, "log", log_and_be_evicted)
    with pytest.raises(SystemExit) as stopped:
        train(run, tmp_path / "ldm", settings(optimization={"extra_ema_decays": (0.5,)}))
    monkeypatch.undo()
    assert stopped.value.code == 143
    assert (tmp_path / "ldm/checkpoints/step_00000003/state.json").is_file()
    again = train(run, tmp_path / "ldm", settings(optimization={"extra_ema_decays": (0.5,)}))
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    half = "ema_0.5/" + WEIGHTS
    assert (tmp_path / "ldm" / half).read_bytes() == (tmp_path / "whole" / half).read_bytes()


def test_a_run_goes_on_only_with_the_same_global_batch_and_says_what_else_differs(run, tmp_path):
    train(run, tmp_path / "ldm", settings(steps=2))
    for _ in range(2):  # a refused command leaves no trace that the next one takes for a finished run
        with pytest.raises(InputError, match=r"4 samples a step \(1 ranks\), this run would go on with 8"):
            train(run, tmp_path / "ldm", settings(steps=4, optimization={"accumulate": 2}))
    with pytest.raises(InputError, match=r"ldm\.conditioning\.kind: was 'text', now 'none'"):
        train(run, tmp_path / "ldm", settings(steps=4, conditioning=ConditioningSettings(kind="none")))


class WaitsForTheDevice(TorchDispatchMode):
    """Counts the reads of a tensor's value by the host, each of which makes a GPU wait."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*args, **(kwargs or {}))


def test_steps_that_do_not_log_read_no_value_from_the_device(run, tmp_path):
    counts = []
    for steps in (2, 12):
        every = {"log_every": 1000, "checkpoint_every": 1000, "validate_every": 1000}
        optimization = OptimizationSettings(steps=steps, batch_size=4, learning_rate=1e-3, **every)
        chosen = LDMSettings(model=SMALL_DIT, optimization=optimization, peak_tflops=1.0)
        with WaitsForTheDevice() as waits:
            train(run, tmp_path / str(steps), chosen)
        counts.append(waits.count)
    assert counts[0] == counts[1] > 0


@pytest.mark.gpu
def test_a_training_step_never_waits_for_the_gpu(run, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    from ldm.batches import squared_errors
    from odvae.shared.training import TrainingState

    chosen, device = settings(optimizer="adamw"), torch.device("cuda")
    data = data_of(run, device)
    network = new_network(chosen, load_manifest(run / "latents"))
    state = TrainingState(network, chosen.optimization, tmp_path, "none", "sync")
    batches = data.training_batches(4, 1, 0, 0, 1, 0, 0)
    for step in range(1, 6):
        torch.cuda.set_sync_debug_mode("error" if step > 2 else "default")
        batch = next(batches)
        with state.accelerator.autocast():
            loss = (batch.weight * squared_errors(state.model, batch)).mean()
        state.accelerator.backward(loss)
        state.apply_gradients(step, {"loss": loss.detach()})
    torch.cuda.set_sync_debug_mode("default")


def test_counted_flops_are_those_of_the_formula(run):
    chosen = settings(conditioning=ConditioningSettings(kind="none"), model=DiTSettings(width=64, depth=3, heads=2))
    network = new_network(chosen, load_manifest(run / "latents"))
    batch = next(data_of(run, kind="none").training_batches(2, 1, 0, 0, 1, 0, 0))
    n, d, depth, values = 3 * 2 * 2, 64, 3, 4 * 4
    a_block = 2 * n * 12 * d * d + 2 * 2 * n * n * d + 2 * 6 * d * d  # linear layers, attention, modulation
    rest = 2 * n * 2 * values * d + 2 * (256 * d + d * d) + 2 * 2 * d * d  # patches in and out, time, modulation
    positions = 2 * n * (d // 2) * d  # the same for all samples
    assert forward_flops(network, batch) == 2 * (depth * a_block + rest) + positions


def test_the_matmul_rate_is_a_plausible_number():
    assert 1e8 < matmul_rate(CPU, torch.float32) < 1e14


def test_what_the_latents_cannot_teach_is_refused_before_training(run, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"patch_size=\(1, 3, 2\)"):
        train(run, tmp_path / "a", settings(model=DiTSettings(width=32, depth=1, heads=2, patch_size=(1, 3, 2))))
    with pytest.raises(InputError, match="xformers needs a CUDA device"):
        train(run, tmp_path / "b", settings(attention_backend="xformers"))
    shutil.copytree(run / "latents", tmp_path / "latents")
    manifest = json.loads((tmp_path / "latents/manifest.json").read_text())
    (tmp_path / "latents/manifest.json").write_text(json.dumps(manifest | {"classes": []}))
    chosen = settings(conditioning=ConditioningSettings(kind="class"))
    with pytest.raises(InputError, match="the latents' manifest lists no class"):
        train_ldm(chosen, run / "vae", tmp_path / "latents", tmp_path / "c", 0)
    (tmp_path / "latents/manifest.json").write_text(json.dumps(manifest | {"held_out_entries": 0}))
    with pytest.raises(InputError, match="no held-out clip was encoded"):
        train_ldm(settings(), run / "vae", tmp_path / "latents", tmp_path / "c", 0)
    (tmp_path / "latents/manifest.json").write_text(json.dumps(manifest))
    encoder = tmp_path / "latents/text_encoder/config.json"
    encoder.write_text(json.dumps(json.loads(encoder.read_text()) | {"vocab_size": 5}))
    with pytest.raises(InputError, match="no training video has a caption"):
        train_ldm(settings(), run / "vae", tmp_path / "latents", tmp_path / "c", 0)
    assert not list(tmp_path.glob("[abc]"))


def test_a_run_does_not_go_on_with_other_latents(run, tmp_path):
    shutil.copytree(run / "latents", tmp_path / "latents")
    train_ldm(settings(steps=2), run / "vae", tmp_path / "latents", tmp_path / "ldm", 0)
    manifest = json.loads((tmp_path / "latents/manifest.json").read_text())
    (tmp_path / "latents/manifest.json").write_text(json.dumps(manifest | {"train_entries": 99}))
    with pytest.raises(InputError, match=r"latents\.train_entries: was \d+, now 99"):
        train_ldm(settings(steps=2), run / "vae", tmp_path / "latents", tmp_path / "ldm", 0)


def test_every_prompt_has_a_file_of_its_own():
    prompts = ["a red circle", "A red circle!", "一只猫在跑步", "一只狗在游泳", "x" * 80, "x" * 81]
    files = [request.file for request in asked_requests(prompts, [], seed=3)]
    assert files[0] == "a-red-circle_seed3.mp4"
    assert len(set(files)) == len(prompts)


CONFIG = """
run: {run}
data: {{frames: 9, height: 32, width: 32, held_out: 0.25, workers: 0}}
ldm:
  model: {{width: 32, depth: 2, heads: 2}}
  optimization: {{steps: 6, batch_size: 4, optimizer: sgd, learning_rate: 2e-2, checkpoint_every: 2, log_every: 6}}
"""


def launch(ranks, folder, *overrides, sharded=False):
    script = ["tests/launch_sharded.py"] if sharded else []
    words = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc_per_node", str(ranks), *script]
    words += ["pipelines/train_ldm.py", "--config", str(folder / "config.yaml"), *overrides]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    result = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return load_file(folder / "ldm" / WEIGHTS)


def stop_at(folder, step):
    """As if the run had been killed right after the checkpoint of this step."""
    for checkpoint in (folder / "ldm/checkpoints").glob("step_*"):
        if int(checkpoint.name[5:]) > step:
            shutil.rmtree(checkpoint)
    (folder / "ldm" / WEIGHTS).unlink()
    (folder / "ldm/stage.json").unlink()


def worst(a, b):
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.fixture(scope="module")
def one_rank(run, tmp_path_factory):
    """A whole run of one process: (its folder, its weights)."""
    folder = tmp_path_factory.mktemp("one_rank")
    for name in ("vae", "latents"):
        shutil.copytree(run / name, folder / name)
    (folder / "config.yaml").write_text(CONFIG.format(run=folder))
    chosen = load_settings(Experiment, folder / "config.yaml").ldm
    return folder, train(folder, folder / "ldm", chosen)


def test_a_run_killed_on_one_rank_goes_on_on_two_to_the_same_weights(one_rank, tmp_path):
    folder, expected = one_rank
    shutil.copytree(folder, tmp_path / "run")
    stop_at(tmp_path / "run", 4)
    again = launch(2, tmp_path / "run", f"run={tmp_path / 'run'}", "ldm.optimization.batch_size=2")
    assert json.loads((tmp_path / "run/ldm/checkpoints/step_00000006/state.json").read_text())["ranks"] == 2
    assert worst(again, expected) < 1e-6


def test_sharded_ranks_train_save_and_load_like_one_process(one_rank, tmp_path):
    """With the optimiser that large runs use, whose one kernel updates all shards."""
    folder, _ = one_rank
    for name in ("vae", "latents"):
        shutil.copytree(folder / name, tmp_path / name)
    (tmp_path / "config.yaml").write_text(CONFIG.format(run=tmp_path).replace("sgd, learning_rate: 2e-2", "adamw"))
    expected = train(tmp_path, tmp_path / "one_process", load_settings(Experiment, tmp_path / "config.yaml").ldm)
    sharded = launch(2, tmp_path, "ldm.optimization.batch_size=2", sharded=True)
    assert worst(sharded, expected) < 1e-6
    stop_at(tmp_path, 4)
    assert list((tmp_path / "ldm/checkpoints/step_00000004/pytorch_model_fsdp_0").glob("*.distcp"))
    assert worst(launch(4, tmp_path, "ldm.optimization.batch_size=1", sharded=True), sharded) < 1e-6
