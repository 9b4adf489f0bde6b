"""The demo's judge reads rendered videos correctly, and returns "unclear" for videos that people cannot read."""

from __future__ import annotations

import numpy as np
import pytest

from ldm.demo.accuracy import attributes_of, mean_accuracy, prompt_accuracy
from ldm.demo.judge import ATTRIBUTES, UNCLEAR, Verdict, judge
from ldm.demo.scenes import (
    COLORS,
    DIAGONALLY,
    MOTIONS,
    SHAPES,
    SIZES,
    Content,
    Scene,
    parse_caption,
    prompts,
)
from ldm.demo.videos import render

NOTHING = Verdict(UNCLEAR, UNCLEAR, UNCLEAR, UNCLEAR)


def draw_scenes(count: int, seed: int, content: Content = "plain") -> list[Scene]:
    """Half of combinations in training, half of combinations never in it."""
    half = count // 2
    captions = prompts(half, seed, False, content) + prompts(count - half, seed, True, content)
    return [parse_caption(caption) for caption in captions]


def render_all(scenes: list[Scene], seed: int, frames: int = 17, size: int = 48) -> list[np.ndarray]:
    return [render(scene, (seed, i), frames, size) for i, scene in enumerate(scenes)]


def score(videos: list[np.ndarray], scenes: list[Scene]) -> dict:
    return prompt_accuracy([judge(video) for video in videos], [scene.caption for scene in scenes])


