"""The fuzz harness: it sees what escapes, and a short run of every kind lets nothing escape."""

import time
from random import Random

import pytest

from ldm.fuzzing.kind import Kind, NeighborLost, Valid
from ldm.fuzzing.kinds import KINDS, choose_kinds
from ldm.fuzzing.mutations import BYTES, TEXT
from ldm.fuzzing.runner import fuzz, plan_cases, replay, table
from ldm.fuzzing.settings import FuzzSettings
from odvae.running.errors import InputError


def test_a_short_run_of_every_kind_reads_or_refuses_each_input(tmp_path):
    counts = fuzz(KINDS, FuzzSettings(count=240, workers=1, out=str(tmp_path / "out")))
    assert counts.keys() == {kind.name for kind in KINDS}
    assert sum(count.results.total() for count in counts.values()) == 240
    for name, count in counts.items():
        assert count.results.keys() <= {"read", "refused"}, (name, sorted((tmp_path / "out").iterdir()))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_files_that_nothing_was_done_to_are_read(kind, tmp_path):
    """Else a run that lets nothing escape would have proved nothing. The way of reading is drawn: some refuse more."""
    (tmp_path / "context").mkdir()
    for number, valid in enumerate(kind.make(tmp_path / "context")):
        refusals = []
        for seed in range(8):
            folder = tmp_path / f"{number}-{seed}"
            folder.mkdir()
            try:
                kind.read(tmp_path / "context", valid.name, valid.data, folder, Random(seed))
                break
            except InputError as error:
                refusals.append(str(error))
        assert len(refusals) < 8, (valid.name, refusals)


def test_a_kind_of_large_files_alone_is_mutated(tmp_path):
    large = Kind("large", lambda _: [Valid("a.bin", bytes(1 << 17), BYTES)], lambda *_: None)
    counts = fuzz([large], FuzzSettings(count=60, workers=1, out=str(tmp_path / "out")))
    assert counts["large"].results == {"read": 60}


def misbehaving(ways):
    """A kind of which input number n does the n-th of the things that must not be."""
    numbers = iter(range(1000))

    def read(context, name, data, folder, rng):
        way = ways[next(numbers) % len(ways)]
        if way == "dies":
            import os

            os.abort()
        if way == "hangs":
            time.sleep(60)
        if way == "memory":
            bytearray(4 << 30)
        if isinstance(way, BaseException):
            raise way

    return Kind("odd", lambda _: [Valid("a.txt", b"some text\nof two lines", TEXT)], read)


@pytest.mark.parametrize(
    ("way", "result"),
    [
        ("read", "read"),
        (InputError("no"), "refused"),
        (InputError(""), "escape"),
        (KeyError("x"), "escape"),
        (SystemExit(0), "escape"),
        (NeighborLost("b"), "neighbor"),
        ("dies", "escape"),
        ("hangs", "hang"),
        ("memory", "escape"),
    ],
    ids=str,
)
def test_what_an_input_does_is_seen_and_the_offending_one_is_kept(tmp_path, way, result):
    settings = FuzzSettings(count=1, workers=1, seconds_per_input=0.5, memory_gib=1, out=str(tmp_path / "out"))
    counts = fuzz([misbehaving([way])], settings)
    assert counts["odd"].results == {result: 1}
    assert table(counts).splitlines()[-1].split()[:2] == ["all", "1"]
    kept = list((tmp_path / "out").glob("odd-0-0-a.txt"))
    assert len(kept) == (result not in ("read", "refused"))


def test_a_kept_input_is_read_again_by_replay(tmp_path):
    kind = misbehaving([KeyError("x")])
    settings = FuzzSettings(count=3, workers=1, seed=5, out=str(tmp_path))
    fuzz([kind], settings)
    (kept, *_) = sorted(tmp_path.glob("odd-5-*"))
    outcome = replay([kind], FuzzSettings(replay=str(kept)))
    assert (outcome.result, "KeyError" in outcome.details) == ("escape", True)
    with pytest.raises(InputError, match="expected a file KIND-SEED-NUMBER-NAME"):
        replay([kind], FuzzSettings(replay=str(tmp_path / "x")))


def test_an_input_follows_from_seed_kind_and_number_and_shares_are_kept():
    kinds = choose_kinds(())
    cases = list(plan_cases(kinds, FuzzSettings(count=500, first=7)))
    assert len(set(cases)) == 500
    for kind in kinds:
        numbers = [case.number for case in cases if case.kind == kind.name]
        assert numbers == list(range(7, 7 + len(numbers)))
        share = 500 * kind.share / sum(kind.share for kind in kinds)
        assert abs(len(numbers) - share) <= 2
    with pytest.raises(InputError, match="kinds: 'vidoe' is unknown; allowed are video, "):
        choose_kinds(["vidoe"])


def test_mutations_take_any_bytes():
    from random import Random

    rng = Random(0)
    for mutation in {*BYTES, *TEXT}:
        for data in (b"a", b"\n", bytes(range(256)), b'{"a": 1}'):
            for _ in range(20):
                assert isinstance(mutation(data, rng, [b"", data]), bytes)
