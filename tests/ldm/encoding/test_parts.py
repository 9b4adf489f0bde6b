"""Encoding in parts that run in any order, together, killed and again: the latents of one process, byte for byte."""

import json
import random
import re
import shutil
import time

import pytest
from encoded_alike import assert_same_latents, encode_in_process, prepare_run
from scripts import Script, on_ranks, succeed

from ldm.encoding.parts import share_of_jobs, sources_of_part
from ldm.encoding.plan import ShardJob
from ldm.encoding.settings import EncodeSettings
from ldm.experiment import Experiment
from odvae.cluster.parts import Part
from odvae.running.errors import InputError
from odvae.running.folder_lock import shared_writer
from odvae.running.settings import make_settings


@pytest.fixture(scope="module")
def runs(tmp_path_factory, vae):
    folder = tmp_path_factory.mktemp("parts")
    prepare_run(folder, vae)
    return folder


def words_of(runs, *overrides):
    return ["pipelines/encode_latents.py", "--config", str(runs / "config.yaml"), *overrides]


@pytest.mark.parametrize("part", ["0/4", "5/4", "x", "1/0", "-1/4"])
def test_a_part_that_is_none_is_refused_with_what_is_allowed(part):
    with pytest.raises(InputError, match=re.escape(f"encode.part: found '{part}'; ")):
        make_settings(Experiment, {}, [f"encode.part={part}"], "config")


def test_a_part_does_not_finish_the_folder():
    with pytest.raises(InputError, match="part=1/4 and finish=true: first run all parts"):
        make_settings(Experiment, {}, ["encode.part=1/4", "encode.finish=true"], "config")
    settings = EncodeSettings(part="1/4", batch_size=3)
    assert settings.recorded == EncodeSettings(batch_size=3)


def test_parts_and_ranks_divide_the_work_without_gap_or_overlap():
    names = [f"{i:05d}.tar" for i in range(11)]
    for count in (1, 3, 11, 16):
        parts = [sources_of_part(names, Part(number, count)) for number in range(1, count + 1)]
        assert sorted(name for part in parts for name in part) == names
    jobs = [ShardJob(source, 1, None, [], f"{bucket}-{source}") for source in names for bucket in range(2)]
    for ranks in (1, 2, 5, 16):
        shares = [share_of_jobs(jobs, rank, ranks) for rank in range(ranks)]
        assert sorted(job.name for share in shares for job in share) == sorted(job.name for job in jobs)
        assert max(map(len, shares)) - min(map(len, shares)) <= 2
    both = share_of_jobs(jobs, 0, 5)
    assert len({job.source for job in both}) * 2 == len(both)  # one process reads a video shard, for all buckets


def slowly(words):
    return ["tests/support/encode_slowly.py", *words[1:]]


def is_killed_while_it_writes(script, latents, chance):
    """Kill a script within one of its first shards; False where it ended before."""
    shard, seen = chance.randint(1, 2), set()
    while script.process.exitcode is None:
        seen |= {path.name for path in latents.glob(f".*.tar.*-{script.process.pid}-*.partial")}
        if len(seen) == shard:
            script.kill()
            return True
        time.sleep(0.001)
    return False


@pytest.mark.slow
def test_parts_in_random_order_with_random_kills_and_overlaps_make_the_latents_of_one_process(runs):
    chance = random.Random(0)
    todo = [f"{i}/4" for i in range(1, 5)] + ["1/2"]  # 1/2 is 1/4 and 3/4 together
    kills = 0
    while todo:
        chosen = [todo.pop(chance.randrange(len(todo))) for _ in range(min(2, len(todo)))]
        scripts = [(part, Script(slowly(words_of(runs, f"encode.part={part}")))) for part in chosen]
        for part, script in scripts:
            if kills < 4 and chance.random() < 0.8 and is_killed_while_it_writes(script, runs / "latents", chance):
                kills += 1
                todo.append(part)
            else:
                assert script.wait() == 0, script.stderr[-3000:]
                assert f"part {part}: the latents of its" in script.stdout
                assert "encode.finish=true" in script.stdout.splitlines()[-1]
    assert kills > 1
    assert not (runs / "latents/manifest.json").exists()
    printed = succeed(*words_of(runs, "encode.finish=true"))
    assert "train_ldm" in printed.splitlines()[-1]
    assert_same_latents(runs / "latents", runs / "undisturbed")


