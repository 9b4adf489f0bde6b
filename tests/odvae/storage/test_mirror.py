"""Working copies of folders at a URL: what is fetched, what is uploaded in which order, what is removed, errors."""

import hashlib
import secrets
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from odvae.running.errors import InputError
from odvae.running.folder_lock import sole_writer
from odvae.running.stage import Stage
from odvae.storage import client
from odvae.storage.files import atomic_file
from odvae.storage.mirror import Mirror, everything, fetched, local_model, needed_to_resume
from odvae.storage.paths import StorageError, open_path, work_folder
from odvae.storage.trees import list_tree
from odvae.storage.whole_files import fingerprint, identity, on_disk, upload


@pytest.fixture(autouse=True)
def _folders_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("ODVAE_WORK", str(tmp_path / "work"))
    monkeypatch.setattr(client, "FIRST_WAIT", 0.001)


@pytest.fixture
def url() -> Path:
    return open_path(f"memory://{secrets.token_hex(4)}/run/vae")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_at(url: Path, text: str) -> None:
    with atomic_file(url) as file:
        file.write(text.encode())


def on_another_machine(url: Path, tmp_path: Path, monkeypatch, choice=everything) -> Mirror:
    monkeypatch.setenv("ODVAE_WORK", str(tmp_path / "another machine"))
    other = Mirror(url)
    other.open(choice)
    return other


def test_what_one_machine_pushes_another_one_opens(url, tmp_path, monkeypatch):
    mirror = Mirror(url)
    mirror.open(everything)
    write(mirror.folder / "metrics.jsonl", "1\n")
    write(mirror.folder / "checkpoints/step_1/.metadata", "of torch's sharded checkpoints")
    write(mirror.folder / ".lock", "")
    write(mirror.folder / ".x.tar.host-1-00000000.partial", "")
    mirror.push()
    assert set(list_tree(url)) == {"metrics.jsonl", "checkpoints/step_1/.metadata"}
    other = on_another_machine(url, tmp_path, monkeypatch)
    assert other.folder != mirror.folder
    with open(other.folder / "metrics.jsonl", "a") as file:
        file.write("2\n")
    other.push()
    mirror.refresh(everything)
    assert (mirror.folder / "metrics.jsonl").read_text() == "1\n2\n"


def test_a_working_copy_has_nothing_that_the_url_lacks_and_fetches_nothing_twice(url, monkeypatch):
    mirror = Mirror(url)
    mirror.open(everything)
    for name in ("a", "b", "c"):
        write(mirror.folder / name, name)
    mirror.push()
    write(mirror.folder / "a", "changed, and not uploaded")
    write(mirror.folder / "new/d", "not uploaded")
    write_at(url / "b", "by another machine")
    asked: list[str] = []
    read = MemoryFileSystem.cat_file
    monkeypatch.setattr(
        MemoryFileSystem, "cat_file", lambda *args, **more: asked.append(args[1]) or read(*args, **more)
    )
    again = Mirror(url)
    again.open(everything)
    assert {path.name: path.read_text() for path in again.folder.glob("[!.]*")} == {
        "a": "a", "b": "by another machine", "c": "c",
    }  # fmt: skip
    assert sorted(name[-1] for name in asked) == ["a", "b"]


def test_what_says_that_others_are_complete_is_uploaded_last_and_removed_first(url, monkeypatch):
    done: list[tuple[str, str]] = []
    put, remove = MemoryFileSystem.put_file, MemoryFileSystem.rm_file

    def put_file(files, here, there, **more):
        done.append(("put", there.rpartition("/vae/")[2]))
        return put(files, here, there, **more)

    def rm_file(files, there):
        done.append(("remove", there.rpartition("/vae/")[2]))
        return remove(files, there)

    monkeypatch.setattr(MemoryFileSystem, "put_file", put_file)
    monkeypatch.setattr(MemoryFileSystem, "rm_file", rm_file)
    mirror = Mirror(url)
    mirror.open(everything)
    for name in ("stage.json", "config.json", "a.safetensors", "trained_on.json", "step_1/state.json", "step_1/z"):
        write(mirror.folder / name, name)
    mirror.push()
    order = [name for _, name in done]
    assert set(order[:2]) == {"a.safetensors", "step_1/z"}
    assert order[2:] == ["trained_on.json", "config.json", "step_1/state.json", "stage.json"]
    done.clear()
    mirror.delete("step_1")
    assert done == [("remove", "step_1/state.json"), ("remove", "step_1/z")]
    assert not (mirror.folder / "step_1").exists()
    (mirror.folder / "trained_on.json").unlink()
    mirror.push()
    assert set(list_tree(url)) == {"stage.json", "config.json", "a.safetensors"}


def test_only_the_newest_complete_checkpoint_is_needed_to_resume():
    names = [f"checkpoints/step_{step}/{name}" for step in (1, 2, 3) for name in ("model.safetensors", "state.json")]
    names.remove("checkpoints/step_3/state.json")  # its upload was cut off
    others = ["metrics.jsonl", "image_vae/checkpoints/step_9/state.json", "shards/00000.json"]
    left = ["00000.tar", "index/00000.tar.arrow", "strips/000001.png"]
    needed = needed_to_resume([*names, *others, *left])
    assert sorted(needed) == sorted([*names[2:4], *others])


