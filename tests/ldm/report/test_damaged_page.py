"""Files of a run that were damaged: the page names file and key, or shows what it can."""

import copy
import json

import pytest

from ldm.report import charts
from ldm.report.page import render_report
from odvae.report_file import read_report
from odvae.running.errors import InputError
from odvae.running.run_folder import RunFolder

SCORES = {
    "frechet": 2.0,
    "frechet_interval": [1.0, 3.0],
    "frechet_by_n": [[8, 4.0], [16, 3.0]],
    "frechet_at_infinity": 1.0,
    "kernel": 0.5,
    "kernel_interval": None,
    "n": 16,
}
ACCURACY = {
    **{name: 0.5 for name in ("color", "shape", "motion")},
    "chance": {name: 0.1 for name in ("color", "shape", "motion")},
    "unclear": {"shape": 0.0},
    "n": 16,
    "protocol": "judge",
}
REPORT = {
    "commit": "abcdef",
    "version": "0",
    "minutes": {"vae": 1.0},
    "reconstruction": {
        "psnr": 30.0,
        "ssim": 0.9,
        "n": 4,
        "latents": {
            "mean": [0.0, 0.0],
            "low_frequency_share": {"temporal": None, "spatial": 0.75},
            "low_frequency_share_of_white_noise": {"temporal": None, "spatial": 0.25},
            "effective_rank": 1.5,
            "local_correlation": None,
            "bits_per_pixel": 0.5,
            "kl_bits_per_pixel": 0.6,
            "noise": {"psnr_drop": {"0.1": 2.5}, "protocol": "x"},
            "protocol": {"latents": "x"},
        },
        "motion": {"psnr": 21.5, "mae": 4.0, "n": 4, "protocol": "x"},
        "protocol": {"frames": 5},
        "command": "x",
        "commit": "y",
    },
    "prompt_accuracy": ACCURACY,
    "prompt_accuracy_unseen": None,
    "prompt_accuracy_reconstructed": ACCURACY,
    "clip_score": None,
    "flicker": {"added": 1.0, "seam_ratio": None, "steadiness": {"real": 1.0, "generated": None}, "protocol": "x"},
    "distances": {
        "pixels": {
            "name": "Frechet distance on pixels",
            "kernel_name": "kernel distance on pixels",
            "n": 16,
            "warnings": ["few videos"],
            "protocol": {"ddof": 1, "reference": "training videos, in random order; baselines: others"},
            **{name: SCORES for name in ("generated", "reconstructed", "real")},
        },
        "command": "x",
        "commit": "y",
    },
}
SAMPLE = {"file": "a.mp4", "group": "user", "prompt": "a red square", "class_label": None, "source": None}
STAGE = {"minutes": 1.5, "finished": True, "command": "x", "version": "0", "commit": "y"}
METRICS = {"step": 1, "loss": 0.5, "held_out_loss": 0.4}


@pytest.fixture
def folders(tmp_path):
    folders = RunFolder(tmp_path)
    for folder in (folders.report, folders.samples, folders.ldm):
        folder.mkdir()
    write(folders)
    return folders


def write(folders, report=REPORT, sample=SAMPLE, stage=STAGE, metrics=METRICS):
    (folders.report / "report.json").write_text(json.dumps(report))
    (folders.samples / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    (folders.samples / "a.mp4").write_bytes(b"video")
    (folders.ldm / "stage.json").write_text(json.dumps(stage))
    (folders.ldm / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")


def render(folders):
    return render_report(folders, read_report(folders), 4).read_text()


def test_a_whole_report_is_shown(folders):
    page = render(folders)
    assert "Frechet distance on pixels" in page
    assert "a red square" in page
    assert "Distance to 16 real videos (training videos, in random order); lower is better." in page
    assert "<td>spatial energy at low frequencies</td><td>0.750</td><td>white noise: 0.250</td>" in page
    assert "<td>PSNR of moving pixels</td><td>21.5</td><td>dB</td>" in page
    assert "local correlation" not in page  # null


def damaged(value, path=()):
    """Copies of nested mappings, each without one key, or with a value of another type there."""
    for key, one in value.items():
        without = {name: other for name, other in value.items() if name != key}
        yield without, (*path, key)
        for wrong in ("x", None, [1] if isinstance(one, dict) else {"a": "b"}):
            yield {**value, key: wrong}, (*path, key)
        if isinstance(one, dict):
            for inner, inner_path in damaged(one, (*path, key)):
                yield {**value, key: inner}, inner_path


@pytest.mark.parametrize(
    ("what", "good", "name"),
    [
        ("report", REPORT, "report.json"),
        ("sample", SAMPLE, "samples.jsonl, line 1"),
        ("stage", STAGE, "stage.json"),
        ("metrics", METRICS, "metrics.jsonl, line 1"),
    ],
)
def test_whatever_is_damaged_is_named_or_shown(folders, what, good, name, monkeypatch):
    for chart in ("whiskers", "curve"):
        monkeypatch.setattr(charts, chart, lambda *_: "")  # takes a tenth of a second each
    refused = []
    for value, path in damaged(copy.deepcopy(good)):
        write(folders, **{what: value})
        try:
            render(folders)
        except InputError as error:
            refused.append((path[-1], str(error)))
    assert len(refused) > len(good)
    for key, message in refused:
        assert name in message or key in message or f"{folders.samples}/x is missing" in message


def test_a_video_that_is_gone_is_named(folders):
    (folders.samples / "a.mp4").unlink()
    with pytest.raises(InputError, match=r"a\.mp4 is missing, but a table of this run lists it"):
        render(folders)
