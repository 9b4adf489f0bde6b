"""Runs side by side: the numbers and videos of studies, of frontiers and of folders of runs; no other file is shown."""

import json

import pytest
from small_app import video_bytes

from ldm.app.studies import captions, find_studies, read_study, table_html, videos_html
from odvae.running.errors import InputError


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_samples(folder, *prompts, file="held_out_0000.mp4"):
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, prompt in enumerate(prompts):
        name = file.replace("0000", f"{i:04d}")
        if "/" not in name:
            (folder / name).write_bytes(video_bytes(1 + i, 16, 16))
        rows.append({"file": name, "group": "held_out", "prompt": prompt, "class_label": None})
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "cpu"
    row = {"label": "OD-VAE", "run": "dit_on_od", "frechet": 0.25, "tokens": 45, "protocol": "p", "curve": [[1, 2.0]]}
    image = {"label": "image VAE", "run": "dit_on_image", "frechet": 0.5, "steps_per_second": 4.125, "kernel": None}
    tables = {
        "variants": [{"label": "variant 4", "run": "variant_4", "psnr": 29.04}],
        "initializations": [],
        "modes": [],
    }
    write(folder / "study.json", {**tables, "generators": {"dit": [row, image]}})
    write_samples(folder / "dit_on_od/samples", "a red circle", "a blue <i>square</i>")
    write_samples(folder / "dit_on_image/samples", "a red circle")
    return folder


def test_a_study_has_its_tables_and_the_videos_of_the_same_caption(study):
    found = read_study(study)
    assert (found.title, list(found.tables)) == ("cpu", ["variants", "generator dit"])
    runs = found.runs("generator dit")
    table = table_html(runs)
    for cell in ("<th>frechet</th>", "<td>0.250</td>", "<td>45</td>", "<th>steps per second</th>", "<td>4.12</td>"):
        assert cell in table
    assert "<td>–</td>" in table  # the first run has no steps per second
    assert "protocol" not in table
    assert captions(runs) == ["a red circle", "a blue <i>square</i>"]
    assert videos_html(runs, ["OD-VAE", "image VAE"], "a red circle").count("data:video/mp4") == 2
    page = videos_html(runs, ["OD-VAE", "image VAE"], "a blue <i>square</i>")
    assert page.count("data:video/mp4") == 1
    assert "no video of this caption here" in page
    assert "a blue &lt;i&gt;square&lt;/i&gt;" in page
    assert "numbers alone" in videos_html(found.runs("variants"), ["variant 4"], None)


def test_a_frontier_has_its_points_with_the_mean_of_the_seeds(tmp_path):
    point = {
        "point": "4x8x8-c4",
        "psnr": 28.0,
        "ceiling": None,
        "budgets": {"4 minutes": [0.5, 0.75], "9 minutes": []},
        "machine": "m",
    }
    write(tmp_path / "frontier.json", {"points": [point]})
    write_samples(tmp_path / "4x8x8-c4/seed_1/samples", "a red circle")
    runs = read_study(tmp_path).runs("points")
    assert runs[0].values == {"psnr": 28.0, "accuracy, 4 minutes": 0.625}
    assert captions(runs) == ["a red circle"]


def test_a_folder_of_runs_is_compared_by_their_reports(tmp_path):
    report = {
        "reconstruction": {"psnr": 29.0, "ssim": 0.9, "n": 4},
        "prompt_accuracy": {"color": 0.99, "n": 96},
        "distances": {"random": {"generated": {"frechet": 0.25}, "real": {"frechet": 0.125}}},
        "minutes": {"vae": 2.0, "ldm": 3.5},
    }
    write(tmp_path / "demo/report/report.json", report)
    write(tmp_path / "other/report/report.json", {"reconstruction": {"psnr": 30.0}})
    first, second = read_study(tmp_path).runs("runs")
    expected = {"PSNR": 29.0, "SSIM": 0.9, "color as prompted": 0.99, "Fréchet distance (random features)": 0.25}
    assert (first.name, first.values) == ("demo", {**expected, "minutes": 5.5})
    assert (second.name, second.values) == ("other", {"PSNR": 30.0})


def test_names_that_there_are_not_and_files_outside_are_refused(study, tmp_path):
    found = read_study(study)
    runs = found.runs("generator dit")
    for bad, message in (
        (lambda: found.runs("../../secret"), r"cpu has no table '\.\./\.\./secret'"),
        (lambda: videos_html(runs, ["../secret"], "a red circle"), r"there is no run '\.\./secret'"),
        (lambda: videos_html(runs, ["OD-VAE"] * 7, "a red circle"), "7 runs are chosen; at most 6"),
        (lambda: find_studies([tmp_path / "nothing"]), "nothing has no results"),
    ):
        with pytest.raises(InputError, match=message):
            bad()
    (study / "secret.mp4").write_bytes(b"secret")
    write_samples(study / "dit_on_od/samples", "a red circle", file="../../secret.mp4")
    assert "data:video" not in videos_html(runs, ["OD-VAE"], "a red circle")
    write(study / "study.json", {"variants": [3]})
    with pytest.raises(InputError, match=r"study\.json was damaged: variants must be a list of objects"):
        find_studies([study])


def test_studies_of_the_same_name_are_told_apart(study, tmp_path):
    other = tmp_path / "again" / "cpu"
    write(other / "frontier.json", {"points": [{"point": "a", "budgets": {}}]})
    assert list(find_studies([study, other])) == ["cpu", str(other)]
