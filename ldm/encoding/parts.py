"""Division of an encoding's jobs among parts (`encode.part=i/n`) and processes, and what is known of the parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.encoding.plan import ShardJob
from odvae.cluster.parts import Part
from odvae.running.account import shown_names
from odvae.running.commands import with_config
from odvae.running.files import write_json

PARTS = "parts"


def sources_of_part(sources: Iterable[str], part: Part | None) -> list[str]:
    """The video shards of a part: every n-th, so that a video shard is read and hashed by one part, whatever its
    buckets. None: all."""
    names = list(sources)
    return names if part is None else names[part.number - 1 :: part.count]


def share_of_jobs(jobs: Sequence[ShardJob], rank: int, ranks: int) -> list[ShardJob]:
    """The jobs of one of `ranks` processes; those of a video shard stay together, unless there are too few shards."""
    sources = list(dict.fromkeys(job.source for job in jobs))
    if len(sources) < ranks:
        return list(jobs[rank::ranks])
    mine = set(sources[rank::ranks])
    return [job for job in jobs if job.source in mine]


def note_part(folder: Path, part: Part, values: Mapping[str, Any]) -> None:
    """Write `parts/I-of-N.json`, what is known of a part's last run. It belongs to that part alone."""
    (folder / PARTS).mkdir(exist_ok=True)
    write_json(folder / PARTS / f"{part.number}-of-{part.count}.json", dict(values))


def describe_missing(folder: Path, sources: Iterable[str], waiting: Mapping[str, Sequence[str]]) -> str:
    """Which jobs are missing, and the commands that make them: those of the parts, where parts were run before."""
    names = [name for of_source in waiting.values() for name in of_source]
    order, count = list(sources), _last_count(folder)
    numbers = sorted({order.index(source) % count + 1 for source in waiting})
    command = with_config("encode_latents")
    commands = "".join(f"\n  {command} encode.part={number}/{count}" for number in numbers)
    array = f"\n(in a SLURM array: --array={','.join(map(str, numbers))})" if count > 1 else ""
    return (
        f"{folder} lacks {len(names)} of its shards: {shown_names(names)}. These commands make them; then run this one "
        f"again:{commands}{array}"
    )


def _last_count(folder: Path) -> int:
    """Number of parts of the last run, 1 where none is known."""
    notes = [path for path in (folder / PARTS).glob("*-of-*.json") if path.stem.partition("-of-")[2].isdecimal()]
    return int(max(notes, key=lambda path: path.stat().st_mtime_ns).stem.partition("-of-")[2]) if notes else 1
