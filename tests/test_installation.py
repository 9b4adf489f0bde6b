"""The wheel in a fresh environment without the checkout: packages, commands, configs, templates."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from small import REPOSITORY

from odvae.running.commands import CONSOLE_COMMANDS, command_line

WHEEL_IS_MADE_OF = ("odvae", "ldm", "configs", "pyproject.toml", "setup.py", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The bin/ of a new environment with this checkout's wheel; it borrows the libraries of the one tests run in.

    Nothing is downloaded: setuptools builds here, and pip installs the wheel alone.
    """
    for tool in ("setuptools", "pip"):
        pytest.importorskip(tool, reason=f"the wheel is built and installed by setuptools and pip; {tool} is missing")
    folder = tmp_path_factory.mktemp("installation")
    (folder / "source").mkdir()
    for name in WHEEL_IS_MADE_OF:
        (folder / "source" / name).symlink_to(REPOSITORY / name)
    build = "from setuptools import build_meta; build_meta.build_wheel('..')"
    quiet = {"check": True, "capture_output": True}
    subprocess.run([sys.executable, "-c", build], cwd=folder / "source", **quiet)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv/bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(pip, cwd=folder, **quiet)
    (packages,) = (folder / "venv/lib").glob("python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return python.parent


def start(words, folder):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_wheel_brings_both_packages_with_configs_templates_and_types_and_nothing_else(installed, tmp_path):
    code = """
import importlib.util
from importlib.metadata import distribution
import ldm, odvae
from ldm.experiment import CONFIGS, DEFAULT_CONFIG, Experiment
from jinja2 import Environment, PackageLoader
from odvae.running.commands import CONSOLE_COMMANDS, command_line
from odvae.running.settings import find_config, load_settings

for name in ("demo", "paper/odvae_k400.yaml", "configs/paper/odvae_k400.yaml", "configs/smallest"):
    load_settings(Experiment, find_config(name, CONFIGS))
assert CONFIGS.is_relative_to(ldm.__path__[0]), CONFIGS
assert DEFAULT_CONFIG.is_file() and (CONFIGS / "accelerate/fsdp2.yaml").is_file()
Environment(loader=PackageLoader("ldm.report", "templates")).get_template("model_card.md.j2")
assert importlib.util.find_spec("tests") is importlib.util.find_spec("configs") is None
files = [str(file) for file in distribution("odvae").files]
assert {"odvae/py.typed", "ldm/py.typed"} < set(files)
assert {file.split("/")[0].split("-")[0] for file in files} == {"odvae", "ldm", ".."}, files
scripts = {point.name: point.value for point in distribution("odvae").entry_points}
assert scripts == {words: f"ldm.commands.{name}:main" for name, words in CONSOLE_COMMANDS.items()}
assert command_line("encode_latents") == "odvae-encode"
print(ldm.__file__)
"""
    result = start([installed / "python", "-c", code], tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(installed.parent))


@pytest.mark.slow
def test_an_installed_command_works_from_any_folder_and_by_accelerate_launch(installed, tmp_path):
    result = start([installed / "odvae-train-ldm", "--help"], tmp_path)
    assert result.returncode == 0, result.stderr
    assert "ldm.optimization.learning_rate  [float, default 0.0001]" in result.stdout
    launch = [installed / "python", "-m", "accelerate.commands.launch", "-m", "ldm.commands.encode_latents"]
    result = start([*launch, "--config", "smallest", "run=here"], tmp_path)
    assert "no trained VAE; train one with: accelerate launch -m ldm.commands.train_vae" in result.stderr
    assert result.returncode == 1
    assert (tmp_path / "here/shards/00000.tar").is_file()


def test_messages_name_the_commands_as_the_running_one_was_started(monkeypatch):
    for started, expected in (
        ("pipelines/train_vae.py", "accelerate launch pipelines/encode_latents.py"),
        ("/usr/bin/odvae-train-vae", "odvae-encode"),
        ("/site-packages/ldm/commands/train_vae.py", "accelerate launch -m ldm.commands.encode_latents"),
    ):
        monkeypatch.setattr(sys, "argv", [started])
        assert command_line("encode_latents") == expected
    monkeypatch.setattr(sys, "argv", ["notebook"])
    assert command_line("make_shards") == "python tools/make_shards.py"


def test_every_command_is_a_module_with_its_script_in_the_checkout():
    modules = {path.stem for path in (REPOSITORY / "ldm/commands").glob("*.py")} - {"__init__"}
    assert modules == CONSOLE_COMMANDS.keys()
    for name in modules:
        folder = "tools" if name == "make_shards" else "pipelines"
        assert f"from ldm.commands.{name} import main" in (REPOSITORY / folder / f"{name}.py").read_text()


def test_the_package_has_its_version():
    import importlib.metadata

    import odvae

    assert odvae.__version__ == importlib.metadata.version("odvae")
