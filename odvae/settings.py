"""Settings of the VAE: the network, what it begins from, its losses, phases and evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field, model_validator

from odvae.clips.settings import DataSettings
from odvae.frame_counts import check_clip_size, check_group
from odvae.running.settings import Settings
from odvae.training.settings import OptimizationSettings

Init = Literal["tail", "average", "random"]
Backbone = Literal["vgg", "alex", "squeeze"]
Mode = Literal["whole", "streamed", "tiled"]


class ModelSettings(Settings):
    variant: Literal[1, 2, 3, 4] = 4
    """Which convolutions see time (paper, section 3.2)."""
    block_out_channels: tuple[int, int, int, int] = (128, 256, 512, 512)
    """Widths of the four levels, from full resolution down."""
    layers_per_block: int = Field(2, ge=1)
    """Residual blocks a level in the encoder; the decoder has one more."""
    latent_channels: int = Field(4, ge=1)
    """Channels of the latents."""
    norm_num_groups: int = Field(32, ge=1)
    """Groups of every group norm."""
    norm: Literal["frame", "clip"] = "frame"
    """Statistics of each frame (causal, streams exactly) or of the whole clip (the released checkpoints' function)."""
    temporal_upsample: Literal["nearest", "trilinear"] = "nearest"
    """How the decoder lengthens time: causal, or as released."""

    @model_validator(mode="after")
    def _widths_fit_the_groups(self) -> ModelSettings:
        for width in self.block_out_channels:
            if width % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels has {width}, which norm_num_groups={self.norm_num_groups} does not divide"
                )
        return self


class ImagePhaseSettings(OptimizationSettings):
    images_per_clip: int = Field(1, ge=1)
    """Frames taken from each decoded clip, spread over it; a micro-step sees batch_size * images_per_clip images.
    More than one saves decoding and costs variety: frames of one clip are nearly the same picture."""


class VideoPhaseSettings(OptimizationSettings):
    frames: int | None = Field(None, ge=2)
    """Frames a training clip, 4k+1; null: data.frames. The model is convolutional in time, so it may train on shorter
    clips than it is used for (the paper trains on 25 and is measured on 33)."""
    image_every: int | None = Field(None, ge=2)
    """Every such step trains on single frames instead of clips, to keep the model a good image VAE; null: none."""
    images_per_step: int = Field(8, ge=1)
    """Single frames each of those steps sees, over all ranks and micro-steps, which must divide it."""


PhaseSettings = ImagePhaseSettings | VideoPhaseSettings
PhaseT = TypeVar("PhaseT", ImagePhaseSettings, VideoPhaseSettings)


class LPIPSSettings(Settings):
    network: Backbone = "vgg"
    """Backbone: "vgg" is usual for training, "alex" for scores. Values of different ones do not compare."""
    weights: str | None = None
    """File with the backbone's ImageNet weights (a torchvision state dict, .pth or .safetensors); null: torchvision's
    own, downloaded once."""


class LPIPSTermSettings(LPIPSSettings):
    weight: float = Field(1.0, ge=0)
    """Weight beside the mean error of a pixel value."""


class GANSettings(Settings):
    weight: float = Field(0.5, gt=0)
    """Weight of the adversarial term, times the adaptive one."""
    adaptive_ceiling: float = Field(1e4, gt=0)
    """The adaptive weight is at most this."""
    start_step: int = Field(0, ge=0)
    """Completed steps of a phase after which it begins."""
    width: int = Field(64, ge=8, multiple_of=8)
    """Channels of the discriminator's first layer; the others have 2, 4 and 8 times as many."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of the discriminator; null: the VAE's. Warm-up and decay are the VAE's."""
    optimizer: str = "adamw"
    """Its optimizer, by timm's name."""
    betas: tuple[float, float] | None = (0.5, 0.9)
    """Decay rates of its optimizer's moments; null: the optimizer's own."""
    lecam: float = Field(0.0, ge=0)
    """Weight of the LeCam term, which keeps the discriminator from running away on little data; VidTok uses it."""


class LossSettings(Settings):
    renamed_keys: ClassVar = {"adversary": "gan"}

    reconstruction: Literal["l1", "l2"] = "l1"
    """Mean absolute or mean squared error of pixels in [-1, 1]."""
    lpips: LPIPSTermSettings | None = LPIPSTermSettings()
    """Perceptual term, a frame; null: none."""
    wavelet: float = Field(0.0, ge=0)
    """Weight of the L1 error of 3D Haar wavelet coefficients (WF-VAE uses 0.1), which weighs fine detail and motion
    as much as the coarse picture."""
    kl: float = Field(2.5e-5, ge=0)
    """Weight of the KL divergence to N(0, 1), which is summed over the latents and divided by the pixel values."""
    gan: GANSettings | None = None
    """3D patch GAN; null: none."""

    def describe(self, pixel_loss: str | None = None) -> str:
        """The terms in a line; `pixel_loss` is the name of what stands in place of `reconstruction`."""
        left_out = [name for name, term in (("LPIPS", self.lpips), ("GAN", self.gan)) if term is None]
        terms = [pixel_loss or self.reconstruction.upper(), f"{self.kl:g} KL"]
        if self.lpips is not None:
            terms.insert(1, f"{self.lpips.weight:g} LPIPS ({self.lpips.network})")
        if self.wavelet:
            terms.append(f"{self.wavelet:g} wavelet L1")
        if self.gan is not None:
            terms.append(f"adaptive * {self.gan.weight:g} GAN from step {self.gan.start_step}")
        return " + ".join(terms) + (f"; without {' and '.join(left_out)}" if left_out else "")


