"""Packing on a Ray cluster of two nodes, one of which dies: the same bytes and the same report as by one process."""

import shutil
import threading
import time

import numpy as np
import pytest
from file_server import FileServer
from ray_cluster import two_nodes

from odvae.packing import writing
from odvae.packing.finishing import finish_parts
from odvae.packing.packing import pack_folder
from odvae.packing.settings import PackingSettings
from odvae.running.errors import InputError
from odvae.video.video_io import write_video

ray = pytest.importorskip("ray", reason="needs Ray (the extra `ray`)")

SETTINGS = PackingSettings(workers=0, samples_per_shard=4, downloads=4)
ON_RAY = SETTINGS.model_copy(update={"engine": "ray"})


@pytest.fixture(scope="module")
def cluster():
    """The driver's own node has one CPU; the second has two, and may be killed."""
    with two_nodes() as nodes:
        yield nodes


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ray") / "source"
    folder.mkdir()
    for i in range(40):
        write_video(folder / f"{i:02d}.mp4", np.full((5, 16, 16, 3), 6 * i, np.uint8), 8)
        (folder / f"{i:02d}.txt").write_text(f"gray {i}")
    (folder / "broken.mp4").write_bytes(b"no video")
    shutil.copy(folder / "00.mp4", folder / "copy.mp4")
    return folder


def assert_the_same(one, other):
    names = sorted(path.name for path in one.glob("*.tar"))
    assert names == sorted(path.name for path in other.glob("*.tar"))
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_a_table_of_urls_is_packed_alike(cluster, source, tmp_path):
    with FileServer(source) as server:
        lines = [f"{server.url}/a/{i:02d}.mp4,gray {i}" for i in range(10)] + [f"{server.url}/404/x.mp4,gone"]
        (tmp_path / "t.csv").write_text("\n".join(["url,caption", *lines]))
        report = pack_folder(tmp_path / "t.csv", tmp_path / "here", SETTINGS)
        assert pack_folder(tmp_path / "t.csv", tmp_path / "ray", ON_RAY) == report
    assert_the_same(tmp_path / "here", tmp_path / "ray")


def test_a_file_that_changes_is_named_and_the_same_command_goes_on(cluster, source, tmp_path, monkeypatch):
    folder = shutil.copytree(source, tmp_path / "source")
    settings = ON_RAY.model_copy(update={"samples_per_shard": 40})
    real, other = writing.write_shard, (folder / "06.mp4").read_bytes()

    def changed(job):  # in Ray's process, which has its own modules
        (folder / "05.mp4").write_bytes(other)
        return real(job)

    monkeypatch.setattr(writing, "write_shard", changed)
    with pytest.raises(InputError, match=r"05\.mp4 has changed while"):
        pack_folder(folder, tmp_path / "out", settings)
    monkeypatch.undo()
    report = pack_folder(folder, tmp_path / "out", settings)
    assert report == pack_folder(folder, tmp_path / "here", settings.model_copy(update={"engine": "processes"}))
    assert report.videos == 39
    assert_the_same(tmp_path / "here", tmp_path / "out")


@pytest.mark.slow
def test_a_node_that_dies_changes_nothing(cluster, source, tmp_path, monkeypatch):
    report = pack_folder(source, tmp_path / "here", SETTINGS)
    out, real, written = tmp_path / "ray", writing.write_shard, []

    def slow(job):
        time.sleep(0.4)
        return real(job)

    def kill_second():
        while not any(out.glob("*.tar")):
            time.sleep(0.01)
        cluster.remove_node(cluster.second, allow_graceful=False)
        written.extend(out.glob("*.tar"))

    monkeypatch.setattr(writing, "write_shard", slow)

    killer = threading.Thread(target=kill_second)
    killer.start()
    found = pack_folder(source, out, ON_RAY)
    killer.join()
    assert found == report
    assert_the_same(tmp_path / "here", out)
    assert 0 < len(written) < 10  # it died while shards were written


def test_parts_may_run_on_ray_or_not(cluster, source, tmp_path):
    pack_folder(source, tmp_path / "out", ON_RAY.model_copy(update={"part": "1/2"}))
    pack_folder(source, tmp_path / "out", SETTINGS.model_copy(update={"part": "2/2"}))
    report = finish_parts(source, tmp_path / "out", ON_RAY.model_copy(update={"finish": True}))
    assert (report.videos, report.account["found"]) == (40, 42)
