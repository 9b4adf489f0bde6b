"""Rehearsals on fake CUDA tensors: every stage passes; what would fail or wait on a GPU is found, with its line."""

import inspect

import pytest
import torch
import torch.nn.functional as F

from ldm.experiment import CONFIGS, Experiment
from ldm.planning.fake_device import CUDA, fake_device
from ldm.planning.host_syncs import EXCEPTIONS, REPOSITORY, RehearsalError
from ldm.planning.rehearsal import Stage, rehearse, stages_of
from ldm.planning.training_steps import PreparedStep
from odvae.architecture.layers import NormSiLU
from odvae.running.settings import load_settings

# Everything that a step may do: LPIPS, GAN and wavelets, recomputed activations, two micro-steps, several averages.
OPTIONS = {
    phase: [f"{phase}.{option}" for option in ("gradient_checkpointing=true", "gradient_accumulation_steps=2")]
    for phase in ("vae.image_phase", "vae.video_phase", "ldm.optimization")
}
LOSSES = ["vae.loss.lpips={network: squeeze}", "eval_vae.lpips={network: alex}"]
ADAM = [f"{phase}.optimizer=adamw" for phase in OPTIONS]
MORE = [
    "ldm.optimization.extra_ema_decays=[0.9]",
    "ldm.conditioning.first_frame=0.5",
    "sample.sampler=unipc",
    "ldm.dit.modulation=single",
]
UNET = ["ldm.dit=null", "ldm.unet={widths: [8, 16], layers_per_level: 1, head_width: 4, norm_groups: 4}"]


def smallest(*overrides: str) -> Experiment:
    return load_settings(Experiment, CONFIGS / "smallest.yaml", overrides)


EXPERIMENT = smallest(*LOSSES, *ADAM, *MORE, *(option for options in OPTIONS.values() for option in options))


@pytest.mark.parametrize("stage", list(stages_of(EXPERIMENT)), ids=lambda stage: stage.name)
def test_every_step_runs_on_a_gpu_without_waiting(stage):
    rehearsed = rehearse(stage)
    assert rehearsed.peak > 0
    assert rehearsed.costs.flops > 0
    assert all(wait.reason for wait in rehearsed.waits)
    if stage.trains:
        assert not rehearsed.waits
        assert rehearsed.parts["optimizer"] >= 2 * rehearsed.parts["parameters"] * 0.99  # two moments
        averages = 2 if stage.name.startswith("train_ldm") else 1
        assert rehearsed.parts["EMA"] == averages * rehearsed.parts["parameters"]


def test_attention_is_rehearsed_by_the_kernel_that_is_named():
    small = ["ldm.dit.depth=2", "data.height=128", "data.width=128", "ldm.conditioning.kind=none"]

    def activations(backend: str, *more: str) -> int:
        experiment = smallest(*small, f"ldm.attention_backend={backend}", *more)
        (stage,) = (stage for stage in stages_of(experiment) if stage.name.startswith("train_ldm"))
        return rehearse(stage).parts["activations"]

    chosen = activations("sdpa")
    assert activations("flash") == activations("flash3") == chosen
    assert activations("cudnn") == pytest.approx(chosen, rel=0.1)
    assert activations("xformers") == activations("efficient") == pytest.approx(chosen, rel=0.1)
    assert activations("math") > 1.1 * chosen  # all weights of attention
    with pytest.raises(RehearsalError, match=r"in half precision, found torch\.float32 .*allowed here: sdpa"):
        activations("flash", "ldm.optimization.precision=fp32")


def test_the_unet_trains_and_samples_and_listed_waits_are_reported_with_their_reason():
    experiment = smallest(*UNET, "ldm.optimization.optimizer=nadamuon", "ldm.objective.prediction=epsilon")
    found = {stage.name.split()[0]: rehearse(stage) for stage in stages_of(experiment) if "ldm" in stage.name}
    reasons = {wait.where.partition(":")[0]: wait.reason for wait in found["train_ldm"].waits}
    # An optimizer that decides on the CPU whether to skip a step, and the table of noise levels.
    listed = [("odvae/training/optimization.py", "clipped_step"), ("ldm/diffusion/timesteps.py", "_alphas_on")]
    assert reasons == {place[0]: EXCEPTIONS[place] for place in listed}