def _unless_pretrained(phase: type[PhaseT]) -> Callable[[dict[str, Any]], PhaseT | None]:
    return lambda given: None if given.get("pretrained") else phase()


class VAESettings(Settings):
    renamed_keys: ClassVar = {"image_vae": "init_image_vae", "begin_from": "init_from"}

    pretrained: str | None = None
    """A trained VAE that is used as it is, and nothing is trained: folder or hub name of a VAE or of a pipeline with
    one (ODVAE, AutoencoderKL, and diffusers' AutoencoderKLWan, -CogVideoX, -HunyuanVideo, -LTXVideo), or a file that
    Open-Sora-Plan published. The other keys say nothing then."""
    model: ModelSettings = ModelSettings()
    """The network."""
    init: Init = "tail"
    """How the video VAE begins: from the image VAE by tail or average initialization, or random."""
    init_image_vae: str | None = None
    """Folder or hub name of the image VAE (diffusers AutoencoderKL) to begin from; null: the image phase trains one."""
    init_from: str | None = None
    """Folder or hub name of an OD-VAE whose weights training goes on from (the paper's second phase), or a file that
    Open-Sora-Plan published. `model` says which function they get."""
    image_phase: ImagePhaseSettings | None = Field(default_factory=_unless_pretrained(ImagePhaseSettings))
    """Training as an image VAE, before; null with init_image_vae or init_from, or with init=random."""
    video_phase: VideoPhaseSettings | None = Field(default_factory=_unless_pretrained(VideoPhaseSettings))
    """Training on clips; null: the image VAE itself is the result, which works frame by frame and does not compress
    time (the baseline of the paper's generation study)."""
    loss: LossSettings = LossSettings()
    """What is minimized, in both phases."""
    validation_clips: int = Field(16, ge=1)
    """Held-out clips that a validation reconstructs."""
    statistics_clips: int = Field(256, ge=2)
    """Training clips over which the latents' mean and standard deviation are measured at the end."""

    @model_validator(mode="after")
    def _there_is_one_place_to_begin_from(self) -> VAESettings:
        sources = {"init_image_vae": self.init_image_vae, "init_from": self.init_from, "image_phase": self.image_phase}
        given = [name for name, source in sources.items() if source is not None]
        if self.pretrained is not None:
            given += ["video_phase"] if self.video_phase is not None else []
            if given:
                raise ValueError(f"pretrained names a VAE that is used as it is; set to null: {', '.join(given)}")
            return self
        if self.init == "random" and given:
            raise ValueError(f"init=random begins from nothing; set to null: {', '.join(given)}")
        if self.init != "random" and len(given) != 1:
            raise ValueError(f"init={self.init} needs exactly one of {', '.join(sources)}; found {given or 'none'}")
        phases = [phase for phase in (self.image_phase, self.video_phase) if phase is not None]
        if len({phase.precision for phase in phases}) > 1:
            raise ValueError(
                "image_phase.precision and video_phase.precision must be the same: one process trains both"
            )
        if self.init_from is not None and self.video_phase is None:
            raise ValueError("init_from names a video VAE; video_phase=null makes an image VAE")
        if self.init == "random" and self.video_phase is None:
            raise ValueError("init=random with video_phase=null leaves nothing to train")
        return self

    @property
    def compression(self) -> tuple[int, int] | None:
        """(temporal, spatial) compression ratio of the VAE that these settings make: an OD-VAE, or an image VAE.

        None: that is up to the pretrained one.
        """
        if self.pretrained is not None:
            return None
        return (1, 8) if self.video_phase is None else (4, 8)


class EvalVAESettings(Settings):
    renamed_section: ClassVar = "reconstruction"
    renamed_keys: ClassVar = {"ways": "modes", "shown": "num_visualized"}

    clips: int = Field(96, ge=1)
    """Held-out clips that are reconstructed and scored (fewer if there are)."""
    batch_size: int = Field(4, ge=1)
    """Clips that are reconstructed at a time."""
    frames: int | None = Field(None, ge=1)
    """Frames a clip, as many as the VAE takes (OD-VAE: 4k+1); null: data.frames. The paper's protocol has 33."""
    latents: Literal["mean", "sample"] = "mean"
    """Decode the posterior's mean, or a sample of it."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of encoding and decoding; scores are computed in fp32 or better."""
    lpips: LPIPSSettings | None = LPIPSSettings(network="alex")
    """LPIPS; null: not measured."""
    modes: tuple[Mode, ...] = ("streamed", "tiled")
    """What is compared with whole clips: chunks that stream through, the paper's temporal tiling."""
    compared_clips: int = Field(4, ge=1)
    """Clips on which the modes are compared and timed."""
    chunk: int = Field(4, ge=1)
    """Frames a chunk when streaming."""
    tile_frames: int = Field(9, ge=2)
    """Frames a group when tiling, 4m+1 (the paper's: 33)."""
    num_visualized: int = Field(12, ge=1)
    """Clips that are kept as videos for the report page."""

    def clip_settings(self, data: DataSettings) -> DataSettings:
        """`data` with the length of the clips that are scored."""
        return data if self.frames is None else data.model_copy(update={"frames": self.frames})

    def check_sizes(self, data: DataSettings, ratios: tuple[int, int], tiled: bool) -> None:
        """Raise InputError for clips, or groups of frames when tiling, that a VAE with these ratios does not take."""
        clip = self.clip_settings(data)
        check_clip_size(clip.frames, clip.height, clip.width, ratios, "data" if self.frames is None else "eval_vae")
        if tiled and "tiled" in self.modes:
            check_group(self.tile_frames, ratios[0], "eval_vae.tile_frames")
