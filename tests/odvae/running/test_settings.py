"""Settings: strict, documented, and every shipped config loads."""

import json
import os
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from small import REPOSITORY

from ldm.arguments import settings_help
from ldm.experiment import Experiment
from ldm.frontier.settings import FrontierSettings
from ldm.study.plan import IMAGE, generator_run, vae_runs
from ldm.study.runner import record_experiment
from ldm.study.settings import StudySettings
from odvae.running.errors import InputError
from odvae.running.settings import find_config, load_settings, read_yaml

LAUNCHES = sorted((REPOSITORY / "configs/accelerate").glob("*.yaml"))
FRONTIERS = sorted((REPOSITORY / "configs/study").glob("frontier_*.yaml"))
STUDIES = sorted(set((REPOSITORY / "configs/study").glob("*.yaml")) - {*FRONTIERS})
CLUSTERS = sorted((REPOSITORY / "configs/ray").glob("*.yaml"))
CONFIGS = sorted(set((REPOSITORY / "configs").rglob("*.yaml")) - {*LAUNCHES, *STUDIES, *FRONTIERS, *CLUSTERS})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_loads_opens_with_its_purpose_and_command_and_survives_a_round_trip(path, tmp_path):
    experiment = load_settings(Experiment, path)
    header = [line for line in path.read_text().splitlines()[:6] if line.startswith("#")]
    assert len(header) >= 3, "a config opens with purpose, command, cost and the number to expect"
    assert any("accelerate launch" in line or "make demo" in line for line in header)
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(experiment.model_dump(mode="json")))
    assert load_settings(Experiment, tmp_path / "again.yaml") == experiment


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_loads_and_so_does_the_experiment_of_each_of_its_runs(path, tmp_path):
    study = load_settings(StudySettings, path)
    assert "python tools/compression_study.py configs/study/" in path.read_text()
    runs = vae_runs(study)
    for generator in study.generators:
        for vae in (IMAGE, study.main_vae):
            runs += [generator_run(study, generator, vae, "steps"), generator_run(study, generator, vae, "time", 7)]
    assert len({run.experiment.run for run in runs}) == len({run.name for run in runs}) == len(runs)
    for run in runs:
        record_experiment(tmp_path / f"{run.name}.yaml", run)
        assert load_settings(Experiment, tmp_path / f"{run.name}.yaml") == run.experiment


@pytest.mark.parametrize("path", FRONTIERS, ids=lambda path: path.stem)
def test_every_frontier_loads_with_its_points(path):
    frontier = load_settings(FrontierSettings, path)
    assert f"python tools/compression_frontier.py configs/study/{path.name}" in path.read_text()
    experiments = [frontier.experiment_of(name) for name in frontier.points]
    assert len({one.run for one in experiments}) == len(experiments)


@pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.stem)
def test_every_launch_config_is_one_that_accelerate_takes(path):
    config = load_config_from_file(str(path))  # refuses unknown keys
    assert config.num_processes > 1
    assert config.use_cpu == path.stem.startswith("cpu")
    assert (config.fsdp_config.get("fsdp_version") == 2) == path.stem.startswith(("fsdp2", "hsdp"))
    command = path.read_text().split("accelerate launch --config_file ")[1].splitlines()[0].split()
    assert command[0] == str(path.relative_to(REPOSITORY))
    assert (REPOSITORY / command[-1]).is_file()


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.stem)
def test_every_cluster_config_is_one_that_ray_takes(path):
    pytest.importorskip("ray", reason="needs Ray (the extra `ray`)")
    import jsonschema
    import ray

    schema = Path(ray.__file__).parent / "autoscaler/ray-schema.json"
    jsonschema.validate(yaml.safe_load(path.read_text()), json.loads(schema.read_text()))
    assert "ray up configs/ray/" in path.read_text()


