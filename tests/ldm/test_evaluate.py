"""Evaluation of generated videos: what is counted, and what is refused."""

import json

import pytest

from ldm.demo.judge import Verdict
from ldm.evaluate import accuracy_parts, announce_warnings, duplicates_part, origin_of_sets, read_samples
from ldm.evaluation.settings import EvalLDMSettings
from odvae.running.errors import InputError


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


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ({"prompt": "a cat", "class_label": None}, "read from H.264 mp4 files; held-out captions"),
        ({"prompt": None, "class_label": 3}, "read from H.264 mp4 files; classes in turn"),
        ({"prompt": None, "class_label": None, "lossless": "x.mkv"}, r"files; without a condition"),
    ],
)
def test_a_protocol_says_what_the_videos_were_generated_from(vae, condition, words):
    assert words in origin_of_sets([{"ldm_sha256": "a", **condition}], EvalLDMSettings(), vae)["generated"]