@pytest.mark.slow
def test_a_part_on_two_processes_is_that_part(runs, tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("vae", "shards"):
        (tmp_path / "run" / name).symlink_to(runs / name)
    words = words_of(runs, f"run={tmp_path / 'run'}")
    for part in ("2/2", "1/2"):
        on_ranks(2, *words, f"encode.part={part}")
    latents = tmp_path / "run/latents"
    encode_in_process(runs, latents, "encode.finish=true")
    for shard in (runs / "undisturbed").glob("*.tar"):
        assert (latents / shard.name).read_bytes() == shard.read_bytes()


def test_finishing_without_all_parts_names_what_is_missing_and_the_commands_that_make_it(runs, tmp_path):
    latents = tmp_path / "latents"
    encode_in_process(runs, latents, "encode.part=1/3")
    with pytest.raises(InputError) as error:
        encode_in_process(runs, latents, "encode.finish=true")
    message = str(error.value)
    assert "lacks 4 of its shards: 5x32x32-00001.tar, 5x32x32-00002.tar, 5x32x32-00004.tar" in message
    assert "encode.part=2/3" in message
    assert "encode.part=3/3" in message
    assert "encode.part=1/3" not in message
    assert "--array=2,3" in message
    assert not (latents / "manifest.json").exists()
    encode_in_process(runs, latents, "encode.part=2/3")
    encode_in_process(runs, latents, "encode.part=3/3")
    encode_in_process(runs, latents, "encode.finish=true")
    assert_same_latents(latents, runs / "undisturbed")
    assert json.loads((latents / "stage.json").read_text())["finished"]


def test_a_part_without_shards_is_no_error(runs, tmp_path, capsys):
    encode_in_process(runs, tmp_path / "latents", "encode.part=9/16")
    assert "part 9/16: the latents of its 0 of 7 video shards are complete" in capsys.readouterr().out


def test_another_vae_in_one_of_the_parts_is_named_and_nothing_is_lost(runs, tmp_path, vae):
    other = tmp_path / "other_vae"
    shutil.copytree(runs / "vae", other)
    latents = tmp_path / "latents"
    encode_in_process(runs, latents, "encode.part=9/16")  # no shard yet, but the VAE is known
    for change in ({"norm": "clip"}, {}):
        if change:
            config = json.loads((other / "config.json").read_text())
            (other / "config.json").write_text(json.dumps(config | change))
        else:
            changed = type(vae).from_pretrained(runs / "vae")
            changed.decoder.conv_out.bias.data += 0.01
            changed.save_pretrained(other)
        with pytest.raises(InputError, match="was encoded by another VAE"):
            encode_in_process(runs, latents, "encode.part=2/2", vae=other)
    encode_in_process(runs, latents)
    assert_same_latents(latents, runs / "undisturbed")


def test_too_many_failures_over_all_parts_are_an_error_of_the_end(runs, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copytree(runs / "shards", folder / "shards")
    shutil.copyfile(runs / "config.yaml", folder / "config.yaml")
    (folder / "vae").symlink_to(runs / "vae")
    from odvae.shards.tars import index_shard

    for i in range(4):  # of 20 videos, each in another part: each part has 1 of 20, which is allowed
        shard = folder / f"shards/{i:05d}.tar"
        data, member = bytearray(shard.read_bytes()), index_shard(shard)[0].members["mp4"]
        data[member.offset : member.offset + member.size] = bytes(member.size)
        shard.write_bytes(data)
    for i in range(1, 5):
        encode_in_process(folder, folder / "latents", f"encode.part={i}/4")
    with pytest.raises(InputError, match=r"4 of 20 videos could not be used, more than data\.failures_allowed=0\.05"):
        encode_in_process(folder, folder / "latents", "encode.finish=true")
    encode_in_process(folder, folder / "latents", "encode.finish=true", "data.failures_allowed=0.2")


def test_the_whole_folder_is_not_written_while_a_part_is(runs, tmp_path):
    with shared_writer(tmp_path / "latents"), shared_writer(tmp_path / "latents"):
        with pytest.raises(InputError, match="is being written by another process"):
            encode_in_process(runs, tmp_path / "latents")
        with pytest.raises(InputError, match="is being written by another process"):
            encode_in_process(runs, tmp_path / "latents", "encode.finish=true")
        encode_in_process(runs, tmp_path / "latents", "encode.part=2/7")


@pytest.mark.slow
def test_a_part_on_a_full_disk_is_named_and_resumes(runs, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("vae", "shards"):
        (folder / name).symlink_to(runs / name)
    words = words_of(runs, f"run={folder}", "encode.part=2/4")
    size = (runs / "undisturbed/5x32x32-00001.tar").stat().st_size
    encode_in_process(runs, folder / "latents", "encode.part=4/4")
    script = Script(words, file_size=size // 2)
    assert script.wait() == 1
    assert "Traceback" not in script.stderr
    assert re.search(r"error: .*run the same command again", script.stderr)
    assert list((folder / "latents").glob(".*.partial")) == []
    succeed(*words)
    assert (folder / "latents/5x32x32-00001.tar").read_bytes() == (runs / "undisturbed/5x32x32-00001.tar").read_bytes()
