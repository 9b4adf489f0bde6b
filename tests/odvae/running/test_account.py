"""The account that every stage ends with: every input is counted and named."""

import json
import os

import pytest

from odvae.running.account import ACCOUNT, TOO_SHORT, UNREADABLE, Account
from odvae.running.errors import InputError


def example() -> Account:
    account = Account("videos")
    for i in range(8):
        account.use(captioned=i % 4 > 0, label="cat" if i % 2 else "dog")
    for i in range(5):
        account.leave_out(f"{i}.mp4", UNREADABLE, f"{i}.mp4: holds no frame")
    account.leave_out("s.mp4", TOO_SHORT, "3 frames")
    account.notes.append("half of them are gray")
    return account


def test_found_items_are_used_or_left_out_and_the_table_has_both():
    account = example()
    assert (account.found, account.used, account.count_left_out, account.captioned) == (14, 8, 6, 6)
    assert account.table().splitlines() == [
        "  videos found           14",
        "  used                    8",
        "  left out                6",
        "    cannot be decoded     5  0.mp4, 1.mp4, 2.mp4, ...",
        "    shorter than a clip   1  s.mp4",
        "  without a caption       2  (25% of the used)",
        "  classes                 2  dog (4), cat (4)",
        "  note: half of them are gray",
    ]


def test_an_item_left_out_twice_for_one_reason_counts_once():
    account = example()
    account.leave_out("s.mp4", TOO_SHORT, "3 frames")
    assert account.found == 14


def test_the_account_file_has_every_name_and_can_be_loaded(tmp_path):
    account = example()
    account.leave_out(os.fsdecode(b"\xff.mp4"), UNREADABLE, "nothing\nat all")
    account.save(tmp_path)
    values = json.loads((tmp_path / ACCOUNT).read_text())
    assert values["left_out"][UNREADABLE] == {
        "count": 6,
        "names": {**{f"{i}.mp4": "holds no frame" for i in range(5)}, "\\xff.mp4": "nothing\nat all"},
    }
    assert Account.from_json(values).to_json() == values
    assert all(line.isprintable() for line in Account.from_json(values).table().split("\n"))


@pytest.mark.parametrize(
    "damage",
    [
        {"used": "3"},
        {"used": [3]},
        {"without_caption": []},
        {"classes": {"cat": "2"}},
        {"left_out": []},
        {"notes": "x"},
    ],
)
def test_an_account_with_a_value_of_a_wrong_type_is_named(damage):
    account = Account("videos", used=3, without_caption=1, classes={"cat": 2})
    values = account.to_json()
    assert Account.from_json(values) == account
    with pytest.raises(InputError, match=r"packing\.json was damaged"):
        Account.from_json(values | damage, "packing.json")
