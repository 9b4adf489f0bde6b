"""The videos that distances compare: which samples, which real videos as the reference, and which as the baseline."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from accelerate import PartialState

from ldm.evaluation.features import FeatureNetwork
from ldm.evaluation.protocols import PROTOCOLS, ClipProtocol
from ldm.evaluation.real_clips import decodable_clips
from ldm.evaluation.settings import EvalLDMSettings
from ldm.sampling.sample_requests import HELD_OUT
from odvae.clips.clip import frame_count
from odvae.clips.permutation import permuted
from odvae.clips.settings import DataSettings
from odvae.clips.video_set import VideoSet
from odvae.running.errors import InputError
from odvae.running.failures import Failures
from odvae.running.seeds import derive_seed
from odvae.shards.samples import Sample

# Of each kind, where `eval_ldm.clips` is null and there are more.
DEFAULT_CLIPS = 96

RealClip = tuple[Sample, int]


@dataclass(frozen=True)
class VideoSets:
    """The videos that distances compare; real ones as (video, first frame).

    There are as many samples as videos of the reference, and of the baseline `other_real` as many if there are enough.
    """

    generated: Sequence[dict]
    reference: list[RealClip]
    other_real: list[RealClip]


def choose_video_sets(
    settings: EvalLDMSettings, data: DataSettings, videos: VideoSet, rows: Sequence[dict], seed: int
) -> VideoSets:
    """Choose samples of held-out conditions, clips of `settings.reference_split`, and clips of other real videos.

    Videos that cannot be decoded are listed and replaced by others of their split. Held-out videos are taken in their
    order, as those of the samples' conditions are, training videos in a random order that the seed determines: shards
    may be sorted by class. Collective: ranks share the decoding.

    Raises InputError for fewer than two videos of a kind or fewer than `settings.clips`, and for more failures than
    `data.failures_allowed` permits.
    """
    protocol = PROTOCOLS[settings.protocol]
    held_out = [row for row in rows if row["group"] == HELD_OUT]
    n = count_clips(settings, protocol, len(held_out), videos)
    reference, other_real = _real_videos(settings, videos, seed)
    failures = Failures(len(videos.samples), data.failures_allowed, "videos", prints=PartialState().is_main_process)

    def first_frame(sample: Sample, index: int) -> int:
        if protocol.start == "first":
            return 0
        return protocol.random_start(frame_count(sample, data.fps), data, seed, index)

    def decodable(candidates: Iterator[Sample], first: int) -> list[RealClip]:
        found: list[RealClip] = []
        numbered = ((sample, first_frame(sample, first + i)) for i, sample in enumerate(candidates))
        while len(found) < n and (more := list(itertools.islice(numbered, n - len(found)))):
            found += decodable_clips(more, data, failures)
        return found

    compared, others = decodable(reference, 0), decodable(other_real, n)
    n = settings.clips or len(compared)
    check_count(settings, n, {f"{settings.reference_split} videos that can be decoded": len(compared)})
    if len(others) < 2:
        raise InputError(
            f"distances need at least 2 videos of each kind, found {len(others)} real videos beside those of "
            f"eval_ldm.reference_split={settings.reference_split}"
        )
    return VideoSets(held_out[:n], compared[:n], others[:n])


def count_clips(settings: EvalLDMSettings, protocol: ClipProtocol, samples: int, videos: VideoSet) -> int:
    """The number of videos of each kind. Raises InputError where there are fewer than asked for, or than two."""
    of_split = {"held_out": len(videos.held_out), "train": len(videos.train)}
    of_split["all"] = sum(of_split.values())
    chosen = settings.reference_split
    counts = {"samples of held-out conditions": samples, f"{chosen} videos": of_split[chosen]}
    if protocol.max_videos is not None and (settings.clips or 0) > protocol.max_videos:
        raise InputError(f"eval_ldm.clips={settings.clips}: eval_ldm.protocol={protocol.name} compares at most "
                         f"{protocol.max_videos} videos")  # fmt: skip
    n = settings.clips or min(DEFAULT_CLIPS, *counts.values())
    check_count(settings, n, counts)
    return n


def check_count(settings: EvalLDMSettings, n: int, counts: dict[str, int]) -> None:
    """Raise InputError where a count is below n, or n below two."""
    few = [f"{count} {kind}" for kind, count in counts.items() if count < max(n, 2)]
    if few and settings.clips is not None:
        raise InputError(
            f"eval_ldm.clips={settings.clips}, but there are only {' and '.join(few)}. More samples: sample.count; "
            f"more real videos: eval_ldm.reference_split (now {settings.reference_split}) or data.held_out"
        )
    if few or n < 2:
        raise InputError(f"distances need at least 2 videos of each kind, found {' and '.join(few)}")


def check_enough_for(network: FeatureNetwork, n: int, settings: EvalLDMSettings) -> None:
    """Raise InputError for a published network with more features than there are videos, unless that is allowed."""
    if n > network.dimension or network.name == "random" or settings.allow_few_clips:
        return
    raise InputError(
        f"eval_ldm.networks={network.name}: {n} videos are not more than its {network.dimension} features, so that "
        f"{network.distance} is biased and not comparable with published values. More videos: sample.count, "
        "eval_ldm.clips and eval_ldm.reference_split; or eval_ldm.allow_few_clips=true"
    )


def describe_reference(settings: EvalLDMSettings) -> str:
    """The real videos of both sets in words, for a score's protocol."""
    baselines = "reconstructions of the reference, and other real videos"
    kind = {"held_out": "held-out videos", "train": "training videos, in random order",
            "all": "training and held-out videos, in random order"}[settings.reference_split]  # fmt: skip
    return f"{kind}; baselines: {baselines}"


def _real_videos(settings: EvalLDMSettings, videos: VideoSet, seed: int) -> tuple[Iterator[Sample], Iterator[Sample]]:
    """The candidates of the reference, and those of the baseline, none of which is in both."""
    train = _in_random_order(len(videos.train), lambda i: videos.train[i], seed)
    if settings.reference_split == "held_out":
        return iter(videos.held_out), train
    if settings.reference_split == "train":
        return train, itertools.chain(videos.held_out, train)  # what the reference leaves
    both: Sequence[Sequence[Sample]] = (videos.held_out, videos.train)
    first = len(videos.held_out)
    every = _in_random_order(first + len(videos.train), lambda i: both[0][i] if i < first else both[1][i - first], seed)
    return every, every


def _in_random_order(count: int, item: Callable[[int], Sample], seed: int) -> Iterator[Sample]:
    key = derive_seed(seed, "reference order")
    return (item(permuted(position, count, key)) for position in range(count))
