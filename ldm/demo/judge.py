"""The judge: measures color, shape, motion and speed in a demo clip, for the prompt accuracy of generated videos.

It has no learned weights. The demo's shapes are saturated and their background is gray, so a pixel's chroma is
proportional to the share of the pixel that the shape covers, and blending, blur and noise act on it linearly. The
color is the direction (hue) of the chroma, the motion the path of the centroid, and the shape the best of three
templates compared with the clip's frames, aligned in position and scale. Two shapes are separated by their hues. Each
result needs a margin over the second best; otherwise it is `UNCLEAR`, never a guess.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ldm.demo.scenes import AND, BOUNCES, COLORS, DIRECTIONS, HUES_APART, SHAPES, SPEEDS
from ldm.demo.videos import ROUNDS, distance_to_shape, there_and_back

UNCLEAR = "unclear"
ATTRIBUTES = ("color", "shape", "motion", "speed")  # speed only where the captions say it

# Color: the clip's chroma is strong, of one hue, and near one of the six named hues.
FOREGROUND_CHROMA = 0.25  # the background's, with noise, is below; a shape's is about .8
SHAPE_CHROMA = 0.5  # a half-transparent shape has less
ONE_HUE = 0.9  # |mean chroma| over mean |chroma|: 1 for one hue, .87 for two hues 60 degrees apart
SECOND_HUE = 0.2  # of the foreground's chroma, where a clip has two shapes
HUE_REACH = 22.0  # degrees from a named hue; the border to the next is at 30
# One object: in most frames, of plausible area, alone, unchanged over time, and roughly of a known shape.
AREA = (0.03, 0.45)  # of the frame
WINDOW = 2.1  # radii around the centroid that hold the object; a triangle reaches 1.7
STRAY = 0.12  # share of the mask outside that window
GOOD_FRAMES = 0.8
OBJECT_OVERLAP = 0.65  # with the best template
COHERENCE = 0.75  # a frame's overlap with the mean of all frames; an object that breaks up has less
# Shape: soft overlap (intersection over union) with the best template, and its lead over the next.
SHAPE_OVERLAP = 0.75  # a deformed triangle is still a triangle
SHAPE_LEAD = 0.02  # the smallest at which blurred renders are never confused
BLURS = (0.0, 0.08, 0.16, 0.25)  # of the radius: templates may be as soft as the clip
# Motion: a path along one axis or the diagonal, from end to end or there and back, long compared with the shape.
TRAVEL = 0.4  # radii, first frame to last; the demo's is at least 1.1
DOMINANCE = 2.0  # times the travel along the other axis
STRAIGHTNESS = 0.9  # correlation of the position with a path of constant speed; a sudden jump has .87
FAST = 0.25  # of the width: a longer way is fast

PATCH = 32  # points per side of the window in which frames are aligned in position and scale
PATCH_REACH = 2.0  # radii from its center to its border


@dataclass(frozen=True)
class Verdict:
    """Color, shape, motion and speed of a clip: each a word of the demo's vocabulary, or `UNCLEAR`.

    For a clip of two shapes, each is two words with "and" between them, in the order of their colors' hues.
    """

    color: str
    shape: str
    motion: str
    speed: str = UNCLEAR


NO_OBJECT = Verdict(UNCLEAR, UNCLEAR, UNCLEAR, UNCLEAR)


def judge(video: np.ndarray) -> Verdict:
    """The verdict on one clip, uint8 (t, h, w, 3). Designed for 32 to 128 pixels and 5 to 65 frames.

    All are `UNCLEAR` if the clip has not one or two objects. Raises ValueError for another layout.
    """
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or len(video) < 2:
        raise ValueError(f"expected a uint8 video (t >= 2, h, w, 3), got {video.dtype} {video.shape}")
    parts = [judge_object(hue, matte) for hue, matte in separate_shapes(measure_chroma(video))]
    if not parts or NO_OBJECT in parts:
        return NO_OBJECT
    return Verdict(**{name: join_words([getattr(part, name) for part in parts]) for name in ATTRIBUTES})


def join_words(words: Sequence[str]) -> str:
    """The words of one or two shapes as one; `UNCLEAR` if one of them is."""
    return UNCLEAR if UNCLEAR in words else AND.join(words)


def judge_object(hue: float, matte: np.ndarray) -> Verdict:
    """The verdict on one object, given its hue in degrees and its matte (t, h, w)."""
    track = follow_object(matte)
    if track.valid.mean() < GOOD_FRAMES:
        return NO_OBJECT
    patches = sample_patches(matte[track.valid], track.position[track.valid], track.radius)
    overlaps = compare_shapes(patches)
    if overlaps.max() < OBJECT_OVERLAP or measure_coherence(patches) < COHERENCE:
        return NO_OBJECT
    return Verdict(name_color(hue), name_shape(patches), *name_motion(track, matte.shape[2]))


def measure_chroma(video: np.ndarray) -> np.ndarray:
    """Chroma as complex numbers, (t, h, w): the angle is the hue, the length 1 for a pure color, 0 for gray.

    It is linear in RGB: a pixel half covered by a shape on gray has half the shape's chroma.
    """
    red, green, blue = (video[..., i].astype(np.float32) / 255 for i in range(3))
    chroma = np.empty(red.shape, np.complex64)
    chroma.real = red - 0.5 * (green + blue)
    chroma.imag = np.sqrt(0.75, dtype=np.float32) * (green - blue)
    return chroma


def separate_shapes(chroma: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """The one or two objects of a clip, by hue: each one's hue in degrees, and its matte (t, h, w), about 1 in the
    shape and 0 in the background and in the other shape.

    None of them, if the foreground is not of one or two strong hues.
    """
    strength = np.abs(chroma)
    foreground = strength > FOREGROUND_CHROMA
    if not AREA[0] < foreground.mean() < AREA[1]:
        return []
    colored = chroma[foreground]
    found = []
    for total in one_or_two_hues(colored):
        direction = total / np.abs(total)
        along = (chroma * np.conj(direction)).real
        own = along[foreground][(colored * np.conj(direction)).real > 0.5 * np.abs(colored)]
        full = np.percentile(own, 75)  # the plateau, above soft edges and below rare spikes
        if full < SHAPE_CHROMA:
            return []
        found.append((float(np.degrees(np.angle(total)) % 360), along / full))
    return found


def one_or_two_hues(colored: np.ndarray) -> list[complex]:
    """The sum of the chroma of one hue, or of each of two hues that are far apart, ordered by hue; none where there is
    neither."""
    total = colored.sum()
    if np.abs(total) > ONE_HUE * np.abs(colored).sum():
        return [total]
    nearest = np.round(np.degrees(np.angle(colored)) / 60).astype(int) % len(COLORS)
    shares = np.bincount(nearest, np.abs(colored), len(COLORS)) / np.abs(colored).sum()
    second, first = np.argsort(shares)[-2:]
    steps = abs(int(first) - int(second))
    if 60 * min(steps, len(COLORS) - steps) < HUES_APART or shares[second] < SECOND_HUE:
        return []
    totals = [colored[nearest == hue].sum() for hue in sorted((int(first), int(second)))]
    return totals if sum(map(abs, totals)) > ONE_HUE * np.abs(colored).sum() else []


def sharpen(matte: np.ndarray) -> np.ndarray:
    """The matte as a soft mask in 0..1, without the noise around 0 and around 1."""
    return np.clip((matte - 0.2) / 0.6, 0, 1)


@dataclass(frozen=True)
class Track:
    """The object's path: centroids (t, 2) as x and y in pixels, which frames contain it (t,), its radius."""

    position: np.ndarray
    valid: np.ndarray
    radius: float


