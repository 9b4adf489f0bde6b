"""Loss terms of the VAE: LPIPS, wavelet, KL, and the 3D PatchGAN with its adaptive weight."""

import json

import numpy as np
import pytest
import torch
import torchvision
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn

from odvae.gan import GANTrainer, PatchDiscriminator, hinge_loss
from odvae.losses import VAELoss, haar, kl_per_pixel, reconstruction_terms, wavelet_loss
from odvae.lpips import LPIPS
from odvae.metrics import lpips
from odvae.running.errors import InputError
from odvae.settings import GANSettings, LossSettings
from odvae.training.settings import OptimizationSettings
from odvae.video.pixels import to_float


@pytest.fixture(scope="module")
def backbone_file(tmp_path_factory):
    """A local file with (random) weights of LPIPS' smallest backbone, in torchvision's format."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "squeezenet.safetensors"
    save_file(torchvision.models.squeezenet1_1(weights=None).state_dict(), file)
    return str(file)


def test_lpips_of_real_clips_by_its_real_weights(shared):
    clips = np.load(shared / "reference/metrics/clips.npz")
    golden = json.loads((shared / "reference/metrics/golden.json").read_text())["per_video"]["degraded"]
    real, degraded = (to_float(torch.from_numpy(clips[name][:2])) for name in ("real", "degraded"))
    weights = str(shared / "weights/squeezenet1_1_features.pth")
    found = lpips(degraded, real, "squeeze", weights).numpy()
    assert found == pytest.approx(golden["lpips_squeeze_v01"][:2], abs=1e-4)


def test_lpips_is_zero_for_equal_frames_and_has_finite_gradients_on_blank_ones(backbone_file):
    network = LPIPS("squeeze", backbone_file)
    torch.manual_seed(0)
    frames = torch.rand(2, 3, 32, 32) * 2 - 1
    assert network(frames, frames).abs().max() < 1e-6
    assert network(frames, frames.flip(0)).min() > 1e-4
    blank = torch.zeros(1, 3, 32, 32, requires_grad=True)
    network(blank, torch.zeros(1, 3, 32, 32)).sum().backward()
    assert blank.grad.isfinite().all()


def test_lpips_without_its_weights_is_an_error_that_says_what_to_do(tmp_path, backbone_file):
    with pytest.raises(InputError, match=r"vae.loss.lpips.weights or eval_vae.lpips.weights: .* does not exist"):
        LPIPS("squeeze", tmp_path / "nowhere.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(InputError, match=r"lpips\.weights: .*text\.pth is not a torch\.save file"):
        LPIPS("squeeze", tmp_path / "text.pth")
    with pytest.raises(InputError, match=r"features\.\d+\.\w+ (is missing|has shape \()"):
        LPIPS("alex", backbone_file)


def test_haar_coefficients_keep_the_energy_and_vanish_in_detail_for_a_still_grey_video():
    torch.manual_seed(0)
    video = torch.randn(2, 3, 4, 8, 8)
    assert haar(video).square().sum() == pytest.approx(float(video.square().sum()), rel=1e-5)
    still = haar(torch.ones(1, 3, 5, 8, 8))
    assert still[:, :, 0] == pytest.approx(torch.full_like(still[:, :, 0], 8**0.5))
    assert still[:, :, 1:].abs().max() < 1e-6
    assert haar(torch.randn(1, 3, 1, 8, 8))[:, :, 4:].abs().max() < 1e-6  # an image does not move
    assert wavelet_loss(video, video) == 0


def test_kl_of_a_standard_normal_is_zero_and_else_its_closed_form():
    zero = torch.zeros(1, 4, 2, 3, 3)
    video = torch.zeros(1, 3, 5, 24, 24)
    assert kl_per_pixel(zero, zero, video.numel()) == 0
    expected = 0.5 * zero.numel() * (2.0**2 + np.e - 1 - 1) / video.numel()
    assert kl_per_pixel(zero + 2, zero + 1, video.numel()) == pytest.approx(expected, rel=1e-5)


def test_the_discriminator_has_the_papers_size_and_takes_images():
    network = PatchDiscriminator()
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(4.67e6, rel=0.01)
    assert network(torch.zeros(1, 3, 17, 64, 64)).shape == (1, 1, 5, 8, 8)
    assert network(torch.zeros(2, 3, 1, 32, 32)).shape == (2, 1, 1, 4, 4)


def test_the_logits_of_a_sample_do_not_depend_on_the_batch():
    torch.manual_seed(0)
    network, video = PatchDiscriminator(8), torch.randn(3, 3, 5, 16, 16)
    alone = network(video[:1])
    assert torch.allclose(network(video)[:1], alone, atol=1e-5)


def test_hinge_loss_has_no_gradient_beyond_the_margin():
    assert hinge_loss(torch.tensor([1.0, 3.0]), torch.tensor([-1.0, -2.0])) == 0
    assert hinge_loss(torch.tensor([0.0]), torch.tensor([0.0])) == 1


class OneConvolution(nn.Module):
    """The least that `VAELoss` needs of a VAE: a decoder with a last convolution."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Module()
        self.decoder.conv_out = nn.Conv3d(3, 3, 3, padding=1)

    def forward(self, video):
        return self.decoder.conv_out(video)


