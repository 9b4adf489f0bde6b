"""A folder at a URL as the source of a packing: the same shards as from a folder of this machine, and odd keys."""

import json
import secrets
import shutil
from pathlib import Path

import pytest

from ldm.demo.videos import write_demo_videos
from odvae.packing.packing import pack_folder
from odvae.packing.settings import PackingSettings
from odvae.packing.source_bucket import SourceBucket, list_bucket
from odvae.running.errors import InputError
from odvae.storage import trees
from odvae.storage.paths import StorageError, open_path
from odvae.storage.whole_files import upload

SETTINGS = PackingSettings(workers=0, samples_per_shard=3, downloads=1)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Videos with captions in a table, in texts beside them, and in an empty text; and a file of another kind."""
    folder = tmp_path_factory.mktemp("videos")
    write_demo_videos(folder / "rendered", 6, 5, 32, 8, seed=3, progress=False)
    (folder / "more").mkdir()
    for number, path in enumerate(sorted((folder / "rendered").glob("*.mp4"))[:3]):
        shutil.move(path, folder / "more" / path.name)
        text = f"a caption, number {number}" if number else ""
        (folder / "more" / f"{path.stem}.txt").write_text(text)
    (folder / "notes.docx").write_bytes(b"?")
    return folder


@pytest.fixture
def url(tmp_path, monkeypatch, videos) -> Path:
    monkeypatch.setenv("ODVAE_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("ODVAE_CACHE", str(tmp_path / "cache"))
    url = open_path(f"memory://{secrets.token_hex(4)}/videos")
    for path in videos.rglob("*"):
        if path.is_file():
            upload(path, url / path.relative_to(videos).as_posix())
    return url


def report_of(folder: Path) -> dict:
    return {name: value for name, value in json.loads((folder / "packing.json").read_text()).items() if name != "input"}


def test_a_folder_in_a_bucket_gives_the_shards_of_one_on_the_disk(videos, url, tmp_path):
    pack_folder(videos, tmp_path / "from disk", SETTINGS)
    pack_folder(url, tmp_path / "from bucket", SETTINGS)
    shards = sorted((tmp_path / "from disk").glob("*.tar"))
    assert len(shards) == 2
    for shard in shards:
        assert (tmp_path / "from bucket" / shard.name).read_bytes() == shard.read_bytes()
    assert report_of(tmp_path / "from bucket") == report_of(tmp_path / "from disk")
    assert pack_folder(url, tmp_path / "from bucket", SETTINGS).videos == 6


def test_copies_lie_on_the_disk_for_a_while_only(url, tmp_path, monkeypatch):
    most = 0
    release = SourceBucket.release

    def count(source: SourceBucket, name: str) -> None:
        nonlocal most
        most = max(most, len(list(source.root.rglob("*.mp4"))))
        release(source, name)

    monkeypatch.setattr(SourceBucket, "release", count)
    pack_folder(url, tmp_path / "shards", SETTINGS.model_copy(update={"samples_per_shard": 1}))
    assert 1 <= most < 6
    assert not list(tmp_path.rglob("*.mp4"))
    assert not list((tmp_path / "work").rglob("*.txt"))


def test_a_file_that_cannot_be_copied_ends_the_command_and_the_same_command_goes_on(url, videos, tmp_path, monkeypatch):
    from odvae.packing import source_bucket

    def download(path: Path, target: Path):
        if "/rendered/" in str(path) and path.suffix == ".mp4":
            raise StorageError(f"{path}: 6 attempts failed")
        return whole(path, target)

    whole = source_bucket.download
    with monkeypatch.context() as broken:
        broken.setattr(source_bucket, "download", download)
        with pytest.raises(InputError, match=r"rendered/.*\.mp4: 6 attempts failed"):
            pack_folder(url, tmp_path / "shards", SETTINGS)
    report = pack_folder(url, tmp_path / "shards", SETTINGS)
    assert report.videos == 6
    assert not [reason for reason in report.rejected if reason.endswith(".mp4")]


def test_odd_keys_are_named_and_the_rest_is_packed(url, tmp_path, monkeypatch):
    listed = trees.list_tree(url)
    state = next(iter(listed.values()))
    odd = {"x.mp4": state, "x.mp4/inner.mp4": state, ".trash/a.mp4": state, f"{'n' * 300}.mp4": state, "._a.mp4": state}
    monkeypatch.setattr("odvae.packing.source_bucket.list_tree", lambda _url: {**listed, **odd})
    found = list_bucket(url, tmp_path, SETTINGS, None, outputs=(url / "rendered",))
    assert found.media == sorted(
        name for name in (*listed, "x.mp4/inner.mp4") if name[:5] != "rende" and ".mp4" in name
    )
    assert {name[:9] for name in found.odd} == {"x.mp4", ".trash", "nnnnnnnnn", "._a.mp4"}
    assert "is a key that is a folder too" in found.odd["x.mp4"]


def test_a_bucket_without_videos_is_refused(url):
    with pytest.raises(InputError, match=r"does not exist, or nothing is in it"):
        pack_folder(url / "none", url / "out", SETTINGS)


def test_a_table_in_a_bucket_names_files_by_paths_and_urls(url, videos, tmp_path):
    names = [path.relative_to(videos).as_posix() for path in sorted(videos.rglob("*.mp4"))]
    rows = "".join(f"{name},caption {i}\n" for i, name in enumerate([names[0], f"{url}/{names[1]}", "none.mp4"]))
    (tmp_path / "table.csv").write_text(f"video,caption\n{rows}")
    upload(tmp_path / "table.csv", url / "table.csv")
    report = pack_folder(url / "table.csv", tmp_path / "shards", SETTINGS)
    assert report.videos == 2
    assert [name for name in report.rejected if "none.mp4" in name] == [f"{url}/none.mp4"]
    assert "does not exist" in report.rejected[f"{url}/none.mp4"]
    assert pack_folder(url / "table.csv", tmp_path / "shards", SETTINGS) == report
