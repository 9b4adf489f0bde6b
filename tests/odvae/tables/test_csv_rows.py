"""CSV is read strictly: what a parser would guess at is an error that names the line."""

import contextlib
import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odvae.running.errors import InputError
from odvae.tables.columns import Columns
from odvae.tables.csv_rows import csv_rows

KNOWN = Columns().are_known


def rows(folder, text):
    path = folder / "t.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return [(row.where, *row.cells.values()) for row in csv_rows(path, KNOWN)]


def test_rows_are_named_by_the_line_in_which_they_begin(tmp_path):
    text = '\n path , TEXT \n\na.mp4,"a dog\nthat runs"\n,\n"b.mp4","say ""hi"""\r\nc.mp4,plain "quoted" words\n\n'
    assert rows(tmp_path, text) == [
        ("line 4", "a.mp4", "a dog\nthat runs"),
        ("line 7", "b.mp4", 'say "hi"'),
        ("line 8", "c.mp4", 'plain "quoted" words'),
    ]


@pytest.mark.parametrize("text", ["", "\n\n", "path,text", "path,text\n\n,\n , \n"])
def test_a_table_may_be_empty(tmp_path, text):
    assert rows(tmp_path, text) == []


def test_empty_cells_beyond_the_header_are_no_cells(tmp_path):
    assert rows(tmp_path, "path,text\na.mp4,x,,\n") == [("line 2", "a.mp4", "x")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,text\nb.mp4,fine\na.mp4,a dog, running, in snow\n", "line 3: 4 cells, but the header has 2; .* a comma"),
        ("path;text\na.mp4;a dog; running\n", "line 2: 3 cells, but the header has 2; .* a semicolon"),
        ("text,path\na dog, running,a.mp4\n", "line 2: 3 cells, but the header has 2"),
        ('path,text\na.mp4,"a dog\nb.mp4,x\nc.mp4,y\n', "line 2: the quote opened in line 2 is never closed"),
        (
            'path,text\na.mp4,"ok"\n\nb.mp4,"two\nlines"\nc.mp4,"x\n',
            "line 6: the quote opened .* is never closed",
        ),
        ('path,text\na.mp4,"one ""two\n', "line 2: the quote opened in line 2 is never closed"),
        ('path,text\na.mp4,"', "line 2: the quote opened in line 2 is never closed"),
        ('path,text\na.mp4, "x\n', "line 2: the quote opened in line 2 is never closed"),
        ('path,"text\na.mp4,x\n', "line 1: the quote opened in line 1 is never closed"),
        ('path,text\na.mp4,"a dog\nb.mp4,"a cat"\n', "line 3: text follows .* opened in line 2"),
        ('path,text\na.mp4,"a dog" runs\n', "line 2: text follows .* opened in line 2"),
        (
            'path,text\na.mp4,"a dog\nb.mp4,x\nc.mp4,a bird"\n',
            r"line 2: the quote opened here \('a dog'\) is not closed",
        ),
        ("path,text,Text\na.mp4,x,y\n", "line 1: duplicate column: text"),
        (b"path,t\xe9xt\na.mp4,x\n", "line 1: the header is not UTF-8"),
    ],
)
def test_what_a_parser_would_guess_at_is_an_error_with_its_line(tmp_path, text, message):
    with pytest.raises(InputError, match=rf"t\.csv, {message}"):
        rows(tmp_path, text)


cells = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8).map(str.strip)
lines = st.text(st.sampled_from('ab,;|"\t\n\r '), max_size=8).map(lambda text: text.strip(" "))


@settings(max_examples=300, deadline=None)
@given(
    table=st.lists(st.tuples(st.just("a.mp4"), cells | lines), min_size=1, max_size=6),
    delimiter=st.sampled_from(",;\t|"),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
def test_what_the_csv_module_writes_is_read_back(tmp_path_factory, table, delimiter, quoting):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, quoting=quoting).writerows([("path", "text"), *table])
    found = rows(tmp_path_factory.mktemp("csv"), text.getvalue())
    assert [tuple(row[1:]) for row in found] == table


@settings(max_examples=500, deadline=None)
@given(st.text(st.sampled_from('ab,"\n\r;\t \x00é'), max_size=60) | st.binary(max_size=60))
def test_any_text_gives_rows_or_an_input_error(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("csv")
    content = (b"path,text\n" + text) if isinstance(text, bytes) else "path,text\n" + text
    with contextlib.suppress(InputError):  # any other error fails the test
        assert all(where.startswith("line ") for where, *_ in rows(folder, content))
