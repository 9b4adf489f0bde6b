"""Number formatting of the report page."""

import pytest

from ldm.report.page import short_number


@pytest.mark.parametrize(
    ("value", "text"),
    [(29.434, "29.4"), (0.0405, "0.041"), (1315.13, "1315"), (0.0, "0.000"), (-0.00012, "-1.20e-04"), (None, "–")],
)
def test_numbers_are_shown_with_three_digits(value, text):
    assert short_number(value) == text
