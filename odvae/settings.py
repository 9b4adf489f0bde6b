"""Settings of the VAE: network, initial weights, losses, training phases and evaluation."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from odvae.architecture.frame_counts import check_clip_size, check_tile_frames
from odvae.architecture.settings import ModelSettings
from odvae.clips.settings import DataSettings
from odvae.regularizers.settings import RegularizerSettings
from odvae.running.resume_check import MayChange
from odvae.running.settings import Settings
from odvae.training.settings import OptimizationSettings

Init = Literal["tail", "average", "random"]
Backbone = Literal["vgg", "alex", "squeeze"]
Mode = Literal["whole", "streamed", "tiled"]


class ImagePhaseSettings(OptimizationSettings):
    images_per_clip: int = Field(1, ge=1)
    """Frames taken from each decoded clip, evenly spread; a micro-step has batch_size * images_per_clip images.
    Values above 1 save decoding time but reduce variety, since frames of one clip are similar."""


class VideoPhaseSettings(OptimizationSettings):
    frames: int | None = Field(None, ge=2)
    """Frames per training clip, a number that the VAE accepts (at 4x: 4k+1); null: data.frames. The model is
    convolutional in time, so it can be trained on shorter clips than it is used for (the paper trains on 25 frames and
    evaluates on 33)."""
    image_every: int | None = Field(None, ge=2)
    """Every image_every-th step trains on single frames instead of clips, so that the model stays a good image VAE;
    null: no such steps."""
    images_per_step: int = Field(8, ge=1)
    """Single frames in each of those steps, in total; must be divisible by the number of ranks times micro-steps."""


PhaseSettings = ImagePhaseSettings | VideoPhaseSettings


class LPIPSSettings(Settings):
    network: Backbone = "vgg"
    """Backbone: "vgg" is usual for training, "alex" for scores. Values of different backbones are not comparable."""
    weights: str | None = None
    """File with the backbone's ImageNet weights (a torchvision state dict, .pth or .safetensors); null: torchvision's
    weights, downloaded once."""


class LPIPSTermSettings(LPIPSSettings):
    weight: float = Field(1.0, ge=0)
    """Weight of LPIPS, relative to the pixels' mean error."""


class GANSettings(Settings):
    weight: float = Field(0.5, gt=0)
    """Weight of the generator loss; multiplied by the adaptive weight."""
    adaptive_ceiling: float | None = Field(None, gt=0)
    """Maximum of the adaptive weight; null: the paper's 1e4, which holds for losses summed over the 3 H W values of a
    frame, in the units of the means that are used here: 1e4 / (3 H W), 0.051 at 256x256."""
    start_step: int = Field(0, ge=0)
    """Completed steps of a phase after which the GAN starts."""
    width: int = Field(64, ge=8, multiple_of=8)
    """Channels of the discriminator's first layer; the others have 2, 4 and 8 times as many."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of the discriminator; null: the VAE's. Warm-up and decay are the VAE's."""
    optimizer: str = "adamw"
    """Optimizer of the discriminator: a name known to timm's create_optimizer_v2."""
    betas: tuple[float, float] | None = (0.5, 0.9)
    """Betas of the discriminator's optimizer; null: the optimizer's defaults."""
    lecam: float = Field(0.0, ge=0)
    """Weight of LeCam regularization, which stabilizes the discriminator on small data sets (used by VidTok)."""


class LossSettings(Settings):
    renamed_keys: ClassVar[dict[str, str]] = {"adversary": "gan"}

    reconstruction: Literal["l1", "l2"] = "l1"
    """Mean absolute or mean squared error of pixels in [-1, 1]."""
    lpips: LPIPSTermSettings | None = LPIPSTermSettings()
    """LPIPS, averaged over frames; null: none."""
    wavelet: float = Field(0.0, ge=0)
    """Weight of the L1 error of 3D Haar wavelet coefficients (WF-VAE uses 0.1), in which fine detail and motion count
    as much as low frequencies."""
    kl: float = Field(2.5e-5, ge=0)
    """Weight of the KL divergence to N(0, 1), summed over all latents and divided by the number of pixel values."""
    gan: GANSettings | None = None
    """3D PatchGAN; null: none."""

    def describe(self, pixel_loss: str | None = None) -> str:
        """The terms and their weights in one line; `pixel_loss` names the function that replaces `reconstruction`."""
        left_out = [name for name, term in (("LPIPS", self.lpips), ("GAN", self.gan)) if term is None]
        terms = [pixel_loss or self.reconstruction.upper(), f"{self.kl:g} KL"]
        if self.lpips is not None:
            terms.insert(1, f"{self.lpips.weight:g} LPIPS ({self.lpips.network})")
        if self.wavelet:
            terms.append(f"{self.wavelet:g} wavelet L1")
        if self.gan is not None:
            terms.append(f"adaptive * {self.gan.weight:g} GAN from step {self.gan.start_step}")
        return " + ".join(terms) + (f"; without {' and '.join(left_out)}" if left_out else "")


