"""How many frames a VAE takes, and how many latent frames they become.

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


def latent_frames(frames: int, ratio: int) -> int:
    """k + 1 of ratio*k + 1 frames."""
    return (frames - 1) // ratio + 1


def video_frames(latents: int, ratio: int) -> int:
    """The frames of so many latent frames: ratio*k + 1 of k + 1."""
    return (latents - 1) * ratio + 1
