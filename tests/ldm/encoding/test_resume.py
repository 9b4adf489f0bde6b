"""Resuming of an encoding that was killed, on another number of processes: the same bytes."""

import pytest
from encoded_alike import assert_same_latents, prepare_run
from scripts import Script, on_ranks


@pytest.fixture(scope="module")
def runs(tmp_path_factory, vae):
    folder = tmp_path_factory.mktemp("resume")
    prepare_run(folder, vae)
    return folder


@pytest.mark.slow
def test_an_encoding_killed_on_one_process_resumes_on_two_with_the_same_bytes(runs):
    words = ["pipelines/encode_latents.py", "--config", str(runs / "config.yaml")]
    script = Script(words)
    script.until(lambda: len(list((runs / "latents/shards").glob("*.json"))) >= 2)
    script.kill()
    assert not (runs / "latents/manifest.json").exists()
    before = {path: path.stat().st_mtime_ns for path in (runs / "latents/shards").glob("*.json")}
    assert 2 <= len(before) < 7
    on_ranks(2, *words)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert_same_latents(runs / "latents", runs / "undisturbed")
