"""Merging the indexes of shards into the index of a folder, in as much memory as a column of a batch takes.

The batches of a folder's index are large (`odvae.index.rows.CHUNK`). What goes into one stays in the mapped indexes of
the shards; its columns are joined one after the other, each into a file that is mapped in place of it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from odvae.index.damage import damage_named
from odvae.index.rows import CHUNK, SCHEMA, Header, Names, list_array, read_header
from odvae.running.files import temporary_path
from odvae.storage.files import atomic_file, local_copy, make_parent
from odvae.storage.paths import is_remote

# Joined columns up to this many bytes stay in memory.
_SMALL = 1 << 20


def merge_indexes(path: Path, parts: Sequence[Path], left_out: Mapping[int, np.ndarray] | None = None) -> None:
    """Write one index with the rows of several, in order; without the rows `left_out` of some, by the part's number.

    Those with a `reader` must have the same one; those with `limits` too, otherwise the merged index has none that any
    start has.
    """
    headers = [read_header(part) for part in parts]
    extensions, labels = Names(), Names()
    renumbered = [(extensions.numbers(header.extensions), labels.numbers(header.labels)) for header in headers]
    shards = [shard for header in headers for shard in header.shards]
    for i, rows in (left_out or {}).items():
        (shard,) = headers[i].shards
        shards[i] = replace(shard, rows=shard.rows - len(rows))
    reader = next((header.reader for header in headers if header.reader), "")
    limits = [list(limits) for limits in {tuple(header.limits) for header in headers if header.limits}]
    merged_limits = limits[0] if len(limits) == 1 else [0.0] * len(limits)
    schema = Header(shards, extensions.names, labels.names, reader, merged_limits).schema()

    def batches() -> Iterator[pa.RecordBatch]:
        first = 0
        for i, (part, part_header, numbers) in enumerate(zip(parts, headers, renumbered, strict=True)):
            with pa.memory_map(os.fspath(local_copy(part))) as mapped:
                with damage_named(part):
                    table = pa.ipc.open_file(mapped).read_all()
                    table.validate()
                if left_out is not None and i in left_out:
                    table = table.take(np.setdiff1d(np.arange(len(table)), left_out[i]))
                for batch in table.to_batches():
                    yield _renumber(batch, first, *numbers)
            first += len(part_header.shards)

    make_parent(path)
    beside = Path(tempfile.gettempdir(), path.name) if is_remote(path) else path
    with atomic_file(path) as file, pa.ipc.new_file(file, schema) as writer:
        for chunk in _in_chunks(batches()):
            columns = [_join([batch.column(name) for batch in chunk], beside) for name in SCHEMA.names]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def _renumber(batch: pa.RecordBatch, first_shard: int, extensions: np.ndarray, labels: np.ndarray) -> pa.RecordBatch:
    """A batch with its numbers of shards, extensions and labels replaced by those of the merged index."""
    columns = {name: batch.column(name) for name in batch.schema.names}
    columns["shard"] = pa.array(columns["shard"].to_numpy() + np.int32(first_shard))
    label = columns["label"].to_numpy()
    columns["label"] = pa.array(np.append(labels, np.int32(-1))[label])
    lengths, own = _of_lists(columns["members"])
    numbers = extensions[own.field("extension").to_numpy()].astype(np.int16)
    children = [pa.array(numbers), *(own.field(name) for name in ("offset", "size", "checksum"))]
    columns["members"] = list_array(lengths, pa.StructArray.from_arrays(children, fields=list(own.type)))
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=SCHEMA)


def _of_lists(lists: pa.LargeListArray) -> tuple[np.ndarray, pa.Array]:
    """Lengths and values of lists. Of a slice, `values` has more than the rows' own. (`flatten` would import
    pyarrow.compute: 50 ms.)"""
    offsets = lists.offsets.to_numpy()
    return np.diff(offsets), lists.values.slice(offsets[0], offsets[-1] - offsets[0])


def _in_chunks(batches: Iterable[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    """The batches, some of them cut in two, in groups that have CHUNK rows, but for the last."""
    waiting: list[pa.RecordBatch] = []
    missing = CHUNK
    for batch in batches:
        rest = batch
        while len(rest) >= missing:
            yield [*waiting, rest.slice(0, missing)]
            rest, waiting, missing = rest.slice(missing), [], CHUNK
        if len(rest):
            waiting.append(rest)
            missing -= len(rest)
    if waiting:
        yield waiting


def _join(arrays: Sequence[pa.Array], beside: Path) -> pa.Array:
    """Arrays one after the other. A large one is in a file next to `beside`, which is mapped and has no name."""
    kind = arrays[0].type
    if pa.types.is_large_list(kind):
        lengths, values = zip(*map(_of_lists, arrays), strict=True)
        return list_array(np.concatenate(lengths), _join(values, beside))
    if pa.types.is_struct(kind):
        children = [_join([array.field(i) for array in arrays], beside) for i in range(kind.num_fields)]
        return pa.StructArray.from_arrays(children, fields=list(kind))
    joined = pa.concat_arrays(arrays)
    return joined if joined.nbytes <= _SMALL else _mapped(joined, beside)


def _mapped(array: pa.Array, beside: Path) -> pa.Array:
    temporary = temporary_path(beside)
    schema = pa.schema([("column", array.type)])
    try:
        with open(temporary, "wb") as file, pa.ipc.new_file(file, schema) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays([array], schema=schema))
        with pa.memory_map(os.fspath(temporary)) as mapped:
            return pa.ipc.open_file(mapped).get_batch(0).column(0)
    finally:
        temporary.unlink(missing_ok=True)
