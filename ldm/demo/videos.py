"""Captioned demo videos: one colored shape crossing a gray textured background, rendered from a seed.

Color, shape and motion of a caption can be measured in the clip (`ldm.demo.judge`), so the prompt accuracy of a
text-to-video model trained on these clips is exact. `UNSEEN` combinations are held out from training; they test whether
the model has learned the words or only their combinations.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from odvae.running.errors import InputError
from odvae.running.files import atomic_folder
from odvae.video.video_io import write_video

SHAPES = ("circle", "square", "triangle")
COLORS = ("red", "yellow", "green", "cyan", "blue", "magenta")  # hue = 60 degrees x position
SIZES = ("small", "large")
MOTIONS = ("left", "right", "up", "down")
DIAGONALLY = "diagonally"  # right and down: a motion to learn by fine-tuning, which the demo's videos do not have
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), DIAGONALLY: (1, 1)}  # (x, y), y down

COMBINATIONS = tuple((s, c, m) for s in SHAPES for c in COLORS for m in MOTIONS)
# n % 3 and n % 4 give every (shape, motion) pair once for n = 0..11; n // 2 gives each color two of them.
UNSEEN = frozenset((SHAPES[n % 3], COLORS[n // 2], MOTIONS[n % 4]) for n in range(12))
SEEN = frozenset(COMBINATIONS) - UNSEEN
DIAGONAL = frozenset((s, c, DIAGONALLY) for s in SHAPES for c in COLORS)

RADIUS = {"small": (0.19, 0.21), "large": (0.245, 0.265)}  # of the width
TRAVEL = (0.30, 0.40)  # of the width, over the whole clip
MARGIN = 0.01  # of the width, kept free between the shape and the frame's border
HUE_JITTER = 5.0  # degrees either way; a color's name would change at 30
SMALLEST_SIZE = 32
MANIFEST = "demo_videos.json"

# All three shapes have the area of a circle with the same radius, so the shape cannot be inferred from the area.
SQUARE_HALF_SIDE = math.sqrt(math.pi) / 2
TRIANGLE_HEIGHT = math.sqrt(2 * math.pi)  # and base: a triangle as wide as high has the most room to move


@dataclass(frozen=True)
class Scene:
    """Content of a clip, in the words of the captions' vocabulary."""

    shape: str
    color: str
    size: str
    motion: str

    @property
    def caption(self) -> str:
        return f"a {self.size} {self.color} {self.shape} moves {self.motion}"


def parse_caption(text: str) -> Scene:
    """The scene that a caption describes: the inverse of `Scene.caption`.

    Raises InputError (a ValueError) with the allowed words for any other text.
    """
    words = text.split()
    if len(words) == 6:
        article, size, color, shape, verb, motion = words
        known = size in SIZES and color in COLORS and shape in SHAPES and motion in DIRECTIONS
        if known and article == "a" and verb == "moves":
            return Scene(shape, color, size, motion)
    raise InputError(
        f"cannot read the caption {text!r}: expected 'a SIZE COLOR SHAPE moves MOTION' with "
        f"SIZE in {SIZES}, COLOR in {COLORS}, SHAPE in {SHAPES}, MOTION in {tuple(DIRECTIONS)}"
    )


