"""The real clips that an evaluation compares with, without those of videos that cannot be decoded."""

from __future__ import annotations

from collections.abc import Sequence

from accelerate import PartialState

from odvae.clips.loader import clips_from
from odvae.clips.settings import DataSettings
from odvae.running.distributed import gather_objects
from odvae.running.failures import Failure, Failures
from odvae.shards.captions import caption_problem
from odvae.shards.samples import Sample


def decodable_clips(
    clips: Sequence[tuple[Sample, int]], data: DataSettings, failures: Failures
) -> list[tuple[Sample, int]]:
    """Those of the clips, given as (video, first frame), that can be decoded and whose caption, if there is one, can be
    read; ranks share the work.

    The others are added to `failures`, which raises InputError if there are too many.
    """
    state = PartialState()
    mine = clips[state.process_index :: state.num_processes]
    found = [
        clip.reason if isinstance(clip, Failure) else caption_problem(sample)
        for clip, (sample, _) in zip(clips_from(mine, data), mine, strict=True)
    ]
    by_rank = gather_objects(found)
    decodable = []
    for i, clip in enumerate(clips):
        if reason := by_rank[i % state.num_processes][i // state.num_processes]:
            failures.add(clip[0].name, reason)
        else:
            decodable.append(clip)
    return decodable
