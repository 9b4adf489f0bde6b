"""Evaluation of the VAE: reconstructions, and which modes a model supports."""

import pytest
import torch

from ldm.demo.videos import write_demo_videos
from odvae import ODVAE
from odvae.clips.settings import DataSettings
from odvae.clips.video_set import VideoSet
from odvae.evaluate import evaluate_vae
from odvae.evaluation.modes import compare_modes
from odvae.evaluation.reconstruction import Evaluation
from odvae.packing.packing import pack_folder
from odvae.running.files import read_json_lines
from odvae.running.run_folder import RunFolder
from odvae.settings import EvalVAESettings


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    write_demo_videos(folder / "videos", count=8, frames=9, size=32, fps=8, seed=0, progress=False)
    pack_folder(folder / "videos", folder / "shards")
    data = DataSettings(frames=9, height=32, width=32, held_out=0.4)
    return VideoSet(folder / "shards", data, "unused").held_out[:2], data


def evaluation(vae, data=None, **settings):
    data = data or DataSettings(frames=9, height=32, width=32)
    return Evaluation(EvalVAESettings(lpips=None, tile_frames=5, **settings), data, vae, seed=0)


@torch.no_grad()
def test_a_sampled_reconstruction_is_a_function_of_seed_and_clip_index(vae):
    torch.manual_seed(0)
    video = torch.rand(1, 3, 9, 16, 16) * 2 - 1
    sampling = evaluation(vae, latents="sample")
    first, again, other = (sampling.reconstruct(video, [number])[0] for number in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    together = sampling.reconstruct(torch.cat([video, video]), [3, 4])[0]
    assert torch.allclose(together, torch.cat([first, other]), atol=1e-5)
    mean = evaluation(vae).reconstruct(video, [3])[0]
    assert not torch.equal(first, mean)
    assert mean.abs().max() <= 1


def test_streamed_equals_whole_and_tiled_does_not(vae, samples, tmp_path):
    clips, data = samples
    modes = compare_modes(evaluation(vae, data), clips, tmp_path)
    assert modes["streamed"]["difference"] < 1e-4
    assert modes["tiled"]["difference"] > 1e-3
    assert modes["whole"]["psnr"] == pytest.approx(modes["streamed"]["psnr"], abs=1e-3)
    assert all(mode["encode_frames_per_second"] > 0 for mode in modes.values())
    assert (tmp_path / "reconstructions.png").is_file()
    assert not vae.use_tiling


def test_a_model_that_needs_the_whole_clip_has_the_reason_in_place_of_a_score(image_vae, samples, tmp_path):
    clips, data = samples
    leaky = ODVAE.from_image_vae(image_vae, norm="clip").eval()
    modes = compare_modes(evaluation(leaky, data), clips, tmp_path)
    assert "needs the whole clip" in modes["streamed"]["not measured"]
    assert modes["tiled"]["psnr"] > 0


def test_the_report_has_measures_of_latents_and_moving_pixels_with_their_protocols(ldm_run, tmp_path):
    folders = RunFolder(tmp_path)
    folders.vae.symlink_to(ldm_run / "vae")
    data = DataSettings(frames=9, height=32, width=32, held_out=0.25, workers=0, resize="bilinear")
    settings = EvalVAESettings(clips=4, lpips=None, modes=(), compared_clips=1, num_visualized=1)
    part = evaluate_vae(settings, data, VideoSet(ldm_run / "shards", data, "?"), folders, 0)["reconstruction"]
    latents, motion = part["latents"], part["motion"]
    assert 1 <= latents["effective_rank"] <= 4
    assert -1 <= latents["local_correlation"] <= 1
    assert all(0 <= latents["low_frequency_share"][name] <= 1 for name in ("spatiotemporal", "temporal", "spatial"))
    assert latents["bits_per_pixel"] > 0
    assert latents["kl_bits_per_pixel"] > 0
    drops = latents["noise"]["psnr_drop"]
    assert list(drops) == ["0.1", "0.2", "0.5"]
    assert drops["0.1"] < drops["0.5"]
    rows = read_json_lines(folders.report / "reconstructions.jsonl")
    assert motion["psnr"] == pytest.approx(sum(row["moving_psnr"] for row in rows) / len(rows))
    assert 0 < motion["moving_share"] < 1
    assert (part["protocol"]["resize"], part["protocol"]["fps"]) == ("cover, bilinear, antialiased, center crop", None)
    assert latents["n"] == len(rows) == motion["n"]
    for measured in (latents, latents["noise"], motion):
        assert measured["protocol"]
