"""The demo's videos show what their captions describe, and are a function of the seed."""

from __future__ import annotations

import numpy as np
import pytest

from ldm.demo import videos as demo_videos
from ldm.demo.scenes import BOUNCES, COMBINATIONS, SHAPES, SIZES, Scene, parse_caption, prompts, training_scenes
from ldm.demo.videos import distance_to_shape, render, write_demo_videos

ALL_SCENES = [Scene(shape, color, size, motion) for shape, color, motion in COMBINATIONS for size in SIZES]
VARIED_SCENES = [parse_caption(caption) for caption in prompts(120, seed=2, unseen=False, content="varied")]


def saturation(video: np.ndarray) -> np.ndarray:
    video = video.astype(np.float32)
    return (video.max(-1) - video.min(-1)) / video.max(-1)


def test_render_is_a_function_of_its_arguments():
    for i, scene in enumerate(ALL_SCENES[::7]):
        first = render(scene, i)
        assert first.shape == (17, 48, 48, 3)
        assert first.dtype == np.uint8
        np.testing.assert_array_equal(first, render(scene, i))
        assert np.abs(first.astype(int) - render(scene, i + 1)).mean() > 1


def test_render_shows_the_same_clip_at_any_size_and_length():
    scene = Scene("triangle", "cyan", "large", "left")
    small, large = render(scene, 3, frames=5, size=32), render(scene, 3, frames=9, size=64)
    halved = large[::2].reshape(5, 32, 2, 32, 2, 3).mean((2, 4))
    assert np.abs(halved - small).mean() < 1


def test_shape_stays_inside_the_frame_and_the_background_stays_grey():
    for i, scene in enumerate(ALL_SCENES):
        colorful = saturation(render(scene, i, frames=5, size=64))
        filled = colorful > 0.7  # more than half covered: a soft edge may reach into the border's pixels
        border = filled[:, [0, -1], :].sum() + filled[:, :, [0, -1]].sum()
        assert border <= 10, scene
        assert colorful[~grow(colorful > 0.5)].max() < 0.15, scene


def grow(mask: np.ndarray) -> np.ndarray:
    """The mask (t, h, w) with its soft edge: two more pixels all around."""
    for _ in range(2):
        padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
        mask = padded[:, :-2, 1:-1] | padded[:, 2:, 1:-1] | padded[:, 1:-1, :-2] | padded[:, 1:-1, 2:] | mask
    return mask


def test_every_shape_has_the_area_and_the_centre_of_its_circle():
    axis = np.linspace(-3, 3, 1201)
    for shape in SHAPES:
        inside = distance_to_shape(shape, axis[None], axis[:, None], 1.0) < 0
        rows, columns = np.nonzero(inside)
        assert inside.sum() * 0.005**2 == pytest.approx(np.pi, rel=0.01), shape
        assert abs(axis[rows].mean()) < 0.01, shape
        assert abs(axis[columns].mean()) < 0.01, shape


def test_shape_moves_as_the_caption_says_over_a_third_of_the_width():
    way = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
    for i, scene in enumerate(ALL_SCENES[::3]):
        frames = (np.nonzero(saturation(frame) > 0.5) for frame in render(scene, i, size=128))
        place = np.array([[columns.mean(), rows.mean()] for rows, columns in frames]) / 128
        steps = np.diff(place, axis=0)
        travel = steps.sum(0) @ way[scene.motion]
        assert 0.28 < travel < 0.42, scene
        assert np.abs(steps - travel / 16 * np.array(way[scene.motion])).max() < 0.01, scene  # constant speed


def center(video: np.ndarray) -> np.ndarray:
    """Of a video with one shape, the shape's center in each frame, (t, 2), in widths."""
    return np.array([[p.mean() for p in np.nonzero(saturation(frame) > 0.5)[::-1]] for frame in video]) / video.shape[2]


@pytest.mark.parametrize(("speed", "low", "high"), [("slowly", 0.15, 0.21), ("fast", 0.28, 0.41)])
def test_fast_shapes_go_about_twice_as_far_as_slow_ones(speed, low, high):
    for i, motion in enumerate(("left", "right", "up", "down")):
        for size in SIZES:
            path = center(render(Scene("triangle", "blue", size, motion, speed), i, size=96))
            assert low < np.abs(path[-1] - path[0]).max() < high


@pytest.mark.parametrize(("speed", "turns"), [("slowly", [8]), ("fast", [4, 8, 12])])
def test_a_bouncing_shape_goes_to_a_side_and_comes_back(speed, turns):
    for i, (motion, (x, y)) in enumerate(BOUNCES.items()):
        axis, way = abs(y), x + y
        path = center(render(Scene("circle", "green", "small", motion, speed), i, size=96))
        assert np.ptp(path[:, 1 - axis]) < 0.01
        assert 0.13 < np.ptp(path[:, axis]) < 0.2
        ways = np.sign(np.diff(path[:, axis]))
        assert ways[0] == way
        assert [k + 1 for k in np.flatnonzero(ways[1:] != ways[:-1])] == turns
        assert abs(path[-1] - path[0]).max() < 0.01


def test_two_shapes_are_both_whole_and_never_touch():
    two = [scene for scene in VARIED_SCENES if scene.other is not None]
    assert len(two) == 10
    for i, scene in enumerate(two):
        colorful = saturation(render(scene, i, frames=9, size=64)) > 0.5
        lanes = colorful.any((0, 1)) if scene.motion in ("up", "down", "upwards", "downwards") else colorful.any((0, 2))
        assert not lanes[31:33].all(), scene
        assert lanes[:32].sum() > 16, scene
        assert lanes[32:].sum() > 16, scene


@pytest.mark.parametrize(("frames", "size"), [(1, 48), (17, 31)])
def test_render_refuses_what_it_cannot_show(frames, size):
    with pytest.raises(ValueError, match=f"{frames} frames of {size} px"):
        render(ALL_SCENES[0], 0, frames, size)


def write_three(folder, **changed):
    settings = {"count": 3, "frames": 5, "size": 32, "fps": 8, "seed": 0, "progress": False}
    write_demo_videos(folder, **settings | changed)


def test_written_videos_come_with_captions_of_seen_scenes(tmp_path):
    write_three(tmp_path / "videos")
    names = sorted(path.name for path in (tmp_path / "videos").iterdir())
    assert names == [*(f"{i:05d}.{kind}" for i in range(3) for kind in ("mp4", "txt")), "demo_videos.json"]
    captions = [(tmp_path / "videos" / f"{i:05d}.txt").read_text() for i in range(3)]
    assert captions == [scene.caption for scene in training_scenes(3, seed=0)]
    assert [path.name for path in tmp_path.iterdir()] == ["videos"]


def test_writing_again_does_nothing_and_other_settings_are_refused(tmp_path, monkeypatch):
    folder = tmp_path / "videos"
    write_three(folder)
    monkeypatch.setattr(demo_videos, "render", lambda *_: pytest.fail("rendered again"))
    write_three(folder)
    with pytest.raises(ValueError, match=r"'seed': 0.*'seed': 1"):
        write_three(folder, seed=1)


def test_writing_cut_short_leaves_no_folder_and_the_next_call_completes_it(tmp_path, monkeypatch):
    folder = tmp_path / "videos"
    with monkeypatch.context() as broken:
        broken.setattr(demo_videos, "training_scenes", lambda *_: [ALL_SCENES[0], None, None])
        with pytest.raises(AttributeError):
            write_three(folder)
    assert not folder.exists()
    write_three(folder)
    assert len(list(folder.glob("*.mp4"))) == 3


def test_a_folder_of_something_else_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="give a new folder"):
        write_three(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
