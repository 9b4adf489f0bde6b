"""What points have in common is made once, and gives what each point would have made by itself."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import REPOSITORY

from ldm.encode import encode_latents
from ldm.frontier.budget import with_equal_steps
from ldm.frontier.plan import describe_plan, measured_flops_per_second, point_minutes
from ldm.frontier.settings import SHARED, FrontierSettings
from ldm.frontier.sharing import (
    PREPARED,
    image_vae_run,
    points_sharing,
    prepare,
    shared_stages,
    text_encoder_folder,
    with_shared_stages,
)
from ldm.open_videos import open_videos
from odvae.packing.packing import pack_folder
from odvae.running.errors import InputError
from odvae.running.files import read_json
from odvae.running.settings import load_settings, make_settings
from odvae.train import train_vae
from odvae.video.video_io import write_video

CONFIG = REPOSITORY / "configs/study/frontier_smallest.yaml"
MORE_POINTS = [
    "points.random={changes: [vae.init=random, vae.image_phase=null]}",
    "points.average={changes: [vae.init=average]}",
    "points.lcr={changes: ['vae.regularizers.local_correlation={}']}",
    "points.4x4x4={changes: ['vae.model.block_out_channels=[8,16,16]', vae.model.spatial_compression_ratio=4]}",
]


@pytest.fixture
def frontier(tmp_path):
    return load_settings(FrontierSettings, CONFIG, [f"run={tmp_path / 'run'}", *MORE_POINTS])


def test_points_share_the_image_vae_where_its_settings_are_the_same(frontier):
    def users(name):
        (stage,) = shared_stages(frontier, name)[1:]
        return points_sharing(frontier, stage)

    assert users("4x8x8-c4") == ["1x8x8-c4", "4x8x8-c4", "8x8x8-c4", "average"]
    for alone in ("4x8x8-c8", "lcr", "4x4x4"):
        assert users(alone) == [alone]
    assert shared_stages(frontier, "random") == [PREPARED]
    assert image_vae_run(frontier, "random") is None
    runs = [image_vae_run(frontier, name) for name in ("1x8x8-c4", "average")]
    assert runs[0] == runs[1]


def test_a_point_has_the_same_vae_and_latents_as_with_stages_of_its_own(frontier, tmp_path):
    name = "8x8x8-c4"
    prepare(frontier)
    own = with_equal_steps(frontier, name)
    shared = with_shared_stages(frontier, name, own)
    image = image_vae_run(frontier, name).experiment
    videos, seed = open_videos(own), own.seed
    train_vae(image.vae, image.data, videos, image.folders.vae, seed)
    folders = {"own": own, "shared": shared}
    for label, experiment in folders.items():
        train_vae(experiment.vae, experiment.data, videos, tmp_path / label / "vae", seed)
        encode_latents(experiment.encode, experiment.text, experiment.data, videos, tmp_path / label / "vae",
                       tmp_path / label / "latents", seed)  # fmt: skip
    assert not (tmp_path / "shared/vae/image_vae").exists()
    assert not (tmp_path / "shared/latents/text_encoder").exists()
    weights = [load_file(tmp_path / label / "vae/diffusion_pytorch_model.safetensors") for label in folders]
    assert weights[0].keys() == weights[1].keys()
    assert all(tensor.equal(weights[1][key]) for key, tensor in weights[0].items())
    configs = [read_json(tmp_path / label / "vae/config.json") for label in folders]
    assert configs[0]["latents_std"] == configs[1]["latents_std"]
    shards = [sorted((tmp_path / label / "latents").glob("*.tar")) for label in folders]
    assert [one.read_bytes() for one in shards[0]] == [one.read_bytes() for one in shards[1]]
    assert len(shards[0]) > 0


def test_videos_without_captions_need_generators_without_text(frontier, tmp_path):
    """Said before anything is trained; without text, no text encoder is made."""
    (tmp_path / "videos").mkdir()
    for number in range(8):
        write_video(tmp_path / "videos" / f"{number}.mp4", np.full((9, 32, 32, 3), 20 * number, np.uint8), 8)
    pack_folder(tmp_path / "videos", tmp_path / "shards")
    base = frontier.model_dump(mode="json", exclude_defaults=True)
    base["experiment"] |= {"demo_videos": None}
    base["experiment"]["data"] |= {"shards": str(tmp_path / "shards")}
    with pytest.raises(InputError, match=r"none of the \d+ training videos has a caption.*ldm\.conditioning\.kind"):
        prepare(make_settings(FrontierSettings, base, [], "test"))
    unconditional = make_settings(FrontierSettings, base, ["experiment.ldm.conditioning.kind=none"], "test")
    prepare(unconditional)
    assert not text_encoder_folder(unconditional).exists()
    experiment = with_shared_stages(unconditional, "4x8x8-c4", unconditional.experiment_of("4x8x8-c4"))
    assert experiment.text == unconditional.experiment.text


def test_preparing_again_keeps_what_is_there(frontier):
    prepare(frontier)
    folder = text_encoder_folder(frontier)
    assert folder.is_relative_to(frontier.folder / SHARED)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    prepare(frontier)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_the_plan_has_a_line_for_each_point_that_is_left_and_for_what_they_share(frontier, tmp_path):
    settings = frontier.model_copy(update={"results": str(tmp_path)})
    lines = describe_plan(settings, ["1x8x8-c4", "8x8x8-c4", "random"], 4, 1e9).splitlines()
    assert lines[0].startswith("plan: 3 of 4 points to run")
    assert [line.split()[0].rstrip(":,") for line in lines[3:]] == ["1x8x8-c4", "8x8x8-c4", "random"]
    assert lines[2].endswith("minutes: once for 1x8x8-c4, 4x8x8-c4, 8x8x8-c4, average")


def test_the_plan_s_minutes_follow_from_budgets_seeds_and_speed(frontier):
    slow, fast = (point_minutes(frontier, "4x8x8-c4", rate) for rate in (1e9, 2e9))
    assert slow["2 generators"] == 2 * 0.02  # given in minutes
    assert slow["VAE"] == pytest.approx(2 * fast["VAE"])
    many = frontier.model_copy(update={"minutes": (), "pflop": (6e-5,)})
    assert point_minutes(many, "4x8x8-c4", 1e9)["2 generators"] == pytest.approx(2 * 1.0)
    assert measured_flops_per_second(frontier, torch.device("cpu")) > 0
