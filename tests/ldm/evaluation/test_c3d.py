"""C3D: its layers, its preprocessing, and the files it is loaded from."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ldm.evaluation import c3d
from ldm.evaluation.features import extract_features, load_network
from ldm.evaluation.settings import EvalLDMSettings
from odvae.running.errors import InputError


@pytest.fixture
def narrow(monkeypatch):
    """C3D with an eighth of the channels: its files have 0.4 MB in place of 300."""
    narrow = {name: (max(3, c_in // 32), c_out // 32) for name, (c_in, c_out) in c3d._CONVOLUTIONS.items()}
    narrow["conv1a"] = (3, 2)
    monkeypatch.setattr(c3d, "_CONVOLUTIONS", {**narrow, "conv2a": (2, 4), "conv3a": (4, 8)})
    monkeypatch.setattr(c3d, "_LINEAR", {"fc6": (16 * 16, 12), "fc7": (12, 12), "fc8": (12, c3d.CLASSES)})


def write_files(folder):
    """The two files of known weights; returns the settings that name them, the arrays, and the mean video."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, parameter in c3d.C3D().named_parameters():
        layer, _, kind = name.partition(".")
        scale = 0.05 if kind == "bias" else 2 / np.sqrt(parameter[0].numel())
        arrays[f"{layer}/{'W' if kind == 'weight' else 'b'}"] = rng.normal(0, scale, parameter.shape).astype(np.float32)
    mean = rng.uniform(80, 110, (3, 16, 128, 128)).astype(np.float32)
    np.savez(folder / "weights.npz", **arrays)
    np.savez(folder / "mean.npz", mean=mean)
    names = {"c3d": str(folder / "weights.npz"), "c3d_mean": str(folder / "mean.npz")}
    return EvalLDMSettings(networks=("c3d",), **names), arrays, mean


def test_it_has_the_layers_of_the_published_files():
    network = c3d.C3D()
    assert sum(parameter.numel() for parameter in network.parameters()) == 78_409_573
    assert network.get_submodule("fc6").weight.shape == (4096, 8192)


def test_logits_are_those_of_the_layers_written_out(tmp_path, narrow):
    settings, arrays, mean = write_files(tmp_path)
    videos = np.random.default_rng(1).integers(0, 256, (2, 16, 40, 60, 3), dtype=np.uint8)
    network = load_network("c3d", settings)
    found = extract_features(network, videos)
    assert found.shape == (2, c3d.CLASSES)
    assert network.are_logits

    pixels = torch.from_numpy(videos).double().permute(0, 4, 1, 2, 3) / 127.5 - 1  # as the project scales pixels
    blue_first = pixels[:, [2, 1, 0]] * 128
    resized = torch.stack(
        [F.interpolate(video.transpose(0, 1), (112, 112), mode="bilinear", align_corners=True) for video in blue_first]
    )
    x = resized.transpose(1, 2) + 128 - torch.from_numpy(mean[:, :, 8:120, 8:120])
    tensors = {name: torch.from_numpy(array).double() for name, array in arrays.items()}
    for layer in ("1a", "2a", "3a", "3b", "4a", "4b", "5a", "5b"):
        x = F.conv3d(x, tensors[f"conv{layer}/W"], tensors[f"conv{layer}/b"], padding=1).relu()
        if layer == "1a":
            x = x.unfold(3, 2, 2).unfold(4, 2, 2).amax((-1, -2))
        elif layer == "5b":  # 7 positions are pooled to 4: the last one is alone
            x = F.pad(x, (0, 1, 0, 1)).unfold(2, 2, 2).unfold(3, 2, 2).unfold(4, 2, 2).amax((-1, -2, -3))
        elif layer not in ("3a", "4a", "5a"):
            x = x.unfold(2, 2, 2).unfold(3, 2, 2).unfold(4, 2, 2).amax((-1, -2, -3))
    x = x.reshape(2, -1)
    for layer in ("fc6", "fc7", "fc8"):
        x = x @ tensors[f"{layer}/W"].T + tensors[f"{layer}/b"]
        x = x if layer == "fc8" else x.relu()
    assert found == pytest.approx(x.numpy(), rel=1e-3, abs=1e-3 * float(x.abs().max()))


def test_missing_and_other_files_are_named(tmp_path, narrow):
    settings, arrays, _ = write_files(tmp_path)
    with pytest.raises(InputError, match=r"eval_ldm\.c3d and eval_ldm\.c3d_mean must be TGANv2's files"):
        load_network("c3d", EvalLDMSettings(networks=("c3d",)))
    for changed, message in (
        ({**arrays, "fc8/b": np.zeros(400, np.float32)}, r"fc8/b in .*weights\.npz is \(400,\), C3D's is \(101,\)"),
        ({name: array for name, array in arrays.items() if name != "conv2a/W"}, "has no array conv2a/W"),
        ({**arrays, "conv1a/W": np.array([object()])}, "cannot be read as NumPy's"),
    ):
        np.savez(tmp_path / "weights.npz", **changed)
        with pytest.raises(InputError, match=message):
            load_network("c3d", settings)
    (tmp_path / "weights.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(InputError, match="cannot be read as NumPy's"):
        load_network("c3d", settings)
    np.savez(tmp_path / "weights.npz", **arrays)
    np.savez(tmp_path / "mean.npz", mean=np.zeros((3, 16, 100, 128), np.float32))
    with pytest.raises(InputError, match=r"mean in .*mean\.npz is \(3, 16, 100, 128\), expected \(3, 16, h, w\)"):
        load_network("c3d", settings)
    np.savez(tmp_path / "mean.npz", mean=np.zeros((3, 16, 128, 171), np.float32))
    network = load_network("c3d", settings)
    with pytest.raises(InputError, match="takes 16 frames, the protocol gives 17"):
        network.check_frames(17)
