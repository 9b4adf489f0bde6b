"""I3D: the published network, and the files it is loaded from."""

import json

import numpy as np
import pytest
import torch
from golden import GOLDEN, golden_values, i3d_input, published_vae_values
from known_weights import known_state
from torch import nn

from ldm.evaluation.features import extract_features, load_network
from ldm.evaluation.i3d import I3D, load_i3d
from ldm.evaluation.settings import EvalLDMSettings
from odvae.running.errors import InputError
from odvae.running.hashing import file_fingerprint

rng = np.random.default_rng(0)


def test_i3d_of_known_weights_gives_the_golden_logits():
    network = I3D().eval()
    network.load_state_dict(known_state(json.loads((GOLDEN / "i3d_tensors.json").read_text())))
    with torch.no_grad():
        (logits,) = network(i3d_input(published_vae_values()["input_17"][:, :, :16])).numpy()
    golden = golden_values()["i3d"]
    assert logits[:8] == pytest.approx(golden["first_8"], abs=2e-3)
    assert logits.mean() == pytest.approx(golden["mean"], abs=1e-3)
    assert logits.std() == pytest.approx(golden["std"], rel=1e-4)


def test_i3d_loads_from_a_state_dict_and_refuses_another_hash_and_other_tensors(tmp_path):
    torch.manual_seed(0)
    network = I3D().eval()
    torch.save(network.state_dict(), tmp_path / "i3d.pt")
    loaded, sha256 = load_i3d(tmp_path / "i3d.pt", None)
    assert sha256 == file_fingerprint(tmp_path / "i3d.pt")
    assert torch.equal(loaded.logits.conv3d.weight, network.logits.conv3d.weight)
    with pytest.raises(InputError, match="not the expected I3D file: its sha256 is"):
        load_i3d(tmp_path / "i3d.pt", "0" * 64)
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="does not hold I3D's 344 tensors"):
        load_i3d(tmp_path / "other.pt", None)
    (tmp_path / "broken.pt").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"eval_ldm\.i3d: .*broken\.pt is not a torch\.save file"):
        load_i3d(tmp_path / "broken.pt", None)
    with pytest.raises(InputError, match="does not exist"):
        load_i3d(tmp_path / "none.pt", None)


class Scripted(nn.Module):
    """A program with the call of StyleGAN-V's file."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        assert not rescale
        assert not resize
        return self.gain * x.mean(dim=[2, 3, 4]).repeat(1, 134)[:, :400]


def test_a_torchscript_program_runs_only_with_the_known_hash_or_the_one_given(tmp_path):
    path = tmp_path / "i3d_torchscript.pt"
    torch.jit.script(Scripted()).save(str(path))
    with pytest.raises(InputError, match=r"set eval_ldm\.i3d_sha256"):
        load_i3d(path, None)
    network = load_network("i3d", EvalLDMSettings(i3d=str(path), i3d_sha256=file_fingerprint(path)))
    assert network.distance == "FVD"
    with pytest.raises(InputError, match="takes 10 or more frames, the protocol gives 9"):
        network.check_frames(9)
    features = extract_features(network, rng.integers(0, 256, (2, 10, 16, 16, 3), dtype=np.uint8))
    assert features.shape == (2, 400)
