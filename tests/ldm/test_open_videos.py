"""Opening of an experiment's shards: folders whose packing has not finished."""

import numpy as np
import pytest
from small import REPOSITORY

from ldm.experiment import Experiment
from ldm.open_videos import open_videos
from odvae.packing import writing
from odvae.packing.packing import pack_folder
from odvae.packing.settings import PackingSettings
from odvae.running.settings import load_settings
from odvae.video.video_io import write_video


def test_training_on_a_folder_that_is_not_finished_says_so_with_its_shards(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine").mkdir()
    for i in range(8):
        write_video(tmp_path / f"mine/{i}.mp4", np.full((9, 32, 32, 3), 30 * i, np.uint8), 8)
    settings, real = PackingSettings(workers=0, samples_per_shard=2), writing.write_shard

    def stop_at_last(job):
        if job.path.name == "00003.tar":
            raise KeyboardInterrupt
        return real(job)

    monkeypatch.setattr(writing, "write_shard", stop_at_last)
    with pytest.raises(KeyboardInterrupt):
        pack_folder(tmp_path / "mine", tmp_path / "shards", settings)
    monkeypatch.undo()
    changes = [f"run={tmp_path / 'run'}", f"data.shards={tmp_path / 'shards'}", "data.workers=0", "data.held_out=0.5"]
    changes += ["data.frames=5", "data.height=32", "data.width=32"]
    experiment = load_settings(Experiment, REPOSITORY / "configs/smallest.yaml", changes)
    videos = open_videos(experiment)
    assert len(videos.train) + len(videos.held_out) == 6
    assert "is not finished: 3 shards so far, others are still to come" in capsys.readouterr().out
    pack_folder(tmp_path / "mine", tmp_path / "shards", settings)
    videos = open_videos(experiment)
    assert len(videos.train) + len(videos.held_out) == 8
    assert "is not finished" not in capsys.readouterr().out
