"""The rows of shards of videos: facts from KEY.json where `make_shards` wrote it, else found by examining."""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from odvae.index.folder_index import FolderIndex
from odvae.index.rows import Header, IndexRow
from odvae.index.shard_rows import Advance, ShardRows, make_row, samples_with_checksums, shard_state
from odvae.running.errors import InputError
from odvae.running.failures import Failure
from odvae.running.text import valid_unicode
from odvae.shards.facts import ExamineLimits, about_sample, checked_about, own_facts
from odvae.shards.facts_journal import READER, FactsJournal, find_facts
from odvae.shards.samples import Sample
from odvae.video.video_io import VideoFacts

# Recorded where a worker was killed, so that its video is examined again at the next start: no start has these limits.
_NO_LIMITS = [0.0, 0.0]

Known = tuple[Sample, VideoFacts | Failure | None]


class VideoIndexer:
    """Makes the rows of shards of videos; those without facts of their own are examined, within `limits`."""

    def __init__(self, limits: ExamineLimits) -> None:
        self._examining = limits
        self._limits = [limits.seconds, limits.memory_gib]

    def keeps(self, header: Header) -> bool:
        return header.reader in ("", READER) and header.limits in ([], self._limits)

    def changed(self, shard: Path) -> None:
        print(f"{shard} has changed since it was indexed: it is indexed again", file=sys.stderr, flush=True)

    def index(
        self, shards: Iterable[tuple[int, Path, FolderIndex | None]], advance: Advance
    ) -> Iterator[tuple[int, ShardRows]]:
        """Shards are read ahead of the examining, so that its workers do not wait between two shards."""
        begun: deque[_BegunShard] = deque()
        rows: deque[IndexRow] = deque()  # of the samples that `find_facts` has, in order

        def known() -> Iterator[Known]:
            for number, path, earlier in shards:
                shard = _BegunShard(number, path)
                begun.append(shard)
                if earlier is not None:
                    shard.ignored.update(earlier.header.shards[0].ignored)
                for row, sample, facts in shard.prepare() if earlier is None else self._prepare_again(earlier):
                    rows.append(row)
                    shard.missing += 1
                    yield sample, facts
                shard.is_read = True

        for sample, facts in find_facts(known(), self._examining):
            while begun[0].is_complete:
                yield begun.popleft().finish(self._limits, advance)
            begun[0].add(rows.popleft(), sample, facts, advance)
        while begun:
            yield begun.popleft().finish(self._limits, advance)

    def _prepare_again(self, earlier: FolderIndex) -> Iterator[tuple[IndexRow, Sample, VideoFacts | Failure | None]]:
        """The rows of an earlier index: with those facts that are still right, and without the others."""
        other_limits = earlier.header.limits not in ([], self._limits)
        other_reader = earlier.header.reader not in ("", READER)
        for number in range(len(earlier)):
            row, sample = earlier.row(number), earlier.sample(number)
            facts: VideoFacts | Failure | None = row.facts
            if row.problem:
                facts = Failure(f"{sample.name}{row.problem}", "limit" if row.limited else "task")
            if (row.limited and other_limits) or (other_reader and sample.has_video):
                facts = _own_facts(sample)
                sample = replace(sample, facts=None)
            yield row, sample, facts

    def done(self, shard: Path) -> None:
        FactsJournal(shard, self._examining).remove()


@dataclass
class _BegunShard:
    """A shard of whose samples some may still be examined."""

    number: int
    path: Path
    rows: list[IndexRow] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    is_read: bool = False
    is_examined: bool = False
    was_killed: bool = False
    advanced: int = 0

    def __post_init__(self) -> None:
        self.state = shard_state(self.path)

    @property
    def is_complete(self) -> bool:
        return self.is_read and not self.missing

    def prepare(self) -> Iterator[tuple[IndexRow, Sample, VideoFacts | None]]:
        """Each sample's row, with its own facts if it has some."""
        for sample, texts in samples_with_checksums(self.path):
            about, wrong = checked_about(texts["json"]) if "json" in texts else ({}, [])
            has_video = sample.has_video
            if has_video and wrong:
                self.ignored.update(wrong)
            facts = own_facts(sample.key, about) if has_video else None
            yield make_row(sample, about, texts.get("txt"), facts), sample, facts

    def add(self, row: IndexRow, sample: Sample, found: VideoFacts | Failure, advance: Advance) -> None:
        """Add a sample's row, with its facts, or the reason why it has none."""
        self.missing -= 1
        if isinstance(found, Failure):
            reason = found.reason.removeprefix(sample.name)
            problem = valid_unicode(reason if reason != found.reason else f": {reason}")
            again = found.cause in ("limit", "system")
            row = replace(row, facts=None, problem=problem, limited=again)
            self.was_killed |= found.cause == "system"
        elif row.facts is not found:
            row = replace(row, facts=found, problem="", limited=False)
        if sample.facts is not None or (isinstance(found, Failure) and sample.has_video):
            self.is_examined = True
            size = sum(member.size for member in sample.members.values())
            self.advanced += size
            advance(size)
        self.rows.append(row)

    def finish(self, limits: list[float], advance: Advance) -> tuple[int, ShardRows]:
        advance(max(0, self.state.bytes - self.advanced))
        shard = self.state.of_index(self.path.name, len(self.rows), dict(self.ignored))
        exceeded = limits if any(row.limited for row in self.rows) else []
        reader = READER if self.is_examined else ""
        return self.number, ShardRows(shard, self.rows, reader, _NO_LIMITS if self.was_killed else exceeded)


def _own_facts(sample: Sample) -> VideoFacts | None:
    try:
        return own_facts(sample.key, about_sample(sample))
    except InputError:  # the shard has changed since, which is found when it is examined
        return None
