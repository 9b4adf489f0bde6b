"""Parts of work: which inputs belong to which part, and what is no part."""

import pytest

from odvae.cluster.parts import Part, part_of


def test_every_input_belongs_to_one_part_and_the_parts_are_about_equal():
    names = [f"folder/video {i}.mp4" for i in range(4000)]
    shares = [[name for name in names if Part(number, 8).has(name)] for number in range(1, 9)]
    assert sorted(name for share in shares for name in share) == sorted(names)
    assert all(400 < len(share) < 600 for share in shares)
    assert all(part_of(name, 8) == 3 for name in shares[2])


def test_names_that_differ_in_one_character_are_spread_too():
    shares = [part_of(f"{i}.mp4", 2) for i in range(10)]
    assert 2 <= shares.count(1) <= 8


def test_an_input_keeps_its_part_when_others_come_and_names_may_be_any_bytes():
    odd = b"caf\xe9.mp4"
    assert Part(1, 1).has(odd)
    assert part_of(odd, 7) == part_of(odd.decode("utf-8", "surrogateescape"), 7)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0/4", "parts are numbered from 1/4 to 4/4"),
        ("5/4", "parts are numbered from 1/4 to 4/4"),
        ("1/0", "the number of parts is from 1"),
        ("3", "expected i/n, such as 3/8"),
        ("-1/4", "expected i/n"),
        ("1/4/2", "expected i/n"),
        ("", "expected i/n"),
    ],
)
def test_what_is_no_part_is_refused_with_what_is_allowed(text, says):
    with pytest.raises(ValueError, match=says):
        Part.parse(text)


def test_names_of_the_parts_files_have_one_length_and_sort_by_number():
    assert [Part.parse(text).prefix for text in ("3/8", "3/2000", " 12/12 ")] == ["part003-", "part0003-", "part012-"]
