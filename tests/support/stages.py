"""Command-line arguments of the stages with the smallest config."""

import sys
from pathlib import Path

SMALLEST = ("--config", "configs/smallest.yaml")
WEIGHTS = "diffusion_pytorch_model.safetensors"
STAGES = ("train_vae", "encode_latents", "train_ldm", "sample_video", "evaluate_vae", "evaluate_ldm")
BIN = Path(sys.executable).parent


def command(name: str, run: Path, *arguments: str) -> list[str]:
    return [f"pipelines/{name}.py", *SMALLEST, f"run={run}", *arguments]
