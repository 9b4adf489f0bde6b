"""The demo's scenes, and the captions that say them."""

from __future__ import annotations

from collections import Counter

import pytest

from ldm.demo.scenes import (
    BOUNCE_TURNS,
    BOUNCES,
    COLORS,
    COMBINATIONS,
    DIAGONALLY,
    MOTIONS,
    SEEN,
    SHAPES,
    SIZES,
    SPEEDS,
    UNSEEN,
    Scene,
    combinations,
    parse_caption,
    prompts,
    training_scenes,
)

ALL_SCENES = [Scene(shape, color, size, motion) for shape, color, motion in COMBINATIONS for size in SIZES]


def test_caption_and_scene_are_each_others_inverse():
    assert Scene("circle", "red", "large", "left").caption == "a large red circle moves left"
    other = Scene("square", "cyan", None, "rightwards", "slowly")
    two = Scene("circle", "red", None, "left", "fast", other)
    assert two.caption == "a red circle moves left fast and a cyan square bounces rightwards slowly"
    for scene in [*ALL_SCENES, two, *training_scenes(200, seed=0, diagonal=0.2, content="varied")]:
        assert parse_caption(scene.caption) == scene


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a large red circle",
        "a large red circle moves sideways",
        "the large red circle moves left",
        "a red circle moves left",
        "a large red circle bounces left fast",
        "a large red circle bounces upwards",
        "a red circle moves left fast",
        "a red circle moves left fast and a yellow square moves right fast",  # hues too close
        "a red circle moves left fast and a cyan square moves up fast",  # they would cross
        "a large red circle moves left fast and a small cyan square moves left fast",
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


def test_varied_scenes_are_balanced_and_every_twelfth_has_two_shapes():
    count = 16 * (60 + 60 // BOUNCE_TURNS) * 12 // 11 + 1  # 16 turns
    scenes = training_scenes(count, seed=1, content="varied")
    two = [scene.other is not None for scene in scenes]
    assert two == [i % 12 == 11 for i in range(count)]
    single = [scene for scene in scenes if scene.other is None][:1200]
    times = Counter((scene.shape, scene.color, scene.motion) for scene in single)
    assert set(times) == combinations("varied")
    assert {times[combination] for combination in times if combination[2] in MOTIONS} == {16}
    assert {times[combination] for combination in times if combination[2] in BOUNCES} == {16 // BOUNCE_TURNS}
    assert Counter((scene.size, scene.speed) for scene in single) == {(a, b): 300 for a in SIZES for b in SPEEDS}
    assert scenes == training_scenes(count + 50, seed=1, content="varied")[:count]
    assert scenes != training_scenes(count, seed=2, content="varied")


def test_no_shape_of_a_varied_scene_is_an_unseen_combination():
    unseen = combinations("varied", unseen=True)
    assert {motion for _, _, motion in unseen} == {*MOTIONS, *BOUNCES}
    assert unseen > UNSEEN
    scenes = [*training_scenes(600, 3, 0.0, "varied"), *map(parse_caption, prompts(60, 3, False, "varied"))]
    shown = {(shape.shape, shape.color, shape.motion) for scene in scenes for shape in scene.shapes}
    assert not shown & unseen
    prompted = [parse_caption(caption) for caption in prompts(72, 3, True, "varied")]
    assert {(shape.shape, shape.color, shape.motion) for scene in prompted for shape in scene.shapes} == unseen


@pytest.mark.parametrize("unseen", [True, False])
def test_prompts_are_of_the_combinations_asked_for(unseen):
    pool = UNSEEN if unseen else SEEN
    captions = prompts(len(pool), seed=0, unseen=unseen)
    scenes = [parse_caption(caption) for caption in captions]
    assert {(scene.shape, scene.color, scene.motion) for scene in scenes} == pool
    assert captions == prompts(len(pool), seed=0, unseen=unseen)
