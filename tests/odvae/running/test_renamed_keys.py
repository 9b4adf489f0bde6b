"""What version 0.1 wrote, given to this one: its configs, its run folders, its models. An error that says what became
of each name, and nothing touched. `tests/version_0_1` holds what that version itself wrote."""

import json
import re
import shutil

import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from small import REPOSITORY

from ldm.diffusion.objective import objective_of
from ldm.encoding.settings import EncodeSettings
from ldm.experiment import Experiment
from ldm.latents.manifest import load_manifest
from ldm.networks.settings import TextSettings
from ldm.sampling.sample_table import SampleTable, read_sample_rows
from ldm.study.settings import StudySettings
from ldm.training.settings import LDMSettings
from odvae.clips.settings import DataSettings
from odvae.report_file import read_report
from odvae.running.errors import InputError
from odvae.running.run_folder import RunFolder
from odvae.running.settings import Settings, load_settings, make_settings
from odvae.running.stage import Stage
from odvae.settings import VAESettings
from odvae.training.checkpoints import checkpoint_facts
from odvae.video_vae import load_vae

OLD = REPOSITORY / "tests/version_0_1"


def flatten(tree, prefix=""):
    for key, value in tree.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")


def all_settings(kind=Settings):
    for inner in kind.__subclasses__():
        yield inner
        yield from all_settings(inner)


def test_a_config_of_version_0_1_is_an_error_that_names_what_each_key_is_now():
    with pytest.raises(InputError) as error:
        load_settings(Experiment, OLD / "config.yaml")
    message = str(error.value)
    assert message.startswith(f"{OLD / 'config.yaml'}:\n")
    assert "unknown key" not in message
    for line in (
        "latents is now encode (since version 0.2)",
        "latents.stored is now encode.posterior (",
        "samples.steps is now sample.num_inference_steps (",
        "reconstruction.ways is now eval_vae.modes (",
        "report.shown is now eval_ldm.num_visualized (",
        "vae.image_phase.accumulate is now vae.image_phase.gradient_accumulation_steps (",
        "vae.loss.adversary is now vae.loss.gan (",
        "ldm.network is now ldm.dit or ldm.unet, whichever section is given (",
        "ldm.model is now ldm.dit (",
        "ldm.model.attention: factorised is now ldm.dit.attention: factorized (",
        "ldm.objective.time_mean is now ldm.objective.logit_mean (",
    ):
        assert f"\n  {line}" in message


def test_a_config_of_version_0_1_with_every_name_replaced_as_its_error_says_loads():
    """So no key is forgotten, and every new name is a key."""
    old = yaml.safe_load((OLD / "config.yaml").read_text())
    with pytest.raises(InputError) as error:
        load_settings(Experiment, OLD / "config.yaml")
    now = dict(re.findall(r"^  (\S+) is now (\S+) \(since", str(error.value), flags=re.M))
    new: dict = {}
    for dotted, value in flatten(old):
        section = max((name for name in now if dotted.startswith(f"{name}.")), key=len, default="")
        renamed = now.get(dotted) or now.get(section, section) + dotted[len(section) :]
        if dotted == "ldm.network" or isinstance(value, dict):
            continue
        *sections, key = renamed.split(".")
        node = new
        for name in sections:
            node = node.setdefault(name, {})
        node[key] = "factorized" if value == "factorised" else value
    del new["ldm"]["unet"]  # version 0.1 had the settings of both networks
    assert make_settings(Experiment, new, (), "x").encode.posterior == "moments"


def test_an_override_with_an_old_key_names_the_new_one(tmp_path):
    (tmp_path / "x.yaml").write_text("seed: 1")
    with pytest.raises(
        InputError, match=r"x\.yaml with samples\.steps=5:\n.*\n  samples\.steps is now sample\.num_inf"
    ):
        load_settings(Experiment, tmp_path / "x.yaml", ["samples.steps=5"])


def test_renamed_keys_and_other_errors_are_reported_together(tmp_path):
    (tmp_path / "x.yaml").write_text("sample: {guidance: 2}\nldm: {dit: {attention: factorised, widht: 3}}\nseed: one")
    with pytest.raises(InputError) as error:
        load_settings(Experiment, tmp_path / "x.yaml")
    assert str(error.value).splitlines()[1:] == [
        "  sample.guidance is now sample.guidance_scale (since version 0.2)",
        "  ldm.dit.attention: factorised is now ldm.dit.attention: factorized (since version 0.2)",
        "  seed: found 'one'; Input should be a valid integer",
        "  ldm.dit.widht: unknown key; did you mean width? allowed: patch_size, size, width, depth, heads, attention, "
        "modulation, mlp_ratio, rope_theta",
    ]