def load(tmp_path, text, *overrides):
    (tmp_path / "x.yaml").write_text(text)
    return load_settings(Experiment, tmp_path / "x.yaml", overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {frame: 17}", r"x\.yaml:\n  data\.frame: unknown key; did you mean frames\? allowed: shards, "),
        ("vae: {video_phase: {stepz: 3}}", r"vae\.video_phase\.stepz: unknown key; did you mean steps"),
        ("seed: one", r"seed: found 'one'"),
        ("seed: true", r"seed: found True"),
        ("ldm: {optimization: {learning_rate: fast}}", r"ldm\.optimization\.learning_rate: found 'fast'"),
        ("data: {frames: 16}", r"data\.frames must be 4k\+1, .*compresses time by 4; found 16, nearest: 13 or 17"),
        ("data: {height: 50}", r"data\.height must be a multiple of 8, .*found 50"),
        ("eval_vae: {tile_frames: 10}", r"eval_vae\.tile_frames must be 4m\+1, .*nearest: 9 or 13"),
        ("vae: {image_phase: {precision: bf16}}", "image_phase.precision and video_phase.precision must be the same"),
        ("vae: {init: random}", "init=random starts from random weights; set to null: image_phase"),
        ("vae: {model: {block_out_channels: [16, 20, 32, 32], norm_num_groups: 8}}", "8 does not divide"),
        ("ldm: {dit: {width: 100, heads: 3}}", "width / heads must be even"),
        ("tracker: mlflow", "'none', 'wandb' or 'tensorboard'"),
        ("seed: 1\nseed: 2", "key given twice: seed"),
        ("seed: [1", "not valid YAML"),
        ("just words", "expected sections"),
    ],
)
def test_bad_settings_are_errors_that_name_file_key_and_what_is_allowed(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as error:
        load(tmp_path, text)
    assert "x.yaml" in str(error.value)


def test_numbers_and_words_mean_what_they_look_like():
    assert read_yaml("[1e-4, 2E3, .5, 3, yes, no, true, 2024-01-01]", "x") == [
        1e-4, 2e3, 0.5, 3, "yes", "no", True, "2024-01-01",
    ]  # fmt: skip


def test_overrides_reach_any_depth_and_are_checked(tmp_path):
    assert load(tmp_path, "seed: 1", "vae.loss.kl=1e-3", "run=runs/x").vae.loss.kl == 1e-3
    with pytest.raises(InputError, match=r"vae\.loss\.klx: unknown key"):
        load(tmp_path, "seed: 1", "vae.loss.klx=1")
    with pytest.raises(InputError, match=r"expected section\.key=value"):
        load(tmp_path, "seed: 1", "vae.loss.kl")
    with pytest.raises(InputError, match="is a value, not a section"):
        load(tmp_path, "seed: 1", "seed.x=1")


def test_settings_cannot_be_changed_after_loading(tmp_path):
    with pytest.raises(ValueError, match="frozen"):
        load(tmp_path, "seed: 1").seed = 2


def leaves(kind, prefix=""):
    for name, field in kind.model_fields.items():
        inner = getattr(field.annotation, "model_fields", None)
        yield from leaves(field.annotation, f"{prefix}{name}.") if inner else [(f"{prefix}{name}", field)]


def test_help_shows_every_key_with_a_meaning():
    text = settings_help(Experiment)
    for dotted, field in leaves(Experiment):
        assert dotted in text
        assert field.description, f"{dotted} has no meaning"


def test_a_config_is_found_by_path_or_by_the_name_of_a_shipped_one(tmp_path, monkeypatch):
    shipped = tmp_path / "shipped"
    (shipped / "paper").mkdir(parents=True)
    for name in ("demo", "paper/big"):
        (shipped / f"{name}.yaml").touch()
    for given in ("paper/big", "paper/big.yaml", "configs/paper/big", "configs/paper/big.yaml"):
        assert find_config(given, shipped) == shipped / "paper/big.yaml"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.yaml").touch()
    assert find_config("demo.yaml", shipped) == Path("demo.yaml")  # a path comes before a name
    (tmp_path / "demo").mkdir()
    assert find_config("demo", shipped) == shipped / "demo.yaml"  # a folder of that name is no config
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "dangling.yaml").symlink_to("nowhere")
    for name, message in {
        "shipped": "is a folder",
        "pipe.yaml": "is a pipe",
        "dangling.yaml": "is a broken link",
    }.items():
        with pytest.raises(InputError, match=rf"config file .*{name} {message}"):
            find_config(name, shipped)
    for missing in ("huge", "configs", str(tmp_path / "elsewhere/demo.yaml")):
        with pytest.raises(InputError, match=r"does not exist; the configs of this project are: demo, paper/big"):
            find_config(missing, shipped)
