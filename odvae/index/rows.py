"""The rows of an index and their file format: an Arrow IPC file with one row a sample.

An index of one shard and the index of a whole folder have the same format; the second has the rows of all shards, in
batches of `CHUNK` rows. What occurs in many rows, such as a class or a member's extension, is a number; its name is in
the file's metadata, a JSON object with the keys of `Header`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from odvae.index.damage import damage_named
from odvae.running.errors import InputError
from odvae.shards.samples import Member
from odvae.storage.files import atomic_file, local_copy, make_parent
from odvae.video.hdr import Transfer
from odvae.video.video_io import VideoFacts

FORMAT = 1

# Rows of a batch of a folder's index; only the last has fewer, so that a row's batch is known from its number.
CHUNK = 1 << 20

TRANSFERS: tuple[str, ...] = get_args(Transfer)

# Entries of `captions` that are no number of captions.
CAPTIONS_UNREADABLE = -1

_MEMBER = pa.struct(
    [("extension", pa.int16()), ("offset", pa.int64()), ("size", pa.int64()), ("checksum", pa.uint64())]
)
SCHEMA = pa.schema(
    [
        ("key", pa.large_binary()),
        ("shard", pa.int32()),
        ("members", pa.large_list(_MEMBER)),
        ("split", pa.float64()),
        ("frames", pa.int32()),  # 0: the facts are not known
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("fps", pa.float64()),
        ("seconds", pa.float64()),
        ("variable_rate", pa.uint8()),
        ("transfer", pa.int8()),
        ("keyframes", pa.large_list(pa.int64())),  # pairs, one after the other
        ("has_time_steps", pa.uint8()),
        ("time_steps", pa.large_list(pa.float64())),  # pairs
        ("captions", pa.int32()),
        ("label", pa.int32()),  # -1: none
        ("group", pa.large_binary()),
        ("problem", pa.large_binary()),
        ("limited", pa.uint8()),
    ]
)


@dataclass(frozen=True)
class IndexRow:
    """What an index has of a sample."""

    key: str
    members: dict[str, Member]
    split: float
    """A number in [0, 1) by which the sample is assigned to a split (`odvae.shards.samples.split_position`)."""
    facts: VideoFacts | None = None
    """None for an entry that is no video, or a video that cannot be used."""
    captions: int = 0
    """Number of captions; CAPTIONS_UNREADABLE."""
    label: str | None = None
    group: str = ""
    """Samples of a group belong in the same split; empty: the sample is a group of its own."""
    problem: str = ""
    """Why its video cannot be used, as it follows the sample's name (": cannot be decoded"); empty if it can."""
    limited: bool = False
    """Whether the problem is that decoding exceeded a limit of the settings, so that other limits may help, or that its
    process was killed."""


@dataclass(frozen=True, slots=True)
class IndexedShard:
    """A shard at the time when it was indexed."""

    name: str
    """File name in the folder."""
    bytes: int
    mtime_ns: int
    rows: int
    ignored: dict[str, int] = field(default_factory=dict)
    """What was ignored in its .json files -> in how many."""
    sha256: str = ""
    """Of the file, where it was computed: shards of latents, whose manifest has it too."""
    version: str = ""
    """Of a shard that was read at a URL, in place of its modification time: the server's ETag or the like."""


@dataclass(frozen=True)
class Header:
    """Metadata of an index."""

    shards: list[IndexedShard]
    extensions: list[str]
    """Members' extensions, by number."""
    labels: list[str]
    """Classes, by number."""
    reader: str
    """The decoder that found the facts of examined videos: another version may count frames differently. Empty where
    all facts are from KEY.json."""
    limits: list[float]
    """Seconds and GiB within which a video had to be decoded; empty where no row is `limited`."""
    format: int = FORMAT

    def schema(self) -> pa.Schema:
        return SCHEMA.with_metadata({b"index": json.dumps(asdict(self)).encode()})


