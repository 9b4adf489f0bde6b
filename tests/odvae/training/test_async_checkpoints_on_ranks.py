"""Checkpoints that a thread writes on each of two ranks, whole or in shards."""

import json
import os

import pytest
from launch_sharded import shard
from ranks import on_ranks
from small_training import diverge_at, named, same, settings, steps_of, train, unfinished, without_room

from odvae.running.errors import DivergenceError, InputError


def on_two(folder, work):
    """What two ranks print; both must end well."""
    folder.mkdir(exist_ok=True)
    said = on_ranks(2, folder, work, seconds=240)
    assert [status for status, _ in said] == [0, 0], said
    return said


@pytest.mark.parametrize("sharded", [None, "fsdp2"])
def test_two_ranks_resume_with_the_same_bits(tmp_path, sharded):
    def work(rank):
        if sharded:
            shard(sharded)
        whole = train(tmp_path / "whole", settings(async_checkpoints=False))
        assert same(train(tmp_path / "going_on", settings()), whole)
        with pytest.raises(DivergenceError):
            train(tmp_path / "killed", settings(), diverge_at(5))
        assert steps_of(tmp_path / "killed")[:1] == [2]
        assert same(train(tmp_path / "killed", settings()), whole)

    on_two(tmp_path / "printed", work)
    for name in ("whole", "going_on", "killed"):
        newest = tmp_path / name / "checkpoints/step_00000006"
        facts = json.loads((newest / "state.json").read_text())
        assert (facts["ranks"], facts["sharded"]) == (2, sharded is not None)
        if sharded:
            for part in ("pytorch_model_fsdp_0", "optimizer_0"):
                assert {path.name for path in (newest / part).glob("__*")} == {"__0_0.distcp", "__1_0.distcp"}


@pytest.mark.parametrize("failing", [0, 1])
def test_shards_that_one_rank_cannot_write_are_reported_and_the_checkpoint_before_is_whole(
    tmp_path, monkeypatch, failing
):
    def work(rank):
        shard("fsdp2")
        if rank == failing:
            without_room(monkeypatch, 4, size=2_000)
        try:
            train(tmp_path / "run", settings())
        except (InputError, OSError) as error:
            print(named(tmp_path / "run", 4, error), flush=True)
        except RuntimeError:  # the other rank raised first and has ended, while this one waited for it in a step
            print("alone", flush=True)
        os._exit(0)

    said = [text.splitlines()[-1] for _, text in on_two(tmp_path / "printed", work)]
    assert "True" in said
    assert set(said) <= {"True", "alone"}
    assert steps_of(tmp_path / "run") == [2]
    assert unfinished(tmp_path / "run") == []
