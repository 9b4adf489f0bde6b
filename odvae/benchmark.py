"""Benchmark of video VAEs, OD-VAE and diffusers': time, peak memory and FLOPs of encoding and decoding one clip.

The models have their published sizes and random weights, since the weights' values do not change the time. Encoding and
decoding are measured in separate processes.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from diffusers import AutoencoderKL, AutoencoderKLCogVideoX, AutoencoderKLHunyuanVideo, AutoencoderKLWan
from torch import Tensor, nn

from odvae.measuring import PeakMemory, count_flops, forbid_tf32, matmul_rate, now
from odvae.model import ODVAE

Half = Literal["encode", "decode"]
Work = Callable[[nn.Module, Tensor], Tensor]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CHUNK_FRAMES = 4  # frames per chunk in streaming mode; latent frames are decoded one by one


# --- encoding and decoding: video (1, 3, t, h, w) -> latents (1, c, k, h/8, w/8), and back


def encode_whole(vae: nn.Module, video: Tensor) -> Tensor:
    return vae.encode(video).latent_dist.mean


def decode_whole(vae: nn.Module, latents: Tensor) -> Tensor:
    return vae.decode(latents).sample


def encode_stream(vae: ODVAE, video: Tensor) -> Tensor:
    return torch.cat([part.mean for part in vae.encode_stream(video.split(CHUNK_FRAMES, dim=2))], dim=2)


def decode_stream(vae: ODVAE, latents: Tensor) -> Tensor:
    """Returns the last chunk only: in streaming, frames are not kept in memory."""
    for part in vae.decode_stream(latents.split(1, dim=2)):
        last = part
    return last


def encode_frames(vae: AutoencoderKL, video: Tensor) -> Tensor:
    return torch.stack([vae.encode(frame).latent_dist.mean for frame in video.unbind(2)], dim=2)


def decode_frames(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    return torch.stack([vae.decode(frame).sample for frame in latents.unbind(2)], dim=2)


# --- the models


class Model(NamedTuple):
    kind: type[nn.Module]
    settings: dict
    smallest: dict  # settings of a tiny model, for a smoke test of the benchmark
    encode: Work = encode_whole
    decode: Work = decode_whole


SMALL_WIDTHS = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
SD_BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
STABLE_DIFFUSION = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, **SD_BLOCKS}

MODELS = {
    "odvae": Model(ODVAE, {}, SMALL_WIDTHS),
    "odvae-streamed": Model(ODVAE, {}, SMALL_WIDTHS, encode_stream, decode_stream),
    **{f"odvae-variant-{n}": Model(ODVAE, {"variant": n}, {**SMALL_WIDTHS, "variant": n}) for n in (1, 2, 3)},
    "cogvideox": Model(AutoencoderKLCogVideoX, {}, SMALL_WIDTHS),
    "wan": Model(AutoencoderKLWan, {}, {"base_dim": 8, "z_dim": 4, "num_res_blocks": 1}),
    "hunyuan": Model(AutoencoderKLHunyuanVideo, {}, SMALL_WIDTHS),
    "sd-per-frame": Model(AutoencoderKL, STABLE_DIFFUSION, {**SMALL_WIDTHS, **SD_BLOCKS}, encode_frames, decode_frames),
}


@dataclass(frozen=True)
class Case:
    """One measurement: encoding or decoding (`half`) one clip with one model."""

    model: str
    half: Half
    frames: int
    height: int
    width: int
    device: str
    dtype: str
    repeats: int
    smallest: bool

    def build(self, device: str) -> nn.Module:
        model = MODELS[self.model]
        with torch.device(device):
            vae = model.kind(**(model.smallest if self.smallest else model.settings))
        return nn.Module.to(vae, DTYPES[self.dtype]).eval()  # diffusers' `to` prints a warning that does not apply here


@torch.no_grad()
def measure(case: Case) -> dict[str, float | None]:
    """Number of parameters, seconds (minimum of the repeats), peak memory growth (of the first), FLOPs and FLOP/s.

    Call it in a fresh process: memory that was freed earlier in the process would hide the growth.
    """
    forbid_tf32()
    device, dtype = torch.device(case.device), DTYPES[case.dtype]
    encode, decode = MODELS[case.model].encode, MODELS[case.model].decode
    meta_vae = case.build("meta")
    video = torch.empty(1, 3, case.frames, case.height, case.width, dtype=dtype, device="meta")
    latents = encode(meta_vae, video)
    run, like = (encode, video) if case.half == "encode" else (decode, latents)
    flops = count_flops(lambda: run(meta_vae, like))

    torch.manual_seed(0)
    vae = case.build(case.device)
    x = torch.rand(like.shape).mul(2).sub(1).to(device, dtype)
    small = [*like.shape[:2], 1, 64, 64] if case.half == "encode" else [*like.shape[:2], 1, 8, 8]
    run(vae, torch.zeros(small, device=device, dtype=dtype))  # load libraries and kernels before memory is measured
    memory, seconds = None, []
    for _ in range(case.repeats):
        peak, start = PeakMemory(device), now(device)
        run(vae, x)
        seconds.append(now(device) - start)
        memory = peak.bytes if memory is None else memory
    rate, best = flops / min(seconds), matmul_rate(device, dtype)
    return {
        "parameters": sum(parameter.numel() for parameter in vae.parameters()),
        "seconds": min(seconds),
        "memory_growth_bytes": memory,
        "flops": flops,
        "flops_per_second": rate,
        "matmul_flops_per_second": best,
        "share_of_matmul_rate": rate / best,
    }


def measure_alone(case: Case) -> dict[str, float | None] | dict[str, str]:
    """`measure` in a fresh process; if it fails (for example out of memory), {"error": its message}."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(measure, case).result()
        except BrokenProcessPool:
            return {"error": "the process was killed, probably out of memory"}
        except RuntimeError as error:  # torch is out of memory, or the model does not accept this size
            return {"error": str(error).splitlines()[0]}


def table(rows: list[dict]) -> str:
    """The results as a Markdown table, one line per model and precision."""
    lines = [
        "| model | precision | parameters, M | encode: s | MB | TFLOP | of matmul rate | decode: s | MB | TFLOP "
        "| of matmul rate |",
        "|---" * 11 + "|",
    ]
    for row in rows:
        halves = [half for name in ("encode", "decode") if (half := row.get(name)) and "error" not in half]
        parameters = f"{halves[0]['parameters'] / 1e6:.1f}" if halves else ""
        cells = [row["model"], row["dtype"], parameters, *_cells(row.get("encode")), *_cells(row.get("decode"))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cells(half: dict | None) -> list[str]:
    if half is None:
        return [""] * 4
    if "error" in half:
        return [half["error"], "", "", ""]
    memory = half["memory_growth_bytes"]
    megabytes = "not measured" if memory is None else f"{memory / 1e6:.0f}"
    return [
        f"{half['seconds']:.3g}",
        megabytes,
        f"{half['flops'] / 1e12:.3g}",
        f"{100 * half['share_of_matmul_rate']:.0f}%",
    ]