@pytest.mark.filterwarnings("ignore:A saved_tensors_hooks context")
def test_selective_checkpointing_lies_between_keeping_and_recomputing_everything():
    found, large = {}, ["data.height=128", "data.width=128"]
    for kind in ("true", "selective", "false"):
        experiment = smallest(f"ldm.optimization.gradient_checkpointing={kind}", "ldm.dit.depth=4", *large)
        (stage,) = (stage for stage in stages_of(experiment) if stage.name.startswith("train_ldm"))
        rehearsed = rehearse(stage)
        found[kind] = rehearsed.parts["activations"], rehearsed.costs.flops
    assert found["true"][0] < found["selective"][0] < found["false"][0]
    assert found["true"][1] > found["selective"][1] == found["false"][1]


def test_what_a_stream_keeps_has_the_half_precision_of_autocast():
    with fake_device(), CUDA, torch.autocast("cuda", torch.bfloat16), torch.no_grad():
        norm = NormSiLU(2, 8, over_time=False)
        x = torch.zeros(1, 8, 3, 4, 4, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last_3d)
        y = norm(x)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolutions_keep_channels_last_whatever_the_cpu_can_compute(dtype):
    with fake_device(), CUDA:
        x, weight = torch.zeros(2, 4, 3, 8, 8, dtype=dtype), torch.zeros(4, 4, 3, 3, 3, dtype=dtype)
        channels_last = x.contiguous(memory_format=torch.channels_last_3d)
        assert F.conv3d(channels_last, weight).is_contiguous(memory_format=torch.channels_last_3d)
        assert F.conv3d(x, weight).is_contiguous()


def test_exceptions_name_functions_that_exist():
    for file, function in EXCEPTIONS:
        assert f"def {function}(" in (REPOSITORY / file).read_text()


TABLE = torch.tensor([1.0, 2.0])


def reads_a_value(x):
    return x * float(x.sum())


def branches_on_a_value(x):
    return x if x.sum() > 0 else -x


def copies_to_the_cpu(x):
    return x.cpu()


def copies_a_table(x):
    return x[:2] * TABLE.to(x.device)


def makes_a_tensor_of_numbers(x):
    return x[:2] * torch.tensor([1.0, 2.0], device=x.device)


def selects_by_values(x):
    return x[x > 0]


def mixes_devices(x):
    return x + torch.zeros(8)


def copies_pinned_memory(x):
    return x + torch.zeros(8).pin_memory().to(x.device, non_blocking=True)


def stage_of(function) -> Stage:
    return Stage("a step", lambda device, _: prepared(function, device), "step")


def prepared(function, device) -> PreparedStep:
    with device:
        x = torch.zeros(8)
    return PreparedStep(lambda: function(x))


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (reads_a_value, "a value of a CUDA tensor is read"),
        (branches_on_a_value, "a value of a CUDA tensor is read"),
        (copies_to_the_cpu, "copied to the CPU"),
        (copies_a_table, "memory that is not pinned"),
        (makes_a_tensor_of_numbers, "memory that is not pinned"),
        (selects_by_values, "shape depends on values"),
        (mixes_devices, "cuda:0 and cpu"),
    ],
)
def test_what_fails_or_waits_on_a_gpu_is_an_error_with_file_and_line(function, problem):
    line = inspect.getsourcelines(function)[1] + 1
    with pytest.raises(RehearsalError, match=problem) as error:
        rehearse(stage_of(function))
    assert f"tests/ldm/planning/test_rehearsal.py:{line}:" in str(error.value)


def test_a_copy_from_pinned_memory_does_not_wait():
    assert not rehearse(stage_of(copies_pinned_memory)).waits


def test_autocast_computes_in_bf16_and_keeps_statistics_and_losses_in_fp32():
    with fake_device(), CUDA:
        x, weight = torch.zeros(1, 8, 3, 4, 4), torch.zeros(8, 8, 1, 1, 1)
        q = torch.zeros(1, 2, 6, 16, requires_grad=True)
        with torch.autocast("cuda", torch.bfloat16):
            y = F.conv3d(x, weight)
            assert (y.device, y.dtype) == (CUDA, torch.bfloat16)
            assert F.group_norm(y, 2).dtype == torch.float32
            assert F.mse_loss(y, y).dtype == torch.float32
            attended = F.scaled_dot_product_attention(q, q, q)
        assert attended.dtype == torch.bfloat16
        attended.float().sum().backward()
        assert (q.grad.device, q.grad.dtype) == (CUDA, torch.float32)


def test_nothing_of_a_rehearsal_remains():
    from accelerate import PartialState

    before = PartialState().device
    attention, backward = F.scaled_dot_product_attention, torch.autograd._engine_run_backward
    rehearse(stage_of(copies_pinned_memory))
    assert PartialState().device == before
    assert (F.scaled_dot_product_attention, torch.autograd._engine_run_backward) == (attention, backward)
    assert type(torch.zeros(2)) is torch.Tensor
