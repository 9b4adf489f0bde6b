"""The demo's videos, rendered from a scene and a seed: colored shapes that move over a gray textured background."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ldm.demo.scenes import BOUNCES, COLORS, DIRECTIONS, SHAPES, Content, Scene, axis_of, training_scenes
from odvae.running.errors import InputError
from odvae.running.files import atomic_folder
from odvae.video.video_io import write_video

# Of the width. Where a scene has two shapes, each has half of the frame.
RADIUS = {"small": (0.19, 0.21), "large": (0.245, 0.265), None: (0.165, 0.175)}
# Of the width, over the whole clip, by speed. A large triangle leaves .31 free.
TRAVEL = {None: (0.30, 0.40), "slowly": (0.16, 0.20), "fast": (0.30, 0.40)}
BOUNCE = (0.15, 0.19)  # of the width, from one side to the other
ROUNDS = {"slowly": 1, "fast": 2}  # of a bounce: there and back
MARGIN = 0.01  # of the width, kept free between the shape and the frame's border
HUE_JITTER = 5.0  # degrees either way; a color's name would change at 30
SMALLEST_SIZE = 32
MANIFEST = "demo_videos.json"

# All three shapes have the area of a circle with the same radius, so the shape cannot be inferred from the area.
SQUARE_HALF_SIDE = math.sqrt(math.pi) / 2
TRIANGLE_HEIGHT = math.sqrt(2 * math.pi)  # and base: a triangle as wide as high has the most room to move


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

    A shape moves by `TRAVEL` of the width at constant speed, from the first frame to the last, or by `BOUNCE` to one
    side and back, once or twice; it stays within the frame, and within its half where there are two. The seed
    determines paths, radii and tones, and the background, whatever `frames` and `size` are: another resolution gives
    the same clip. Raises InputError for too few frames or pixels.
    """
    if frames < 2 or size < SMALLEST_SIZE:
        raise InputError(
            f"cannot render {frames} frames of {size} px: at least 2 frames of {SMALLEST_SIZE} px are needed"
        )
    rng = np.random.default_rng(seed)
    progress = np.linspace(0, 1, frames, dtype=np.float32)[:, None, None]  # (t, 1, 1)
    pixels = (np.arange(size, dtype=np.float32) + 0.5) / size
    shapes = []
    for part, area in zip(scene.shapes, _areas(scene, rng), strict=True):
        radius = rng.uniform(*RADIUS[part.size])
        (x0, y0), (x1, y1) = _draw_path(part, radius, area, rng)
        color = _draw_color(part.color, rng)
        way = progress if part.motion not in BOUNCES else there_and_back(progress, ROUNDS[part.speed or "slowly"])
        x = pixels[None, None, :] - (x0 + (x1 - x0) * way)  # (t, 1, w)
        y = pixels[None, :, None] - (y0 + (y1 - y0) * way)  # (t, h, 1)
        # A pixel's coverage falls from 1 to 0 over one pixel across the outline: antialiasing.
        shapes.append((color, np.clip(0.5 - size * distance_to_shape(part.shape, x, y, radius), 0, 1)))  # (t, h, w)
    gray, tint = _draw_background(rng, size)

    video = np.empty((frames, size, size, 3), np.uint8)
    for channel in range(3):
        picture = gray * tint[channel]
        for color, coverage in shapes:
            picture = picture + coverage * (color[channel] - picture)
        video[..., channel] = 255 * picture + 0.5
    return video


def there_and_back(progress: np.ndarray, rounds: int) -> np.ndarray:
    """The way from 0 to 1 and back at constant speed, `rounds` times while `progress` goes from 0 to 1."""
    return 1 - np.abs(1 - 2 * rounds * progress % 2)


def _areas(scene: Scene, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each shape of a scene the part of the frame that is its own: its corners, (x, y) in widths.

    Two shapes that move along the same axis lie beside each other.
    """
    if scene.other is None:
        yield np.zeros(2), np.ones(2)
        return
    along = np.array(axis_of(scene.motion), bool)
    for half in rng.permutation(2):
        yield np.where(along, 0, half / 2), np.where(along, 1, (half + 1) / 2)


def _draw_path(
    scene: Scene, radius: float, area: tuple[np.ndarray, np.ndarray], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The centroid's first position and the farthest from it, (x, y) in widths."""
    side, up, down = (MARGIN + radius * reach for reach in shape_extent(scene.shape))
    low, high = area[0] + np.array([side, up]), area[1] - np.array([side, down])
    if scene.motion in BOUNCES:
        direction = np.array(BOUNCES[scene.motion])
        shortest, longest = BOUNCE
    else:
        direction = np.array(DIRECTIONS[scene.motion])
        shortest, longest = TRAVEL[scene.speed]
    room = (high - low)[direction != 0].min()  # for a large triangle, less than the longest travel
    travel = direction * rng.uniform(shortest, min(longest, room))
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


def write_demo_videos(
    folder: str | Path,
    count: int,
    frames: int,
    size: int,
    fps: float,
    seed: int,
    diagonal: float = 0.0,
    content: Content = "plain",
    progress: bool = True,
) -> None:
    """Render `count` training scenes into `folder`: 00000.mp4 with its caption 00000.txt, and so on.

    `diagonal` is the share of them with that motion, `content` the kind of their captions (`ldm.demo.scenes`). The
    folder is written atomically: an interrupted call leaves none. Not for several processes at a time.
    `demo_videos.json` in it records the settings: a second call with the same settings returns at once. Raises
    InputError if the folder holds videos of other settings, or anything else.
    """
    folder = Path(folder)
    settings: dict[str, float] = {"count": count, "frames": frames, "size": size, "fps": fps, "seed": seed}
    if diagonal:
        settings["diagonal"] = diagonal
    if content != "plain":
        settings[content] = True
    if count < 1 or fps <= 0:
        raise InputError(f"cannot write {count} videos of {fps} frames per second: both must be positive")
    if _holds_demo_videos(folder, settings):
        return
    scenes = training_scenes(count, seed, diagonal, content)
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
