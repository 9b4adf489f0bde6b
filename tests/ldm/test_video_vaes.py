"""diffusers' video VAEs in every stage, from loading to an exported pipeline."""

import diffusers
import pytest
import torch
from small_adapters import ADAPTED, make_adapted
from small_ldm import settings

from ldm import TextToVideoPipeline
from ldm.encode import encode_latents
from ldm.encoding.settings import BucketSettings, EncodeSettings
from ldm.evaluate import evaluate_ldm
from ldm.evaluation.settings import EvalLDMSettings
from ldm.export import export_pipeline
from ldm.latents.manifest import load_manifest
from ldm.networks.settings import ConditioningSettings, DiTSettings, TextSettings
from ldm.sample import sample_videos
from ldm.sampling.sample_requests import evaluation_requests
from ldm.sampling.settings import SampleSettings
from ldm.train import train_ldm
from odvae.clips.settings import DataSettings
from odvae.clips.video_set import VideoSet
from odvae.evaluate import evaluate_vae
from odvae.running.errors import InputError
from odvae.running.files import read_json
from odvae.running.run_folder import RunFolder
from odvae.settings import EvalVAESettings, VAESettings
from odvae.train import train_vae
from odvae.video.video_io import decode

DATA = DataSettings(frames=9, height=32, width=32, held_out=0.25, workers=0)
TEXT = TextSettings(max_tokens=8, width=16, steps=3)


@pytest.mark.parametrize("name", ADAPTED)
def test_a_video_vae_of_diffusers_goes_through_every_stage(ldm_run, tmp_path, name):
    folders, videos = RunFolder(tmp_path), VideoSet(ldm_run / "shards", DATA, "?")
    original = make_adapted(name)
    original.save_pretrained(tmp_path / "published")
    train_vae(VAESettings(pretrained=str(tmp_path / "published"), statistics_clips=2), DATA, videos, folders.vae, 0)
    assert read_json(folders.vae / "account.json")["used"] == len(videos.train) + len(videos.held_out)
    theirs = getattr(diffusers, name).from_pretrained(folders.vae)
    assert all(torch.equal(tensor, original.state_dict()[key]) for key, tensor in theirs.state_dict().items())
    if name == "AutoencoderKLCogVideoX":  # it has a place for them, which was empty
        assert len(theirs.config.latents_std) == 4
    else:
        assert theirs.config.get("latents_std") == original.config.get("latents_std")

    encode_latents(EncodeSettings(batch_size=3), TEXT, DATA, videos, folders.vae, folders.latents, 0)
    r, s = original.temporal_compression_ratio, original.spatial_compression_ratio
    assert load_manifest(folders.latents).shape == (4, 8 // r + 1, 32 // s, 32 // s)

    small = DiTSettings(width=32, depth=1, heads=2, patch_size=(1, 1, 1))
    chosen = settings(steps=2, dit=small, conditioning=ConditioningSettings(kind="none"), sample_every=2)
    train_ldm(chosen, folders.vae, folders.latents, folders.ldm, 0)

    sampling = SampleSettings(num_inference_steps=2, count=2)
    requests = evaluation_requests(sampling, chosen.conditioning, [], videos, 0, demo=None)
    files = sample_videos(requests, sampling, folders.vae, folders.ldm, folders.samples)
    assert [len(list(decode(file, "x"))) for file in files] == [9, 9]

    evaluation = EvalVAESettings(clips=2, lpips=None, compared_clips=1, num_visualized=1)
    report = evaluate_vae(evaluation, DATA, videos, folders, 0)
    assert report["reconstruction"]["psnr"] > 0
    assert "needs the whole clip" in report["reconstruction"]["modes"]["streamed"]["not measured"]
    assert name in report["reconstruction"]["modes"]["tiled"]["not measured"]
    report = evaluate_ldm(EvalLDMSettings(clips=2, bootstrap=0), DATA, videos, folders, 0, demo=False)
    assert report["distances"]["random"]["reconstructed"]["frechet"] > 0

    export_pipeline(folders, sampling, tmp_path / "pipeline")
    pipeline = TextToVideoPipeline.from_pretrained(tmp_path / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline.vae) is type(original)
    longer = pipeline(num_frames=2 * r + 1, num_inference_steps=1, output_type="pt").frames
    assert longer.shape == (1, 2 * r + 1, 3, 32, 32)


def test_clips_that_a_vae_does_not_take_are_refused_before_any_work(ldm_run, tmp_path):
    make_adapted("AutoencoderKLLTXVideo").save_pretrained(tmp_path / "vae")
    videos = VideoSet(ldm_run / "shards", DATA, "?")

    def encode(data=DATA, **changes):
        encode_latents(EncodeSettings(**changes), TEXT, data, videos, tmp_path / "vae", tmp_path / "latents", 0)

    with pytest.raises(InputError, match=r"data.frames must be 8k\+1, .*found 5, nearest: 1 or 9"):
        encode(DATA.model_copy(update={"frames": 5}))
    with pytest.raises(InputError, match=r"encode.buckets: 9x40x32.height must be a multiple of 32, .*found 40"):
        encode(buckets=(BucketSettings(frames=9, height=40, width=32),))
    with pytest.raises(InputError, match=r"clips of 9 frames .*encode.stream_frames=5, but AutoencoderKLLTXVideo"):
        encode(stream_frames=5)
    five = DATA.model_copy(update={"frames": 5})
    with pytest.raises(InputError, match=r"data.frames must be 8k\+1"):
        train_vae(VAESettings(pretrained=str(tmp_path / "vae")), five, videos, tmp_path / "run/vae", 0)
    with pytest.raises(InputError, match=r"data.frames must be 8k\+1"):
        evaluate_vae(EvalVAESettings(lpips=None), five, videos, RunFolder(tmp_path), 0)
    assert not (tmp_path / "latents").exists()
    assert not (tmp_path / "run").exists()
