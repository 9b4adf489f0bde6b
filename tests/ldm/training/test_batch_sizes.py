"""`tokens_per_batch`: the samples of a batch follow from its bucket's tokens, as a function of (seed, step)."""

import json
from itertools import chain, islice

import pytest
import torch
from small_latents import encode, opened
from small_ldm import SMALL_DIT, settings, train
from small_networks import make_dit

from ldm.demo.videos import write_demo_videos
from ldm.encoding.settings import BucketSettings, EncodeSettings
from ldm.latents.batches import latent_batches
from ldm.training.batch_sizes import batch_sizes
from ldm.training.settings import LDMSettings
from odvae.clips.samplers import BatchPlan, BucketSampler
from odvae.packing.packing import pack_folder
from odvae.running.errors import InputError
from odvae.training.settings import OptimizationSettings

BUCKETS = (BucketSettings(frames=9, height=32, width=32), BucketSettings(frames=1, height=32, width=32))
SHAPES = {"9x32x32": (4, 3, 4, 4), "1x32x32": (4, 1, 4, 4)}  # 12 and 4 tokens


def by_tokens(tokens, steps=6, **changes):
    optimization = OptimizationSettings(
        steps=steps, optimizer="sgd", learning_rate=0.02, log_every=1, checkpoint_every=2, **changes
    )
    return LDMSettings(dit=SMALL_DIT, optimization=optimization, tokens_per_batch=tokens, validation_clips=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, vae):
    """A run folder with vae/ and latents/ of videos of nine frames and of single frames."""
    folder = tmp_path_factory.mktemp("buckets")
    for name, frames in (("long", 9), ("short", 4)):  # too short for the first bucket: single frames
        write_demo_videos(folder / "videos" / name, 16, frames, 32, 8, seed=frames, progress=False)
    pack_folder(folder / "videos", folder / "shards")
    vae.save_pretrained(folder / "vae")
    encode(folder, folder / "latents", encode=EncodeSettings(buckets=BUCKETS))
    return folder


def test_a_batch_has_as_many_samples_as_have_room_for_their_tokens():
    network = make_dit()
    assert batch_sizes(by_tokens(26), network, SHAPES) == {"9x32x32": 2, "1x32x32": 6}
    assert batch_sizes(settings(), network, SHAPES) == {"9x32x32": 4, "1x32x32": 4}
    with pytest.raises(InputError, match=r"tokens_per_batch=11: .* 9x32x32 has 12 tokens; allowed are 12 and more"):
        batch_sizes(by_tokens(11), network, SHAPES)


def test_what_contradicts_the_number_of_tokens_is_refused():
    with pytest.raises(ValueError, match=r"tokens_per_batch=26 and ldm\.optimization\.batch_size=4 both say"):
        by_tokens(26, batch_size=4)
    with pytest.raises(ValueError, match=r"shuffle_parts=2 cannot divide alike"):
        by_tokens(26, shuffle="blocks", shuffle_parts=2)
    recorded = by_tokens(26).model_dump(mode="json")  # as studies record a run's settings, with all defaults
    assert LDMSettings(**recorded) == by_tokens(26)


def drawn(plan, steps, start=0):
    """The samples of each step, over all its micro-steps."""
    batches = BucketSampler([40, 60, 7], 5, plan, start, batch_sizes=[2, 6, 1])
    each = plan.gradient_accumulation_steps
    batches = list(islice(batches, each * steps))
    return [list(chain(*batches[each * i : each * (i + 1)])) for i in range(steps)]


def test_samples_are_numbered_without_gaps_and_a_bucket_is_used_up_before_any_is_repeated():
    steps = drawn(BatchPlan(1), 20 + 10 + 7)  # an epoch
    assert [draw.number for draws in steps for draw in draws] == list(range(107))
    for bucket, count in enumerate((40, 60, 7)):
        indices = [draw.index for draws in steps for draw in draws if draw.bucket == bucket]
        assert indices == list(range(count))
    assert all(len(draws) == (2, 6, 1)[draws[0].bucket] for draws in steps)


def test_a_step_has_the_same_samples_for_any_ranks_and_after_a_resume():
    one = drawn(BatchPlan(1, gradient_accumulation_steps=2), 40)
    ranks = [drawn(BatchPlan(1, rank=rank, ranks=2), 40) for rank in (0, 1)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == one
    assert drawn(BatchPlan(1, gradient_accumulation_steps=2), 17, start=23) == one[23:]


def test_batches_of_latents_have_at_most_so_many_tokens(folder):
    batches = latent_batches(opened(folder / "latents"), 0, BatchPlan(1), batch_sizes={"9x32x32": 2, "1x32x32": 6})
    shapes = {tuple(batch["mean"].shape) for batch in islice(batches, 12)}
    assert shapes == {(2, 4, 3, 4, 4), (6, 4, 1, 4, 4)}


def test_a_training_by_tokens_resumes_exactly_and_only_with_the_same_tokens_per_step(folder, tmp_path):
    whole = train(folder, tmp_path / "whole", by_tokens(26))
    train(folder, tmp_path / "parts", by_tokens(26, steps=2))
    with pytest.raises(InputError, match=r"tokens_per_batch: was 26, now 48"):
        train(folder, tmp_path / "parts", by_tokens(48))
    with pytest.raises(InputError, match=r"6 samples per step \(1 ranks\), but this run has 12"):
        train(folder, tmp_path / "parts", by_tokens(26, gradient_accumulation_steps=2))
    parts = train(folder, tmp_path / "parts", by_tokens(26))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    rows = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert "held_out_loss" in rows[-1]
