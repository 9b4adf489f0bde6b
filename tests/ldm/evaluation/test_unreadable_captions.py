"""Captions that are not UTF-8: they are named, and no command ends because of one."""

import pytest

from ldm.demo.videos import write_demo_videos
from ldm.evaluation.real_clips import decodable_clips
from ldm.networks.settings import ConditioningSettings
from ldm.sampling.sample_requests import evaluation_requests
from ldm.sampling.settings import SampleSettings
from odvae.clips.settings import DataSettings
from odvae.clips.video_set import VideoSet
from odvae.packing.packing import pack_folder
from odvae.running.errors import InputError
from odvae.running.failures import Failures
from odvae.shards.captions import shown_caption
from odvae.shards.tars import index_shards, list_shards, shard_writer

DATA = DataSettings(frames=5, height=32, width=32, held_out=0.5, workers=0)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Eight videos, the first held-out one with a caption in Latin-1."""
    folder = tmp_path_factory.mktemp("latin")
    write_demo_videos(folder / "videos", 8, 9, 32, 8, seed=3, progress=False)
    pack_folder(folder / "videos", folder / "packed")
    first = VideoSet(folder / "packed", DATA, "?").held_out[0].key
    (folder / "shards").mkdir()
    with shard_writer(folder / "shards/00000.tar") as writer:
        for sample in index_shards(list_shards(folder / "packed", "?")):
            changed = {"txt": "\xfcber".encode("latin-1")} if sample.key == first else {}
            writer.write({"__key__": sample.key, **sample.read_all(), **changed})
    return VideoSet(folder / "shards", DATA, "?")


def test_such_a_video_is_left_out_of_the_real_clips_and_counted(videos):
    clips = [(sample, 0) for sample in videos.held_out]
    failures = Failures(8, 0.5, "videos")
    assert decodable_clips(clips, DATA, failures) == clips[1:]
    assert list(failures.reasons) == [clips[0][0].name]
    assert "is not UTF-8" in failures.reasons[clips[0][0].name]


def test_prompts_are_the_other_captions(videos, capsys):
    settings = SampleSettings(count=2)
    requests = evaluation_requests(settings, ConditioningSettings(), [], videos, 0, demo=None)
    assert [request.source for request in requests] == [sample.key for sample in videos.held_out[1:3]]
    assert f"left out: {videos.held_out[0].name}.txt is not UTF-8" in capsys.readouterr().err


def test_latents_without_classes_give_no_requests_by_class(videos):
    with pytest.raises(InputError, match=r"ldm\.conditioning\.kind=class: the latents have no classes"):
        evaluation_requests(SampleSettings(count=2), ConditioningSettings(kind="class"), [], videos, 0, demo=None)


def test_it_is_shown_without_its_caption(videos, capsys):
    assert shown_caption(videos.held_out[0]) == "(its caption cannot be read)"
    assert shown_caption(videos.held_out[1]) == videos.held_out[1].read_text() != ""
    assert "is not UTF-8" in capsys.readouterr().err
