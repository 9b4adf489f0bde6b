"""Failures are counted, printed once, and end the run when they are too many."""

import pytest

from odvae.running.errors import InputError
from odvae.running.failures import Failures


def test_the_same_failure_is_counted_once_and_too_many_end_the_run_with_their_names(capsys):
    failures = Failures(total=10, share=0.2, what="videos")
    for name in ("a.mp4", "a.mp4", "b.mp4"):
        failures.add(name, "broken")
    assert "left out: b.mp4: broken (2 of 10 videos so far)" in capsys.readouterr().err
    with pytest.raises(
        InputError, match=r"3 of 10 videos could not be used.*=0\.2 of them:\n  a\.mp4: .*\n.*\n  c\.mp4: "
    ):
        failures.add("c.mp4", "broken too")
