"""Files given to sampling: an image is read as a viewer shows it, and what is no file is named and never waited for."""

import os
import socket
import types

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.sample import _read_image
from ldm.sampling.prompt_file import read_prompts
from ldm.sampling.sample_requests import user_requests
from ldm.sampling.settings import SampleSettings
from odvae.running.errors import InputError

CONFIG = types.SimpleNamespace(sample_size=(3, 4, 4))
PIPELINE = types.SimpleNamespace(
    transformer=types.SimpleNamespace(config=CONFIG), vae=types.SimpleNamespace(spatial_compression_ratio=8)
)


def read(path):
    return _read_image(PIPELINE, str(path), SampleSettings())


def halves(first, second):
    """32 x 32, the left half of one color, the right half of another."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, :16], pixels[:, 16:] = first, second
    return pixels


def test_an_image_of_a_phone_is_upright_a_transparent_one_lies_on_white_and_16_bits_are_scaled(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # shown after a quarter turn clockwise: left becomes top
    Image.fromarray(halves((255, 0, 0), (0, 0, 255))).save(tmp_path / "phone.png", exif=turned)
    shown = read(tmp_path / "phone.png")  # (3, h, w) in [-1, 1]
    assert shown.shape == (3, 32, 32)
    assert torch.equal(shown[:, 2, 16], torch.tensor([1.0, -1.0, -1.0]))
    assert torch.equal(shown[:, 29, 16], torch.tensor([-1.0, -1.0, 1.0]))
    Image.fromarray(np.zeros((32, 32, 4), np.uint8)).save(tmp_path / "clear.png")
    assert (read(tmp_path / "clear.png") == 1).all()
    Image.fromarray(np.full((32, 32), 32768, np.uint16)).save(tmp_path / "16.png")
    assert (read(tmp_path / "16.png").abs() < 0.01).all()


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match=r"--image .*text\.png: cannot be read as an image"):
        read(tmp_path / "text.png")


@pytest.mark.parametrize("given", ["--image", "--prompts"])
def test_what_is_no_file_is_named_with_what_it_is(tmp_path, monkeypatch, given):
    def give(path):
        return user_requests(["a cat"], [], 0, image=path) if given == "--image" else read_prompts(path)

    monkeypatch.chdir(tmp_path)  # a socket's path is short
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("gone")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for name, message in {
            "nowhere": "does not exist",
            "folder": "is a folder, not a file",
            "dangling": "is a broken link",
            "pipe": "is a pipe, not a file",
            "socket": "is a socket, not a file",
        }.items():
            with pytest.raises(InputError, match=rf"^{given} .*{name} {message}"):
                give(tmp_path / name)