def test_a_cut_upload_leaves_what_was_there_and_the_same_push_goes_on(url, monkeypatch):
    mirror = Mirror(url)
    mirror.open(everything)
    write(mirror.folder / "a", "1")
    mirror.push()
    with monkeypatch.context() as broken:

        def fail(*_args, **_more):
            raise ConnectionResetError("in the middle")

        broken.setattr(MemoryFileSystem, "put_file", fail)
        write(mirror.folder / "a", "2")
        write(mirror.folder / "stage.json", "{}")
        with pytest.raises(StorageError, match=r"run/vae/a: 6 attempts failed.*in the middle"):
            mirror.push()
    assert set(list_tree(url)) == {"a"}
    assert fingerprint(url / "a") == fingerprint_of("1")
    mirror.push()
    assert fingerprint(url / "a") == fingerprint_of("2")
    assert "stage.json" in list_tree(url)


def fingerprint_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_no_rights_to_write_are_named_before_anything_is_done(url, monkeypatch):
    def refuse(*_args, **_more):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(MemoryFileSystem, "put_file", refuse)
    with pytest.raises(InputError, match=r"run/vae/.*: no rights to it \(PermissionError: Access Denied\)"):
        Stage(url, {"seed": 0}).__enter__()
    assert list_tree(url) == {}


def test_a_stage_at_a_url_is_recorded_there_and_finished_on_any_machine(url, tmp_path, monkeypatch, capsys):
    with Stage(url, {"seed": 0}) as stage:
        write(stage.folder / "model.safetensors", "weights")
        assert "stage.json" in list_tree(url)
        assert "model.safetensors" not in list_tree(url)
    assert capsys.readouterr().err.count(f"warning: {url}: storage of this kind has no locks") == 1
    monkeypatch.setenv("ODVAE_WORK", str(tmp_path / "another machine"))
    with Stage(url, {"seed": 0}) as again:
        assert again.finished
    with pytest.raises(InputError, match=rf"{url} holds a run with other settings(.|\n)*seed: was 0, now 1"):
        Stage(url, {"seed": 1}).__enter__()


def test_an_error_within_a_stage_names_the_url_and_uploads_nothing(url):
    def work() -> None:
        with Stage(url, {"seed": 0}) as stage:
            write(stage.folder / "model.safetensors", "half")
            raise InputError(f"{stage.folder / 'model.safetensors'} was damaged")

    with pytest.raises(InputError, match=rf"^{url}/model\.safetensors was damaged$"):
        work()
    assert "model.safetensors" not in list_tree(url)


def test_a_second_command_on_the_same_machine_is_refused(url):
    with Stage(url, {"seed": 0}), pytest.raises(InputError, match="is being written by another process"):
        Stage(url, {"seed": 0}).__enter__()


def test_a_folder_that_is_read_is_fetched_but_not_while_this_machine_writes_it(url):
    write_at(url / "config.json", "{}")
    write_at(url / "checkpoints/step_1/model.safetensors", "weights")
    assert sorted(path.name for path in fetched(url, needed_to_resume).glob("[!.]*")) == ["config.json"]
    write(work_folder(url) / "unfinished", "written now")
    with sole_writer(work_folder(url)):
        assert (fetched(url, everything) / "unfinished").is_file()
    assert not (fetched(url, everything) / "unfinished").exists()
    assert (fetched(url, everything) / "checkpoints/step_1/model.safetensors").read_text() == "weights"


def test_a_model_by_url_is_a_folder_or_a_file_here(url):
    write_at(url / "config.json", "{}")
    write_at(url.parent / "vae.ckpt", "weights")
    assert (Path(local_model(str(url))) / "config.json").is_file()
    assert Path(local_model(f"{url.parent}/vae.ckpt")).read_text() == "weights"
    assert local_model("stabilityai/sdxl-vae") == "stabilityai/sdxl-vae"


def test_a_file_on_the_disk_for_a_while(url, tmp_path):
    write_at(url / "a.tar", "bytes")
    with on_disk(url / "a.tar") as copy:
        assert copy.read_text() == "bytes"
    assert not copy.exists()
    write(tmp_path / "b", "here")
    with on_disk(tmp_path / "b") as same:
        assert same == tmp_path / "b"
    first = identity(url / "a.tar")
    write_at(url / "a.tar", "other")
    assert identity(url / "a.tar") != first


def test_keys_that_no_disk_can_hold_are_not_listed(url):
    files = MemoryFileSystem()
    root = str(url).removeprefix("memory:/")
    for name in ("/a/../b", "//x", "/ok"):
        files.store[root + name] = MemoryFile(files, root + name, b"1")
    assert set(list_tree(url)) == {"ok"}


@pytest.mark.parametrize("text", ["memory://b/../c", "memory://b/./c"])
def test_a_url_with_parts_that_lead_elsewhere_is_refused(text):
    with pytest.raises(StorageError, match=r"\. or \.\."):
        work_folder(type("URL", (), {"__str__": lambda self: text})())


def test_an_upload_of_a_missing_file_is_no_missing_bucket(url, tmp_path):
    with pytest.raises(FileNotFoundError):
        upload(tmp_path / "none", url / "a")
