"""I3D, the network behind FVD (Carreira & Zisserman 2017, arXiv 1705.07750): video -> 400 logits of Kinetics-400.

Two weight files are in use, and both load: a state dict of 344 tensors (VideoGPT's and TATS's `i3d_pretrained_400.pt`),
into the network below, and StyleGAN-V's TorchScript file, which is downloaded where no file is given. Their weights
differ slightly, and so do their FVDs: the file's sha256 is part of every score's protocol.
"""

from __future__ import annotations

import urllib.request
import zipfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odvae.running.errors import InputError
from odvae.running.files import atomic_file
from odvae.running.hashing import file_fingerprint
from odvae.running.text import check_is_file, shorten
from odvae.weights.pretrained import not_reached
from odvae.weights.weights_files import read_weights, why_incomplete

TORCHSCRIPT_URL = "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1"
TORCHSCRIPT_SHA256 = "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2"

CLASSES = 400
RESOLUTION = 224
MIN_FRAMES = 10  # the network divides time by 8, and its last pooling needs two positions


def pad_same(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """TensorFlow's SAME padding of (b, c, t, h, w): zeros, so that the output has ceil(size / stride) positions."""
    padding: list[int] = []
    for size, k, s in zip(x.shape[2:], kernel, stride, strict=True):
        total = max(k - (size % s or s), 0)
        padding = [total // 2, total - total // 2, *padding]  # F.pad takes the last axis first
    return F.pad(x, padding) if any(padding) else x


class ConvUnit(nn.Module):
    """Convolution, batch norm, ReLU, SAME padding."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(c_in, c_out, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(c_out, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_same(x, self.conv3d.kernel_size, self.conv3d.stride)
        return F.relu(self.bn(self.conv3d(x)))


class Pool(nn.Module):
    """Max pooling with SAME padding; its input comes from a ReLU, so zeros never win."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(pad_same(x, self.kernel, self.stride), self.kernel, self.stride)


class Inception(nn.Module):
    """Four parallel branches, concatenated: 1x1; 1x1 then 3x3, twice; pooling then 1x1."""

    def __init__(self, c_in: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        one, reduce_a, a, reduce_b, b, pooled = widths
        self.b0 = ConvUnit(c_in, one, 1)
        self.b1a, self.b1b = ConvUnit(c_in, reduce_a, 1), ConvUnit(reduce_a, a, 3)
        self.b2a, self.b2b = ConvUnit(c_in, reduce_b, 1), ConvUnit(reduce_b, b, 3)
        self.b3a, self.b3b = Pool((3, 3, 3), (1, 1, 1)), ConvUnit(c_in, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))], dim=1)


