"""The videos that distances compare: from which split, how many, and what is refused."""

import types

import pytest

from ldm.evaluation import video_sets
from ldm.evaluation.features import load_network
from ldm.evaluation.settings import EvalLDMSettings
from ldm.evaluation.video_sets import check_enough_for, choose_video_sets, describe_reference
from odvae.clips.settings import DataSettings
from odvae.running.errors import InputError
from odvae.shards.samples import Member, Sample

DATA = DataSettings(frames=17, height=16, width=16)


@pytest.fixture
def broken(monkeypatch):
    """Keys of videos that cannot be decoded; the others can."""
    keys = set()

    def decodable(clips, data, failures):
        for sample, _ in clips:
            if sample.key in keys:
                failures.add(sample.name, "cannot be decoded")
        return [clip for clip in clips if clip[0].key not in keys]

    monkeypatch.setattr(video_sets, "decodable_clips", decodable)
    return keys


def videos_of(held_out, train):
    def samples(name, count):
        return [Sample(f"{name}{i}", None, {"mp4": Member(0, 100)}) for i in range(count)]

    both = samples("held", held_out), samples("train", train)
    return types.SimpleNamespace(held_out=both[0], train=both[1], samples=[*both[0], *both[1]])


def chosen(settings, videos, samples, data=DATA, seed=0):
    rows = [{"group": "held_out", "file": f"{i}"} for i in range(samples)]
    sets = choose_video_sets(settings, data, videos, rows, seed)
    return len(sets.generated), *([sample.key for sample, _ in part] for part in (sets.reference, sets.other_real))


def test_as_many_videos_of_each_kind_as_there_are(broken):
    n, reference, others = chosen(EvalLDMSettings(), videos_of(3, 2), 5)
    assert (n, reference, sorted(others)) == (3, ["held0", "held1", "held2"], ["train0", "train1"])
    n, reference, others = chosen(EvalLDMSettings(), videos_of(120, 300), 200)
    assert (n, len(reference), len(others)) == (96, 96, 96)


def test_training_videos_are_spread_over_the_shards_and_depend_on_the_seed_alone(broken):
    """Shards sorted by class: the first ones are of few classes."""
    _, _, others = chosen(EvalLDMSettings(clips=50), videos_of(50, 5000), 50)
    numbers = [int(key.removeprefix("train")) for key in others]
    assert max(numbers) > 4000
    assert len(set(numbers)) == 50
    assert chosen(EvalLDMSettings(clips=50), videos_of(50, 5000), 50)[2] == others
    assert chosen(EvalLDMSettings(clips=50), videos_of(50, 5000), 50, seed=1)[2] != others


def test_training_videos_as_the_reference_and_the_rest_as_the_baseline(broken):
    n, reference, others = chosen(EvalLDMSettings(clips=20, reference_split="train"), videos_of(3, 30), 25)
    assert n == len(reference) == 20
    assert all(key.startswith("train") for key in reference)
    assert others[:3] == ["held0", "held1", "held2"]
    assert len(others) == 13  # all that is left
    assert set(reference) & set(others) == set()


def test_all_videos_as_the_reference(broken):
    n, reference, others = chosen(EvalLDMSettings(clips=12, reference_split="all"), videos_of(10, 20), 12)
    assert n == len(reference) == len(others) == 12
    assert {key[:4] for key in reference} == {key[:4] for key in others} == {"held", "trai"}
    assert set(reference) & set(others) == set()
    assert describe_reference(EvalLDMSettings(reference_split="all")).startswith("training and held-out videos")


def test_fewer_than_asked_for_is_an_error_that_says_what_there_is(broken):
    with pytest.raises(InputError, match=r"eval_ldm\.clips=10, but there are only 5 samples of held-out .* 3 held_out"):
        chosen(EvalLDMSettings(clips=10), videos_of(3, 30), 5)
    with pytest.raises(InputError, match=r"eval_ldm\.clips=10, but there are only 3 held_out videos\. More samples"):
        chosen(EvalLDMSettings(clips=10), videos_of(3, 30), 12)
    with pytest.raises(InputError, match=r"at least 2 videos of each kind, found 1 samples"):
        chosen(EvalLDMSettings(), videos_of(3, 30), 1)
    with pytest.raises(InputError, match=r"found 1 real videos beside those of eval_ldm\.reference_split=train"):
        chosen(EvalLDMSettings(reference_split="train"), videos_of(0, 5), 4)
    with pytest.raises(InputError, match="protocol=stylegan-v-16f compares at most 2048 videos"):
        chosen(EvalLDMSettings(clips=2049, protocol="stylegan-v-16f"), videos_of(3, 30), 5)


def test_videos_that_cannot_be_decoded_are_replaced_while_there_are_others(broken):
    data = DATA.model_copy(update={"failures_allowed": 0.5})
    broken |= {"held0", "held2"}
    _, reference, _ = chosen(EvalLDMSettings(clips=4), videos_of(6, 30), 5, data)
    assert reference == ["held1", "held3", "held4", "held5"]
    with pytest.raises(
        InputError, match=r"eval_ldm\.clips=5, but there are only 4 held_out videos that can be decoded"
    ):
        chosen(EvalLDMSettings(clips=5), videos_of(6, 30), 5, data)
    assert chosen(EvalLDMSettings(), videos_of(6, 30), 5, data)[0] == 4


def test_published_networks_refuse_fewer_videos_than_features(broken):
    network = load_network("random", EvalLDMSettings())
    check_enough_for(network, 5, EvalLDMSettings())
    published = network.__class__(**{**vars(network), "name": "i3d", "distance": "FVD"})
    check_enough_for(published, 65, EvalLDMSettings())
    check_enough_for(published, 64, EvalLDMSettings(allow_few_clips=True))
    with pytest.raises(InputError, match=r"networks=i3d: 64 videos are not more than its 64 features, so that FVD is"):
        check_enough_for(published, 64, EvalLDMSettings())
