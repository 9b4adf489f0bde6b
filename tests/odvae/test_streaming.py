"""The worked example in the docstring of `odvae/streaming.py`."""

import doctest

import odvae.streaming


def test_the_worked_example_is_correct():
    result = doctest.testmod(odvae.streaming)
    assert result.attempted >= 8
    assert result.failed == 0
