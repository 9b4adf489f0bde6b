"""Make tests/golden again, from a folder with outputs of the original implementations (tests/golden/README.md).

    python tests/support/make_golden.py REFERENCE

REFERENCE holds small_v120_keys.txt, small_v110_keys.txt and their released_ twins, v120_1x9x64x64.safetensors and the
like, and in metrics/: values.json, clips.npz, i3d_state_dict_shapes.json, synthetic_features.npz, is_probs.npz.
"""

import json
import shutil
import sys
import warnings
from pathlib import Path

import lpips
import numpy as np
import torch
import torchvision
from golden import GOLDEN, degraded, i3d_input
from known_weights import known_state
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import conv2d

from ldm.evaluation.i3d import I3D
from odvae.video.pixels import to_float

MODELS = ("v120_1x1x64x64", "v120_1x9x64x64", "v120_1x17x64x64_tiled9", "v110_1x9x64x64")


def main(reference: Path) -> None:
    GOLDEN.mkdir(exist_ok=True)
    for keys in reference.glob("*_keys.txt"):
        shutil.copyfile(keys, GOLDEN / keys.name)
    save_file(published_vae(reference), GOLDEN / "published_vae.safetensors")
    features = np.load(reference / "metrics/synthetic_features.npz")
    probabilities = np.load(reference / "metrics/is_probs.npz")["p"]
    np.savez_compressed(GOLDEN / "features.npz", probabilities=probabilities, **features)
    shutil.copyfile(reference / "metrics/i3d_state_dict_shapes.json", GOLDEN / "i3d_tensors.json")
    original = json.loads((reference / "metrics/values.json").read_text())
    values = {
        "frechet_distance": original["frechet_synthetic"],
        "kernel_distance": original["kvd_synthetic"],
        "inception_score": original["inception_score"],
        "i3d": i3d_logits(reference / "metrics/clips.npz", original["i3d_architecture"]),
        **picture_metrics(),
    }
    (GOLDEN / "values.json").write_text(json.dumps(values, indent=1) + "\n")


def published_vae(reference: Path) -> dict[str, Tensor]:
    """Inputs, once each; latents; every third row and column of reconstructions, which meets each phase of 8 pixels."""
    found = {}
    for model in MODELS:
        values = load_file(reference / f"{model}.safetensors")
        frames = values["input"].shape[2]
        assert torch.equal(found.setdefault(f"input_{frames}", values["input"]), values["input"])
        found |= {f"{model}.{name}": values[name] for name in ("mean", "logvar")}
        found[f"{model}.every_third_pixel"] = values["rec"][..., ::3, ::3].contiguous()
    return found


def i3d_logits(clips: Path, original: dict) -> dict:
    """Our I3D's logits of a clip of noise, once it has given the original's of two real clips."""
    network = I3D().eval()
    network.load_state_dict(known_state(json.loads((GOLDEN / "i3d_tensors.json").read_text())))
    for index in (0, 1):
        video = to_float(torch.from_numpy(np.load(clips)["real"][index : index + 1, :16]))
        logits, expected = network_logits(network, video), original["out"][f"clip{index}"]
        np.testing.assert_allclose(logits[:8], expected["logits_first8"], atol=2e-3)
    logits = network_logits(network, load_file(GOLDEN / "published_vae.safetensors")["input_17"][:, :, :16])
    return {"first_8": logits[:8].tolist(), "mean": float(logits.mean()), "std": float(logits.std())}


@torch.no_grad()
def network_logits(network: I3D, video: Tensor) -> np.ndarray:
    return network(i3d_input(video))[0].double().numpy()


def picture_metrics() -> dict:
    """PSNR and SSIM from their formulas, LPIPS from its authors' package; of a clip against its posterized copy."""
    reference = load_file(GOLDEN / "published_vae.safetensors")["input_9"]
    frames, expected = (video[0].transpose(0, 1) for video in (degraded(reference), reference))  # (t, 3, h, w)
    error = (frames.double() - expected.double()).square().mean(dim=(1, 2, 3))
    return {
        "psnr": float((10 * torch.log10(4 / error)).mean()),
        "ssim": ssim(frames.double() / 2 + 0.5, expected.double() / 2 + 0.5),
        "lpips": {network: authors_lpips(network, frames, expected) for network in ("alex", "vgg", "squeeze")},
    }


def ssim(a: Tensor, b: Tensor) -> float:
    """Wang et al. 2004, eq. 13, of frames (t, 3, h, w) in [0, 1]; a Gaussian window of 11x11, sigma 1.5, inside."""
    line = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = (line[:, None] * line / line.sum() ** 2).expand(3, 1, 11, 11)

    def mean(x: Tensor) -> Tensor:
        return conv2d(x, window, groups=3)

    mu_a, mu_b = mean(a), mean(b)
    variances = mean(a * a) - mu_a**2 + mean(b * b) - mu_b**2
    covariance = mean(a * b) - mu_a * mu_b
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mu_a * mu_b + c1) * (2 * covariance + c2) / ((mu_a**2 + mu_b**2 + c1) * (variances + c2))
    return float(similarity.mean())


def authors_lpips(network: str, frames: Tensor, expected: Tensor) -> float:
    """By the `lpips` package as it is, its backbone filled with known weights before it takes it apart."""
    name = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}[network]
    make = getattr(torchvision.models, name)
    backbone = make(weights=None)
    backbone.load_state_dict(known_state({key: value.shape for key, value in backbone.state_dict().items()}))
    setattr(torchvision.models, name, lambda **_: backbone)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        distance = float(lpips.LPIPS(net=network, verbose=False).eval()(frames, expected).mean())
    setattr(torchvision.models, name, make)
    return distance


if __name__ == "__main__":
    main(Path(sys.argv[1]))
