"""How many frames and how large pictures a VAE takes, by its compression ratios; how many latent frames they become.

A VAE with temporal compression ratio r encodes the first frame alone and the others in groups of r, so r*k + 1 frames
become k + 1 latent frames. With r = 1 every number will do.
"""

from __future__ import annotations

from odvae.running.errors import InputError


def check_frame_count(frames: int, ratio: int, name: str = "frames") -> None:
    """Raise InputError, which calls it `name` and has the nearest allowed numbers, unless `frames` is ratio*k + 1."""
    if frames < 1 or (frames - 1) % ratio:
        raise InputError(
            f"{name} must be {ratio}k+1, as the VAE compresses time by {ratio}; found {frames}, nearest: "
            f"{nearest_frame_counts(frames, ratio)}"
        )


def nearest_frame_counts(frames: int, ratio: int) -> str:
    """The two numbers ratio*k + 1 around `frames`, in words."""
    below = max(1, (frames - 1) // ratio * ratio + 1)
    return f"{below} or {below + ratio}"


def check_group(frames: int, ratio: int, name: str) -> None:
    """Raise InputError unless groups of so many frames share one frame and hold another latent each."""
    if frames <= ratio or frames % ratio != 1 % ratio:
        nearest = nearest_frame_counts(max(frames, ratio + 1), ratio)
        raise InputError(f"{name}={frames}: needs {ratio}m+1 frames, at least {ratio + 1}; nearest: {nearest}")


def latent_frames(frames: int, ratio: int) -> int:
    """k + 1 of ratio*k + 1 frames."""
    return (frames - 1) // ratio + 1


def video_frames(latents: int, ratio: int) -> int:
    """The frames of so many latent frames: ratio*k + 1 of k + 1."""
    return (latents - 1) * ratio + 1


def check_picture_size(height: int, width: int, ratio: int, names: tuple[str, str] = ("height", "width")) -> None:
    """Raise InputError unless both are multiples of a VAE's spatial compression ratio."""
    for name, size in zip(names, (height, width), strict=True):
        if size < ratio or size % ratio:
            raise InputError(
                f"{name} must be a multiple of {ratio}, as the VAE compresses space by {ratio}; found {size}"
            )


def check_clip_size(frames: int, height: int, width: int, ratios: tuple[int, int], section: str) -> None:
    """Raise InputError unless a VAE with these (temporal, spatial) compression ratios takes the clips of a section."""
    check_frame_count(frames, ratios[0], f"{section}.frames")
    check_picture_size(height, width, ratios[1], (f"{section}.height", f"{section}.width"))
