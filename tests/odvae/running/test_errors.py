"""Messages of errors that a user can fix."""

import copy

import pytest

from odvae.running.errors import InputError
from odvae.running.settings import make_settings
from odvae.tables.caption_table import NoSuchColumnsError
from odvae.training.settings import OptimizationSettings


@pytest.mark.parametrize("kind", [InputError, NoSuchColumnsError])
def test_a_line_that_quotes_a_whole_damaged_file_is_cut_in_its_middle(kind):
    quoted = "a.csv, line 1: the header is " + "x" * 30_000
    message = str(kind(f"first line\n{quoted}: save the file as UTF-8\nlast line"))
    first, second, last = message.splitlines()
    assert (first, last) == ("first line", "last line")
    assert second.startswith("a.csv, line 1: the header is xxx")
    assert second.endswith("xxx: save the file as UTF-8")
    assert "more characters) ... x" in second
    assert len(second) < 2100
    assert str(copy.copy(kind(message))) == message  # by the same protocol as from a worker process


def test_a_setting_with_a_huge_value_is_named_in_a_message_that_can_be_read():
    with pytest.raises(InputError, match=r"steps: found .1000") as caught:
        make_settings(OptimizationSettings, {"steps": "1" + "0" * 50_000}, [], "config.yaml")
    assert len(str(caught.value)) < 3000


def test_a_damaged_config_lists_its_first_problems_and_counts_the_others():
    with pytest.raises(InputError, match=r"and 20 more problems$") as caught:
        make_settings(OptimizationSettings, {f"unknown_{i}": 1 for i in range(50)}, [], "config.yaml")
    assert "unknown_29: unknown key" in str(caught.value)
    assert "unknown_30" not in str(caught.value)
