"""Concurrent commands in one run: samplings, evaluations and exports do not lose each other's results."""

import json
import multiprocessing
import shutil
import time

import pytest
import torch
from small_ldm import DATA, settings, train

from ldm.evaluate import evaluate_ldm
from ldm.evaluation.settings import EvalLDMSettings
from ldm.export import export_pipeline
from ldm.sample import sample_videos
from ldm.sampling import sample_table
from ldm.sampling.sample_requests import evaluation_requests, user_requests
from ldm.sampling.settings import SampleSettings
from odvae import report_file
from odvae.clips.video_set import VideoSet
from odvae.evaluate import evaluate_vae
from odvae.running.errors import InputError
from odvae.running.run_folder import RunFolder
from odvae.settings import EvalVAESettings

SAMPLING = SampleSettings(num_inference_steps=1, guidance_scale=1.0)


@pytest.fixture(scope="module")
def folders(ldm_run, tmp_path_factory):
    """A run with a trained LDM and samples for an evaluation."""
    root = tmp_path_factory.mktemp("at_once")
    for name in ("shards", "vae", "latents"):
        shutil.copytree(ldm_run / name, root / name)
    train(root, root / "ldm", settings(steps=1))
    folders, chosen = RunFolder(root), settings().conditioning
    videos = VideoSet(root / "shards", DATA, "?")
    requests = evaluation_requests(SAMPLING.model_copy(update={"count": 2}), chosen, [], videos, seed=0, demo=None)
    sample_videos(requests, SAMPLING, folders.vae, folders.ldm, folders.samples)
    return folders


def at_once(*commands):
    """Run commands as processes at the same time; the message of each one's InputError, or nothing."""
    fork = multiprocessing.get_context("fork")
    ends = [fork.Pipe() for _ in commands]
    ready = fork.Barrier(len(commands))

    def run(command, sender):
        torch.set_num_threads(1)  # a forked process has lost its other threads
        ready.wait()
        try:
            command()
        except InputError as error:
            sender.send(str(error))
        else:
            sender.send("")

    processes = [fork.Process(target=run, args=(c, end[1])) for c, end in zip(commands, ends, strict=True)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    return [receiver.recv() for receiver, _ in ends]


def slowly(write):
    def write_later(*arguments):
        time.sleep(0.5)  # between reading and writing
        write(*arguments)

    return write_later


def test_two_samplings_keep_all_rows(folders, monkeypatch):
    monkeypatch.setattr(sample_table, "write_text", slowly(sample_table.write_text))
    before = len(sample_table.read_sample_rows(folders.samples))

    def sample(prompt):
        requests = user_requests([prompt], [], seed=0, count=2)
        sample_videos(requests, SAMPLING, folders.vae, folders.ldm, folders.samples)

    said = at_once(lambda: sample("a red circle"), lambda: sample("a blue square"), lambda: sample("a red circle"))
    assert said == ["", "", ""]
    rows = sample_table.read_sample_rows(folders.samples)
    assert len(rows) == before + 4
    assert {row["prompt"] for row in rows if row["group"] == "user"} == {"a red circle", "a blue square"}
    assert all((folders.samples / row["file"]).is_file() for row in rows)
    assert list(folders.samples.glob(".*.partial")) == []


def test_evaluations_of_vae_and_ldm_keep_all_parts(folders, monkeypatch):
    monkeypatch.setattr(report_file, "write_json", slowly(report_file.write_json))
    videos = VideoSet(folders.shards, DATA, "?")
    vae_settings = EvalVAESettings(clips=2, compared_clips=1, lpips=None, modes=(), num_visualized=1)
    ldm_settings = EvalLDMSettings(clips=2, num_visualized=1, bootstrap=0)
    said = at_once(
        lambda: evaluate_vae(vae_settings, DATA, videos, folders, 0),
        lambda: evaluate_ldm(ldm_settings, DATA, videos, folders, 0, demo=False),
        lambda: evaluate_vae(vae_settings, DATA, videos, folders, 0),
    )
    assert said == ["", "", ""]
    report = json.loads((folders.report / "report.json").read_text())
    assert {"reconstruction", "distances", "flicker", "minutes", "commit"} <= report.keys()
    assert report["minutes"]["report"] > 0
    assert json.loads((folders.report / "stage.json").read_text())["finished"]


def test_a_second_export_into_the_same_folder_is_refused_and_the_first_is_whole(folders, monkeypatch):
    out = folders.root / "pipeline"
    export_pipeline(folders, SAMPLING, out)  # one that is there already is replaced as a whole
    said = at_once(*[lambda: export_pipeline(folders, SAMPLING, out)] * 2)
    assert sorted(said)[0] == ""
    assert all(message == "" or f"{out} is being written by another process" in message for message in said)
    assert (out / "model_index.json").is_file()
    assert {path.name for path in out.iterdir()} >= {"vae", "transformer", "scheduler", "README.md"}
    assert [path.name for path in folders.root.iterdir() if "partial" in path.name] == []