def follow_object(matte: np.ndarray) -> Track:
    """The object's track through a matte (t, h, w). A frame is valid if it has one object of plausible area."""
    mask = sharpen(matte)
    _, height, width = mask.shape
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    whole = mask.sum((1, 2)) + 1e-6
    inside = mask
    for _ in range(2):  # stray pixels move the first centroid, not the second
        area = inside.sum((1, 2)) + 1e-6
        position = np.stack([inside.sum(1) @ x / area, inside.sum(2) @ y / area], axis=1)  # (t, 2)
        reach = WINDOW**2 * whole / np.pi
        squared = (x - position[:, :1])[:, None, :] ** 2 + (y - position[:, 1:])[:, :, None] ** 2  # (t, h, w)
        inside = mask * (squared < reach[:, None, None])
    area = inside.sum((1, 2))
    share = area / (height * width)
    valid = (share > AREA[0]) & (share < AREA[1]) & (area > (1 - STRAY) * whole)
    return Track(position, valid, float(np.sqrt(np.median(area) / np.pi)))


def sample_patches(matte: np.ndarray, position: np.ndarray, radius: float) -> np.ndarray:
    """The object of each frame (t, h, w), centered and scaled by its radius: (t, PATCH, PATCH).

    Bilinear sampling, as two matrix products; outside the frame is background.
    """
    _, height, width = matte.shape
    grid = np.linspace(-PATCH_REACH, PATCH_REACH, PATCH, dtype=np.float32) * radius

    def sampling_weights(center: np.ndarray, length: int) -> np.ndarray:
        points = (center[:, None] + grid)[:, :, None]  # (t, PATCH, 1)
        return np.maximum(0, 1 - np.abs(points - np.arange(length, dtype=np.float32)))

    rows, columns = sampling_weights(position[:, 1], height), sampling_weights(position[:, 0], width)
    return rows @ matte @ columns.transpose(0, 2, 1)


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Soft intersection over union of masks in 0..1, over the last two axes."""
    return np.minimum(a, b).sum((-2, -1)) / (np.maximum(a, b).sum((-2, -1)) + 1e-6)


@lru_cache(maxsize=1)
def make_templates() -> np.ndarray:
    """Each shape's mask as computed by `average`, at each of `BLURS`: (shapes, blurs, PATCH, PATCH)."""
    radius = 24.0
    axis = np.arange(-72, 73, dtype=np.float32)
    offsets = axis[:, None] - axis
    templates = []
    for shape in SHAPES:
        crisp = np.clip(0.5 - distance_to_shape(shape, axis[None, :], axis[:, None], radius), 0, 1)
        for blur in BLURS:
            kernel = np.exp(-0.5 * (offsets / max(blur * radius, 0.1)) ** 2)
            kernel /= kernel.sum(1, keepdims=True)
            matte = (kernel @ crisp @ kernel.T)[None].astype(np.float32)  # (1, h, w): a clip of one frame
            track = follow_object(matte)
            templates.append(sharpen(sample_patches(matte, track.position, track.radius))[0])
    return np.stack(templates).reshape(len(SHAPES), len(BLURS), PATCH, PATCH)