class VAESettings(Settings):
    renamed_keys: ClassVar[dict[str, str]] = {"image_vae": "init_image_vae", "begin_from": "init_from"}

    pretrained: str | None = None
    """A pretrained VAE that is used without training: folder or hub name of a VAE or of a pipeline with one (ODVAE,
    AutoencoderKL, and diffusers' AutoencoderKLWan, -CogVideoX, -HunyuanVideo, -LTXVideo), or a checkpoint file
    published by Open-Sora-Plan. image_phase and video_phase then count as null; init_image_vae and init_from must be
    null."""
    model: ModelSettings = ModelSettings()
    """The network."""
    init: Init = "tail"
    """Initialization of the video VAE: "tail" or "average" inflate the image VAE, "random" is from scratch."""
    init_image_vae: str | None = None
    """The image VAE (diffusers' AutoencoderKL) that is inflated: folder, hub name, or a single file in the format of
    latent-diffusion; null: the image phase trains one. `model` must match its sizes, and may compress space more
    (docs/rates.md)."""
    init_from: str | None = None
    """OD-VAE whose weights training continues from (the paper's second phase): folder, hub name, or a checkpoint file
    published by Open-Sora-Plan. `model` must match its sizes, and may have a higher rate (docs/rates.md)."""
    image_phase: ImagePhaseSettings | None = ImagePhaseSettings()
    """First phase, the training of the image VAE; must be null if init_image_vae or
    init_from is set, or with init=random."""
    video_phase: VideoPhaseSettings | None = VideoPhaseSettings()
    """Second phase, training on clips; null: the result is the image VAE, which works frame by frame and does not
    compress time (the baseline of the paper's generation study)."""
    loss: LossSettings = LossSettings()
    """Loss of both phases."""
    regularizers: RegularizerSettings | None = None
    """Regularizers of the latents in both phases, for latents that a diffusion model learns from more easily
    (docs/regularizers.md); null: none."""
    peak_tflops: Annotated[float | None, MayChange] = Field(None, gt=0)
    """Published peak of one device, TFLOP/s, as `ldm.peak_tflops`."""
    validation_clips: int = Field(16, ge=1)
    """Held-out clips that each validation reconstructs."""
    statistics_clips: int = Field(256, ge=2)
    """Training clips from which the latents' mean and standard deviation are measured at the end."""

    @field_validator("image_phase", "video_phase")
    @classmethod
    def _a_pretrained_vae_is_not_trained(
        cls, phase: PhaseSettings | None, info: ValidationInfo
    ) -> PhaseSettings | None:
        return phase if info.data.get("pretrained") is None else None

    @model_validator(mode="after")
    def _one_source_of_initial_weights(self) -> VAESettings:
        sources = {"init_image_vae": self.init_image_vae, "init_from": self.init_from, "image_phase": self.image_phase}
        given = [name for name, source in sources.items() if source is not None]
        if self.pretrained is not None:
            if given:
                raise ValueError(
                    f"pretrained (a VAE that is used as it is) and {given[0]} (one that is trained) are both set; "
                    "set one of them to null"
                )
            return self
        if self.init == "random" and given:
            raise ValueError(f"init=random starts from random weights; set to null: {', '.join(given)}")
        if self.init != "random" and len(given) != 1:
            raise ValueError(f"init={self.init} needs exactly one of {', '.join(sources)}; found {given or 'none'}")
        phases = [phase for phase in (self.image_phase, self.video_phase) if phase is not None]
        if len({phase.precision for phase in phases}) > 1:
            raise ValueError(
                "image_phase.precision and video_phase.precision must be the same: one process trains both"
            )
        if self.init_from is not None and self.video_phase is None:
            raise ValueError("init_from names a video VAE, but video_phase=null trains only an image VAE")
        if self.init == "random" and self.video_phase is None:
            raise ValueError("init=random with video_phase=null leaves nothing to train")
        return self

    @model_validator(mode="after")
    def _regularizers_fit_the_latents(self) -> VAESettings:
        correlated = self.regularizers is not None and self.regularizers.local_correlation is not None
        if correlated and self.model.latent_channels < 2:
            raise ValueError("regularizers.local_correlation needs at least two latent_channels to correlate, found 1")
        scaled = self.regularizers is not None and self.regularizers.equivariance is not None
        if scaled and any(phase.compile for phase in (self.image_phase, self.video_phase) if phase is not None):
            raise ValueError(
                "regularizers.equivariance changes the latents' size from step to step, and each size would be "
                "compiled anew: set compile=false, or equivariance=null"
            )
        return self

    @model_validator(mode="after")
    def _the_image_vae_has_the_rate_in_space(self) -> VAESettings:
        trains_image_vae = self.pretrained is None and self.image_phase is not None
        if trains_image_vae and not all(self.model.halvings.space):
            raise ValueError(
                "the image phase trains an image VAE, which halves space after each level but the last: "
                f"{len(self.model.block_out_channels)} levels (vae.model.block_out_channels) give "
                f"{2 ** (len(self.model.block_out_channels) - 1)}x, but vae.model.spatial_compression_ratio="
                f"{self.model.spatial_compression_ratio}; choose other widths, or init=random without image_phase"
            )
        return self

    @property
    def compression(self) -> tuple[int, int] | None:
        """(temporal, spatial) compression ratio of the trained VAE, an OD-VAE or an image VAE.

        None with `pretrained`: known only after the VAE is loaded.
        """
        if self.pretrained is not None:
            return None
        if self.video_phase is None:
            return 1, 2 ** (len(self.model.block_out_channels) - 1)
        return self.model.halvings.ratios


