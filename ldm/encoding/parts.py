"""Division of an encoding's jobs among processes."""

from __future__ import annotations

from collections.abc import Sequence

from ldm.encoding.plan import ShardJob


def share_of_jobs(jobs: Sequence[ShardJob], rank: int, ranks: int) -> list[ShardJob]:
    """The jobs of one of `ranks` processes; those of a video shard stay together, unless there are too few shards."""
    sources = list(dict.fromkeys(job.source for job in jobs))
    if len(sources) < ranks:
        return list(jobs[rank::ranks])
    mine = set(sources[rank::ranks])
    return [job for job in jobs if job.source in mine]
