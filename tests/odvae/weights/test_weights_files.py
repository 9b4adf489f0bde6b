"""Files of weights that are not whole, or are something else, are named with what they are."""

import os
import socket
import struct

import pytest
import torch
from safetensors.torch import save_file

from odvae.running.errors import InputError
from odvae.weights.weights_files import read_weights, why_incomplete

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 791656\n"
TENSORS = {"weight": torch.arange(300.0), "half": torch.ones(3, dtype=torch.float16)}


@pytest.fixture
def safetensors(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture(params=[True, False], ids=["zip", "before 1.6"])
def pickled(tmp_path, request):
    torch.save(TENSORS, tmp_path / "model.bin", _use_new_zipfile_serialization=request.param)
    return tmp_path / "model.bin"


def test_whole_files_are_read_in_either_format(safetensors, pickled):
    for file in (safetensors, pickled):
        assert why_incomplete(file) == ""
        read = read_weights(file)
        assert read.keys() == TENSORS.keys()
        assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())


def test_a_safetensors_file_that_is_cut_anywhere_or_too_long_is_named_with_its_sizes(safetensors):
    data = safetensors.read_bytes()
    for length in (1, 7, 8, 50, len(data) - 1):
        safetensors.write_bytes(data[:length])
        with pytest.raises(InputError, match=rf"model\.safetensors is truncated \(it has {length} .*download it again"):
            read_weights(safetensors)
    safetensors.write_bytes(data + b"more")
    assert "is not a complete safetensors file" in why_incomplete(safetensors)


@pytest.mark.parametrize(
    "content",
    [
        bytes(2000),  # what a machine that lost power leaves
        struct.pack("<Q", 1 << 40) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 10) + b'{"a": "b"}',
        struct.pack("<Q", 10) + b"\xff" * 10,
        *(struct.pack("<Q", 37) + b'{"a": {"data_offsets": [0, %6s]}} ' % end for end in (b"1e999", b"-1e999", b"NaN")),
    ],
)
def test_a_safetensors_file_with_another_header_is_named(safetensors, content):
    safetensors.write_bytes(content)
    with pytest.raises(InputError, match=r"is not a safetensors file \(its header cannot be read\)"):
        read_weights(safetensors)


def test_a_cut_file_of_torch_save_is_named(pickled):
    pickled.write_bytes(pickled.read_bytes()[:1500])
    with pytest.raises(InputError, match=r"model\.bin (is truncated|cannot be read as a PyTorch checkpoint)"):
        read_weights(pickled)


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin", "model.ckpt", "config.json", "spiece.model"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty: copy or download it again"),
        (POINTER, "is a Git LFS pointer, not the file itself: run `git lfs install` and `git lfs pull`"),
        ("<!DOCTYPE html>\n<html>404</html>", "is a web page|is not valid JSON"),
    ],
)
def test_what_clones_and_failed_downloads_leave_in_a_files_place_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        raise InputError(f"{name} {why_incomplete(tmp_path / name)}")


def test_what_is_no_file_is_named_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "link.safetensors").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.safetensors"))
    for name in ("pipe", "folder", "socket"):
        with pytest.raises(InputError, match=rf"lpips\.weights: .*{name}\.safetensors is a {name}, not a file"):
            read_weights(tmp_path / f"{name}.safetensors", "lpips.weights:")
    with pytest.raises(InputError, match=r"link\.safetensors is a broken link"):
        read_weights(tmp_path / "link.safetensors")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1', "is not valid JSON: "),
        ('{"a": "é"}'.encode("utf-16"), "is UTF-16, not UTF-8"),
        ('{"a": "é"}'.encode("latin-1"), "is not UTF-8"),
        ('{"a": 1}'.encode("utf-8-sig"), "begins with a byte order mark"),
    ],
)
def test_a_config_that_libraries_cannot_read_is_named(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in why_incomplete(tmp_path / "config.json")