def make_objective(**loss):
    torch.manual_seed(0)
    network = OneConvolution()
    settings = LossSettings(**{"lpips": None, **loss})
    optimization = OptimizationSettings(learning_rate=1e-2)
    return network, VAELoss(settings, network, optimization, Accelerator(cpu=True))


def test_the_objective_has_the_gradient_of_the_sum_of_its_terms(backbone_file):
    term = {"network": "squeeze", "weights": backbone_file, "weight": 0.7}
    network, objective = make_objective(lpips=term, wavelet=0.3, kl=0.1)
    video = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    mean, logvar = torch.randn(2, 1, 4, 2, 4, 4).requires_grad_().unbind(0)
    surrogate, parts = objective(network(video), video, mean, logvar, 1, video.numel())
    surrogate.backward(retain_graph=True)
    found = network.decoder.conv_out.weight.grad.clone()
    network.zero_grad()
    fidelity, _ = reconstruction_terms(network(video), video, objective.settings, objective.perceptual)
    total = fidelity + 0.1 * kl_per_pixel(mean, logvar, video.numel())
    total.backward()
    assert torch.allclose(found, network.decoder.conv_out.weight.grad, rtol=1e-4, atol=1e-7)
    assert parts["loss"] == pytest.approx(float(total.detach()), rel=1e-5)


def test_the_adaptive_weight_is_the_ratio_of_both_gradients_of_the_previous_step_and_has_a_maximum():
    settings = {"width": 8, "weight": 0.5}
    network, objective = make_objective(gan=settings, kl=0.0)
    gan = objective.gan
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    latent = torch.zeros(1, 4, 2, 2, 2)

    last = network.decoder.conv_out.weight
    fidelity = (network(video) - video).abs().mean()
    (of_fidelity,) = torch.autograd.grad(fidelity, last)
    (of_adversarial,) = torch.autograd.grad(-gan.network(network(video)).mean(), last)
    expected = of_fidelity.norm() / (of_adversarial.norm() + 1e-4)

    reconstruction = network(video)
    surrogate, parts = objective(reconstruction, video, latent, latent, 1, video.numel())
    assert parts["adaptive_weight"] == 0  # nothing was measured before
    surrogate.backward()
    assert torch.allclose(last.grad, of_fidelity, rtol=1e-4, atol=1e-7)
    objective.discriminator_step(reconstruction, video, step=1, sync=True)
    objective.apply_gradients(step=1)
    assert gan.state.adaptive_weight == pytest.approx(float(expected), rel=1e-4)


def test_the_maximum_of_the_adaptive_weight_is_the_papers_in_the_units_of_means():
    """The paper sums losses over the values of a frame: its weight, divided by their number, is that of the means."""
    network, objective = make_objective(gan={"width": 8}, kl=0.0)
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    latent = torch.zeros(1, 4, 2, 2, 2)
    reconstruction = network(video)
    objective(reconstruction, video, latent, latent, 1, video.numel())
    objective.gan.gradients[0], objective.gan.gradients[1] = 1.0, 1e-9
    objective.gan.apply_gradients(step=1)
    assert objective.gan.state.adaptive_weight == pytest.approx(1e4 / (3 * 16 * 16))


def test_the_adaptive_weight_has_a_maximum_and_ignores_steps_that_are_not_finite():
    _, objective = make_objective(gan={"width": 8, "adaptive_ceiling": 3.0})
    gan = objective.gan
    gan.gradients[0], gan.gradients[1] = 1.0, 1e-6
    gan.apply_gradients(step=1)
    assert gan.state.adaptive_weight == 3
    gan.gradients[0] = float("nan")
    gan.apply_gradients(step=2)
    assert gan.state.adaptive_weight == 3


def test_the_discriminator_learns_to_distinguish_noise_from_smooth_videos():
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(3, 3, 3, 3, 3))
    optimization = OptimizationSettings(learning_rate=5e-3)
    gan = GANTrainer(GANSettings(width=8, lecam=0.001), optimization, accelerator, weight)
    for step in range(1, 61):
        smooth = torch.rand(4, 3, 1, 1, 1).expand(-1, -1, 5, 16, 16) * 2 - 1
        noise = torch.randn(4, 3, 5, 16, 16)
        row = gan.discriminator_step(smooth, noise, sync=True)
        gan.apply_gradients(step)
    assert row["discriminator"] < 0.5  # it was 1
    assert gan.state.real > gan.state.fake
