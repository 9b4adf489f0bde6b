"""The commands of docs/cluster.md and configs/slurm that pack in parts, as a scheduler runs them."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from small import REPOSITORY

from ldm.commands import make_shards
from odvae.packing.settings import PackingSettings
from odvae.video.video_io import write_video


def test_help_shows_settings_as_they_are_and_leaves_out_only_what_it_names_at_its_end():
    told = dict(re.findall(r"(\w+)=(\w+)", make_shards._SCALE))
    settings = PackingSettings()
    for name in ("downloads", "download_seconds", "download_retries", "largest_mib"):
        assert float(told[name]) == getattr(settings, name)
    assert all(name in make_shards._SCALE for name in make_shards._AT_SCALE)


@pytest.mark.slow
def test_the_slurm_script_packs_each_part_and_the_folder_is_finished(tmp_path):
    (tmp_path / "videos").mkdir()
    for i in range(6):
        write_video(tmp_path / f"videos/{i}.mp4", np.full((5, 16, 16, 3), 40 * i, np.uint8), 8)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    paths = {"SRC": str(tmp_path / "videos"), "OUT": str(tmp_path / "shards")}
    environment = {**os.environ, **paths, "PARTS": "2", "SLURM_CPUS_PER_TASK": "1", "ARGS": "samples_per_shard=2"}
    environment["PATH"] = f"{tmp_path / 'bin'}:{environment['PATH']}"
    environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *sys.path])
    for task in ("2", "1"):
        script = ["bash", "configs/slurm/pack.sbatch"]
        subprocess.run(script, cwd=REPOSITORY, env={**environment, "SLURM_ARRAY_TASK_ID": task}, check=True)
    finish = [sys.executable, "tools/make_shards.py", paths["SRC"], paths["OUT"], "samples_per_shard=2", "finish=true"]
    printed = subprocess.run(finish, cwd=REPOSITORY, env=environment, check=True, capture_output=True, text=True).stdout
    assert "6 videos (30 frames" in printed
    assert sorted({path.name[:8] for path in (tmp_path / "shards").glob("*.tar")}) == ["part001-", "part002-"]
