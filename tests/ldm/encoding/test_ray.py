"""Encoding on a Ray cluster of two nodes, of which one dies: the latents of one process, byte for byte."""

import re
import shutil

import pytest
from encoded_alike import assert_same_latents, encode_in_process, prepare_run
from scripts import Script, fail, succeed

from odvae.running.errors import InputError

pytest.importorskip("ray", reason="needs Ray (the extra `ray`)")
pytestmark = pytest.mark.slow

# One process on each node; its decoding process shares its core.
ON_RAY = ("encode.engine=ray", "encode.ray.cpus=1")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, vae):
    folder = tmp_path_factory.mktemp("ray")
    prepare_run(folder, vae)
    return folder


@pytest.fixture
def cluster():
    """Two nodes on this machine, of a core each: one process fits into each of them."""
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80 << 20}
    nodes = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    nodes.second = nodes.add_node(**small)
    yield nodes
    nodes.shutdown()


def words_of(runs, run, *overrides):
    run.mkdir()
    for name in ("vae", "shards"):
        (run / name).symlink_to(runs / name)
    return ["pipelines/encode_latents.py", "--config", str(runs / "config.yaml"), f"run={run}", *ON_RAY, *overrides]


def test_a_node_that_dies_costs_nothing_and_the_bytes_are_those_of_one_process(runs, tmp_path, cluster):
    words = words_of(runs, tmp_path / "run")
    latents = tmp_path / "run/latents"
    script = Script(words, RAY_ADDRESS=cluster.address)
    both = lambda: len(list(latents.glob(".*.tar.*.partial"))) == 2  # noqa: E731 - both nodes are within a shard
    script.until(lambda: both() or len(list(latents.glob("*.tar"))) > 2)  # or the second came late, on a busy machine
    cluster.remove_node(cluster.second, allow_graceful=False)
    assert script.wait() == 0, script.stderr[-3000:]
    encode_in_process(runs, latents)  # the manifest names the run's paths, which differ
    for shard in (runs / "undisturbed").glob("*.tar"):
        assert (latents / shard.name).read_bytes() == shard.read_bytes()


def test_a_cluster_may_lose_all_its_machines_and_get_others(runs, tmp_path, cluster):
    cluster.remove_node(cluster.second, allow_graceful=False)
    only = cluster.add_node(num_cpus=2, object_store_memory=80 << 20)
    words = words_of(runs, tmp_path / "run", "encode.ray.cpus=2")  # no room on the head
    latents = tmp_path / "run/latents"
    script = Script(words, RAY_ADDRESS=cluster.address)
    script.until(lambda: bool(list(latents.glob(".*.tar.*.partial"))))
    cluster.remove_node(only, allow_graceful=False)
    script.until(lambda: "died while it encoded" in script.stderr)
    assert script.process.exitcode is None
    cluster.add_node(num_cpus=2, object_store_memory=80 << 20)
    assert script.wait() == 0, script.stderr[-3000:]
    assert re.search(r"died while it encoded \S*\.tar: another one gets it", script.stderr)
    for shard in (runs / "undisturbed").glob("*.tar"):
        assert (latents / shard.name).read_bytes() == shard.read_bytes()


def test_a_part_on_ray_and_an_end_without_it(runs, cluster):
    words = ["pipelines/encode_latents.py", "--config", str(runs / "config.yaml")]
    printed = succeed(*words, *ON_RAY, "encode.part=1/2", RAY_ADDRESS=cluster.address)
    assert "part 1/2: the latents of its 4 of 7 video shards are complete" in printed
    succeed(*words)
    assert_same_latents(runs / "latents", runs / "undisturbed")


def test_what_a_person_can_mend_on_a_machine_is_said_by_the_command(runs, tmp_path, cluster):
    words = words_of(runs, tmp_path / "run")
    greedy = fail(*words, "encode.ray.cpus=3", RAY_ADDRESS=cluster.address)
    assert "no machine of the Ray cluster has what a process needs: 3 CPUs (encode.ray.cpus) and 0 GPUs" in greedy
    shutil.copytree(runs / "undisturbed", tmp_path / "run/latents", dirs_exist_ok=True)
    (tmp_path / "run/latents/5x32x32-00003.tar").unlink()
    (tmp_path / "run/latents/5x32x32-00003.tar").mkdir()  # as good as a full disk: it cannot be written
    (tmp_path / "run/latents/shards/5x32x32-00003.json").unlink()
    said = fail(*words, RAY_ADDRESS=cluster.address)
    assert "error: on a machine of the Ray cluster: " in said
    assert "run the same command again" in said


def test_ranks_of_a_launch_are_refused(runs, tmp_path, monkeypatch):
    from accelerate import PartialState

    monkeypatch.setitem(PartialState()._shared_state, "num_processes", 2)
    with pytest.raises(InputError, match=r"encode\.engine=ray is one command .* without accelerate launch"):
        encode_in_process(runs, tmp_path / "latents", *ON_RAY)