def test_old_keys_of_a_study_s_generators_are_named_too(tmp_path):
    (tmp_path / "x.yaml").write_text("generators: {small: {model: {width: 64}, optimization: {decay: cosine}}}")
    with pytest.raises(InputError) as error:
        load_settings(StudySettings, tmp_path / "x.yaml")
    assert "generators.small.model is now generators.small.dit" in str(error.value)
    assert "generators.small.optimization.decay is now generators.small.optimization.lr_schedule" in str(error.value)


def test_the_list_of_changes_has_every_renamed_key():
    text = (REPOSITORY / "docs/changes.md").read_text()
    words = {word.rsplit(".", 1)[-1] for word in re.findall(r"`([^`]+)`", text)}
    for kind in all_settings():
        for old in [*kind.renamed_keys, *filter(None, [kind.renamed_section])]:
            assert old.split(":")[0] in " ".join(words), f"{kind.__name__}: {old}"


def state_of(folder):
    files = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    return files, folder.stat().st_mtime_ns


SECTIONS = {
    "vae": {"seed": 0, "vae": VAESettings(), "data": DataSettings()},
    "latents": {"encode": EncodeSettings(), "text": TextSettings(), "data": DataSettings()},
    "ldm": {"seed": 0, "ldm": LDMSettings(), "latents": {"vae_sha256": "x"}},
}


@pytest.mark.parametrize(
    ("stage", "renamed"),
    [
        ("vae", "vae.begin_from is now vae.init_from"),
        ("latents", "latents is now encode\n  latents.stored is now encode.posterior"),
        ("ldm", "ldm.conditioning.dropout is now ldm.conditioning.cond_dropout"),
    ],
)
def test_a_stage_refuses_a_folder_of_version_0_1_says_what_to_do_and_touches_nothing(tmp_path, stage, renamed):
    folder = tmp_path / stage
    shutil.copytree(OLD / stage, folder)
    (folder / ".leftover.partial").write_text("half")
    before = (
        {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()},
        folder.stat().st_mtime_ns,
    )
    with pytest.raises(InputError) as error, Stage(folder, SECTIONS[stage]):
        pass
    assert f"{folder} was made by version 0.1" in str(error.value)
    assert renamed in str(error.value)
    assert "choose another run folder (run=...), or finish it with version 0.1" in str(error.value)
    assert state_of(folder) == before


def test_latents_samples_and_a_report_of_version_0_1_are_refused_and_stay(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 2, "stored": "moments"}))
    with pytest.raises(InputError, match=r"by version 0\.1 \(format 2, whose `stored` is now `posterior`\).*move"):
        load_manifest(tmp_path)
    old_row = json.dumps({"file": "a.mp4", "steps": 20, "guidance": 3.0}) + "\n"
    (tmp_path / "samples.jsonl").write_text(old_row)
    with pytest.raises(InputError, match=r"by version 0\.1 .*`num_inference_steps`, .*`guidance_scale`.* move"):
        read_sample_rows(tmp_path)
    with pytest.raises(InputError, match=r"by version 0\.1"), Stage(tmp_path) as stage, SampleTable(stage) as table:
        table.add({"file": "b.mp4"})
    assert (tmp_path / "samples.jsonl").read_text() == old_row
    folders = RunFolder(tmp_path)
    folders.report.mkdir()
    (folders.report / "report.json").write_text(json.dumps({"reconstruction": {"ways": {}}}))
    with pytest.raises(InputError, match=r"by version 0\.1 \(its `ways` is now `modes`\)"):
        read_report(folders)


def test_a_checkpoint_of_version_0_1_is_refused(tmp_path):
    facts = {"step": 5, "ranks": 1, "global_batch": 4, "sharded": False}
    (tmp_path / "state.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match=r"by version 0\.1, in format 1; .*choose another run folder"):
        checkpoint_facts(tmp_path)
    (tmp_path / "state.json").write_text(json.dumps(facts | {"format": 9}))
    with pytest.raises(InputError, match="by a later version"):
        checkpoint_facts(tmp_path)


def test_an_image_vae_saved_as_frame_vae_is_an_error_that_names_the_class_and_its_advice_is_true(tmp_path):
    sizes = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    vae = AutoencoderKL(**sizes, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4)
    vae.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"AutoencoderKL"', '"FrameVAE"'))
    with pytest.raises(InputError, match=r'FrameVAE.*change it to "PerFrameVAE", the weights are the same'):
        load_vae(tmp_path)
    (tmp_path / "config.json").write_text(text.replace('"AutoencoderKL"', '"PerFrameVAE"'))
    loaded = load_vae(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in vae.state_dict().items())


def test_a_network_of_version_0_1_is_an_error_that_names_what_its_objective_is_now():
    with pytest.raises(
        InputError, match=r"by version 0\.1; .*times is now timestep_sampling, time_mean is now logit_me"
    ):
        objective_of(
            {"objective": {"prediction": "flow", "times": "uniform", "time_mean": 0.0}, "_name_or_path": "ldm"}
        )
