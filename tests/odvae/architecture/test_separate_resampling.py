"""Time halved by layers of its own (v1.1.0): causal, and streamed exactly."""

import torch
from small import relative_error

from odvae import ODVAE


def test_separate_temporal_layers_stream_exactly_in_the_causal_mode():
    torch.manual_seed(0)
    vae = ODVAE((8, 16, 16, 16), layers_per_block=1, norm_num_groups=4, temporal_resampling="separate").eval()
    video = torch.rand(1, 3, 13, 16, 16) * 2 - 1
    with torch.no_grad():
        whole = vae.encode(video).latent_dist.mean
        assert whole.shape == (1, 4, 4, 2, 2)
        parts = vae.encode_stream(video.split([2, 5, 6], dim=2))
        assert relative_error(torch.cat([part.mean for part in parts], dim=2), whole) < 1e-5
        pieces = vae.decode_stream(whole.split([1, 2, 1], dim=2))
        assert relative_error(torch.cat(list(pieces), dim=2), vae.decode(whole).sample) < 1e-5


def test_separate_temporal_layers_do_not_depend_on_later_frames():
    torch.manual_seed(0)
    vae = ODVAE((8, 16, 16, 16), layers_per_block=1, norm_num_groups=4, temporal_resampling="separate").eval()
    video = (torch.rand(1, 3, 9, 16, 16) * 2 - 1).requires_grad_()
    latents = vae.encode(video).latent_dist.mean
    for i in range(3):
        (grad,) = torch.autograd.grad(latents[:, :, i].sum(), video, retain_graph=True)
        assert grad[:, :, 4 * i + 1 :].abs().sum() == 0
        assert grad[:, :, : 4 * i + 1].abs().sum() > 0
