"""Time, peak memory and FLOPs of encoding and decoding one clip: OD-VAE and other video VAEs.

    python tools/bench_vae.py                                     # 17x128x128; a quarter of an hour on two cores
    python tools/bench_vae.py --frames 33 --size 512 --dtypes bf16 fp32 --device cuda
    python tools/bench_vae.py --models odvae cogvideox --halves encode
    python tools/bench_vae.py --smallest                          # tiny networks, as a smoke test

Memory is its peak minus the loaded weights. A table is printed, and all results are written to --json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ldm.arguments import CommandParser
from odvae.architecture.frame_counts import check_frame_count, check_frame_size
from odvae.benchmark import DTYPES, MODELS, Case, measure_alone, table
from odvae.model import ODVAE
from odvae.running.errors import InputError, readable_errors
from odvae.running.files import make_output_folder, write_json
from odvae.running.progress import progress_over
from odvae.running.run_folder import code_version
from odvae.video_vae import compression_of

SMALLEST = {"frames": 9, "size": 32, "repeats": 1}


def main() -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="default: all")
    parser.add_argument("--halves", nargs="+", choices=["encode", "decode"], default=["encode", "decode"])
    parser.add_argument(
        "--frames",
        type=int,
        default=17,
        help="frames of the clip, 4k+1 (default: %(default)s)",
    )
    parser.add_argument("--size", type=int, default=128, help="its height and width, px (default: %(default)s)")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["fp32"], help="default: fp32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--repeats", type=int, default=2, help="repetitions, of which the fastest counts (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, default=Path("runs/bench_vae.json"), help="default: %(default)s")
    parser.add_argument("--smallest", action="store_true", help="tiny networks on a tiny clip, in seconds")
    options = parser.parse()
    if options.smallest:
        options.frames, options.size, options.repeats = SMALLEST["frames"], SMALLEST["size"], SMALLEST["repeats"]
    check(options)
    make_output_folder(options.json.parent)

    cases = [
        Case(model, half, options.frames, options.size, options.size, options.device, dtype, options.repeats,
             options.smallest)
        for dtype in options.dtypes for model in options.models for half in options.halves
    ]  # fmt: skip
    rows: dict[tuple[str, str], dict] = {}
    for case in progress_over(cases, "measuring", unit="half"):
        row = rows.setdefault((case.model, case.dtype), {"model": case.model, "dtype": case.dtype})
        row[case.half] = measure_alone(case)
    clip = f"{options.frames}x{options.size}x{options.size}"
    machine = torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    about = {"clip": clip, "machine": machine, "torch": torch.__version__, **code_version()}
    write_json(options.json, {**about, "rows": list(rows.values())})
    print(f"{clip}, {machine}, torch {torch.__version__}\n\n{table(list(rows.values()))}\n\noutput: {options.json}")


def check(options: argparse.Namespace) -> None:
    """Raise InputError for a clip or device that cannot be measured."""
    with torch.device("meta"):
        temporal_ratio, spatial_ratio = compression_of(ODVAE())  # those of all models
    check_frame_count(options.frames, temporal_ratio, "--frames")
    check_frame_size(options.size, options.size, spatial_ratio, ("--size", "--size"))
    if options.repeats < 1:
        raise InputError(f"--repeats must be at least 1, found {options.repeats}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this machine has no CUDA device that torch can use")


if __name__ == "__main__":
    with readable_errors():
        main()
