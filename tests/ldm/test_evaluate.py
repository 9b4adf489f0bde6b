"""Evaluation of generated videos: which are compared, and what is refused."""

import json
import types

import pytest

from ldm.demo.judge import Verdict
from ldm.evaluate import accuracy_parts, announce_warnings, choose_video_sets, duplicates_part, read_samples
from ldm.evaluation.settings import EvalLDMSettings
from odvae.clips.settings import DataSettings
from odvae.running.errors import InputError
from odvae.shards.samples import Member, Sample

DATA = DataSettings(frames=17, height=16, width=16)


def sample(key):
    return Sample(key, None, {"mp4": Member(0, 100), "json": Member(0, 0)})


def test_sets_have_equal_size_and_too_few_videos_are_refused():
    videos = types.SimpleNamespace(held_out=[sample("a"), sample("b"), sample("c")], train=[sample("d"), sample("e")])
    rows = [{"group": "held_out", "file": f"{i}"} for i in range(5)]
    sets = choose_video_sets(EvalLDMSettings(), DATA, videos, rows, 0)
    assert len(sets.generated) == len(sets.reference) == len(sets.other_real) == 2
    with pytest.raises(InputError, match="at least 2 videos of each kind"):
        choose_video_sets(EvalLDMSettings(), DATA, videos, rows[:1], 0)


def test_equal_samples_are_counted_named_and_warned_of(capsys):
    rows = [{"file": f"{i}.mp4", "digest": digest} for i, digest in enumerate("abca")]
    part = duplicates_part(rows)
    assert (part["n"], part["different"], part["repeated"]) == (4, 3, ["0.mp4", "3.mp4"])
    announce_warnings({"distances": {}, "duplicates": part})
    assert "warning: 2 samples have the same pixels as another: 0.mp4, 3.mp4" in capsys.readouterr().out


def test_an_unconditional_run_has_no_prompt_accuracy():
    rows = [{"group": "held_out", "prompt": None}]
    reconstructed = [{"caption": "a large red circle moves left", "verdict": vars(Verdict("red", "circle", "left"))}]
    parts = accuracy_parts(rows, reconstructed)
    assert parts["prompt_accuracy"] is parts["prompt_accuracy_unseen"] is None
    assert parts["prompt_accuracy_reconstructed"]["color"] == 1


def test_samples_made_with_several_settings_are_refused(tmp_path):
    rows = [{"file": f"{i}.mp4", "group": "held_out", "ldm_sha256": "a", "guidance_scale": 3.0 + i} for i in range(2)]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"mixes samples of several guidance_scale: 3\.0, 4\.0"):
        read_samples(tmp_path)
