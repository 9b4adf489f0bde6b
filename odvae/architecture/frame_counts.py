"""Frame counts and sizes that a VAE accepts, by its compression ratios; conversion to and from latent frames.

A VAE with temporal compression ratio r encodes the first frame alone and the others in groups of r, so r*k + 1 frames
become k + 1 latent frames. With r = 1 any number of frames is accepted.
"""

from __future__ import annotations

from odvae.running.errors import InputError


def check_frame_count(frames: int, ratio: int, name: str = "frames") -> None:
    """Raise InputError unless `frames` is ratio*k + 1. The message has `name` and the nearest allowed numbers."""
    if frames < 1 or (frames - 1) % ratio:
        raise InputError(
            f"{name} must be {ratio}k+1, as the VAE compresses time by {ratio}; found {frames}, nearest: "
            f"{nearest_frame_counts(frames, ratio)}"
        )


def nearest_frame_counts(frames: int, ratio: int) -> str:
    """The nearest numbers of the form ratio*k + 1 below and above `frames`, for error messages."""
    below = max(1, (frames - 1) // ratio * ratio + 1)
    return f"{below} or {below + ratio}"


def check_tile_frames(frames: int, ratio: int, name: str) -> None:
    """Raise InputError unless `frames`, the length of a temporal tile, is ratio*m + 1 with m >= 1.

    Successive tiles share one frame, so a tile must hold at least one more latent frame.
    """
    if frames <= ratio or frames % ratio != 1 % ratio:
        nearest = nearest_frame_counts(max(frames, ratio + 1), ratio)
        raise InputError(f"{name} must be {ratio}m+1, at least {ratio + 1}; found {frames}, nearest: {nearest}")


def latent_frames(frames: int, ratio: int) -> int:
    """The number of latent frames, k + 1, of ratio*k + 1 frames."""
    return (frames - 1) // ratio + 1


def video_frames(latents: int, ratio: int) -> int:
    """The number of frames, ratio*k + 1, of k + 1 latent frames."""
    return (latents - 1) * ratio + 1


def check_frame_size(height: int, width: int, ratio: int, names: tuple[str, str] = ("height", "width")) -> None:
    """Raise InputError unless both are multiples of a VAE's spatial compression ratio."""
    for name, size in zip(names, (height, width), strict=True):
        if size < ratio or size % ratio:
            raise InputError(
                f"{name} must be a multiple of {ratio}, as the VAE compresses space by {ratio}; found {size}"
            )


def check_clip_size(frames: int, height: int, width: int, ratios: tuple[int, int], section: str) -> None:
    """Raise InputError unless a VAE with these (temporal, spatial) compression ratios accepts clips of this size.

    `section` is the section of the settings that the message names.
    """
    check_frame_count(frames, ratios[0], f"{section}.frames")
    check_frame_size(height, width, ratios[1], (f"{section}.height", f"{section}.width"))
