"""Metrics against golden values of their original implementations (skipped where the reference folder is absent)."""

import hashlib
import json

import numpy as np
import pytest
import torch

from ldm.evaluation.features import to_square
from ldm.evaluation.i3d import I3D
from ldm.metrics import frechet_distance, gaussian, inception_score, kernel_distance
from odvae.metrics import psnr, ssim
from odvae.video.pixels import to_float


@pytest.fixture(scope="module")
def values(shared):
    return json.loads((shared / "reference/metrics/values.json").read_text())


def test_psnr_and_ssim_of_degraded_clips(shared):
    clips = np.load(shared / "reference/metrics/clips.npz")
    golden = json.loads((shared / "reference/metrics/golden.json").read_text())["per_video"]["degraded"]
    real, degraded = (to_float(torch.from_numpy(clips[name])) for name in ("real", "degraded"))
    assert psnr(degraded, real).numpy() == pytest.approx(golden["psnr_frame_mean"], abs=2e-4)
    assert ssim(degraded, real).numpy() == pytest.approx(golden["ssim_rgb_gauss11"], abs=1e-5)


def test_frechet_distance_of_synthetic_features(shared, values):
    features = np.load(shared / "reference/metrics/synthetic_features.npz")
    golden = values["frechet_synthetic"]
    full = frechet_distance(*gaussian(features["X"]), *gaussian(features["Y"]))
    assert full == pytest.approx(golden["X_vs_Y"]["eig_ddof1"], rel=1e-6)
    population = frechet_distance(*gaussian(features["X"], ddof=0), *gaussian(features["Y"], ddof=0))
    assert population == pytest.approx(golden["X_vs_Y"]["eig_ddof0"], rel=1e-6)
    deficient = frechet_distance(*gaussian(features["P"]), *gaussian(features["Q"]))
    assert deficient == pytest.approx(golden["P_vs_Q_rank_deficient"]["eig_ddof1"], rel=1e-4, abs=2e-2)


def test_frechet_distance_of_real_i3d_statistics(shared, values):
    statistics = np.load(shared / "reference/metrics/i3d_kinetics400_logit_stats.npz")
    for pair, expected in values["frechet_i3d_stats"]["values"].items():
        first, second = pair.split(" vs ")
        arrays = [statistics[f"{name}__{part}"] for name in (first, second) for part in ("mean", "cov")]
        assert frechet_distance(*arrays) == pytest.approx(expected, rel=1e-6)


def test_kernel_distance_of_synthetic_features(shared, values):
    features = np.load(shared / "reference/metrics/synthetic_features.npz")
    golden = values["kvd_synthetic"]
    for x, y in (("X", "Y"), ("P", "Q")):
        expected = golden[f"{x}_vs_{y}"]["gamma=1/d (KID)"]["unbiased"]
        assert kernel_distance(features[x], features[y]) == pytest.approx(expected, rel=1e-6)


def test_inception_score_whole_and_in_parts(shared, values):
    probabilities = np.load(shared / "reference/metrics/is_probs.npz")["p"]
    golden = values["inception_score"]
    assert inception_score(probabilities) == pytest.approx(golden["splits1"], rel=1e-9)
    assert inception_score(probabilities, 10) == pytest.approx(golden["splits10_in_order"], rel=1e-9)


def known_tensor(name: str, shape: list[int]) -> torch.Tensor:
    """The tensor that the reference's recipe gives for a name."""
    generator = np.random.default_rng(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if name.endswith(("running_var", "bn.weight")):
        values = generator.uniform(0.5, 1.5, shape)
    elif name.endswith(("running_mean", ".bias")):
        values = generator.normal(0, 0.1, shape)
    else:
        values = generator.normal(0, 1, shape) * np.sqrt(2 / np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def test_i3d_of_known_weights_gives_the_original_logits(shared, values):
    shapes = json.loads((shared / "reference/metrics/i3d_state_dict_shapes.json").read_text())
    network = I3D().eval()
    network.load_state_dict({name: known_tensor(name, shape) for name, shape in shapes.items()})
    clip = np.load(shared / "reference/metrics/clips.npz")["real"][1:2, :16]
    video = to_square(to_float(torch.from_numpy(clip)), 224, antialias=False, resize="crop")
    with torch.no_grad():
        (logits,) = network(video).numpy()
    golden = values["i3d_architecture"]["out"]["clip1"]
    assert logits[:8] == pytest.approx(golden["logits_first8"], abs=2e-3)
    assert logits.mean() == pytest.approx(golden["logits_mean"], abs=1e-3)
    assert logits.std() == pytest.approx(golden["logits_std"], rel=1e-4)
