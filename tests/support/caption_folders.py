"""Folders of videos and captions for tests, and what the caption reader finds in them."""

import json

import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet

from odvae.packing.captions import CaptionReader
from odvae.packing.source_folder import list_source

AB = {"a.mp4": b"", "b.mp4": b""}
ROWS = "path,text\na.mp4,a dog\nb.mp4,a cat\n"
TWO = {"a.mp4": b"", "deep/b.mp4": b""}


def folder_of(root, files):
    """A folder with these files: text as UTF-8, bytes as they are, anything else as JSON."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            content = content.encode()
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return root


def read(root, named=None, columns=None):
    reader = CaptionReader(list_source(root), named, columns)
    reader.open()
    return reader


def captions(root, **options):
    """Video -> its captions."""
    reader = read(root, **options)
    return {file: list(reader.find(file).captions) for file in reader.source.media}


def parquet(columns):
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def feather(columns):
    sink = pa.BufferOutputStream()
    pa.feather.write_feather(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def arrow(columns, stream=False):
    sink = pa.BufferOutputStream()
    table = pa.table(columns)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
