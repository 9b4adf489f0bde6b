"""Tables that are damaged are refused by name."""

import pyarrow as pa
import pyarrow.ipc
import pytest

from odvae.running.errors import InputError
from odvae.tables import arrow_rows
from odvae.tables.formats import read_table


@pytest.fixture
def arrow(tmp_path):
    """An Arrow file of two rows, and where the offsets of its first column lie in it: 0, 5, 10."""
    table = pa.table({"file_name": ["a.mp4", "b.mp4"], "text": ["one", "two"]})
    path = tmp_path / "t.arrow"
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    return path, path.read_bytes().index(b"\0\0\0\0\5\0\0\0\12\0\0\0")


def test_an_arrow_column_with_offsets_outside_of_it_is_refused_and_does_not_end_the_process(arrow):
    path, place = arrow
    assert [row.cells["text"] for row in read_table(path, lambda _: True)] == ["one", "two"]
    data = bytearray(path.read_bytes())
    for wrong in (2**30, -(2**30)):
        data[place + 8 : place + 12] = wrong.to_bytes(4, "little", signed=True)
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"t\.arrow cannot be read as a arrow table"):
            list(read_table(path, lambda _: True))


def test_a_table_that_asks_for_more_memory_than_there_is_is_refused(arrow, monkeypatch):
    def no_memory(_):
        raise MemoryError

    monkeypatch.setattr(arrow_rows, "open_table", no_memory)
    with pytest.raises(InputError, match=r"t\.arrow cannot be read: it needs more memory than there is"):
        list(read_table(arrow[0], lambda _: True))
