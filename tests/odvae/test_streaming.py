"""The worked example that opens `odvae/streaming.py`."""

import doctest

import odvae.streaming


def test_the_worked_example_is_true():
    result = doctest.testmod(odvae.streaming)
    assert result.attempted >= 8
    assert result.failed == 0
