"""Latents on several ranks: one makes the index, and all count the entries that any of them could not read."""

import json
import shutil

import pytest
import torch
from accelerate import Accelerator
from ranks import on_ranks
from small_ldm import settings, train

from ldm.diffusion.settings import ObjectiveSettings
from ldm.latents.manifest import load_manifest
from ldm.networks.settings import ConditioningSettings
from ldm.train import train_ldm
from ldm.training.diffusion_batches import LatentData
from odvae.index.building import INDEX
from odvae.running.errors import InputError


def data_of(folder, failures_allowed):
    arguments = (ConditioningSettings(kind="none"), ObjectiveSettings(), torch.device("cpu"), failures_allowed)
    return LatentData(folder, load_manifest(folder), *arguments)


def test_one_rank_makes_the_index_and_failures_of_all_ranks_count_together(ldm_run, tmp_path):
    folder = tmp_path / "latents"
    shutil.copytree(ldm_run / "latents", folder)
    shutil.rmtree(folder / "index", ignore_errors=True)
    (folder / INDEX).unlink(missing_ok=True)
    total = load_manifest(folder).train_entries

    def work(rank):
        data, accelerator = data_of(folder, 1.0), Accelerator()
        data.merge_failures(accelerator)
        data.failures.add(f"entry {rank}", "is broken")
        for _ in range(2):
            data.merge_failures(accelerator)
            assert sorted(data.failures.reasons) == ["entry 0", "entry 1"]
        strict = data_of(folder, 1.5 / total)
        strict.failures.add(f"entry {rank}", "is broken")  # one is allowed
        try:
            strict.merge_failures(accelerator)
        except InputError as error:
            print(str(error).replace("\n", " "))

    for rank, (status, printed) in enumerate(on_ranks(2, tmp_path, work)):
        assert status == 0, printed
        assert f"2 of {total} training entries could not be used, more than data.failures_allowed" in printed
        assert f"left out: entry {1 - rank}" not in printed  # the other rank has said it
    assert (folder / INDEX).is_file()


def test_a_training_names_wrong_entries_in_its_account_and_ends_beyond_what_is_allowed(ldm_run, tmp_path, capsys):
    shutil.copytree(ldm_run / "vae", tmp_path / "vae")
    shutil.copytree(ldm_run / "latents", tmp_path / "latents")
    (entries,) = data_of(tmp_path / "latents", 1.0).latents.train.values()
    wrong = entries[3]
    data = bytearray(wrong.shard.read_bytes())
    data[wrong.members["safetensors"].offset + 100] ^= 1
    wrong.shard.write_bytes(data)
    folders = (tmp_path / "vae", tmp_path / "latents", tmp_path / "ldm")
    train_ldm(settings(steps=6), *folders, 0, failures_allowed=0.2)
    assert f"left out: {wrong.name}.safetensors: its checksum is" in capsys.readouterr().err
    account = json.loads((tmp_path / "ldm/account.json").read_text())
    assert wrong.name in account["left_out"]["cannot be read, or was changed"]["names"]
    workers = settings(steps=6, workers=2)
    train_ldm(workers, *folders[:2], tmp_path / "workers", 0, failures_allowed=0.2)
    for name in ("ldm", "workers"):
        assert (tmp_path / name / "diffusion_pytorch_model.safetensors").is_file()
    weights = [(tmp_path / name / "diffusion_pytorch_model.safetensors").read_bytes() for name in ("ldm", "workers")]
    assert weights[0] == weights[1]
    train(ldm_run, tmp_path / "whole", settings(steps=6))
    assert (tmp_path / "whole/diffusion_pytorch_model.safetensors").read_bytes() != weights[0]
    with pytest.raises(InputError, match=f"1 of {len(entries)} training entries could not be used"):
        train_ldm(settings(steps=6), *folders[:2], tmp_path / "strict", 0, failures_allowed=0.0)


def test_a_training_by_blocks_resumes_as_if_it_had_not_stopped(ldm_run, tmp_path):
    blocks = {"shuffle": "blocks", "shuffle_block": 2, "shuffle_buffer": 6, "shuffle_parts": 2}
    whole = train(ldm_run, tmp_path / "whole", settings(steps=6, optimization=blocks))
    train(ldm_run, tmp_path / "resumed", settings(steps=2, optimization=blocks))
    resumed = train(ldm_run, tmp_path / "resumed", settings(steps=6, optimization=blocks))
    exact = train(ldm_run, tmp_path / "exact", settings(steps=6))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not all(torch.equal(whole[name], exact[name]) for name in whole)
    with pytest.raises(InputError, match=r"ldm\.optimization\.shuffle_block: was 2, now 3"):
        train(ldm_run, tmp_path / "resumed", settings(steps=6, optimization=blocks | {"shuffle_block": 3}))
    with pytest.raises(InputError, match="shuffle_parts=3 does not divide the global batch of 4 samples"):
        train(ldm_run, tmp_path / "parts", settings(optimization=blocks | {"shuffle_parts": 3}))
