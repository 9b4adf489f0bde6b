"""The benchmarks of large folders and of indexing, on small ones and in this process."""

import importlib.util
import queue
import threading

import pytest
from small import REPOSITORY

from ldm.latents.latent_set import open_latents
from ldm.latents.manifest import load_manifest


@pytest.fixture(scope="module")
def bench():
    return load("bench_scale")


def load(name):
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_folder_opens_as_one_that_was_encoded_and_a_rank_is_measured(bench, tmp_path):
    bench.make_folder(tmp_path / "latents", 23_456)
    latents = open_latents(tmp_path / "latents", load_manifest(tmp_path / "latents"))
    assert [len(split) for split in (latents.train, latents.held_out)] == [2, 2]
    assert sum(map(len, (*latents.train.values(), *latents.held_out.values()))) == 23_456
    assert sum(map(len, latents.held_out.values())) == pytest.approx(234, abs=60)
    results = queue.Queue()
    bench.run_rank(tmp_path / "latents", threading.Barrier(1), results)
    found = results.get()
    assert 0 < found["start_seconds"] < 10
    assert found["own_mb"] < 100
    assert bench.extrapolate({"1": {"one_rank": found}, "2": {"one_rank": found}}, 1, 2)["own_mb"] == found["own_mb"]


def test_mixing_is_measured(bench):
    mixing = bench.bench_mixing(100_000)
    assert mixing["exact"]["shards_of_a_batch"] > 80
    assert mixing["blocks, parts=1"]["shards_of_a_batch"] < 33
    assert mixing["blocks, parts=1"]["largest_share_of_a_shard"] > mixing["exact"]["largest_share_of_a_shard"]


def test_indexing_is_measured(tmp_path):
    found = load("bench_indexing").bench_indexing(tmp_path, 300, rounds=1)
    assert found.keys() == {"latents", "videos", "merged"}
    assert min(found.values()) > [0]
