"""Validation of a VAE during its training, on held-out clips."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from odvae.clips.loader import each_clip
from odvae.clips.video_set import VideoSet
from odvae.losses import lpips_per_frame
from odvae.lpips import LPIPS
from odvae.metrics import psnr, ssim
from odvae.running.errors import InputError
from odvae.training.tracking import MetricsLog
from odvae.video.frame_grid import frame_grid
from odvae.video.pixels import to_float, to_uint8


def held_out_clips(videos: VideoSet, count: int, accelerator: Accelerator) -> list[Tensor]:
    """This rank's share of the first `count` held-out clips, uint8 (t, h, w, 3), decoded once for all validations.

    Raises InputError if no rank could decode any.
    """
    chosen = videos.held_out[:count]
    mine = chosen[accelerator.process_index :: accelerator.num_processes]
    clips = [clip.clone() for _, clip in each_clip(mine, videos.data, len(videos.samples), videos.failed)]
    if not accelerator.reduce(torch.tensor(len(clips), device=accelerator.device), "sum"):
        raise InputError(f"none of the {len(chosen)} held-out videos for validation could be decoded")
    return clips


@torch.no_grad()
def validate(
    network: nn.Module,
    clips: Sequence[Tensor],
    perceptual: LPIPS | None,
    log: MetricsLog,
    step: int,
    accelerator: Accelerator,
) -> None:
    """Log PSNR, SSIM and (if in the loss) LPIPS of this rank's held-out clips, averaged over ranks, and an image."""
    network.eval()
    names = ["psnr", "ssim", *(["lpips"] if perceptual else [])]
    total, pairs = torch.zeros(len(names) + 1, device=accelerator.device), []  # the last counts the clips
    for clip in clips:
        video = to_float(clip).unsqueeze(0).to(accelerator.device)
        with accelerator.autocast():
            reconstruction = network(video)[0].float().clamp(-1, 1)
        scores = [psnr(reconstruction, video)[0], ssim(reconstruction, video)[0]]
        if perceptual is not None:
            scores.append(lpips_per_frame(perceptual, reconstruction, video))
        total += torch.stack([*(score.to(total) for score in scores), torch.ones_like(total[-1])])
        if len(pairs) < 6:
            pairs += [to_uint8(video[0]), to_uint8(reconstruction[0])]
    *sums, count = accelerator.reduce(total, "sum").tolist()
    log.row(step, **{f"validation_{name}": value / count for name, value in zip(names, sums, strict=True)})
    if pairs:
        log.image(step, "strips", frame_grid(pairs))