class EvalVAESettings(Settings):
    renamed_section: ClassVar[str] = "reconstruction"
    renamed_keys: ClassVar[dict[str, str]] = {"ways": "modes", "shown": "num_visualized"}

    clips: int = Field(96, ge=1)
    """Held-out clips that are reconstructed and scored; all, if there are fewer."""
    batch_size: int = Field(4, ge=1)
    """Clips that are reconstructed at a time."""
    frames: int | None = Field(None, ge=1)
    """Frames per clip, a number that the VAE accepts (at 4x: 4k+1); null: data.frames. The paper uses 33."""
    latents: Literal["mean", "sample"] = "mean"
    """Decode the posterior's mean, or a sample of the posterior."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of encoding and decoding; scores are computed in fp32 or higher."""
    lpips: LPIPSSettings | None = LPIPSSettings(network="alex")
    """LPIPS; null: not measured."""
    modes: tuple[Mode, ...] = ("streamed", "tiled")
    """Modes that are compared with whole clips: streaming in chunks, the paper's temporal tiling."""
    compared_clips: int = Field(4, ge=1)
    """Clips on which the modes are compared and timed."""
    chunk: int = Field(4, ge=1)
    """Frames per chunk in streaming."""
    tile_frames: int = Field(9, ge=2)
    """Frames per temporal tile, a multiple of the temporal compression ratio plus one (the paper uses 33)."""
    motion_threshold: float = Field(8.0, ge=0)
    """8-bit levels by which a pixel must differ from the frame before to count in the error on moving pixels."""
    noise_levels: tuple[float, ...] = (0.1, 0.2, 0.5)
    """Noise that is added to latents before decoding, in units of the channel's standard deviation; the drop in PSNR is
    measured on `compared_clips`."""
    num_visualized: int = Field(12, ge=1)
    """Clips saved as videos for the report page."""

    def clip_settings(self, data: DataSettings) -> DataSettings:
        """`data` with the length of the clips that are scored."""
        return data if self.frames is None else data.model_copy(update={"frames": self.frames})

    def check_sizes(self, data: DataSettings, ratios: tuple[int, int], tiled: bool) -> None:
        """Raise InputError for a clip size that a VAE with these compression ratios does not accept.

        With `tiled`, the VAE supports temporal tiling and the tile length is checked too.
        """
        clip = self.clip_settings(data)
        check_clip_size(clip.frames, clip.height, clip.width, ratios, "data" if self.frames is None else "eval_vae")
        if tiled and "tiled" in self.modes:
            check_tile_frames(self.tile_frames, ratios[0], "eval_vae.tile_frames")