class Logits(nn.Module):
    def __init__(self, c_in: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(c_in, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3d(x)


class I3D(nn.Module):
    """Video (b, 3, t >= 10, 224, 224) in [-1, 1] -> logits (b, 400), mean over time.

    Tensors are named as in `i3d_pretrained_400.pt`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = ConvUnit(3, 64, 7, stride=2)
        self.MaxPool3d_2a_3x3 = Pool((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = ConvUnit(64, 64, 1)
        self.Conv3d_2c_3x3 = ConvUnit(64, 192, 3)
        self.MaxPool3d_3a_3x3 = Pool((1, 3, 3), (1, 2, 2))
        self.Mixed_3b = Inception(192, (64, 96, 128, 16, 32, 32))
        self.Mixed_3c = Inception(256, (128, 128, 192, 32, 96, 64))
        self.MaxPool3d_4a_3x3 = Pool((3, 3, 3), (2, 2, 2))
        self.Mixed_4b = Inception(480, (192, 96, 208, 16, 48, 64))
        self.Mixed_4c = Inception(512, (160, 112, 224, 24, 64, 64))
        self.Mixed_4d = Inception(512, (128, 128, 256, 24, 64, 64))
        self.Mixed_4e = Inception(512, (112, 144, 288, 32, 64, 64))
        self.Mixed_4f = Inception(528, (256, 160, 320, 32, 128, 128))
        self.MaxPool3d_5a_2x2 = Pool((2, 2, 2), (2, 2, 2))
        self.Mixed_5b = Inception(832, (256, 160, 320, 32, 128, 128))
        self.Mixed_5c = Inception(832, (384, 192, 384, 48, 128, 128))
        self.logits = Logits(1024)

    def forward(self, video: Tensor) -> Tensor:
        x = video
        for name, layer in self.named_children():
            if name != "logits":
                x = layer(x)  # (b, 1024, t / 8, h / 32, w / 32) at the end
        x = F.avg_pool3d(x, (2, 7, 7), stride=1)  # (b, 1024, t / 8 - 1, 1, 1)
        return self.logits(x).mean(dim=(2, 3, 4))  # (b, 400)


class ScriptedI3D(nn.Module):
    """StyleGAN-V's TorchScript file with I3D's interface."""

    def __init__(self, script: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.script = script

    def forward(self, video: Tensor) -> Tensor:
        return self.script(video, rescale=False, resize=False, return_features=True)


def load_i3d(path: str | Path | None, sha256: str | None) -> tuple[I3D | ScriptedI3D, str]:
    """I3D with the weights in `path`, in eval mode, and the file's sha256.

    `path` None: StyleGAN-V's TorchScript file, downloaded once into torch's hub folder. `sha256` is the expected hash;
    with None, a state dict is not checked. A TorchScript file contains code: it is loaded only if its hash is that of
    StyleGAN-V's file, or the given one. Raises InputError for a missing file, another hash, and other tensors.
    """
    file = download_torchscript() if path is None else Path(path)
    check_is_file(file, "eval_ldm.i3d:")
    if problem := why_incomplete(file):
        raise InputError(f"eval_ldm.i3d: {file} {problem}")
    found = file_fingerprint(file)
    scripted = _is_torchscript(file)
    expected = sha256 or (TORCHSCRIPT_SHA256 if scripted else None)
    if expected is not None and found != expected:
        raise InputError(
            f"{file} is not the expected I3D file: its sha256 is {found}, expected {expected}"
            + ("" if sha256 else "; to use it anyway, set eval_ldm.i3d_sha256 to its sha256")
        )
    if scripted:
        return ScriptedI3D(torch.jit.load(file, map_location="cpu")).eval(), found
    return _load_state_dict(file), found


def download_torchscript() -> Path:
    """The path of StyleGAN-V's file in torch's hub folder, downloaded if missing; the caller checks its sha256."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / "i3d_torchscript.pt"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with urllib.request.urlopen(TORCHSCRIPT_URL, timeout=60) as response, atomic_file(path) as file:
                while block := response.read(1 << 20):
                    file.write(block)
        except OSError as error:
            remedy = "Download it elsewhere and set eval_ldm.i3d to the file, or put it there"
            here = f"StyleGAN-V's file is not at {path} (TORCH_HOME)"
            raise not_reached("I3D", here, TORCHSCRIPT_URL, error, remedy) from None
    return path


def _is_torchscript(file: Path) -> bool:
    """Both files are zip archives written by torch; only a TorchScript archive contains code."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any("/code/" in name for name in archive.namelist())


def _load_state_dict(file: Path) -> I3D:
    state = read_weights(file, "eval_ldm.i3d:")
    network = I3D()
    own = network.state_dict()
    if not isinstance(state, dict) or state.keys() != own.keys():
        names = state.keys() if isinstance(state, dict) else set()
        raise InputError(
            f"{file} does not hold I3D's {len(own)} tensors: missing {shorten(sorted(own.keys() - names))}; "
            f"not expected {shorten(sorted(names - own.keys()))}"
        )
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise InputError(f"{file}: {name} is {tuple(tensor.shape)}, I3D's is {tuple(own[name].shape)}")
    network.load_state_dict(state)
    return network.eval()
