"""Training speed of the latent diffusion model: compared with diffusers' networks and with the device's peak.

    python tools/bench_ldm.py                 # small sizes on a CPU, DiT-XL/2 on 81x256x256 latents on a GPU
    python tools/bench_ldm.py --only peers    # or: overhead, peak
    python tools/bench_ldm.py --only overhead ldm.optimization.optimizer=adamw ldm.optimization.batch_size=32

peers: a training step of the DiT (factorized) and of diffusers' LatteTransformer3DModel, of the DiT (full) and of
DiTTransformer2DModel, at equal depth, width, heads and tokens, measured alternately. overhead: time that the training
loop adds to the network's forward and backward pass, in the training of configs/demo.yaml. peak: FLOP/s of a step
relative to the measured matmul rate, and the time that encoding each clip on the fly would add.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, LatteTransformer3DModel
from torch import Tensor

from ldm.arguments import CommandParser
from ldm.experiment import DEFAULT_CONFIG, Experiment
from ldm.latents.entries import pack_entry
from ldm.latents.manifest import EMPTY_TEXT, Manifest, ShardRecord
from ldm.networks.conditioning import Condition
from ldm.networks.dit import DiT
from ldm.networks.network import predict
from ldm.networks.settings import SIZES
from ldm.train import new_network
from ldm.training.diffusion_batches import Batch, LatentData, per_sample_mse
from ldm.training.throughput import forward_flops
from odvae import ODVAE
from odvae.clips.samplers import BatchPlan
from odvae.measuring import matmul_rate, now
from odvae.running.errors import readable_errors
from odvae.running.files import write_json
from odvae.running.hashing import file_fingerprint
from odvae.running.settings import load_settings
from odvae.shards.tars import shard_writer
from odvae.training.state import TrainingState

# Latents (channels, t, h, w) and transformer sizes of the comparisons; smaller on a CPU.
CPU_CASE: dict[str, Any] = {"latents": (4, 5, 32, 32), "depth": 4, "width": 256, "heads": 4, "batch": 1}
GPU_CASE: dict[str, Any] = {"latents": (4, 21, 32, 32), "depth": 28, "width": 1152, "heads": 16, "batch": 4}
TEXT_WIDTH, TEXT_TOKENS, CLASSES = 64, 16, 1000


def main() -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings of the demo, for overhead")
    parser.add_argument("--only", choices=["peers", "overhead", "peak"], help="one part (default: all)")
    parser.add_argument("--steps", type=int, default=10, help="timed steps per network (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="compile the blocks of all transformers")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}, torch {torch.__version__}")
    results: dict[str, float] = {}
    if options.only in (None, "peers"):
        results |= compare_with_peers(device, options.steps, options.compile)
    if options.only in (None, "overhead"):
        results |= measure_overhead(device, options.steps, options.overrides)
    if options.only in (None, "peak"):
        results |= measure_peak_share(device, options.steps, options.compile or device.type == "cuda")
    if options.json:
        write_json(options.json, results)


def compare_with_peers(device: torch.device, steps: int, compiled: bool) -> dict[str, float]:
    case = GPU_CASE if device.type == "cuda" else CPU_CASE
    channels, t, h, w = case["latents"]
    depth, width, heads, batch = (case[name] for name in ("depth", "width", "heads", "batch"))
    print(f"{batch} x {t * h * w // 4} tokens, depth {depth}, width {width}, {heads} heads")
    noisy = torch.randn(batch, channels, t, h, w, device=device)
    time_, text = torch.rand(batch, device=device), torch.randn(batch, TEXT_TOKENS, TEXT_WIDTH, device=device)
    mask, label = torch.ones(batch, TEXT_TOKENS, dtype=torch.bool, device=device), torch.arange(batch, device=device)
    sizes = {"latent_channels": channels, "depth": depth, "width": width, "heads": heads, "sample_size": (t, h, w)}
    common = {
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": channels,
        "patch_size": 2,
        "activation_fn": "gelu-approximate",
        "norm_elementwise_affine": False,
    }
    ours_factorized = DiT(**sizes, attention="factorized", text_width=TEXT_WIDTH, text_tokens=TEXT_TOKENS).to(device)
    latte = LatteTransformer3DModel(
        **common,
        out_channels=channels,
        num_layers=depth // 2,  # each a block in space and one in time
        sample_size=h,
        video_length=t,
        caption_channels=TEXT_WIDTH,
        cross_attention_dim=width,
        attention_bias=True,
        norm_type="ada_norm_single",
    ).to(device)
    ours_full = DiT(**sizes, text_width=None, class_names=[str(i) for i in range(CLASSES)]).to(device)
    side = 2 * math.isqrt(t * h * w // 4)  # as many tokens, or a few less, in one square picture
    dit = DiTTransformer2DModel(**common, out_channels=channels, num_layers=depth, sample_size=side).to(device)
    picture = torch.randn(batch, channels, side, side, device=device)
    if compiled:
        for network in (ours_factorized, ours_full):
            network.compile_repeated_blocks()
        for block in (*latte.transformer_blocks, *latte.temporal_transformer_blocks, *dit.transformer_blocks):
            block.compile()
    steps_ = 1000 * time_
    calls = {
        "DiT, factorized": step_of(
            ours_factorized, lambda: predict(ours_factorized, noisy, time_, Condition(text, mask))
        ),
        "LatteTransformer3DModel": step_of(latte, lambda: latte(noisy, steps_, text, return_dict=False)[0]),
        "DiT, full": step_of(
            ours_full, lambda: predict(ours_full, picture.unsqueeze(2), time_, Condition(label=label))
        ),
        "DiTTransformer2DModel": step_of(
            dit, lambda: dit(picture, steps_.long(), class_labels=label, return_dict=False)[0]
        ),
    }
    seconds = time_in_turn(calls, steps, device)
    for ours, theirs in (("DiT, factorized", "LatteTransformer3DModel"), ("DiT, full", "DiTTransformer2DModel")):
        print(f"{ours}: {1e3 * seconds[ours]:.1f} ms, {theirs}: {1e3 * seconds[theirs]:.1f} ms a training step", end="")
        print(f" ({seconds[ours] / seconds[theirs]:.2f} of it)")
    return {f"ms {name}": 1e3 * value for name, value in seconds.items()}


def step_of(network: torch.nn.Module, call: Callable[[], Tensor]) -> Callable[[], None]:
    """A training step: forward, backward, fused AdamW."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=next(network.parameters()).is_cuda):
            prediction = call()
        prediction.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def time_in_turn(calls: dict[str, Callable[[], None]], steps: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each call, alternately, so that other load affects all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(-2, steps):  # two rounds to warm up
        for name, call in calls.items():
            start = now(device)
            call()
            if round_ >= 0:
                seconds[name].append(now(device) - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure_overhead(device: torch.device, steps: int, overrides: Sequence[str]) -> dict[str, float]:
    """Time of everything but forward and backward in the demo's training: data, noise, clipping, optimizer, EMA."""
    demo = load_settings(Experiment, DEFAULT_CONFIG, overrides).ldm
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = write_random_latents(folder, (8, 5, 6, 6), demo.optimization.batch_size * 16)
        data = LatentData(folder, manifest, demo.conditioning, demo.objective, device)
        state = TrainingState(new_network(demo, manifest), demo.optimization, folder / "ldm", "none", "bench")
        state.resume()
        batches = data.training_batches(BatchPlan(demo.optimization.batch_size), seed=0, workers=demo.workers)
        parts: list[tuple[float, float, float]] = []  # seconds of data, of forward and backward, of the rest
        for step in range(1, 10 * steps + 3):
            start = now(device)
            batch = next(batches)
            before = now(device)
            with state.accelerator.autocast():
                loss = (batch.weight * per_sample_mse(partial(predict, state.model), batch)).mean()
            state.accelerator.backward(loss)
            after = now(device)
            state.apply_gradients(step, {"loss": loss.detach()})
            parts.append((before - start, after - before, now(device) - after))
    reading, inner, updating = (statistics.median(values) for values in zip(*parts[2:], strict=True))
    whole = reading + inner + updating
    print(f"demo: {1e3 * whole:.1f} ms a step; {100 * inner / whole:.1f}% forward and backward, ", end="")
    print(f"{100 * reading / whole:.1f}% data and noise, {100 * updating / whole:.1f}% clipping, ", end="")
    print(f"{demo.optimization.optimizer}, EMA")
    return {"demo ms a step": 1e3 * whole, "demo data share": reading / whole, "demo update share": updating / whole}


def write_random_latents(folder: Path, shape: tuple[int, int, int, int], entries: int) -> Manifest:
    """Write a latent folder of random latents."""
    text, mask = torch.randn(TEXT_TOKENS, TEXT_WIDTH), torch.ones(TEXT_TOKENS, dtype=torch.bool)
    with shard_writer(folder / "00000.tar") as writer:
        for i in range(entries):
            about = {"caption": "", "source": f"{i:04d}", "start": 0, "label": None, "flip": False}
            entry = pack_entry(torch.randn(shape), torch.rand(shape), text, mask, torch.bfloat16)
            writer.write({"__key__": f"{i:04d}-000", "safetensors": entry, "json": json.dumps(about).encode()})
    (folder / EMPTY_TEXT).write_bytes(pack_entry(torch.zeros(1), None, text, mask, torch.bfloat16))
    shard = folder / "00000.tar"
    record = ShardRecord(
        name=shard.name,
        sha256=file_fingerprint(shard),
        bytes=shard.stat().st_size,
        entries=entries,
        bucket="only",
        source="",
        source_sha256="",
        source_entries=entries,
    )
    return Manifest(
        vae_sha256="",
        vae_config={},
        vae_folder="",
        text_encoder="",
        text_sha256="",
        text_width=TEXT_WIDTH,
        text_tokens=TEXT_TOKENS,
        empty_text_sha256="",
        data={},
        resize="",
        clips_per_video=1,
        flip=False,
        posterior="moments",
        dtype="bf16",
        held_out=0.0,
        buckets={"only": shape},
        train_entries=entries,
        held_out_entries=0,
        captioned_entries=0,
        captioned_share=0.0,
        captioned_train_entries=0,
        captions=0,
        classes=[],
        entries_by_class={},
        latents_mean=[0.0] * shape[0],
        latents_std=[1.0] * shape[0],
        failed={},
        shards=[record],
        code={},
    )


def measure_peak_share(device: torch.device, steps: int, compiled: bool) -> dict[str, float]:
    """FLOP/s of DiT-XL/2's training step relative to the matmul rate, and its time relative to encoding its clips."""
    gpu = device.type == "cuda"
    depth, width, heads = SIZES["XL"] if gpu else (4, 256, 4)
    channels, t, h, w = GPU_CASE["latents"] if gpu else CPU_CASE["latents"]
    batch_size, dtype = (4, torch.bfloat16) if gpu else (1, torch.float32)
    sizes = {"latent_channels": channels, "sample_size": (t, h, w), "depth": depth, "width": width, "heads": heads}
    network = DiT(**sizes, text_width=None).to(device)
    noisy = torch.randn(batch_size, channels, t, h, w, device=device)
    ones = torch.ones(batch_size, device=device)
    batch = Batch(noisy, torch.zeros_like(noisy), 0.5 * ones, ones, Condition(), latents=noisy)
    flops = 3 * forward_flops(network, batch)
    if compiled:
        network.compile_repeated_blocks()
    step = step_of(network, lambda: predict(network, batch.noisy, batch.time, batch.condition))
    vae = (ODVAE() if gpu else ODVAE((8, 16, 16, 16), 1, 4, 4)).eval().to(device, dtype)
    video = torch.rand(1, 3, 4 * (t - 1) + 1, 8 * h, 8 * w, device=device, dtype=dtype) * 2 - 1

    @torch.no_grad()
    def encode() -> None:
        for _ in range(batch_size):
            vae.encode(video)

    rate = matmul_rate(device, dtype)
    seconds = time_in_turn({"step": step, "encode": encode}, steps, device)
    share = flops / seconds["step"] / rate
    ratio = 1 + seconds["encode"] / seconds["step"]
    print(f"DiT depth {depth}, width {width}, {batch_size} clips of {video.shape[2]}x{8 * h}x{8 * w}: ", end="")
    print(f"{1e3 * seconds['step']:.1f} ms a step, {100 * share:.1f}% of the matmul rate ({rate / 1e12:.2f} TFLOP/s)")
    print(f"encoding on the fly would take {ratio:.2f} times as long")
    return {"peak share": share, "matmul tflops": rate / 1e12, "on the fly ratio": ratio}


if __name__ == "__main__":
    with readable_errors():
        main()
