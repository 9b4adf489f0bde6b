"""Frame counts and frame sizes that a VAE accepts, by its compression ratios."""

import pytest

from ldm.experiment import CONFIGS, Experiment
from odvae.architecture.frame_counts import check_frame_count, latent_frames, nearest_frame_counts, video_frames
from odvae.initial_weights import make_image_vae
from odvae.running.errors import InputError
from odvae.running.settings import load_settings, make_settings
from odvae.video_vae import compression_of


@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
def test_valid_frame_counts_are_multiples_of_the_ratio_plus_one(ratio):
    accepted = []
    for frames in range(-3, 4 * ratio + 2):
        try:
            check_frame_count(frames, ratio)
        except InputError:
            continue
        accepted.append(frames)
    assert accepted == [ratio * k + 1 for k in range(5)]
    assert [latent_frames(frames, ratio) for frames in accepted] == [1, 2, 3, 4, 5]
    assert [video_frames(latent_frames(frames, ratio), ratio) for frames in accepted] == accepted


def test_an_error_names_what_is_counted_the_ratio_and_the_nearest_counts():
    with pytest.raises(InputError, match=r"data.frames must be 8k\+1, .*by 8; found 16, nearest: 9 or 17"):
        check_frame_count(16, 8, "data.frames")
    assert nearest_frame_counts(-2, 4) == "1 or 5"
    assert nearest_frame_counts(7, 4) == "5 or 9"


def experiment(*overrides):
    return make_settings(Experiment, {}, overrides, "test")


def test_the_settings_give_the_compression_ratios_of_their_vaes(vae):
    assert experiment().vae.compression == compression_of(vae)
    settings = experiment("vae.video_phase=null").vae
    assert settings.compression == compression_of(make_image_vae(settings.model))


def test_the_clips_of_an_experiment_fit_the_vae_it_describes():
    assert experiment("data.frames=16", "vae.video_phase=null").data.frames == 16  # image VAEs take any number
    assert experiment("data.frames=1").data.frames == 1
    for wrong in (
        "data.frames=16",
        "eval_vae.frames=16",
        "vae.video_phase.frames=8",
        "encode.buckets=[{frames: 6, height: 32, width: 32}]",
        "encode.buckets=[{frames: 5, height: 36, width: 32}]",
    ):
        with pytest.raises(InputError, match=r"4k\+1|multiple of 8"):
            experiment(wrong)


@pytest.mark.parametrize("config", ["demo", "clips", "t2v_8gpu"])
def test_a_pretrained_vae_needs_no_training_and_leaves_the_sizes_to_it(config):
    overrides = ["vae.pretrained=someone/model", "data.frames=16"]
    taken = load_settings(Experiment, CONFIGS / f"{config}.yaml", overrides).vae
    assert taken.image_phase is taken.video_phase is taken.compression is None


def test_a_vae_that_is_not_trained_excludes_one_to_begin_training_from():
    for other in ("init_from", "init_image_vae"):
        with pytest.raises(
            InputError,
            match=rf"pretrained \(.*\) and {other} \(.*\) are both set",
        ):
            experiment("vae.pretrained=someone/model", f"vae.{other}=x")
    with pytest.raises(InputError, match=r"vae.video_phase.stepz: unknown key"):
        experiment("vae.pretrained=someone/model", "vae.video_phase.stepz=3")
