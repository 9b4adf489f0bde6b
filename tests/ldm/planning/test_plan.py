"""Plans: predicted against measured memory, devices, what fits and what would make it fit, headers of configs."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ldm.experiment import CONFIGS, Experiment
from ldm.planning.costs import Costs, Operation
from ldm.planning.devices import find_device
from ldm.planning.latents import bytes_per_clip
from ldm.planning.measured import peak_of
from ldm.planning.planner import RESERVED, changes, find_remedy, make_plan, parts_on_a_device
from ldm.planning.rehearsal import Rehearsed, Stage, rehearse, stages_of
from ldm.planning.repeated import step_key
from ldm.planning.shipped import (
    PLAN,
    header_of,
    header_overrides,
    header_plan,
    header_sharding,
    shipped_experiments,
)
from ldm.planning.summary import header_differences, one_line
from odvae.running.errors import InputError
from odvae.running.settings import load_settings
from odvae.training.devices import Device, load_devices

SMALLEST = CONFIGS / "smallest.yaml"
CPU = torch.device("cpu")
# Large enough that activations are megabytes, small enough for a second on a CPU.
MEASURED = ["data.height=64", "data.width=64", "vae.video_phase.image_every=null", "vae.video_phase.optimizer=adamw",
            "vae.model.block_out_channels=[16, 16, 32, 32]", "ldm.dit={width: 128, depth: 4, heads: 4}"]  # fmt: skip


@pytest.mark.parametrize("name", ["train_vae, video phase", "train_ldm 9x64x64"])
def test_the_predicted_peak_of_a_step_is_within_a_tenth_of_the_measured_one(name, tmp_path):
    experiment = load_settings(Experiment, SMALLEST, MEASURED)
    (stage,) = (stage for stage in stages_of(experiment) if stage.name == name)
    predicted = rehearse(stage, CPU)
    prepared = stage.prepare(CPU, tmp_path)
    prepared.run()  # the optimizer has its state from now on
    assert peak_of(prepared, CPU) == pytest.approx(predicted.peak, rel=0.1)


def test_the_roofline_is_the_longer_of_products_and_memory_for_each_operation():
    device = Device(memory_gb=1, bf16_tflops=2, tf32_tflops=1, bandwidth_gb_s=1000, source="a test")
    costs = Costs()
    costs.operations[Operation(4 * 10**12, 10**9, True)] = 2  # two seconds each
    costs.operations[Operation(4 * 10**12, 10**9, False)] = 1  # four: in TF32
    costs.operations[Operation(10**12, 3 * 10**12, True)] = 1  # three: of its bytes
    costs.operations[Operation(0, 5 * 10**12, True)] = 1  # five, unless it is fused
    assert costs.least_seconds(device) == pytest.approx(11)
    assert costs.unfused_seconds(device) == pytest.approx(16)
    assert (costs.flops, costs.bytes) == (13 * 10**12, 3 * 10**9 + 8 * 10**12)


def test_a_matrix_product_is_counted_with_its_backward_passes():
    from ldm.planning.training_steps import PreparedStep

    def prepare(device, _folder):
        with device:
            weight, x = torch.nn.Parameter(torch.zeros(64, 32)), torch.zeros(16, 64, requires_grad=True)
        return PreparedStep(lambda: (x @ weight).sum().backward(), {"parameters": [weight]})

    rehearsed = rehearse(Stage("a product", prepare, "step"))
    assert rehearsed.costs.flops == 3 * 2 * 16 * 64 * 32
    assert rehearsed.parts["parameters"] == 64 * 32 * 4


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("h900", 8, "h900 is not in devices.yaml; there are rtx3090"),
        ("h100", 12, "a multiple of 8"),
        ("h100", 0, "1 to 8"),
        ("h100", 1_000_000, "up to 16384"),
    ],
)
def test_an_unknown_device_and_a_count_that_cannot_be_are_refused(name, count, message):
    with pytest.raises(InputError, match=message):
        find_device(name, count)


def test_every_device_says_where_its_numbers_are_from():
    devices = load_devices()
    assert {"rtx4090", "a100", "h100", "h200", "b200"} <= devices.keys()
    assert all("NVIDIA" in device.source for device in devices.values())
    assert min(device.memory_gb for device in devices.values()) == 24


def test_changes_keep_the_global_batch_and_end_with_sharding():
    experiment = load_settings(Experiment, SMALLEST, [])
    found = list(changes(experiment, "train_ldm 9x32x32", 8, "ddp"))
    key = "ldm.optimization"
    assert found[0] == ([f"{key}.batch_size=2", f"{key}.gradient_accumulation_steps=2"], "ddp")
    assert found[2] == ([f"{key}.gradient_checkpointing=selective"], "ddp")
    assert ([f"{key}.gradient_checkpointing=true"], "ddp") in found
    assert found[-1][1] == "fsdp2"
    assert list(changes(experiment, "decode", 8, "ddp")) == []


def test_ddp_keeps_gradients_or_copies_them_and_fsdp2_divides_what_a_training_keeps():
    parts = {"parameters": 800, "gradients": 300, "optimizer": 1600, "EMA": 800, "activations": 50}
    besides = parts | {"activations": 90}
    del besides["gradients"]
    stage = Stage("train_ldm", lambda *_: None, "step", trains=True)
    rehearsed = Rehearsed(stage, sum(parts.values()), parts, Costs(), {}, besides, gradients=800, gathered=100)
    assert parts_on_a_device(rehearsed, 1, "ddp") == parts
    assert parts_on_a_device(rehearsed, 8, "ddp") == besides | {"gradients": 800}
    copying = replace(rehearsed, stage=replace(stage, copies_gradients=True))
    assert parts_on_a_device(copying, 8, "ddp") == parts | {"DDP buckets": 800}
    assert sum(parts_on_a_device(rehearsed, 8, "fsdp2").values()) == 3500 // 8 + 1 + 50 + 200


def test_the_peak_besides_gradients_is_followed_apart():
    from ldm.planning.training_steps import PreparedStep

    def prepare(device, _folder):
        with device:
            weight = torch.nn.Parameter(torch.zeros(1000, 1000))
            optimizer = torch.optim.SGD([weight])

        def run():
            before = torch.zeros(3000, 1000, device=device)  # three times the gradient, gone before there is one
            del before
            (torch.zeros(1, 1000, device=device) @ weight).sum().backward()
            optimizer.step()

        return PreparedStep(run, {"parameters": [weight]}, [optimizer])

    rehearsed = rehearse(Stage("a product", prepare, "step", trains=True))
    assert rehearsed.gradients == pytest.approx(4e6, rel=0.01)
    assert sum(rehearsed.parts_besides.values()) == pytest.approx(16e6, rel=0.01)
    assert rehearsed.peak == pytest.approx(16e6, rel=0.01)
    assert sum(parts_on_a_device(rehearsed, 2, "ddp").values()) == pytest.approx(20e6, rel=0.01)


def test_the_storage_of_a_clip_is_that_of_its_moments_and_its_caption():
    experiment = load_settings(Experiment, CONFIGS / "t2v_8gpu.yaml", [])
    assert bytes_per_clip(experiment, (4, 17, 32, 32)) == 2 * (2 * 4 * 17 * 32 * 32 + 120 * 2048)
    unknown = load_settings(Experiment, CONFIGS / "t2v_8gpu.yaml", ["text.encoder=some/encoder"])
    with pytest.raises(InputError, match=r"some/encoder: its size is not in text_encoders\.yaml"):
        bytes_per_clip(unknown, (4, 17, 32, 32))


def test_settings_that_a_header_gives_are_those_of_its_plan(tmp_path):
    config = tmp_path / "some.yaml"
    config.write_text(
        "# accelerate launch pipelines/train_vae.py --config some.yaml vae.pretrained=NAME vae.init=random\n"
        "# plan: 8 x a100: train_vae 1.0 GiB\nrun: runs/some\n"
    )
    assert header_overrides(config) == ["vae.pretrained=NAME", "vae.init=random"]
    assert header_plan(config) == ("a100", 8)


def test_a_lora_of_a_demo_that_was_not_trained_yet_is_planned_by_the_demos_config():
    demo, lora = (load_settings(Experiment, CONFIGS / f"{name}.yaml", []) for name in ("demo", "lora_demo"))
    steps = {}
    for experiment in (demo, lora):
        (stage,) = (stage for stage in stages_of(experiment) if stage.name.startswith("train_ldm"))
        steps[experiment.run] = rehearse(stage).parts
    assert steps["runs/lora_demo"]["parameters"] > steps["runs/demo"]["parameters"]  # with the adapter's
    assert steps["runs/lora_demo"]["optimizer"] < 0.2 * steps["runs/demo"]["parameters"]  # of the adapter alone
    plan = make_plan(CONFIGS / "lora_demo.yaml", [], find_device("h100", 1), 1, "ddp", only="nothing")
    assert plan.storage_per_clip["17x48x48"] > 0  # with the text embeddings of the demo's encoder
    unknown = load_settings(Experiment, CONFIGS / "lora_demo.yaml", ["ldm.init_from=runs/other/ldm"])
    (stage,) = (stage for stage in stages_of(unknown) if stage.name.startswith("train_ldm"))
    with pytest.raises(InputError, match=r"runs/other/ldm is no run of a config of this project"):
        rehearse(stage)


@pytest.mark.parametrize("config", shipped_experiments(), ids=lambda path: path.stem)
def test_the_steps_of_every_shipped_config_are_planned_and_its_header_names_them(config: Path):
    experiment = load_settings(Experiment, config, header_overrides(config))
    stages = {stage.name.split()[0].rstrip(",") for stage in stages_of(experiment)}
    assert {"encode", "train_ldm", "sample", "decode", "evaluate_vae"} <= stages
    find_device(*header_plan(config))
    (plan,) = (line for line in header_of(config) if line.startswith(PLAN))
    assert set(re.findall(r"([a-z_]+) [\d.]+ GiB", plan)) == stages
    assert "does not fit" not in plan


def test_the_plan_in_the_smallest_configs_header_is_that_of_the_code():
    """If this fails, all headers are old: `python tools/plan.py --all --write` renews them, in some minutes.

    `make test` compares the memory of training and encoding of all others, which it rehearses (tools/rehearse.py).
    """
    name, count = header_plan(SMALLEST)
    plan = make_plan(SMALLEST, header_overrides(SMALLEST), find_device(name, count), count, header_sharding(SMALLEST))
    assert one_line(plan, name, count) in header_of(SMALLEST)


def test_a_header_with_other_memory_than_the_rehearsed_steps_is_named(tmp_path):
    config = tmp_path / "some.yaml"
    config.write_text("# plan: 8 x h100: train_ldm 2.0 GiB 3 h, encode 9.9 GiB\nrun: runs/some\n")
    encode, small, large = (
        Rehearsed(Stage(name, lambda *_: None, "step"), size, {"parameters": size}, Costs(), {}, {}, 0, 0)
        for name, size in (("encode 9x32x32", 2**30), ("train_ldm 9x32x32", 2**30), ("train_ldm 17x32x32", 2**31))
    )
    right = {one.stage.name: one for one in (small, large)}
    assert header_differences(config, right) == []
    (line,) = header_differences(config, right | {encode.stage.name: encode})
    assert line.startswith("encode takes 1.0 GiB, and its header's plan says 9.9; renew it: python tools/plan.py ")


def test_a_step_that_does_not_fit_says_the_smallest_change_that_makes_it_fit():
    large = ["ldm.dit.depth=6", "data.height=128", "data.width=128"]
    name = "train_ldm 9x128x128"
    (stage,) = (x for x in stages_of(load_settings(Experiment, SMALLEST, large)) if x.name == name)
    needed = rehearse(stage).peak
    room = {"bf16_tflops": 1, "tf32_tflops": 1, "bandwidth_gb_s": 1, "source": "a test"}
    device = Device(memory_gb=(RESERVED + needed - 1) / 1e9, **room)
    assert find_remedy(SMALLEST, large, stage, device, 1, "ddp").startswith(
        "ldm.optimization.batch_size=2 ldm.optimization.gradient_accumulation_steps=2 ("
    )
    too_small = Device(memory_gb=RESERVED / 1e9, **room)
    nothing = find_remedy(SMALLEST, large, stage, too_small, 1, "ddp")
    assert nothing.startswith("no setting tried makes it fit; it needs a device with more memory: rtx3090")


def test_the_same_step_of_two_configs_has_one_key_and_another_one_has_its_own():
    k400, web = (load_settings(Experiment, CONFIGS / "paper" / f"odvae_{name}.yaml", []) for name in ("k400", "web"))
    wider = load_settings(Experiment, CONFIGS / "paper" / "odvae_web.yaml", ["vae.loss.gan.width=32"])
    keys = [{step_key(experiment, stage) for stage in stages_of(experiment)} for experiment in (k400, web, wider)]
    assert keys[0] == keys[1]
    assert len(keys[1] - keys[2]) == 1  # the training step
