"""The demo's videos show what their captions describe, and are a function of the seed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ldm.demo import videos as demo_videos
from ldm.demo.videos import (
    COLORS,
    COMBINATIONS,
    DIAGONALLY,
    MOTIONS,
    SEEN,
    SHAPES,
    SIZES,
    UNSEEN,
    Scene,
    distance_to_shape,
    parse_caption,
    prompts,
    render,
    training_scenes,
    write_demo_videos,
)

ALL_SCENES = [Scene(shape, color, size, motion) for shape, color, motion in COMBINATIONS for size in SIZES]


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


@pytest.mark.parametrize(("frames", "size"), [(1, 48), (17, 31)])
def test_render_refuses_what_it_cannot_show(frames, size):
    with pytest.raises(ValueError, match=f"{frames} frames of {size} px"):
        render(ALL_SCENES[0], 0, frames, size)


def test_caption_and_scene_are_each_others_inverse():
    assert Scene("circle", "red", "large", "left").caption == "a large red circle moves left"
    for scene in ALL_SCENES:
        assert parse_caption(scene.caption) == scene


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a large red circle",
        "a large red circle moves sideways",
        "the large red circle moves left",
        "a red circle moves left",
    ],
)
def test_parse_caption_names_the_text_and_the_allowed_words(text):
    with pytest.raises(ValueError, match="magenta") as error:
        parse_caption(text)
    assert repr(text) in str(error.value)


def test_unseen_combinations_are_balanced_and_never_trained_on():
    assert len(UNSEEN) == 12
    assert set(COMBINATIONS) == UNSEEN | SEEN
    for words, position, times in ((SHAPES, 0, 4), (COLORS, 1, 2), (MOTIONS, 2, 3)):
        assert Counter(combination[position] for combination in UNSEEN) == dict.fromkeys(words, times)
    trained = {(scene.shape, scene.color, scene.motion) for scene in training_scenes(1000, seed=0)}
    assert trained == SEEN


def test_training_scenes_cover_every_combination_and_size_evenly():
    scenes = training_scenes(300, seed=1)
    times = Counter((scene.shape, scene.color, scene.motion) for scene in scenes)
    assert set(times.values()) == {5}
    assert set(Counter(scene.size for scene in scenes).values()) == {150}
    assert set(Counter(scenes[:120]).values()) == {1}  # each combination in each size
    assert scenes == training_scenes(400, seed=1)[:300]
    assert scenes != training_scenes(300, seed=2)


def test_a_share_of_the_training_scenes_moves_diagonally():
    scenes = training_scenes(100, seed=1, diagonal=0.3)
    motions = [scene.motion == DIAGONALLY for scene in scenes]
    assert sum(motions) == 30
    assert 0 < sum(motions[:50]) < 30
    assert sorted(map(str, (scene for scene in scenes if scene.motion != DIAGONALLY))) == sorted(
        map(str, training_scenes(70, seed=1))
    )


@pytest.mark.parametrize("unseen", [True, False])
def test_prompts_are_of_the_combinations_asked_for(unseen):
    pool = UNSEEN if unseen else SEEN
    captions = prompts(len(pool), seed=0, unseen=unseen)
    scenes = [parse_caption(caption) for caption in captions]
    assert {(scene.shape, scene.color, scene.motion) for scene in scenes} == pool
    assert captions == prompts(len(pool), seed=0, unseen=unseen)


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