def average(patches: np.ndarray) -> np.ndarray:
    """The mask of the mean of patches (t, PATCH, PATCH): noise is averaged out before it is clipped."""
    return sharpen(patches.mean(0))


def compare_shapes(patches: np.ndarray) -> np.ndarray:
    """The overlap of the object in patches (t, PATCH, PATCH) with each of SHAPES, at its best blur."""
    return overlap(average(patches), make_templates()).max(1)  # (shapes,)


def measure_coherence(patches: np.ndarray) -> float:
    """How similar the frames are: the 10th percentile of their overlap with the mask of all frames."""
    return float(np.percentile(overlap(sharpen(patches), average(patches)), 10))


def name_color(hue: float) -> str:
    """The color name of a hue in degrees."""
    nearest = round(hue / 60)
    return COLORS[nearest % len(COLORS)] if abs(hue - 60 * nearest) < HUE_REACH else UNCLEAR


def name_shape(patches: np.ndarray) -> str:
    """The shape name of the best template, if it is close, best by a margin, and best in each half of the clip too."""
    overlaps = compare_shapes(patches)
    second, best = np.sort(overlaps)[-2:]
    named = int(overlaps.argmax())
    lasting = all(compare_shapes(half).argmax() == named for half in np.array_split(patches, 2))
    clear = lasting and best > SHAPE_OVERLAP and best - second > SHAPE_LEAD
    return SHAPES[named] if clear else UNCLEAR


def name_motion(track: Track, width: int) -> tuple[str, str]:
    """The motion and its speed in a clip of `width` pixels, if it is long, along one axis or the diagonal, and at
    constant speed: from end to end, or there and back."""
    progress = np.flatnonzero(track.valid) / (len(track.valid) - 1)
    position = track.position[track.valid] - track.position[track.valid].mean(0)
    ways = {"": progress, **{speed: there_and_back(progress, rounds) for speed, rounds in ROUNDS.items()}}
    fits = {speed: fit_way(position, way) for speed, way in ways.items()}
    speed, (travel, likeness) = max(fits.items(), key=lambda item: np.linalg.norm(item[1][0]))
    length = np.abs(travel).max()
    moved = np.abs(travel) * DOMINANCE > length  # one axis, or both
    if length < TRAVEL * track.radius or (likeness[moved] < STRAIGHTNESS).any():
        return UNCLEAR, UNCLEAR
    direction = tuple(np.where(moved, np.sign(travel), 0).astype(int))
    words = BOUNCES if speed else DIRECTIONS
    word = next((word for word, named in words.items() if named == direction), UNCLEAR)
    return word, speed or SPEEDS[int(length > FAST * width)]


def fit_way(position: np.ndarray, way: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far a path (t, 2) goes while `way` goes from 0 to 1, by least squares, and how alike they are (the absolute
    correlation): each (2,), along x and y."""
    way = way - way.mean()
    product, norm = way @ position, np.sqrt(way @ way)
    return product / norm**2, np.abs(product) / (norm * np.sqrt((position**2).sum(0)) + 1e-6)
