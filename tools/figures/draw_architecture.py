"""Draw OD-VAE: which convolutions are temporal, the resolution of each level, and what 4k+1 -> k+1 frames means.

    python tools/figures/draw_architecture.py                            # variant 4, into docs/architecture.svg
    python tools/figures/draw_architecture.py --variant 1 --out one.png  # any variant, any format of matplotlib

Every colored bar is one convolution of `odvae.ODVAE`, taken from the model itself; 1x1 convolutions are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Polygon, Rectangle
from torch import nn

from ldm.arguments import CommandParser
from odvae import ODVAE
from odvae.architecture.encoder_decoder import TEMPORAL_CONVS
from odvae.architecture.layers import CausalConv3d
from odvae.running.errors import readable_errors

WIDTH, HEIGHT = 864, 550  # points: at the width of a README, one is about a pixel
FRAME_BY_FRAME, CAUSAL, ATTENTION = "#6ea8dc", "#f0994d", "#9aa5b1"
INK, SOFT, PAPER, LINE = "#1f2933", "#5b6672", "#ffffff", "#c3cad3"
BAR = 9  # width of a convolution
# The columns, from left to right; encoder and decoder share them. Centers.
VIDEO_X, IN_X, LEVEL_X, MIDDLE_X, OUT_X, LATENTS_X = 60, 128, (194, 334, 464, 590), 678, 738, 800
LEVEL_HEIGHT = (96, 78, 60, 42)
ENCODER_Y, DECODER_Y = 398, 252
FRAMES_Y, LATENTS_Y = 112, 58  # of the lower picture

Blocks = list[tuple[bool, bool]]  # for each residual block, whether its first and second convolution are temporal


@dataclass(frozen=True)
class Sampler:
    """The convolution between two levels."""

    temporal: bool
    changes_time: bool


@dataclass(frozen=True)
class Half:
    """An encoder or a decoder: whether each convolution is temporal. Levels are ordered from full resolution down."""

    first: bool
    last: bool
    levels: list[Blocks]
    samplers: list[Sampler]
    middle: Blocks
    widths: list[int]  # channels of each level


def describe_encoder(vae: ODVAE) -> Half:
    samplers = [level.downsamplers[0] for level in vae.encoder.down_blocks[:-1]]
    changes = [Sampler(is_temporal(layer.conv), layer.halves_time) for layer in samplers]
    return _describe(vae.encoder, list(vae.encoder.down_blocks), changes)


def describe_decoder(vae: ODVAE) -> Half:
    levels = list(reversed(vae.decoder.up_blocks))
    samplers = [level.upsamplers[0] for level in levels[1:]]
    changes = [Sampler(is_temporal(layer.conv), layer.doubles_time) for layer in samplers]
    return _describe(vae.decoder, levels, changes)


def _describe(half: nn.Module, levels: list[nn.Module], samplers: list[Sampler]) -> Half:
    def blocks(part: nn.Module) -> Blocks:
        return [(is_temporal(block.conv1), is_temporal(block.conv2)) for block in part.resnets]

    return Half(
        first=is_temporal(half.conv_in),
        last=is_temporal(half.conv_out),
        levels=[blocks(level) for level in levels],
        samplers=samplers,
        middle=blocks(half.mid_block),
        widths=[level.resnets[-1].conv2.out_channels for level in levels],
    )


def is_temporal(conv: nn.Module) -> bool:
    return isinstance(conv, CausalConv3d)


def draw(vae: ODVAE) -> Figure:
    """The whole figure: the model above, the meaning of 4k+1 -> k+1 below."""
    figure = plt.figure(figsize=(WIDTH / 72, HEIGHT / 72), facecolor="none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.axis("off")
    card = FancyBboxPatch((5, 5), WIDTH - 10, HEIGHT - 10, boxstyle="round,pad=0,rounding_size=10")
    card.set(facecolor=PAPER, edgecolor=LINE)  # it is read on a dark page as well
    axes.add_patch(card)
    encoder, decoder = describe_encoder(vae), describe_decoder(vae)
    _draw_header(axes, encoder.widths, vae.config.variant)
    _draw_half(axes, encoder, ENCODER_Y, encodes=True)
    _draw_half(axes, decoder, DECODER_Y, encodes=False)
    _text(axes, MIDDLE_X + 40, DECODER_Y - 46, "two bars together: one residual block", color=SOFT)
    _draw_latents(axes, vae.config.latent_channels)
    axes.plot((28, WIDTH - 28), (180, 180), color=LINE, linewidth=1)
    _draw_frames_and_latents(axes)
    return figure


def _color(temporal: bool) -> str:
    return CAUSAL if temporal else FRAME_BY_FRAME


def _text(axes: Axes, x: float, y: float, text: str, size: float = 11, **style) -> None:
    axes.text(x, y, text, fontsize=size, **({"ha": "center", "va": "center", "color": INK} | style))


def _draw_header(axes: Axes, widths: list[int], variant: int) -> None:
    _text(axes, 28, HEIGHT - 30, f"OD-VAE, variant {variant}", 14, ha="left", weight="bold")
    legend = (
        (222, FRAME_BY_FRAME, "2D convolution: one frame"),
        (411, CAUSAL, "3D causal: a frame and the two before it"),
        (678, ATTENTION, "attention within a frame"),
    )
    for x, fill, label in legend:
        axes.add_patch(Rectangle((x, HEIGHT - 36), BAR, 12, facecolor=fill))
        _text(axes, x + 14, HEIGHT - 30, label, ha="left")
    sizes = ("h × w", "h/2 × w/2", "h/4 × w/4", "h/8 × w/8")
    frames = ("4k+1 frames", "4k+1 frames", "2k+1 frames", "k+1 frames")
    for x, size, count, channels in zip(LEVEL_X, sizes, frames, widths, strict=True):
        _text(axes, x, HEIGHT - 58, size, weight="bold")
        _text(axes, x, HEIGHT - 73, count)
        _text(axes, x, HEIGHT - 88, f"{channels} channels", color=SOFT)


def _draw_half(axes: Axes, half: Half, y: float, encodes: bool) -> None:
    """One half as a row of parts, and an arrow from each part to the next."""
    _text(axes, VIDEO_X, y + 62, "encoder" if encodes else "decoder", 12, weight="bold")
    at_pixels, at_latents = (half.first, half.last) if encodes else (half.last, half.first)
    parts = [
        _draw_video(axes, y, "video" if encodes else "reconstruction"),
        _draw_conv(axes, IN_X, y, LEVEL_HEIGHT[0], at_pixels),
    ]
    for i, blocks in enumerate(half.levels):
        parts.append(_draw_blocks(axes, LEVEL_X[i], y, LEVEL_HEIGHT[i], blocks))
        if i < len(half.samplers):
            parts.append(_draw_sampler(axes, i, y, half.samplers[i], encodes))
    parts += [
        _draw_middle(axes, y, half.middle),
        _draw_conv(axes, OUT_X, y, LEVEL_HEIGHT[3], at_latents),
        (LATENTS_X - 29, LATENTS_X + 29),
    ]
    for (_, left), (right, _) in pairwise(parts):
        start, end = (left, right) if encodes else (right, left)
        arrow = {"arrowstyle": "->", "color": SOFT, "shrinkA": 2, "shrinkB": 2}
        axes.annotate("", (end, y), (start, y), arrowprops=arrow)


def _draw_conv(axes: Axes, x: float, y: float, height: float, temporal: bool) -> tuple[float, float]:
    axes.add_patch(Rectangle((x - BAR / 2, y - height / 2), BAR, height, facecolor=_color(temporal)))
    return x - BAR / 2, x + BAR / 2


def _draw_blocks(axes: Axes, x: float, y: float, height: float, blocks: Blocks) -> tuple[float, float]:
    """Residual blocks of two convolutions each, centered at x."""
    pair, gap = 2 * BAR + 1, 7
    width = len(blocks) * pair + (len(blocks) - 1) * gap
    for i, (first, second) in enumerate(blocks):
        left = x - width / 2 + i * (pair + gap)
        _draw_conv(axes, left + BAR / 2, y, height, first)
        _draw_conv(axes, left + BAR * 1.5 + 1, y, height, second)
    return x - width / 2, x + width / 2


def _draw_middle(axes: Axes, y: float, blocks: Blocks) -> tuple[float, float]:
    """The residual blocks at the lowest resolution, and the attention between them."""
    left, right = (_draw_blocks(axes, MIDDLE_X + side * 20, y, LEVEL_HEIGHT[3], [block])
                   for side, block in zip((-1, 1), blocks, strict=True))  # fmt: skip
    axes.add_patch(Rectangle((MIDDLE_X - BAR / 2, y - 21), BAR, 42, facecolor=ATTENTION))
    return left[0], right[1]


def _draw_sampler(axes: Axes, i: int, y: float, sampler: Sampler, encodes: bool) -> tuple[float, float]:
    """The change of resolution between levels i and i + 1."""
    x = (LEVEL_X[i] + LEVEL_X[i + 1]) / 2 + 2
    large, small = LEVEL_HEIGHT[i] / 2, LEVEL_HEIGHT[i + 1] / 2
    corners = [(x - 8, y - large), (x - 8, y + large), (x + 8, y + small), (x + 8, y - small)]
    axes.add_patch(Polygon(corners, facecolor=_color(sampler.temporal)))
    sign, changed = "÷" if encodes else "×", "t, h, w" if sampler.changes_time else "h, w"
    _text(axes, x, y - large - 9, f"{changed} {sign} 2")
    return x - 8, x + 8


def _draw_video(axes: Axes, y: float, label: str) -> tuple[float, float]:
    """A pile of frames."""
    for i in (2, 1, 0):
        _draw_frame(axes, VIDEO_X - 4 + 5 * i, y + 5 * i - 4, 44, 0.3 + 0.12 * i)
    _text(axes, VIDEO_X, y - 38, label)
    _text(axes, VIDEO_X, y - 52, "4k+1 frames", color=SOFT)
    return VIDEO_X - 26, VIDEO_X + 30


def _draw_frame(axes: Axes, x: float, y: float, size: float, progress: float) -> None:
    """A frame of a small clip in which a ball rises: `progress` 0 is its first frame, 1 its last."""
    frame = Rectangle((x - size / 2, y - size / 2), size, size, facecolor="#e8ecf1", edgecolor=SOFT, linewidth=0.9)
    axes.add_patch(frame)
    ball = (x + size * (0.56 * progress - 0.28), y + size * (0.5 * progress - 0.25))
    axes.add_patch(Circle(ball, 0.13 * size, facecolor="#d64545"))


def _draw_latents(axes: Axes, channels: int) -> None:
    """What stands between encoder and decoder."""
    top, bottom = ENCODER_Y + 26, DECODER_Y - 26
    box = FancyBboxPatch((LATENTS_X - 29, bottom), 58, top - bottom, boxstyle="round,pad=0,rounding_size=6")
    box.set(facecolor="#eef7ee", edgecolor="#5a9a5f")
    axes.add_patch(box)
    lines = ("latents", "", "k+1", "frames", "", "h/8", "× w/8", "", str(channels), "channels")
    for i, line in enumerate(lines):
        _text(axes, LATENTS_X, (top + bottom) / 2 + 68 - 15 * i, line, 10.5, weight="bold" if i == 0 else "normal")


def _draw_frames_and_latents(axes: Axes, k: int = 3, size: float = 38) -> None:
    """The first frame alone, the others in groups of four; each group becomes one latent frame."""
    left, near, apart = 156, 5, 20
    _text(axes, 28, FRAMES_Y, f"4k+1 frames, k = {k}", ha="left")
    _text(axes, 28, LATENTS_Y, "k+1 latents", ha="left")
    x = float(left)
    for group in range(k + 1):
        members = range(1) if group == 0 else range(4 * group - 3, 4 * group + 1)
        begin = x
        for frame in members:
            _draw_frame(axes, x + size / 2, FRAMES_Y, size, frame / (4 * k))
            _text(axes, x + size / 2, FRAMES_Y + size / 2 + 8, str(frame), 10, color=SOFT)
            x += size + near
        end = x - near
        center, foot, head = (begin + end) / 2, LATENTS_Y + 12, FRAMES_Y - size / 2 - 3
        corners = [(begin, head), (end, head), (center + 12, foot), (center - 12, foot)]
        axes.add_patch(Polygon(corners, facecolor="#eef7ee", edgecolor="none"))
        axes.add_patch(Rectangle((center - 12, LATENTS_Y - 12), 24, 24, facecolor="#a9d3ac", edgecolor="#5a9a5f"))
        _text(axes, center, LATENTS_Y, str(group))
        x = end + apart
    first = "The first frame is compressed in space alone, the others also four to one in time"
    _text(axes, WIDTH / 2, 161, f"{first}: an image is a video of one frame.")
    _text(axes, WIDTH / 2, 29, "Causal: latent 2 is computed from frames 0 to 8 and from no later frame.")


def main() -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("--variant", type=int, default=4, choices=TEMPORAL_CONVS, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("docs/architecture.svg"), help="default: %(default)s")
    options = parser.parse()
    with torch.device("meta"):
        vae = ODVAE(variant=options.variant)
    figure = draw(vae)
    # Letters as outlines need no font; without salt and date the same picture is the same file.
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "odvae"}):
        metadata = {"Date": None} if options.out.suffix == ".svg" else None
        figure.savefig(options.out, dpi=144, metadata=metadata)
    print(f"output: {options.out}")


if __name__ == "__main__":
    with readable_errors():
        main()
