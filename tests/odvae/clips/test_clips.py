"""Training clips are a function of (seed, sample number)."""

from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ldm.demo.videos import write_demo_videos
from odvae.clips.clip import DEFAULT_FPS, clip_rate, fit_frames, frame_count, load_clip
from odvae.clips.dataset import ClipDataset
from odvae.clips.loader import endless_loader
from odvae.clips.permutation import shuffled_index
from odvae.clips.samplers import BatchPlan, BucketSampler, StepSampler
from odvae.clips.settings import DataSettings
from odvae.clips.video_set import VideoSet, is_held_out
from odvae.packing.packing import pack_folder
from odvae.packing.settings import PackingSettings
from odvae.running.errors import InputError
from odvae.running.seeds import normal_per_sample
from odvae.video.video_io import VideoFacts

DATA = DataSettings(frames=5, height=32, width=32, held_out=0.3)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    write_demo_videos(folder / "videos", 12, 9, 32, 8, seed=3, progress=False)
    pack_folder(folder / "videos", folder / "shards", PackingSettings(samples_per_shard=5))
    return folder / "shards"


def numbers_seen(batch, micro_steps, ranks, steps, start=0):
    """The set of sample numbers of each step, over all ranks and micro-steps."""
    iterators = [iter(StepSampler(BatchPlan(batch, micro_steps, rank, ranks), start)) for rank in range(ranks)]
    return [
        sorted(n for _ in range(micro_steps) for iterator in iterators for n in next(iterator)) for _ in range(steps)
    ]


@pytest.mark.parametrize(("ranks", "micro_steps", "batch"), [(1, 1, 4), (1, 2, 2), (2, 2, 1), (2, 1, 2), (4, 1, 1)])
def test_a_step_has_the_same_samples_however_the_batch_is_divided(ranks, micro_steps, batch):
    assert numbers_seen(batch, micro_steps, ranks, steps=3) == [[4 * s + i for i in range(4)] for s in range(3)]


def test_a_resumed_run_continues_with_the_next_samples():
    assert numbers_seen(2, 2, 2, steps=2, start=5) == numbers_seen(2, 2, 2, steps=7)[5:]


