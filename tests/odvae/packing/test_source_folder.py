"""Every file of a folder is found and named for what it is: links, loops, pipes, side files, other kinds."""

import os
import socket

import pytest

from odvae.packing.source_folder import list_source
from odvae.running.errors import InputError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def test_videos_come_before_images_each_in_order_of_their_paths(tmp_path):
    touch(tmp_path, "b.mp4", "a/z.webm", "a-b/c.MOV", "p.png", "j.jpg", "a.jpg", "sub/deep/er/k.avi")
    expected = ["a/z.webm", "a-b/c.MOV", "b.mp4", "sub/deep/er/k.avi", "a.jpg", "j.jpg", "p.png"]
    assert list_source(tmp_path).media == expected


KINDS = "ts mts m2ts flv wmv 3gp 3g2 ogv ogg mpg mpeg m2v vob asf f4v mxf dv rm y4m h264 TS"


@pytest.mark.parametrize("extension", KINDS.split())
def test_every_kind_of_video_file_is_taken_or_counted(tmp_path, extension):
    touch(tmp_path, "a.mp4", f"b.{extension}")
    found = list_source(tmp_path)
    assert (f"b.{extension}" in found.media) != (f"b.{extension}" in found.others)


def test_links_to_folders_are_followed_each_folder_once(tmp_path):
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    touch(source, "own/a.mp4")
    touch(elsewhere, "b.mp4", "deep/c.mp4")
    (source / "linked").symlink_to(elsewhere)
    (source / "again").symlink_to(elsewhere / "deep")
    (source / "aa").symlink_to(source / "own")
    (elsewhere / "loop").symlink_to(source)
    (source / "d.mp4").symlink_to(elsewhere / "b.mp4")
    found = list_source(source)
    assert found.media == ["again/c.mp4", "d.mp4", "linked/b.mp4", "own/a.mp4"]
    assert found.odd == {
        "aa": "is a link to a folder that is here already: own",
        "linked/deep": "is a folder that is here already: again",
        "linked/loop": "is a link to a folder that is here already: the source folder itself",
    }


def test_what_is_no_file_is_named_for_what_it_is_and_never_opened(tmp_path, monkeypatch):
    touch(tmp_path, "a.mp4", "folder.mp4/b.mp4", "._a.mp4", "__MACOSX/._a.mp4", ".DS_Store", "notes.txt")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.mp4")
        found = list_source(tmp_path)
    assert found.media == ["a.mp4", "folder.mp4/b.mp4"]
    assert found.others == [".DS_Store", "notes.txt"]
    reasons = {name: reason.split(" (")[0] for name, reason in found.odd.items()}
    assert reasons == {
        "folder.mp4": "is a folder, not a file; its files are listed too",
        "gone.mp4": "is a broken link",
        "loop.mp4": "cannot be opened",
        "pipe.mp4": "is a pipe, not a file",
        "socket.mp4": "is a socket, not a file",
        "._a.mp4": "is a macOS AppleDouble file, which holds no video",
        "__MACOSX/._a.mp4": "is a macOS AppleDouble file, which holds no video",
    }


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    touch(tmp_path, "a.mp4", "secret/b.mp4")
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) == "secret":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may list everything
    found = list_source(tmp_path)
    assert found.odd == {"secret": "is a folder that cannot be listed (Permission denied)"}


def test_names_that_are_not_utf_8_are_found(tmp_path):
    name = os.fsdecode(b"caf\xe9.mp4")
    assert list_source(touch(tmp_path, name)).media == [name]


def test_hidden_folders_are_named_with_what_is_in_them_and_not_looked_into(tmp_path):
    touch(tmp_path, "a.mp4", ".thumbnails/a.jpg", ".git/objects/x", "@eaDir/a.mp4/b.jpg", ".hidden.mp4")
    found = list_source(tmp_path)
    assert (found.media, found.others) == ([".hidden.mp4", "a.mp4"], [])
    assert found.odd == {
        ".thumbnails": "is a hidden folder (1 file, 1 of them videos or images), which is skipped",
        ".git": "is a hidden folder (1 file, 0 of them videos or images), which is skipped",
        "@eaDir": "is a hidden folder (1 file, 1 of them videos or images), which is skipped",
    }
    hidden_itself = touch(tmp_path, ".videos/c.mp4") / ".videos"
    assert list_source(hidden_itself).media == ["c.mp4"]


def test_the_folders_that_are_written_are_not_looked_into(tmp_path):
    touch(tmp_path, "a.mp4", "shards/00000.tar", ".shards.packing/b.mp4")
    found = list_source(tmp_path, outputs=(tmp_path / "shards", tmp_path / ".shards.packing"))
    assert (found.media, found.others, found.odd) == (["a.mp4"], [], {})


def test_a_source_that_is_no_folder_or_holds_nothing_is_an_error_that_says_what_there_is(tmp_path):
    touch(tmp_path, "a.zip", "b.zip", "c.rar", "file")
    with pytest.raises(InputError, match=r"holds no video or image .*; there are \.zip \(2\), \.rar \(1\)"):
        list_source(tmp_path)
    with pytest.raises(InputError, match="file is a file; give the folder that it is in"):
        list_source(tmp_path / "file")
    with pytest.raises(InputError, match="nowhere does not exist"):
        list_source(tmp_path / "nowhere")
