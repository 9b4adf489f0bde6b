"""Alignment of a DiT's features with those of a frozen image encoder (REPA: Yu et al. 2024, arXiv 2410.06940).

The tokens after one block, projected by an MLP, are trained to have the direction of the encoder's features at the
same place and time of the clip. The encoder needs pixels, and training has latents: so the VAE decodes the batch's
latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from einops import rearrange, reduce
from torch import Tensor, nn

from ldm.networks.conditioning import Condition
from ldm.networks.network import Network
from ldm.training.diffusion_batches import Batch, SampleLoss
from ldm.training.image_encoders import ImageEncoder
from ldm.training.settings import AlignmentSettings
from odvae.running.errors import InputError
from odvae.running.seeds import derive_seed
from odvae.video_vae import VideoVAE


class AlignedNetwork(nn.Module):
    """What is trained in place of a network that is aligned: the network, and the projection of its features.

    The projection is an MLP of three layers; it is part of training's checkpoints, and not of the saved network.
    """

    def __init__(self, network: Any, settings: AlignmentSettings, dimension: int) -> None:
        super().__init__()
        if not hasattr(network, "predict_with_features"):
            raise InputError(
                f"ldm.alignment needs the features of a DiT: {type(network).__name__} has no method "
                "predict_with_features (ldm.networks.dit.DiT has it)"
            )
        if settings.block > (depth := len(network.blocks)):  # of a network that was loaded by ldm.init_from
            raise InputError(f"ldm.alignment.block={settings.block}: the DiT has {depth} blocks")
        self.network, self.block = network, settings.block
        hidden = settings.hidden_width
        self.projection = nn.Sequential(
            nn.Linear(network.config.width, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, dimension),
        )

    def forward(self, latents: Tensor, time: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """The prediction (b, c, t, h, w), and the projected features (b, n, dimension) of its tokens."""
        prediction, tokens = self.network.predict_with_features(latents, time, condition, self.block)
        return prediction, self.projection(tokens)


def check_not_sharded(accelerator: Accelerator) -> None:
    """Raise InputError under FSDP2: it shards network and projection as one, and validation calls the network alone."""
    if accelerator.is_fsdp2:
        raise InputError("ldm.alignment is not supported under FSDP2 yet: launch with configs/accelerate/ddp.yaml")


class Alignment:
    """The alignment of a network: the module to train, the targets of a batch, and the loss.

    `mean` and `std` (c,) of the training latents denormalize them for the VAE.
    """

    def __init__(
        self,
        settings: AlignmentSettings,
        network: Network,
        encoder: ImageEncoder,
        vae: VideoVAE,
        mean: Tensor,
        std: Tensor,
    ) -> None:
        self.settings, self.network, self.encoder, self.vae = settings, network, encoder, vae
        self.mean, self.std = (value.view(1, -1, 1, 1, 1) for value in (mean, std))
        self.last = torch.zeros((), device=mean.device)  # distance of the last micro-step, for the log

    def trained_module(self, seed: int) -> AlignedNetwork:
        """The network with its projection, whose initial weights are a function of the seed."""
        torch.manual_seed(derive_seed(seed, "alignment"))
        return AlignedNetwork(self.network, self.settings, self.encoder.dimension)

    def losses(self, model: nn.Module, per_sample_loss: SampleLoss, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of each sample, (b,), and its weighted distance to the encoder's features, (b,), in one pass.

        `model` is the AlignedNetwork as it is trained.
        """
        targets = self.targets(batch.latents)
        projected: list[Tensor] = []

        def predict(latents: Tensor, time: Tensor, condition: Condition) -> Tensor:
            prediction, tokens = model(latents, time, condition)
            projected.append(tokens)
            return prediction

        losses = per_sample_loss(predict, batch)
        distances = cosine_distance(projected[-1], targets)
        self.last = distances.detach().mean()
        return losses, self.settings.weight * distances

    @torch.no_grad()
    def targets(self, latents: Tensor) -> Tensor:
        """The encoder's features of normalized latents (b, c, t, h, w), one for each token: (b, n, dimension).

        Samples are decoded one at a time, since a VAE's decoder needs far more memory than the latents.
        """
        vae = self.vae.to(latents.device)
        frames = [frames_at_latents(vae, clip) for clip in (latents * self.std + self.mean).split(1)]
        features = torch.stack([self.encoder(clip[0].transpose(0, 1)) for clip in frames])  # (b, t, d, rows, columns)
        return features_of_tokens(features.float(), self.network.token_grid(latents))


def frames_at_latents(vae: VideoVAE, latents: Tensor) -> Tensor:
    """Decoded frames at the latents' times: latents (b, c, t, h, w) -> (b, 3, t, H, W) in [-1, 1].

    Latent frame k of a causal VAE that compresses time by r ends with frame r*k: the last one that it was made of, and
    the only one of latent frame 0.
    """
    video = vae.decode(latents).sample
    return video[:, :, :: vae.temporal_compression_ratio].clamp(-1, 1)


def features_of_tokens(features: Tensor, grid: Sequence[int]) -> Tensor:
    """Features (b, t, d, rows, columns) of frames at the latents' times, for tokens of `grid` (t', h', w'): (b, n, d).

    Averaged over the latent frames of a token, and resized to the grid bilinearly with antialiasing.
    """
    frames, height, width = grid
    b = len(features)
    features = reduce(features, "b (t pt) d h w -> (b t) d h w", "mean", t=frames)
    if tuple(features.shape[2:]) != (height, width):
        features = F.interpolate(features, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return rearrange(features, "(b t) d h w -> b (t h w) d", b=b)


def cosine_distance(projected: Tensor, targets: Tensor) -> Tensor:
    """1 - cosine similarity, mean over tokens: two (b, n, d) -> (b,). REPA's loss plus 1."""
    return 1 - F.cosine_similarity(projected.float(), targets, dim=-1).mean(dim=1)