def distance_to_shape(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance of points to the shape's outline, in the units of x and y, negative inside.

    The shape's centroid is the origin, y points down, and its area is that of a circle of `radius`. Near a corner the
    distance is to the line of the nearest side, so that corners stay sharp.
    """
    if shape == "circle":
        return np.sqrt(x * x + y * y) - radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - SQUARE_HALF_SIDE * radius
    if shape == "triangle":  # point up, base level
        height = TRIANGLE_HEIGHT * radius
        return np.maximum((2 * np.abs(x) - y - 2 / 3 * height) / math.sqrt(5), y - height / 3)
    raise ValueError(f"unknown shape {shape!r}: expected one of {SHAPES}")


def shape_extent(shape: str) -> tuple[float, float, float]:
    """How far the shape reaches from its centroid, in radii: to either side, upwards, downwards."""
    if shape == "circle":
        return 1.0, 1.0, 1.0
    if shape == "square":
        return SQUARE_HALF_SIDE, SQUARE_HALF_SIDE, SQUARE_HALF_SIDE
    return TRIANGLE_HEIGHT / 2, TRIANGLE_HEIGHT * 2 / 3, TRIANGLE_HEIGHT / 3


def render(scene: Scene, seed: int | Sequence[int], frames: int = 17, size: int = 48) -> np.ndarray:
    """Render a scene as uint8 (frames, size, size, 3): a pure function of the arguments.

    The shape moves by `TRAVEL` of the width at constant speed, from the first frame to the last, and stays within the
    frame. The seed determines its path, radius and tone, and the background, whatever `frames` and `size` are: another
    resolution gives the same clip. Raises InputError for too few frames or pixels.
    """
    if frames < 2 or size < SMALLEST_SIZE:
        raise InputError(
            f"cannot render {frames} frames of {size} px: at least 2 frames of {SMALLEST_SIZE} px are needed"
        )
    rng = np.random.default_rng(seed)
    radius = rng.uniform(*RADIUS[scene.size])
    (x0, y0), (x1, y1) = _draw_path(scene, radius, rng)
    color = _draw_color(scene.color, rng)
    gray, tint = _draw_background(rng, size)

    progress = np.linspace(0, 1, frames, dtype=np.float32)[:, None, None]  # (t, 1, 1)
    pixels = (np.arange(size, dtype=np.float32) + 0.5) / size
    x = pixels[None, None, :] - (x0 + (x1 - x0) * progress)  # (t, 1, w)
    y = pixels[None, :, None] - (y0 + (y1 - y0) * progress)  # (t, h, 1)
    # A pixel's coverage falls from 1 to 0 over one pixel across the outline: antialiasing.
    coverage = np.clip(0.5 - size * distance_to_shape(scene.shape, x, y, radius), 0, 1)  # (t, h, w)

    video = np.empty((frames, size, size, 3), np.uint8)
    for channel in range(3):
        ground = gray * tint[channel]
        video[..., channel] = 255 * (ground + coverage * (color[channel] - ground)) + 0.5
    return video


def _draw_path(scene: Scene, radius: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The centroid's first and last position, (x, y) in widths."""
    side, up, down = (MARGIN + radius * reach for reach in shape_extent(scene.shape))
    low, high = np.array([side, up]), np.array([1 - side, 1 - down])
    direction = np.array(DIRECTIONS[scene.motion])
    room = (high - low)[direction != 0].min()  # for a large triangle, less than the longest travel
    travel = direction * rng.uniform(TRAVEL[0], min(TRAVEL[1], room))
    start: np.ndarray = rng.uniform(low - np.minimum(travel, 0), high - np.maximum(travel, 0))
    return start, start + travel


def _draw_color(name: str, rng: np.random.Generator) -> np.ndarray:
    """A saturated RGB tone, (3,) in 0..1, whose hue is within `HUE_JITTER` of the name's."""
    hue = 60.0 * COLORS.index(name) + rng.uniform(-HUE_JITTER, HUE_JITTER)
    saturation, value = rng.uniform(0.85, 0.97), rng.uniform(0.88, 1.0)
    distance = np.abs((hue - np.array([0.0, 120.0, 240.0]) + 180) % 360 - 180)  # to red, green, blue
    return value * (1 - saturation * (1 - np.clip(2 - distance / 60, 0, 1)))


def _draw_background(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A static texture: gray values (h, w) in 0..1 and a slight tint (3,) to multiply them by; saturation under .1.

    Two low-contrast waves on a gradient: enough that a model has to generate it, little enough that the captions matter
    more.
    """
    waves = 2
    angle, cycles = rng.uniform(0, 2 * np.pi, waves), rng.uniform(0.4, 1.4, waves)
    phase, amplitude = rng.uniform(0, 2 * np.pi, waves), rng.uniform(0.015, 0.035, waves)
    slope = rng.uniform(-0.06, 0.06, 2)
    base = rng.uniform(0.42, 0.56)
    tint = 1 + rng.uniform(-0.03, 0.03, 3)

    position = (np.arange(size) + 0.5) / size - 0.5
    along = np.cos(angle)[:, None, None] * position + np.sin(angle)[:, None, None] * position[:, None]  # (waves, h, w)
    wave = amplitude[:, None, None] * np.cos(2 * np.pi * cycles[:, None, None] * along + phase[:, None, None])
    gray = base + 2 * slope[0] * position + 2 * slope[1] * position[:, None] + wave.sum(axis=0)
    return gray.astype(np.float32), tint.astype(np.float32)


def training_scenes(count: int, seed: int, diagonal: float = 0.0) -> list[Scene]:
    """`count` scenes of SEEN combinations, shuffled and balanced as in `_balanced_scenes`.

    A share `diagonal` of them are of DIAGONAL combinations instead, in between.
    """
    new = round(count * diagonal)
    scenes = _balanced_scenes(SEEN, count - new, seed)
    if not new:
        return scenes
    scenes += _balanced_scenes(DIAGONAL, new, seed)
    return [scenes[i] for i in np.random.default_rng(seed).permutation(count)]


def prompts(count: int, seed: int, unseen: bool) -> list[str]:
    """`count` captions of UNSEEN or of SEEN combinations as prompts, shuffled and balanced."""
    return [scene.caption for scene in _balanced_scenes(UNSEEN if unseen else SEEN, count, seed)]


def _balanced_scenes(combinations: Iterable[tuple[str, str, str]], count: int, seed: int) -> list[Scene]:
    """Scenes in random order, a function of the seed. Sizes alternate, all combinations come once before any
    comes twice, and each comes in both sizes before any comes a third time. A shorter list is a prefix."""
    pool = sorted(combinations)  # sets are not ordered
    rng = np.random.default_rng(seed)
    scenes: list[Scene] = []
    while len(scenes) < count:
        first, second = rng.permutation(len(pool)).reshape(2, -1)
        for small, large in ((first, second), (second, first)):
            for pair in zip(rng.permutation(small), rng.permutation(large), strict=True):
                for i, size in zip(pair, SIZES, strict=True):
                    shape, color, motion = pool[i]
                    scenes.append(Scene(shape, color, size, motion))
    return scenes[:count]


def write_demo_videos(
    folder: str | Path,
    count: int,
    frames: int,
    size: int,
    fps: float,
    seed: int,
    diagonal: float = 0.0,
    progress: bool = True,
) -> None:
    """Render `count` training scenes into `folder`: 00000.mp4 with its caption 00000.txt, and so on.

    `diagonal` is the share of them with that motion. The folder is written atomically: an interrupted call leaves none.
    Not for several processes at a time. `demo_videos.json` in it records the settings: a second call with the same
    settings returns at once. Raises InputError if the folder holds videos of other settings, or anything else.
    """
    folder = Path(folder)
    settings = {"count": count, "frames": frames, "size": size, "fps": fps, "seed": seed}
    if diagonal:
        settings["diagonal"] = diagonal
    if count < 1 or fps <= 0:
        raise InputError(f"cannot write {count} videos of {fps} frames per second: both must be positive")
    if _holds_demo_videos(folder, settings):
        return
    scenes = training_scenes(count, seed, diagonal)
    bar = tqdm(scenes, desc=f"demo videos -> {folder}", unit="clip", disable=not progress)
    with atomic_folder(folder) as partial:
        for i, scene in enumerate(bar):
            write_video(partial / f"{i:05d}.mp4", render(scene, (seed, i), frames, size), fps)
            (partial / f"{i:05d}.txt").write_text(scene.caption, encoding="utf-8")
        (partial / MANIFEST).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _holds_demo_videos(folder: Path, settings: dict[str, float]) -> bool:
    """Whether the folder holds the videos of these settings. Raises InputError where it holds anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise InputError(f"{folder} exists and has no {MANIFEST}: give a new folder for the demo videos")
    found = json.loads(manifest.read_text(encoding="utf-8"))
    if found != settings:
        raise InputError(
            f"{folder} holds demo videos with {found}, not with {settings}: remove it, or give another folder"
        )
    return True
