"""Packing into a folder at a URL: the bytes of one on the disk; resumed on another machine, in parts, after errors."""

import json
import secrets
from pathlib import Path

import pytest

from ldm.demo.videos import write_demo_videos
from odvae.packing import output
from odvae.packing.finishing import finish_parts
from odvae.packing.packing import pack_folder
from odvae.packing.settings import PackingSettings
from odvae.running.errors import InputError
from odvae.storage.files import local_copy
from odvae.storage.paths import StorageError, open_path, work_folder
from odvae.storage.trees import list_tree

SETTINGS = PackingSettings(workers=0, samples_per_shard=3)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_demo_videos(folder, 7, 5, 32, 8, seed=3, progress=False)
    return folder


@pytest.fixture
def out(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ODVAE_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("ODVAE_CACHE", str(tmp_path / "cache"))
    return open_path(f"memory://{secrets.token_hex(4)}/run/shards")


def assert_same_shards(out: Path, folder: Path, count: int) -> None:
    shards = sorted(path.name for path in folder.glob("*.tar"))
    assert len(shards) == count
    assert shards == sorted(name for name in list_tree(out) if name.endswith(".tar"))
    for name in shards:
        assert local_copy(out / name).read_bytes() == (folder / name).read_bytes()
        assert f"index/{name}.arrow" in list_tree(out)
    assert not [name for name in list_tree(out) if name.startswith(".packing") or name == "unfinished.json"]
    assert not list(work_folder(out).rglob("*.tar"))


def report_of(out: Path) -> dict:
    found = json.loads(local_copy(out / "packing.json").read_text())
    return {name: value for name, value in found.items() if name not in ("input", "parts")}


def test_shards_at_a_url_have_the_bytes_of_those_on_the_disk(videos, out, tmp_path):
    pack_folder(videos, tmp_path / "shards", SETTINGS)
    report = pack_folder(videos, out, SETTINGS)
    assert_same_shards(out, tmp_path / "shards", 3)
    assert report_of(out) == report_of(tmp_path / "shards")
    assert pack_folder(videos, out, SETTINGS) == report


def test_parts_at_a_url_are_packed_on_any_machine_and_finished(videos, out, tmp_path, monkeypatch):
    for part in ("2/2", "1/2"):
        chosen = SETTINGS.model_copy(update={"part": part})
        monkeypatch.setenv("ODVAE_WORK", str(tmp_path / part[0]))
        pack_folder(videos, tmp_path / "shards", chosen)
        if part == "1/2":
            with pytest.raises(InputError, match=rf"^{out} cannot be finished: 1 part of 2 must be run first"):
                finish_parts(videos, out, SETTINGS)
        pack_folder(videos, out, chosen)
    finish_parts(videos, tmp_path / "shards", SETTINGS)
    monkeypatch.setenv("ODVAE_WORK", str(tmp_path / "last"))
    finish_parts(videos, out, SETTINGS)
    assert_same_shards(out, tmp_path / "shards", len(list((tmp_path / "shards").glob("*.tar"))))
    assert report_of(out) == report_of(tmp_path / "shards")


def test_a_packing_whose_upload_failed_goes_on_on_another_machine_without_examining_again(
    videos, out, tmp_path, monkeypatch
):
    def upload(path: Path, url: Path) -> None:
        if url.name == "00001.tar":
            raise StorageError(f"{url}: cut off")
        whole(path, url)

    whole = output.upload
    with monkeypatch.context() as broken:
        broken.setattr(output, "upload", upload)
        with pytest.raises(InputError, match=rf"{out}/00001\.tar: cut off.*run the same command again"):
            pack_folder(videos, out, SETTINGS)
    assert [name for name in list_tree(out) if name.endswith(".tar")] == ["00000.tar"]
    assert "unfinished.json" in list_tree(out)
    monkeypatch.setenv("ODVAE_WORK", str(tmp_path / "another machine"))
    examined: list[str] = []
    from odvae.packing import examining

    examine = examining.examine_file
    monkeypatch.setattr(examining, "examine_file", lambda cut, task: examined.append(task[0]) or examine(cut, task))
    written: list[str] = []
    monkeypatch.setattr(output, "upload", lambda path, url: written.append(url.name) or whole(path, url))
    pack_folder(videos, out, SETTINGS)
    assert len(examined) < 3
    assert [name for name in written if name.endswith(".tar")] == ["00001.tar", "00002.tar"]
    pack_folder(videos, tmp_path / "shards", SETTINGS)
    assert_same_shards(out, tmp_path / "shards", 3)


def test_a_folder_at_a_url_that_holds_something_else_is_refused(videos, out):
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=rf"output folder {out} is not empty"):
        pack_folder(videos, out, SETTINGS)
    assert list(list_tree(out)) == ["notes.txt"]
