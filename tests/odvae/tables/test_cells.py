"""What stands in the cells of foreign tables may be anything."""

import pytest

from odvae.tables.columns import Columns
from odvae.tables.row_matching import seconds


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("0:01:12.500", 72.5),
        ("00-01-12-500", 72.5),
        (3, 3.0),
        ("soon", None),
        (True, None),
        (10**400, None),
        (f"{5000 * '9'}:00:00", None),
        (None, None),
    ],
)
def test_a_time_is_seconds_or_nothing(written, found):
    assert seconds(written) == found


def test_a_column_with_thousands_of_digits_in_its_name_is_no_numbered_caption():
    cells = {"file": "a.mp4", "caption_2": "two", "caption_10": "ten", f"caption_{5000 * '9'}": "none"}
    assert Columns().read(cells).captions == ("two", "ten")
