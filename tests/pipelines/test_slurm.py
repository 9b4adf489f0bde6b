"""The scripts of configs/slurm, run by bash with the variables that SLURM sets: the tasks of an array one by one."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from encoded_alike import SECTIONS, assert_same_latents, encode_in_process
from scripts import ENVIRONMENT
from small import REPOSITORY

from ldm.demo.videos import write_demo_videos
from ldm.latents.manifest import load_manifest
from odvae.packing.packing import pack_folder
from odvae.packing.settings import PackingSettings

SCRIPTS = sorted((REPOSITORY / "configs/slurm").glob("*.sbatch"))  # tests of packing run pack.sbatch


def run(name, **variables):
    """Run a script -> (exit status, what it printed)."""
    environment = {**os.environ, **ENVIRONMENT, "PYTHON": sys.executable, "PYTHONPATH": str(REPOSITORY), **variables}
    words = ["bash", str(REPOSITORY / f"configs/slurm/{name}.sbatch")]
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_says_its_purpose_how_to_submit_it_and_what_to_edit(path):
    header = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert re.search(r"^# [A-Z]\w+ .*", header, re.MULTILINE)
    assert "sbatch" in header.lower()
    assert "#SBATCH --time=" in header
    subprocess.run(["bash", "-n", str(path)], check=True)
    for script in re.findall(
        r"configs/slurm/\w+\.sbatch|(?:tools|pipelines)/\w+\.py|configs/[\w/]+\.yaml", path.read_text()
    ):
        assert (REPOSITORY / script).is_file(), script


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck_finds_nothing():
    subprocess.run(["shellcheck", *map(str, SCRIPTS)], check=True)


@pytest.mark.slow
def test_an_array_that_encodes_makes_the_latents_of_one_process_whatever_the_order_of_its_tasks(tmp_path, vae):
    write_demo_videos(tmp_path / "videos", 12, 9, 32, 8, seed=3, progress=False)
    vae.save_pretrained(tmp_path / "vae")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"run": str(tmp_path), **SECTIONS}))
    pack_folder(tmp_path / "videos", tmp_path / "shards", PackingSettings(samples_per_shard=5, workers=0))
    encode = {"CONFIG": str(tmp_path / "config.yaml"), "PARTS": "2", "SLURM_CPUS_PER_TASK": "2"}
    assert run("encode", SLURM_ARRAY_TASK_ID="2", **encode)[0] == 0
    status, printed = run("encode_finish", **encode)
    assert status == 1
    assert "encode.part=1/2" in printed
    assert run("encode", SLURM_ARRAY_TASK_ID="1", **encode)[0] == 0
    status, printed = run("encode_finish", **encode)
    assert status == 0, printed
    encode_in_process(tmp_path, tmp_path / "undisturbed")
    shards = len(load_manifest(tmp_path / "latents").shards)
    assert shards >= 2
    assert_same_latents(tmp_path / "latents", tmp_path / "undisturbed", shards)


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (1, False), (143, True)])
def test_a_training_that_was_stopped_by_slurm_is_queued_again(tmp_path, status, requeued):
    """With stand-ins for srun, scontrol and accelerate, which note how they were called."""
    notes = tmp_path / "notes"
    stand_ins = {
        "srun": 'SLURM_NODEID=1 "$@"',
        "scontrol": f'echo scontrol "$@" >> {notes}; echo node7; echo node8',
        "accelerate": f'echo accelerate "$@" >> {notes}; exit {status}',
    }
    for name, text in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "42"}
    found, printed = run("train", PATH=f"{tmp_path}:{os.environ['PATH']}", **job)
    assert found == status, printed
    said = Path(notes).read_text()
    assert "--num_machines 2 --num_processes 16 --machine_rank 1 --main_process_ip node7" in said
    assert "pipelines/train_ldm.py --config configs/t2v_8gpu.yaml" in said
    assert ("scontrol requeue 42" in said) == requeued
