"""tools/index_shards.py: videos and latents, in one pass and in parts."""

import shutil
import subprocess
import sys

import pytest
from small import REPOSITORY

from ldm.index_shards import index_folder
from ldm.latents import index_files
from ldm.latents.manifest import load_manifest
from odvae.index.building import INDEX
from odvae.index.folder_index import FolderIndex
from odvae.index.settings import IndexingSettings
from odvae.running.errors import InputError
from odvae.running.settings import make_settings

KINDS = ["shards", "latents"]


@pytest.fixture(params=KINDS)
def folder(request, ldm_run, tmp_path):
    """Two shards without an index."""
    copied = shutil.copytree(ldm_run / request.param, tmp_path / request.param)
    shutil.rmtree(copied / "index")
    (copied / INDEX).unlink()
    return copied


def settings(**changes):
    return IndexingSettings(workers=0, **changes)


def test_parts_and_one_pass_give_the_same_index(folder):
    whole = index_folder(folder, settings())
    assert "16 " in whole
    before = (folder / INDEX).read_bytes()
    (folder / INDEX).unlink()
    shutil.rmtree(folder / "index")
    with pytest.raises(InputError, match=r"1 of the 1 .* no (right )?index: 00000\.tar.*without finish=true"):
        index_folder(folder, settings(finish=True))
    assert "part 2/2: 0 shards" in index_folder(folder, settings(part="2/2"))
    assert "part 1/2: 1 shard indexed in" in index_folder(folder, settings(part="1/2"))
    assert not (folder / INDEX).exists()
    assert index_folder(folder, settings(finish=True)) == whole
    assert (folder / INDEX).read_bytes() == before


def test_the_script_names_what_it_made_and_what_is_allowed(folder):
    command = [sys.executable, "tools/index_shards.py", str(folder)]
    result = subprocess.run([*command, "workers=0"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.startswith(f"{folder / INDEX}: 16 ")
    index = FolderIndex(folder / INDEX, folder)
    assert len(index) == 16
    if folder.name == "latents":
        manifest = load_manifest(folder)
        assert index_files.open_index(folder, manifest).header == index.header
    result = subprocess.run([*command, "part=3/2"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "parts are numbered from 1/2 to 2/2" in result.stderr


def test_a_part_and_the_end_are_two_commands():
    with pytest.raises(InputError, match="finish=true without part"):
        make_settings(IndexingSettings, {}, ["part=1/2", "finish=true"], "here")
