"""Encoding into a folder at a URL: the same bytes as into a folder of this machine; parts, resume, errors."""

import secrets
from pathlib import Path

import pytest
from small_latents import ENCODE, encode, encode_in_four_shards
from url_folders import copied

from ldm.encoding import target
from ldm.encoding.verify import find_problems
from ldm.latents.manifest import load_manifest
from odvae.running.errors import InputError
from odvae.storage.files import local_copy
from odvae.storage.paths import StorageError, open_path, work_folder
from odvae.storage.trees import list_tree


@pytest.fixture
def url(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ODVAE_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("ODVAE_CACHE", str(tmp_path / "cache"))
    return open_path(f"memory://{secrets.token_hex(4)}/run/latents")


@pytest.fixture(scope="module")
def run(ldm_run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("four")
    encode_in_four_shards(ldm_run, folder, ENCODE)
    return folder


def assert_same_latents(url: Path, folder: Path) -> None:
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.tar")}
    names |= {path.relative_to(folder).as_posix() for path in folder.rglob("*.arrow")} | {"empty_text.safetensors"}
    assert len(names) == 10
    for name in names:
        assert local_copy(url / name).read_bytes() == (folder / name).read_bytes(), name


def test_latents_at_a_url_have_the_bytes_of_those_in_a_folder(run, url):
    encode(run, url, encode=ENCODE)
    assert_same_latents(url, run / "latents")
    assert "manifest.json" in list_tree(url)
    assert not list(work_folder(url).rglob("*.tar"))


def test_videos_in_a_bucket_give_the_latents_of_those_on_the_disk(run, url, tmp_path):
    source = url.parent / "source"
    for name in ("shards", "vae"):
        copied(run / name, source / name)
    encode(source, tmp_path / "latents", encode=ENCODE)
    for path in (run / "latents").rglob("*.tar"):
        assert (tmp_path / "latents" / path.name).read_bytes() == path.read_bytes()
    assert load_manifest(tmp_path / "latents").shards[0].source == str(source / "shards/00000.tar")
    assert list(find_problems(tmp_path / "latents", load_manifest(tmp_path / "latents"))) == []
    encode(source, tmp_path / "latents", encode=ENCODE)  # nothing is left to do


def test_parts_of_several_machines_and_a_finish_give_the_same(run, url, tmp_path, monkeypatch):
    for part in ("3/3", "1/3", "2/3"):
        monkeypatch.setenv("ODVAE_WORK", str(tmp_path / part[0]))
        encode(run, url, encode=ENCODE.model_copy(update={"part": part}))
        assert "manifest.json" not in list_tree(url)
    monkeypatch.setenv("ODVAE_WORK", str(tmp_path / "last"))
    encode(run, url, encode=ENCODE.model_copy(update={"finish": True}))
    assert_same_latents(url, run / "latents")


def test_a_folder_that_lacks_a_shard_is_not_finished_and_the_error_names_the_url(run, url):
    encode(run, url, encode=ENCODE.model_copy(update={"part": "1/2"}))
    with pytest.raises(InputError, match=rf"^{url} lacks 2 of its shards: 00001\.tar, 00003\.tar"):
        encode(run, url, encode=ENCODE.model_copy(update={"finish": True}))


def test_an_encoding_whose_upload_failed_goes_on_with_what_is_missing(run, url, monkeypatch):
    names: list[str] = []

    def upload(path: Path, there: Path) -> None:
        names.append(path.name)
        if len(names) == 5:  # the second shard itself, after its index
            raise StorageError(f"{there}: cut off")
        whole(path, there)

    whole = target.upload
    monkeypatch.setattr(target, "upload", upload)
    with pytest.raises(StorageError, match=rf"{url}/00001\.tar: cut off"):
        encode(run, url, encode=ENCODE)
    assert {name for name in list_tree(url) if name.endswith(".tar")} == {"00000.tar"}
    assert not list(work_folder(url).parent.rglob("*.tar"))
    names.clear()
    monkeypatch.setattr(target, "upload", whole)
    written: list[str] = []
    monkeypatch.setattr(target, "upload", lambda path, there: written.append(path.name) or whole(path, there))
    encode(run, url, encode=ENCODE)
    assert [name for name in written if name.endswith(".tar")] == ["00001.tar", "00002.tar", "00003.tar"]
    assert_same_latents(url, run / "latents")
