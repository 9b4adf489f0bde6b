"""Which videos are made: what a person asks for, or what an evaluation scores."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.demo.videos import prompts as demo_prompts
from ldm.networks.settings import ConditioningSettings
from ldm.sampling.settings import SampleSettings
from odvae.clips.video_set import VideoSet
from odvae.running.errors import InputError
from odvae.running.seeds import derive_seed

HELD_OUT, UNSEEN, ASKED = "held_out", "unseen", "asked"


@dataclass(frozen=True)
class Request:
    """One video to make."""

    file: str
    seed: int
    group: str
    prompt: str | None = None
    negative_prompt: str = ""
    class_label: str | int | None = None
    image: str | None = None  # file of the given first frame
    source: str | None = None  # the held-out video the caption is of


def evaluation_requests(
    settings: SampleSettings,
    conditioning: ConditioningSettings,
    classes: Sequence[str],
    videos: VideoSet,
    seed: int,
    demo: bool,
) -> list[Request]:
    """The requests an evaluation needs: captions of held-out videos (and for the demo unseen combinations), every class
    in turn, or just as many videos.
    """
    if settings.unseen_count and not demo:
        raise InputError("sample.unseen_count is for demo videos: other captions have no combinations to leave out")
    numbered = [(f"{HELD_OUT}_{i:04d}.mp4", derive_seed(seed, HELD_OUT, i)) for i in range(settings.count)]
    if conditioning.kind == "none":
        return [Request(file, own_seed, HELD_OUT) for file, own_seed in numbered]
    if conditioning.kind == "class":
        return [
            Request(file, own_seed, HELD_OUT, class_label=classes[i % len(classes)])
            for i, (file, own_seed) in enumerate(numbered)
        ]
    captioned = [(sample, text) for sample in videos.held_out if (text := sample.read_text())]
    if not captioned:
        raise InputError("the held-out videos have no captions; give --prompt")
    requests = []
    for i, (file, own_seed) in enumerate(numbered):
        sample, caption = captioned[i % len(captioned)]
        requests.append(Request(file, own_seed, HELD_OUT, caption, source=sample.key))
    for i, prompt in enumerate(demo_prompts(settings.unseen_count, seed, unseen=True) if demo else []):
        requests.append(Request(f"{UNSEEN}_{i:04d}.mp4", derive_seed(seed, UNSEEN, i), UNSEEN, prompt))
    return requests


def asked_requests(
    prompts: Sequence[str],
    class_labels: Sequence[str],
    seed: int,
    count: int = 1,
    negative_prompt: str = "",
    image: Path | None = None,
) -> list[Request]:
    """Requests a person made: `count` videos of each prompt or class (of nothing where there is neither).

    Their seeds are `seed`, `seed + 1`, ...; a file's name follows from what was asked and its seed.
    """
    if image is not None and not image.is_file():
        raise InputError(f"--image {image}: no such file")
    if any(not prompt.strip() for prompt in prompts):
        raise InputError("a prompt is empty")
    asked: list[tuple[str, dict]] = [(prompt, {"prompt": prompt}) for prompt in prompts]
    asked += [(label, {"class_label": label}) for label in class_labels]
    return [
        Request(
            f"{_slug(name)}_seed{seed + i}.mp4",
            seed + i,
            ASKED,
            negative_prompt=negative_prompt,
            image=str(image) if image else None,
            **what,
        )
        for name, what in asked or [("video", {})]
        for i in range(count)
    ]


def _slug(name: str) -> str:
    """A file name of a prompt; with a part of its hash, where the name alone could be another prompt's too."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60].strip("-") or "video"
    if slug.replace("-", " ") == name:
        return slug
    return f"{slug}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"