def test_every_epoch_visits_every_item_once_in_its_own_order():
    epochs = [[shuffled_index(10 * epoch + i, 10, seed=0) for i in range(10)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert epochs[0] != [shuffled_index(i, 10, seed=1) for i in range(10)]


@pytest.mark.parametrize("workers", [0, 2])
def test_clips_are_the_same_for_any_number_of_workers_and_any_start(shards, workers):
    data = DATA.model_copy(update={"workers": workers})
    videos = VideoSet(shards, data, "?")
    expected = [ClipDataset(videos.train, data, seed=7)[n]["video"] for n in range(4, 12)]
    loader = endless_loader(ClipDataset(videos.train, data, seed=7), StepSampler(BatchPlan(4), start=1))
    for first in (0, 4):
        batch = next(loader)
        assert batch["number"].tolist() == list(range(4 + first, 8 + first))
        assert torch.equal(batch["video"], torch.stack(expected[first : first + 4]))


def test_starts_crops_and_flips_follow_from_the_sample_number(shards):
    wide = DATA.model_copy(update={"width": 16, "crop": "random", "flip": 0.5, "workers": 2})
    videos = VideoSet(shards, wide, "?")
    dataset = ClipDataset(videos.train, wide, seed=7)
    clips = torch.stack([dataset[n]["video"] for n in range(8)])
    loader = endless_loader(dataset, StepSampler(BatchPlan(4)))
    assert torch.equal(torch.cat([next(loader)["video"] for _ in range(2)]), clips)
    source = dataset.source(0, 0)
    whole = load_clip(source, DATA, start=frame_count(source, None) - 5)  # 32 wide
    left, right = (load_clip(source, wide, 4, crop=(0, place)) for place in (0.0, 1.0))
    assert torch.equal(left, whole[:, :, :16])
    assert torch.equal(right, whole[:, :, 16:])
    assert torch.equal(load_clip(source, wide, 4, crop=(0, 0.0), flip=True), left.flip(2))
    starts = [DATA.model_copy(update={"start": start}) for start in ("first", "middle")]
    for data, start in zip(starts, (0, 2), strict=True):
        assert torch.equal(ClipDataset(videos.train, data, 7)[3]["video"], load_clip(dataset.source(3, 0), data, start))


def test_resampling_to_a_rate_takes_the_frame_shown_at_each_time(shards):
    slow = DATA.model_copy(update={"fps": 4.0, "frames": 1})
    (source, *_) = VideoSet(shards, slow, "?").samples
    assert (frame_count(source, None), frame_count(source, slow.fps)) == (9, 4)  # 9 frames at 8 a second
    every_second = load_clip(source, DATA.model_copy(update={"stride": 2, "frames": 4}), 0)
    assert torch.equal(load_clip(source, slow.model_copy(update={"frames": 4}), 0), every_second)


def test_a_clip_has_the_rate_of_its_video_or_of_the_settings_divided_by_the_stride(shards):
    (source, *_) = VideoSet(shards, DATA, "?").samples  # of 8 frames a second
    assert clip_rate(source, DATA) == 8.0
    assert clip_rate(source, DATA.model_copy(update={"stride": 2})) == 4.0
    assert clip_rate(source, DATA.model_copy(update={"fps": 6.0, "stride": 2})) == 3.0
    image = SimpleNamespace(facts=VideoFacts(1, 32, 32, fps=0.0, seconds=0.0, variable_rate=False, keyframes=[]))
    assert clip_rate(image, DATA) == DEFAULT_FPS


def test_bucket_steps_visit_every_entry_once_per_epoch_and_one_bucket_gives_the_plain_order():
    counts = [40, 12, 4]
    draws = [draw for batch in islice(BucketSampler(counts, 5, BatchPlan(4)), 14) for draw in batch]
    assert [draw.number for draw in draws] == list(range(56))
    for bucket, count in enumerate(counts):
        assert sorted(draw.index for draw in draws if draw.bucket == bucket) == list(range(count))
    single = islice(BucketSampler([100], 5, BatchPlan(2, 2, 1, ranks=2), 3), 6)
    plain = islice(StepSampler(BatchPlan(2, 2, 1, ranks=2), 3), 6)
    assert [[draw.index for draw in batch] for batch in single] == list(plain)


def test_a_long_epoch_has_the_buckets_of_its_steps_in_segments(monkeypatch):
    monkeypatch.setattr("odvae.clips.samplers.LARGEST_STORED", 10)
    counts = [160, 48, 4]  # 53 steps
    sampler = BucketSampler(counts, 5, BatchPlan(4))
    draws = [draw for batch in islice(sampler, 106) for draw in batch]
    for bucket, count in enumerate(counts):
        assert [draw.index for draw in draws if draw.bucket == bucket] == list(range(2 * count))
    first = [draw.bucket for draw in draws[: 53 * 4 : 4]]
    assert first != [draw.bucket for draw in draws[53 * 4 :: 4]]
    assert all(first[i : i + 11].count(0) in range(5, 11) for i in range(0, 40, 10))  # everywhere in the epoch
    resumed = next(iter(BucketSampler(counts, 5, BatchPlan(4), start=77)))
    assert resumed == draws[77 * 4 : 78 * 4]


def test_the_order_of_buckets_takes_no_memory_in_a_large_set():
    sampler = BucketSampler([10**9, 10**8], 0, BatchPlan(16))
    buckets = [sampler.bucket_at(10**7 + step)[0] for step in range(1000)]
    assert 40 < sum(buckets) < 160
    assert sampler.bucket_at(10**7)[1] == pytest.approx((10**7 * 10 / 11, 10**7 / 11), rel=1e-3)


def test_another_seed_gives_other_clips(shards):
    videos = VideoSet(shards, DATA, "?")
    a, b = (torch.stack([ClipDataset(videos.train, DATA, seed)[n]["video"] for n in range(6)]) for seed in (0, 1))
    assert not torch.equal(a, b)


def test_the_split_is_a_function_of_the_key_and_has_the_requested_share(shards):
    share = np.mean([is_held_out(f"key{i}", "", 0.2) for i in range(5000)])
    assert abs(share - 0.2) < 0.02
    videos = VideoSet(shards, DATA, "?")
    assert {s.key for s in videos.train} & {s.key for s in videos.held_out} == set()
    assert len(videos.train) + len(videos.held_out) == 12


def test_videos_shorter_than_a_clip_are_counted_and_named(shards):
    with pytest.raises(InputError, match=r"12 are unusable or shorter than the 13 frames.*\n.*9 frames"):
        VideoSet(shards, DATA.model_copy(update={"frames": 13}), "?")
    with pytest.raises(InputError, match="shorter than the 17 frames"):
        VideoSet(shards, DATA.model_copy(update={"stride": 4}), "?")


def test_a_missing_or_empty_shard_folder_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist; make it with: do this"):
        VideoSet(tmp_path / "nowhere", DATA, "do this")
    with pytest.raises(InputError, match=r"holds no \.tar shard"):
        VideoSet(tmp_path, DATA, "do this")


def test_fitting_covers_the_target_and_keeps_the_centre():
    frames = np.zeros((2, 60, 120, 3), np.uint8)
    frames[:, :, 30:90] = 255  # the center half is white: what a center crop to a square keeps
    fitted = fit_frames(frames, 32, 32)
    assert fitted.shape == (2, 32, 32, 3)
    assert fitted[:, :, 2:-2].min() > 250


def test_noise_of_a_sample_does_not_depend_on_the_others():
    together = normal_per_sample((3, 2), 0, "noise", [4, 9, 5], "cpu")
    assert torch.equal(together[1], normal_per_sample((3, 2), 0, "noise", [9], "cpu")[0])
    assert not torch.equal(together[0], together[2])
    assert not torch.equal(together[1], normal_per_sample((3, 2), 0, "time", [9], "cpu")[0])
