"""Planning of encoding: which clips are encoded at which size, and batches of one size."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_latents import DATA, encode

from ldm.demo.videos import write_demo_videos
from ldm.encoding.plan import choose_bucket, clip_starts
from ldm.encoding.settings import BucketSettings, EncodeSettings
from ldm.latents.batches import latent_batches
from ldm.latents.latent_set import held_out_batches, open_latents
from ldm.latents.manifest import load_manifest
from odvae.clips.samplers import BatchPlan
from odvae.packing.packing import pack_folder
from odvae.packing.settings import PackingSettings
from odvae.video.video_io import write_video

BUCKETS = (
    BucketSettings(frames=5, height=32, width=32),
    BucketSettings(frames=5, height=16, width=64),
    BucketSettings(frames=1, height=32, width=32),
)


def test_a_video_gets_the_longest_bucket_it_fills_with_the_nearest_shape():
    def name(frames, height, width):
        bucket = choose_bucket(frames, height, width, (*BUCKETS, BucketSettings(frames=5, height=64, width=64)), DATA)
        return bucket and bucket.name

    assert name(30, 48, 48) == "5x32x32"  # larger than that bucket, too small for 64x64
    assert name(30, 100, 100) == "5x64x64"
    assert name(30, 20, 90) == "5x16x64"
    assert name(4, 20, 90) == "1x32x32"  # too short for the others
    assert choose_bucket(4, 20, 90, BUCKETS[:2], DATA) is None


@pytest.fixture(scope="module")
def bucketed(tmp_path_factory, vae):
    """Latents of square and wide videos and of images, in three buckets."""
    folder = tmp_path_factory.mktemp("bucketed")
    write_demo_videos(folder / "videos", 9, 9, 32, 8, seed=3, progress=False)
    rng = np.random.default_rng(0)
    for i in range(6):
        wide = rng.integers(0, 255, (1, 24, 96, 3), dtype=np.uint8).repeat(9, axis=0)
        write_video(folder / f"videos/wide{i}.mp4", wide, 8)
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(folder / f"videos/image{i}.png")
    pack_folder(folder / "videos", folder / "shards", PackingSettings(samples_per_shard=8, workers=0))
    vae.save_pretrained(folder / "vae")
    encode(folder, folder / "latents", encode=EncodeSettings(batch_size=4, buckets=BUCKETS))
    return folder


def test_buckets_have_separate_shards_and_images_are_clips_of_one_frame(bucketed):
    manifest = load_manifest(bucketed / "latents")
    assert manifest.buckets == {"5x32x32": (4, 2, 4, 4), "5x16x64": (4, 2, 2, 8), "1x32x32": (4, 1, 4, 4)}
    counts = {name: 0 for name in manifest.buckets}
    for record in manifest.shards:
        assert record.name.startswith(record.bucket)
        counts[record.bucket] += record.entries
    assert counts == {"5x32x32": 9, "5x16x64": 6, "1x32x32": 6}


def test_all_batches_of_a_step_have_one_bucket_on_every_rank_and_resume_exactly(bucketed):
    latents = open_latents(bucketed / "latents", load_manifest(bucketed / "latents"))
    ranks = [latent_batches(latents, 7, BatchPlan(1, 2, rank, ranks=2)) for rank in range(2)]
    shapes = set()
    for step in range(12):
        batches = [next(rank) for _ in range(2) for rank in ranks]
        assert len({batch["mean"].shape for batch in batches}) == 1
        assert sorted(n for batch in batches for n in batch["number"].tolist()) == list(range(4 * step, 4 * step + 4))
        shapes.add(batches[0]["mean"].shape)
    assert len(shapes) == 3
    resumed = latent_batches(latents, 7, BatchPlan(1, 2, 1, ranks=2), start_step=12, workers=1)
    for _ in range(4):
        assert all(torch.equal(a, b) for a, b in zip(next(ranks[1]).values(), next(resumed).values(), strict=True))


def test_every_held_out_entry_comes_once_over_all_ranks(bucketed):
    latents = open_latents(bucketed / "latents", load_manifest(bucketed / "latents"))
    total = sum(map(len, latents.held_out.values()))
    numbers = [
        n for rank in range(2) for batch in held_out_batches(latents, 2, rank, 2) for n in batch["number"].tolist()
    ]
    assert sorted(numbers) == list(range(total))


def test_clips_of_a_video_are_spread_over_it():
    assert clip_starts(30, 10, 3) == [0, 10, 20]
    assert clip_starts(30, 10, 1) == [0]
    assert clip_starts(11, 10, 4) == [0, 1]  # none twice


def test_a_clip_may_begin_in_the_middle_or_at_random():
    assert clip_starts(31, 11, 1, "middle") == [10]
    assert clip_starts(29, 10, 2, "middle") == [5, 15]  # the middle of each half of the 20 possible first frames
    assert clip_starts(10, 10, 3, "middle") == clip_starts(10, 10, 3, "random", 0, "key") == [0]
    found = [clip_starts(109, 10, 4, "random", 0, f"video {i}") for i in range(50)]
    assert found[3] == clip_starts(109, 10, 4, "random", 0, "video 3")
    assert found != [clip_starts(109, 10, 4, "random", 1, f"video {i}") for i in range(50)]
    for starts in found:
        assert [start // 25 for start in starts] == [0, 1, 2, 3]  # one in each quarter
    assert len({starts[0] for starts in found}) > 15
    assert clip_starts(109, 10, 1, "random", 0, "x") != clip_starts(109, 10, 1, "random", 0, "y")
