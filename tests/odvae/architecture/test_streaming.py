"""The worked example in the docstring of `odvae/architecture/streaming.py`."""

import doctest

import odvae.architecture.streaming


def test_the_worked_example_is_correct():
    result = doctest.testmod(odvae.architecture.streaming)
    assert result.attempted >= 8
    assert result.failed == 0
