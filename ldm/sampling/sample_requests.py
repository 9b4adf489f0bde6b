"""Which videos are generated: those of a user's prompts, classes or images, or those that an evaluation scores."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.demo.scenes import Content
from ldm.demo.scenes import prompts as demo_prompts
from ldm.networks.settings import ConditioningSettings
from ldm.sampling.prompt_file import MOST_SEED, Prompt
from ldm.sampling.settings import FileNames, SampleSettings
from odvae.clips.video_set import VideoSet
from odvae.running.errors import InputError
from odvae.running.files import temporary_path
from odvae.running.seeds import derive_seed
from odvae.running.text import check_is_file
from odvae.shards.captions import caption_problem
from odvae.shards.samples import Sample

HELD_OUT, UNSEEN, USER = "held_out", "unseen", "user"  # groups of requests

_LONGEST_NAME = 255  # bytes, of all usual file systems


@dataclass(frozen=True)
class Request:
    """One video to generate."""

    file: str
    seed: int
    group: str
    prompt: str | None = None
    negative_prompt: str = ""
    class_label: str | int | None = None
    image: str | None = None  # file of the first frame
    source: str | None = None  # key of the held-out video that the caption belongs to


def evaluation_requests(
    settings: SampleSettings,
    conditioning: ConditioningSettings,
    classes: Sequence[str],
    videos: VideoSet,
    seed: int,
    demo: Content | None,
) -> list[Request]:
    """The videos that an evaluation scores, `settings.count` of them.

    Text: captions of held-out videos and, for the demo's videos (`demo` is their content), `settings.unseen_count`
    held-out combinations. Classes: each in turn. Raises InputError where the held-out videos have no captions.
    """
    if settings.unseen_count and not demo:
        raise InputError(
            "sample.unseen_count is for demo videos: only their captions have combinations that training leaves out"
        )
    seeds = {f"{HELD_OUT}_{i:04d}.mp4": derive_seed(seed, HELD_OUT, i) for i in range(settings.count)}
    if conditioning.kind == "none":
        return [Request(file, video_seed, HELD_OUT) for file, video_seed in seeds.items()]
    if conditioning.kind == "class":
        if not classes:
            raise InputError("ldm.conditioning.kind=class: the latents have no classes")
        return [
            Request(file, video_seed, HELD_OUT, class_label=classes[i % len(classes)])
            for i, (file, video_seed) in enumerate(seeds.items())
        ]
    captioned = list(itertools.islice(_captioned(videos.held_out), settings.count))
    if not captioned:
        raise InputError("the held-out videos have no captions; give --prompt")
    requests = []
    for i, (file, video_seed) in enumerate(seeds.items()):
        sample, caption = captioned[i % len(captioned)]
        requests.append(Request(file, video_seed, HELD_OUT, caption, source=sample.key))
    for i, prompt in enumerate(demo_prompts(settings.unseen_count, seed, True, demo) if demo else []):
        requests.append(Request(f"{UNSEEN}_{i:04d}.mp4", derive_seed(seed, UNSEEN, i), UNSEEN, prompt))
    return requests


def _captioned(samples: Iterable[Sample]) -> Iterator[tuple[Sample, str]]:
    """The samples with a caption, and it; those whose caption cannot be read are named."""
    for sample in samples:
        if problem := caption_problem(sample):
            print(f"left out: {problem}", file=sys.stderr, flush=True)
        elif text := sample.read_text():
            yield sample, text


def user_requests(
    prompts: Sequence[str | Prompt],
    class_labels: Sequence[str],
    seed: int,
    count: int = 1,
    negative_prompt: str = "",
    image: Path | None = None,
    file_names: FileNames = "prompt_and_seed",
) -> list[Request]:
    """`count` videos of each prompt and class; where there is neither, of an unconditional network.

    Their seeds are `seed`, `seed + 1`, ...; a file is named after its prompt or class and its seed, or as VBench wants
    it. A `Prompt` may have a seed and a negative prompt of its own. Equal requests are made once. Raises InputError for
    a missing image, an empty prompt, one that cannot be a file's name as VBench wants it, a count below 1, and a seed
    that is negative or too large.
    """
    if image is not None:
        check_is_file(image, "--image")
    if count < 1:
        raise InputError(f"--count must be at least 1, found {count}")
    read = [Prompt(one) if isinstance(one, str) else one for one in prompts]
    if any(not prompt.text.strip() for prompt in read):
        raise InputError("a prompt is empty")

    def requests(name: str, own: Prompt | None, **condition: str) -> Iterator[Request]:
        first = seed if own is None or own.seed is None else own.seed
        if not 0 <= first <= MOST_SEED - count + 1:
            raise InputError(f"the seed of {name!r} must be from 0 to {MOST_SEED - count + 1}, found {first}")
        negative = negative_prompt if own is None or own.negative is None else own.negative
        for i in range(count):
            file = _vbench_name(name, i) if file_names == "vbench" else f"{_slug(name)}_seed{first + i}.mp4"
            yield Request(
                file, first + i, USER, negative_prompt=negative, image=str(image) if image else None, **condition
            )

    found = [request for one in read for request in requests(one.text, one, prompt=one.text)]
    found += [request for label in class_labels for request in requests(label, None, class_label=label)]
    found = list(dict.fromkeys(found or requests("video", None)))
    if repeated := sorted(file for file, times in Counter(one.file for one in found).items() if times > 1):
        raise InputError(
            f"{repeated[0]} would be made with several negative prompts or seeds: give these rows other seeds, and "
            "with sample.file_names=vbench each prompt once"
        )
    return found


def _vbench_name(prompt: str, number: int) -> str:
    """The name by which VBench's standard evaluation finds the video of a prompt."""
    file = f"{prompt}-{number}.mp4"
    if "/" in file or "\0" in file or len(os.fsencode(temporary_path(Path(file)))) > _LONGEST_NAME:
        raise InputError(f"sample.file_names=vbench: the prompt cannot be the name of a file: {prompt[:100]!r}")
    return file


def _slug(name: str) -> str:
    """A prompt as a file name; with a part of its hash where another prompt could have the same name."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60].strip("-") or "video"
    if slug.replace("-", " ") == name:
        return slug
    return f"{slug}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"