def blur(video: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of every frame (t, h, w, 3), in pixels; borders repeat the nearest pixels' mean."""
    places = np.arange(video.shape[1])
    kernel = np.exp(-0.5 * ((places[:, None] - places) / sigma) ** 2)
    kernel /= kernel.sum(1, keepdims=True)
    rows = np.einsum("ij,tjwc->tiwc", kernel, video, optimize=True)
    return np.einsum("ij,thjc->thic", kernel, rows, optimize=True)


def to_uint8(video: np.ndarray) -> np.ndarray:
    return np.clip(video + 0.5, 0, 255).astype(np.uint8)


def wrong_share(report: dict, attribute: str) -> float:
    return 1 - report[attribute] - report["unclear"][attribute]


@pytest.mark.parametrize(("size", "frames"), [(32, 17), (48, 17), (64, 17), (128, 5), (48, 5), (32, 65)])
@pytest.mark.parametrize("content", ["plain", "varied"])
def test_renders_are_read_right(size, frames, content):
    scenes = draw_scenes(240 if frames == 17 else 48, 11, content)
    report = score(render_all(scenes, 11, frames, size), scenes)
    assert attributes_of(report) == list(ATTRIBUTES[: 3 if content == "plain" else 4])
    for attribute in attributes_of(report):
        assert report[attribute] >= 0.99, (attribute, report)


@pytest.mark.parametrize(("size", "sigma", "noise"), [(32, 0.67, 8), (48, 1, 8), (48, 2, 0), (48, 0.5, 16)])
@pytest.mark.parametrize("content", ["plain", "varied"])
def test_blurred_noisy_renders_of_24_to_29_db_are_read_right(size, sigma, noise, content):
    rng = np.random.default_rng(0)
    scenes = draw_scenes(120, 12, content)
    clean = render_all(scenes, 12, size=size)
    noisy = [to_uint8(blur(video, sigma) + rng.normal(0, noise, video.shape)) for video in clean]
    errors = [np.mean((a.astype(float) - b) ** 2) for a, b in zip(noisy, clean, strict=True)]
    assert 23.5 < 10 * np.log10(255**2 / np.mean(errors)) < 29
    report = score(noisy, scenes)
    assert report["color"] >= 0.97
    assert report["shape"] >= 0.95
    assert report["motion"] >= 0.97
    assert report.get("speed", 1) >= 0.97


def test_the_more_blur_the_more_unclear_and_never_wrong():
    scenes = draw_scenes(100, seed=13)
    clean = render_all(scenes, 13)
    unclear = []
    for sigma in (1, 3, 4.5, 6, 9):
        report = score([to_uint8(blur(video, sigma)) for video in clean], scenes)
        unclear.append(report["unclear"]["shape"])
        for attribute in attributes_of(report):
            assert wrong_share(report, attribute) < 0.02, (sigma, attribute)
    assert unclear == sorted(unclear)
    assert unclear[0] < 0.02
    assert unclear[-1] > 0.9


def test_shuffled_captions_score_chance():
    scenes = draw_scenes(300, seed=14)
    verdicts = [judge(video) for video in render_all(scenes, 14)]
    captions = [scene.caption for scene in scenes]
    rng = np.random.default_rng(0)
    shuffled = [prompt_accuracy(verdicts, list(rng.permutation(captions))) for _ in range(20)]
    for attribute, words in zip(ATTRIBUTES[:3], (COLORS, SHAPES, MOTIONS), strict=True):
        chance = shuffled[0]["chance"][attribute]
        assert chance == pytest.approx(1 / len(words), abs=0.01)
        # The variance of the matches in a random pairing of n is at most about n p, over 20 pairings.
        tolerance = 4 * np.sqrt(chance / len(scenes) / len(shuffled))
        assert abs(np.mean([report[attribute] for report in shuffled]) - chance) < tolerance


def test_chance_is_the_mean_over_all_pairings():
    verdicts = [
        Verdict("red", "circle", UNCLEAR),
        Verdict("red", UNCLEAR, "up"),
        Verdict("blue", "square", "up"),
    ]
    captions = [
        "a large red circle moves up",
        "a small blue circle moves up",
        "a small green square moves left",
    ]
    report = prompt_accuracy(verdicts, captions)
    pairings = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
    reports = [prompt_accuracy(verdicts, [captions[i] for i in pairing]) for pairing in pairings]
    assert report["n"] == 3
    assert (report["color"], report["shape"], report["motion"]) == pytest.approx((1 / 3, 2 / 3, 1 / 3))
    assert report["words"]["circle"] == {"n": 2, "accuracy": 1 / 2}
    assert report["unclear"] == pytest.approx({"color": 0, "shape": 1 / 3, "motion": 1 / 3})
    assert "speed" not in report
    assert mean_accuracy(report) == pytest.approx((1 + 2 + 1) / 9)
    for attribute in ATTRIBUTES[:3]:
        assert report["chance"][attribute] == pytest.approx(np.mean([r[attribute] for r in reports]))


def test_of_two_shapes_both_must_be_as_the_caption_says():
    caption = "a cyan square bounces rightwards slowly and a red circle moves left fast"
    right = Verdict("red and cyan", "circle and square", "left and rightwards", "fast and slowly")
    half = Verdict("red and cyan", "circle and circle", "left and right", "fast and fast")
    one = Verdict("red", "circle", "left", "fast")
    report = prompt_accuracy([right, half, one, NOTHING], [caption] * 4)
    assert [report[name] for name in ATTRIBUTES] == [0.5, 0.25, 0.25, 0.25]
    assert report["words"]["red"] == {"n": 4, "accuracy": 0.5}
    assert report["words"]["circle"] == {"n": 4, "accuracy": 0.5}
    assert report["words"]["square"] == {"n": 4, "accuracy": 0.25}
    assert report["words"]["fast"] == {"n": 4, "accuracy": 0.5}


def test_prompt_accuracy_refuses_captions_that_do_not_fit():
    with pytest.raises(ValueError, match="got 0 for 1"):
        prompt_accuracy([NOTHING], [])
    with pytest.raises(ValueError, match="a purple whale"):
        prompt_accuracy([NOTHING], ["a purple whale"])


def make_pictures_of_nothing() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (17, 48, 48, 3)
    clip = render(Scene("circle", "red", "large", "left"), 0)
    gray = clip.mean(-1, keepdims=True).repeat(3, -1)
    fading = np.linspace(1, 0, 17)[:, None, None, None]
    return {
        "color noise": rng.uniform(0, 255, shape),
        "gray noise": rng.uniform(0, 255, (17, 48, 48, 1)).repeat(3, -1),
        "colored clouds": 128 + 1500 * blur(rng.normal(0, 1, shape), 4),
        "one-color clouds": 128 + np.array([120, -60, -60]) * (blur(rng.normal(0, 1, shape), 4) > 0.05),
        "black": np.zeros(shape),
        "white": np.full(shape, 255),
        "all red": np.full(shape, (255, 0, 0)),
        "background only": gray,
        "half-faded shape": (gray + clip) / 2,
        "shape fading away": gray + (clip - gray) * fading,
        "shape gone in the second half": np.where(np.arange(17)[:, None, None, None] < 9, clip, gray),
    }


@pytest.mark.parametrize(("name", "video"), make_pictures_of_nothing().items())
def test_a_clip_without_a_clear_object_is_unclear(name, video):
    assert judge(to_uint8(video)) == NOTHING, name


def put_side_by_side(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Both clips at half size on one gray clip."""
    both = np.full_like(first, 128)
    both[:, 4:28, :24], both[:, 20:44, 24:] = first[:, ::2, ::2], second[:, ::2, ::2]
    return both


@pytest.mark.parametrize("hues_apart", [0, 60, -60])
def test_two_shapes_of_like_colors_are_unclear(hues_apart):
    for i, scene in enumerate(draw_scenes(48, seed=15)):
        color = COLORS[(COLORS.index(scene.color) + hues_apart // 60) % 6]
        other = Scene(SHAPES[i % 3], color, scene.size, scene.motion)
        assert judge(put_side_by_side(render(scene, i), render(other, i + 100))) == NOTHING, (scene, other)


def test_one_shape_that_sheds_another_is_unclear():
    for i, scene in enumerate(draw_scenes(48, seed=17)):
        canvas = np.full((17, 72, 72, 3), 128, np.uint8)
        canvas[:, 24:, :48] = render(scene, i)
        canvas[:, :24, 48:] = render(scene, i + 100)[:, ::2, ::2]  # a quarter of the area
        assert judge(canvas) == NOTHING, scene


def test_two_shapes_of_one_color_that_cross_are_unclear():
    verdicts = []
    for i, scene in enumerate(draw_scenes(48, seed=18)):
        first = render(Scene("square", scene.color, "large", "left"), i, size=64)
        second = render(Scene("circle", scene.color, "small", "right"), i + 100, size=64)
        colored = np.ptp(second, axis=-1, keepdims=True) > 80
        verdicts.append(judge(np.where(colored, second, first)))
    assert {verdict.shape for verdict in verdicts} == {UNCLEAR}
    assert np.mean([verdict == NOTHING for verdict in verdicts]) > 0.8  # the circle may hide behind the square


def test_a_diagonal_motion_is_one_of_its_own_and_other_diagonals_are_unclear():
    scenes = [Scene(shape, color, size, DIAGONALLY) for shape in SHAPES for color in COLORS for size in SIZES]
    videos = [render(scene, (i, 5), frames=9, size=32) for i, scene in enumerate(scenes)]
    report = prompt_accuracy([judge(video) for video in videos], [scene.caption for scene in scenes])
    assert report["motion"] == report["words"][DIAGONALLY]["accuracy"] == 1
    assert {judge(video[::-1]).motion for video in videos} == {UNCLEAR}  # left and up
    assert {judge(video[:, :, ::-1]).motion for video in videos} == {UNCLEAR}  # left and down


def test_only_what_is_unclear_is_called_unclear():
    for i, scene in enumerate(draw_scenes(48, seed=16)):
        video = render(scene, i)
        read = Verdict(scene.color, scene.shape, scene.motion)
        still = [0] * 17
        there_and_back = [*range(0, 17, 2), *range(15, 0, -2)]
        jump = [0] * 8 + [16] * 9
        for order in (still, jump):
            assert judge(video[order]) == Verdict(read.color, read.shape, UNCLEAR, UNCLEAR), (scene, order)
        way = f"{scene.motion}wards"
        assert judge(video[there_and_back]) == Verdict(read.color, read.shape, way, "slowly"), scene
        assert judge(video[[*there_and_back[::2], *there_and_back[1::2]]]).speed == "fast", scene


def test_a_shape_that_turns_into_another_has_no_clear_shape():
    for color in COLORS:
        for before, after in (("circle", "square"), ("square", "triangle"), ("triangle", "circle")):
            first = render(Scene(before, color, "small", "right"), 0)
            second = render(Scene(after, color, "small", "right"), 0)
            verdict = judge(np.concatenate([first[:9], second[9:]]))
            assert verdict.shape == UNCLEAR, (before, after)


def test_judge_refuses_another_layout():
    with pytest.raises(ValueError, match="uint8 video"):
        judge(np.zeros((3, 17, 48, 48), np.uint8))
