"""What simple codes keep of the held-out clips that evaluate_vae scores: principal components of blocks, and the first
frame held. Prints PSNR and SSIM beside those of the trained VAE, where the run has been evaluated.

python tools/bench_reconstruction.py --config configs/real_cpu.yaml [key=value ...]
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from statistics import mean, median
from typing import TYPE_CHECKING

from ldm.experiment import Experiment, parse_experiment
from odvae.clips.settings import DataSettings
from odvae.running.errors import InputError, readable_errors

if TYPE_CHECKING:  # torch is imported after the settings are read
    from torch import Tensor

    from odvae.shards.samples import Sample


def main() -> None:
    experiment, _ = parse_experiment(__doc__)
    from ldm.open_videos import open_videos
    from odvae.clips.clip import frame_count
    from odvae.evaluation.linear_code import fit_linear_code, hold_first_frame

    ratios = experiment.vae.compression
    if ratios is None or experiment.vae.video_phase is None:
        raise InputError("the comparison needs a VAE of the config: vae.model and vae.video_phase")
    rate = (ratios[0], ratios[1], ratios[1])
    channels = experiment.vae.model.latent_channels
    videos, data = open_videos(experiment), experiment.eval_vae.clip_settings(experiment.data)
    long_enough = (sample for sample in videos.held_out if frame_count(sample, data.fps) >= data.span)
    held_out = clips_of(list(itertools.islice(long_enough, experiment.eval_vae.clips)), data, len(videos.samples))
    training = clips_of(
        [sample for sample in videos.train if frame_count(sample, data.fps) >= data.span], data, len(videos.samples)
    )
    code = fit_linear_code(training, rate, channels)
    print(f"\n{len(held_out)} held-out clips of {data.frames} frames, {data.height}x{data.width}; fitted to "
          f"{len(training)} training clips")  # fmt: skip
    # The first frame itself would count 100 dB.
    report("the first frame held, in the frames after it", lambda clip: hold_first_frame(clip)[:, :, 1:], held_out)
    report(f"{channels} principal components of each {'x'.join(map(str, rate))} block", code.reconstruct, held_out)
    report_vae(experiment)


def clips_of(samples: Sequence[Sample], data: DataSettings, total_videos: int) -> list[Tensor]:
    """The first clip of each video, (1, 3, t, h, w) in [-1, 1]."""
    from odvae.clips.loader import each_clip
    from odvae.video.pixels import to_float

    return [to_float(clip[None].clone()) for _, clip in each_clip(samples, data, total_videos)]


def report(name: str, reconstruct: Callable[[Tensor], Tensor], clips: Sequence[Tensor]) -> None:
    from odvae.metrics import psnr, ssim

    psnrs, ssims = [], []
    for clip in clips:
        found = reconstruct(clip)
        original = clip[:, :, -found.shape[2] :]
        psnrs.append(float(psnr(found, original)))
        ssims.append(float(ssim(found, original)))
    print(f"{name}: PSNR {mean(psnrs):.2f} dB (median {median(psnrs):.2f}), SSIM {mean(ssims):.3f}")


def report_vae(experiment: Experiment) -> None:
    from odvae.running.files import read_object

    path = experiment.folders.report / "report.json"
    if not path.is_file():
        print(f"the VAE: not evaluated yet ({path})")
        return
    part = read_object(path).section("reconstruction")
    print(f"the VAE: PSNR {part.number('psnr'):.2f} dB, SSIM {part.number('ssim'):.3f}, n {part.number('n'):.0f}")


if __name__ == "__main__":
    with readable_errors():
        main()
