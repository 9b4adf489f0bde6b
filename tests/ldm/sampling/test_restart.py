"""A sampling that was stopped goes on: only what is missing is made, and it is what one run would have made."""

import shutil
from dataclasses import replace

import pytest
from small_ldm import settings, train

from ldm import sample
from ldm.networks.provenance import Provenance
from ldm.networks.settings import ConditioningSettings
from ldm.sample import sample_videos
from ldm.sampling.sample_requests import user_requests
from ldm.sampling.sample_table import read_sample_rows
from ldm.sampling.settings import SampleSettings
from odvae.video.video_io import examine

SAMPLING = SampleSettings(num_inference_steps=2, batch_size=2)
REQUESTS = user_requests(["a red circle"], [], seed=0, count=5)


@pytest.fixture(scope="module")
def run(ldm_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("restart")
    train(ldm_run, folder / "ldm", settings(2, conditioning=ConditioningSettings(kind="text")))
    return ldm_run / "vae", folder / "ldm"


@pytest.fixture
def written(monkeypatch):
    """Names of the files that were written; `stop_at` of them raise, as a signal would."""
    names, write = [], sample._write

    def counting(path, *arguments):
        if len(names) == counting.stop_at:
            raise KeyboardInterrupt
        write(path, *arguments)
        names.append(path.name)

    counting.stop_at = None
    monkeypatch.setattr(sample, "_write", counting)
    return names, counting


def test_a_stopped_sampling_makes_what_is_missing_with_the_same_bytes(run, tmp_path, written, capsys):
    names, control = written
    sample_videos(REQUESTS, SAMPLING, *run, tmp_path / "whole")
    names.clear()
    control.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        sample_videos(REQUESTS, SAMPLING, *run, tmp_path / "parts")
    assert [row["file"] for row in read_sample_rows(tmp_path / "parts")] == [one.file for one in REQUESTS[:3]]
    names.clear()
    control.stop_at = None
    sample_videos(REQUESTS, SAMPLING, *run, tmp_path / "parts")
    assert names == [one.file for one in REQUESTS[2:]]  # its batch is made again as a whole
    assert "3 of 5 videos are in" in capsys.readouterr().out
    for file in [*(one.file for one in REQUESTS), "samples.jsonl", "contact_sheet.png"]:
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_other_settings_and_removed_files_are_made_again_and_others_stay(run, tmp_path, written):
    names, _ = written
    sample_videos(REQUESTS[:2], SAMPLING, *run, tmp_path)
    names.clear()
    sample_videos(REQUESTS[:2], SAMPLING, *run, tmp_path)
    assert names == []
    (tmp_path / REQUESTS[0].file).unlink()
    one_at_a_time = SAMPLING.model_copy(update={"batch_size": 1})
    for requests, changed, expected in (
        (REQUESTS[:2], SAMPLING, 2),
        (REQUESTS[:2], SAMPLING.model_copy(update={"guidance_scale": 2.0}), 2),
        ([replace(REQUESTS[0], negative_prompt="blue")], one_at_a_time, 1),
        (REQUESTS[:1], one_at_a_time.model_copy(update={"lossless": True}), 1),
        (REQUESTS[:1], one_at_a_time.model_copy(update={"lossless": True, "gif": True}), 1),
        (REQUESTS[:1], one_at_a_time.model_copy(update={"lossless": True, "gif": True}), 0),
    ):
        names.clear()
        sample_videos(requests, changed, *run, tmp_path)
        assert len(names) == expected


def test_a_gif_is_of_its_video(run, tmp_path):
    """A GIF that an earlier command made does not stay beside the video of other settings."""
    gif = SAMPLING.model_copy(update={"gif": True})
    sample_videos(REQUESTS[:1], gif, *run, tmp_path)
    (made,) = tmp_path.glob("*.gif")
    first = made.read_bytes()
    other = {"guidance_scale": 1.5}
    sample_videos(REQUESTS[:1], SAMPLING.model_copy(update=other), *run, tmp_path)
    assert not made.exists()
    sample_videos(REQUESTS[:1], gif.model_copy(update=other), *run, tmp_path)
    assert made.read_bytes() != first


def test_a_killed_command_leaves_no_row_of_a_video_that_it_replaced(run, tmp_path, written):
    sample_videos(REQUESTS[:2], SAMPLING, *run, tmp_path)
    names, control = written
    names.clear()
    control.stop_at = 0
    with pytest.raises(KeyboardInterrupt):
        sample_videos(REQUESTS[:1], SAMPLING.model_copy(update={"guidance_scale": 1.5}), *run, tmp_path)
    assert [row["file"] for row in read_sample_rows(tmp_path)] == [REQUESTS[1].file]


def test_files_have_the_frame_rate_of_the_training_clips_where_none_is_set(run, tmp_path):
    vae, ldm = run
    trained = Provenance.load(ldm)
    assert trained.frame_rate == 8.0  # of the rendered videos
    shutil.copytree(ldm, tmp_path / "ldm")
    replace(trained, frame_rate=12.5).save(tmp_path / "ldm")

    def rates(folder, **update):
        sampling = SAMPLING.model_copy(update=update)
        (file,) = sample_videos(REQUESTS[:1], sampling, vae, tmp_path / "ldm", tmp_path / folder)
        (row,) = read_sample_rows(tmp_path / folder)
        return examine(file, str(file)).fps, row["fps"]

    assert rates("null") == (12.5, 12.5)
    assert rates("set", fps=10.0) == (10.0, 10.0)
    replace(trained, frame_rate=None).save(tmp_path / "ldm")  # of version 0.2
    assert rates("unknown") == (8.0, 8.0)


def test_without_prompts_and_classes_there_is_no_guidance(ldm_run, tmp_path):
    train(ldm_run, tmp_path / "ldm", settings(2, conditioning=ConditioningSettings(kind="none")))
    requests = user_requests([], [], seed=0, count=1)
    sample_videos(requests, SAMPLING, ldm_run / "vae", tmp_path / "ldm", tmp_path / "samples")
    assert [row["guidance_scale"] for row in read_sample_rows(tmp_path / "samples")] == [1.0]