def write_shard_index(
    path: Path, shard: IndexedShard, rows: Sequence[IndexRow], reader: str, limits: Sequence[float]
) -> None:
    """Write the index of one shard."""
    extensions, labels = Names(), Names()
    batch = _batch(rows, extensions, labels)
    header = Header([shard], extensions.names, labels.names, reader, list(limits))
    make_parent(path)
    with atomic_file(path) as file, pa.ipc.new_file(file, header.schema()) as writer:
        writer.write_batch(batch)


def read_header(path: Path) -> Header:
    """The metadata of an index. Raises InputError where the file is missing, damaged or of another format."""
    with damage_named(path), pa.memory_map(os.fspath(local_copy(path))) as mapped:
        return parse_header(path, pa.ipc.open_file(mapped).schema)


def parse_header(path: Path, schema: pa.Schema) -> Header:
    """The metadata in an index's schema."""
    try:
        values = json.loads((schema.metadata or {})[b"index"], object_hook=_shard_or_values)
        if values["format"] != FORMAT:
            raise InputError(f"{path}: format {values['format']!r}, this version reads {FORMAT}")
        header = Header(**values)
        if not all(isinstance(shard, IndexedShard) for shard in header.shards):
            raise ValueError("what it lists are not all shards")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not an index of shards: {error}") from None
    if not schema.equals(SCHEMA):
        raise InputError(f"{path} is not an index of shards: its columns are {', '.join(schema.names)}")
    return header


def _shard_or_values(values: dict[str, Any]) -> IndexedShard | dict[str, Any]:
    """A shard, where these are its values: made at once, since a folder has so many that their dicts take memory."""
    return IndexedShard(**values) if "mtime_ns" in values else values


class Names:
    """Numbers for names, in the order in which they come."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._number: dict[str, int] = {}

    def number(self, name: str) -> int:
        if name not in self._number:
            self._number[name] = len(self.names)
            self.names.append(name)
        return self._number[name]

    def numbers(self, names: Iterable[str]) -> np.ndarray:
        return np.array([self.number(name) for name in names], dtype=np.int32)


def _batch(rows: Sequence[IndexRow], extensions: Names, labels: Names) -> pa.RecordBatch:
    count = len(rows)
    members = [(extensions.number(name), one) for row in rows for name, one in row.members.items()]
    unknown = VideoFacts(0, 0, 0, 0.0, 0.0, False, [])
    facts = [row.facts or unknown for row in rows]
    columns: dict[str, Any] = {
        "key": [os.fsencode(row.key) for row in rows],
        "shard": np.zeros(count, np.int32),
        "members": list_array(
            [len(row.members) for row in rows],
            pa.StructArray.from_arrays(
                [
                    pa.array([number for number, _ in members], pa.int16()),
                    pa.array([one.offset for _, one in members], pa.int64()),
                    pa.array([one.size for _, one in members], pa.int64()),
                    pa.array([one.checksum for _, one in members], pa.uint64()),
                ],
                fields=list(_MEMBER),
            ),
        ),
        "split": [row.split for row in rows],
        "frames": [one.frames for one in facts],
        "height": [one.height for one in facts],
        "width": [one.width for one in facts],
        "fps": [one.fps for one in facts],
        "seconds": [one.seconds for one in facts],
        "variable_rate": [int(one.variable_rate) for one in facts],
        "transfer": [TRANSFERS.index(one.transfer) for one in facts],
        "keyframes": [[number for pair in one.keyframes for number in pair] for one in facts],
        "has_time_steps": [int(one.time_steps is not None) for one in facts],
        "time_steps": [[float(number) for pair in one.time_steps or () for number in pair] for one in facts],
        "captions": [row.captions for row in rows],
        "label": [-1 if row.label is None else labels.number(row.label) for row in rows],
        "group": [os.fsencode(row.group) if row.group else b"" for row in rows],
        "problem": [os.fsencode(row.problem) if row.problem else b"" for row in rows],
        "limited": [int(row.limited) for row in rows],
    }
    arrays = [
        value if isinstance(value, pa.Array) else pa.array(value, SCHEMA.field(name).type)
        for name, value in columns.items()
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def list_array(lengths: Sequence[int] | np.ndarray, values: pa.Array) -> pa.LargeListArray:
    """An array of lists of these lengths, of all values in order."""
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    return pa.LargeListArray.from_arrays(pa.array(offsets), values)
