"""Caption tables and texts in a folder of videos."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pyarrow
from pyarrow import feather, parquet

from ldm.fuzzing.containers import GZIP
from ldm.fuzzing.kind import Kind, NeighborLost, Valid
from ldm.fuzzing.mutations import BYTES, JSON, JSON_LINES, TEXT
from odvae.packing.captions import CaptionReader
from odvae.packing.source_folder import list_source
from odvae.running.account import Account
from odvae.running.errors import InputError
from odvae.tables.columns import Columns

_VIDEOS = ("a.mp4", "b.mp4", "sub/c_0.mp4", "sub/c_1.mp4", "Ünder.mov", "7.png")
_NEIGHBOR, _NEIGHBORS_CAPTION = "elsewhere/neighbor-7c1f40d2.mp4", "a healthy caption"

_ROWS = [
    {"file_name": "a.mp4", "text": "a red square, moving", "label": "red"},
    {"file_name": "b.mp4", "text": 'said "left", then right', "label": "3"},
    {"file_name": "sub/c_0.mp4", "text": "über alles", "label": ""},
    {"file_name": "Ünder.mov", "text": "['one', 'two']", "label": "nan"},
]
_PARTS = [
    {
        "videoid": "c",
        "timestamps": [["0:00:01.0", "0:00:02.0"], [2, 3.5]],
        "caption": ["first", "second"],
        "page_dir": "s",
    },
    {"videoid": "7", "caption": {"en": "seven"}, "start": 0, "end": 1.5, "caption_2": None, "page_dir": None},
]

# Lists and objects written as text, by Python, NumPy and JSON; names written as URLs, and numbers.
_CELLS = """sep=,
url,text
https://host/a.mp4?x=1,"['one' 'it is two']"
file:///d/%C3%9Cnder.mov,"array(['one', 'two'], dtype=object)"
7.0,"{""caption"": ""seven""}"
sub/c_0.mp4,"('one', 'two')"
"""


def _csv(separator: str) -> bytes:
    lines = [separator.join(_ROWS[0])]
    for row in _ROWS:
        lines.append(separator.join('"' + cell.replace('"', '""') + '"' for cell in row.values()))
    return "\n".join(lines).encode()


def _arrow_tables() -> dict[str, bytes]:
    """Parquet, Arrow (file and stream) and Feather, with lists, structures and bytes among the columns."""
    table = pyarrow.table(
        {
            "video": [{"path": row["file_name"], "bytes": b"\0" * 8} for row in _ROWS],
            "caption": [["one", None], ["two"], [], None],
            "label": pyarrow.array([1, None, 3, 4], pyarrow.int64()),
            "title": pyarrow.array(["x", "y", "x", "x"]).dictionary_encode(),
            "data": [b"1", b"2", b"3", b"4"],
        }
    )
    written = {}
    for name, compression in (("t.parquet", "snappy"), ("u.pq", "none")):
        buffer = io.BytesIO()
        parquet.write_table(table, buffer, compression=compression)
        written[name] = buffer.getvalue()
    for name, open_writer in (("t.arrow", pyarrow.ipc.new_file), ("u.arrow", pyarrow.ipc.new_stream)):
        buffer = io.BytesIO()
        with open_writer(buffer, table.schema) as writer:
            writer.write_table(table)
        written[name] = buffer.getvalue()
    buffer = io.BytesIO()
    feather.write_feather(table, buffer, compression="zstd")
    return {**written, "t.feather": buffer.getvalue()}


def _coco() -> dict:
    return {
        "images": [{"id": i, "file_name": row["file_name"]} for i, row in enumerate(_ROWS)],
        "annotations": [{"id": 7, "image_id": i, "caption": row["text"]} for i, row in enumerate(_ROWS)],
    }


def _make_tables(_: Path) -> Sequence[Valid]:
    lists = json.dumps(_ROWS + _PARTS).encode()
    columns = {key: [row[key] for row in _ROWS] for key in _ROWS[0]}
    by_key = {row["file_name"]: {"caption": row["text"]} for row in _ROWS}
    lines = b"\n".join(json.dumps(row).encode() for row in _ROWS + _PARTS)
    return [
        Valid("metadata.csv", _csv(","), TEXT),
        Valid("any.csv", _csv(";"), TEXT),
        Valid("t.tsv", _csv("\t"), TEXT),
        Valid("any.csv.gz", gzip.compress(_csv(","), 1), GZIP),
        Valid("captions.json", lists, JSON),
        Valid("sub/columns.json", json.dumps(columns).encode(), JSON),
        Valid("keys.json", json.dumps(by_key).encode(), JSON),
        Valid("nested.json", json.dumps({"info": 1, "rows": _ROWS}).encode(), JSON),
        Valid("coco.json", json.dumps(_coco()).encode(), JSON),
        Valid("within.json", json.dumps({"data": {"train": by_key, "rows": [{"about": _ROWS[0]}]}}).encode(), JSON),
        Valid("cells.csv", _CELLS.encode(), TEXT),
        Valid("metadata.jsonl", lines, JSON_LINES),
        Valid("any.jsonl.gz", gzip.compress(lines, 1), GZIP),
        Valid("any.jsonl.zst", pyarrow.compress(lines, codec="zstd", asbytes=True), BYTES),
        Valid("prompts.txt", "\n".join(row["text"] for row in _ROWS).encode(), TEXT),
        Valid("videos.txt", "\n".join(row["file_name"] for row in _ROWS).encode(), TEXT),
        *(Valid(name, data, BYTES) for name, data in _arrow_tables().items()),
    ]


def _make_texts(_: Path) -> Sequence[Valid]:
    about = {"caption": "a red square", "captions": ["one", "two"], "label": 3, "fps": 8.0}
    return [
        Valid("a.txt", "a red square,\nmoving – über\n".encode(), TEXT),
        Valid("b.caption", b"b", TEXT),
        Valid("a.json", json.dumps(about).encode(), JSON),
        Valid("sub/c_0.json", b'["one", "two"]', JSON),
        Valid("captions/b.txt", b"in a folder of its own", TEXT),
    ]


def _lay_out(folder: Path, name: str, data: bytes) -> None:
    """A folder of videos (their names are all that matters here), one with a caption of its own, and the file."""
    for file in (*_VIDEOS, _NEIGHBOR, name):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).touch()
    (folder / _NEIGHBOR).with_suffix(".txt").write_text(_NEIGHBORS_CAPTION)
    if name in ("prompts.txt", "videos.txt"):  # which come in pairs
        lines = [row["file_name" if name == "prompts.txt" else "text"] for row in _ROWS]
        (folder / ("videos.txt" if name == "prompts.txt" else "prompts.txt")).write_text("\n".join(lines))
    (folder / name).write_bytes(data)


def _read_captions(context: Path, name: str, data: bytes, folder: Path, rng: Random) -> None:
    """As packing reads all captions of a folder, or those of the table that the settings name."""
    _lay_out(folder, name, data)
    source = list_source(folder)
    columns = rng.choice((Columns(), Columns(), Columns(file="video", text="text")))
    is_named = rng.random() < 0.3 and name not in (valid.name for valid in _make_texts(context))
    reader = CaptionReader(source, folder / name if is_named else None, columns)
    reader.open()
    refused = None
    account = Account("files")
    for file in source.media:
        found, problem = None, None
        try:
            found = reader.find(file)
            account.use(bool(found.captions), found.label)
            json.dumps([found.captions, found.label], ensure_ascii=False).encode()
        except InputError as error:
            refused = problem = error
            account.leave_out(file, "caption", str(error))
        if file == _NEIGHBOR and not is_named and (found is None or found.captions != (_NEIGHBORS_CAPTION,)):
            raise NeighborLost(f"{file}: {problem or found}")
    for file, reason, exactly in reader.left_over():
        account.leave_out(file, reason, exactly)
    account.notes += reader.notes
    tables = [[table.rows_without_file.to_json(), table.rows_without_caption.to_json()] for table in reader.tables]
    json.dumps([account.to_json(), tables], ensure_ascii=False).encode()
    account.table().encode()
    if refused:
        raise refused


TABLE = Kind("table", _make_tables, _read_captions, share=30)
CAPTION = Kind("caption", _make_texts, _read_captions, share=10)
