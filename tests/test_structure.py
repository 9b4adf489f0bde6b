"""Structure of the packages: layers and their imports, sizes of files and folders, what an installation adds."""

import ast
import json
import os
import subprocess
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from small import REPOSITORY

from odvae.running.commands import CONSOLE_COMMANDS

# A layer may import itself and the layers before it. A module belongs to the layer with the longest matching name.
LAYERS = [
    "odvae.running",
    "odvae.storage",
    "odvae.running.stage",
    "odvae.cluster",
    "odvae.weights",
    "odvae.video",
    "odvae.tables",
    "odvae.shards",
    "odvae.index",
    "odvae.packing",
    "odvae.clips",
    "odvae.training",
    "odvae.architecture",
    "odvae",
    "ldm.demo",
    "ldm.diffusion",
    "ldm.metrics",
    "ldm.latents",
    "ldm.networks",
    "ldm.encoding",
    "ldm.sampling",
    "ldm.training",
    "ldm.evaluation",
    "ldm.report",
    "ldm",
    "ldm.planning",
    "ldm.study",
    "ldm.frontier",
    "ldm.app",
    "ldm.commands",
    "ldm.fuzzing",
]


def layer_of(module: str) -> int | None:
    """Index of the layer with the longest name that is a prefix of the module's name."""
    layers = [layer for layer in LAYERS if module == layer or module.startswith(layer + ".")]
    return LAYERS.index(max(layers, key=len)) if layers else None


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", sorted([*REPOSITORY.glob("odvae/**/*.py"), *REPOSITORY.glob("ldm/**/*.py")]), ids=str)
def test_imports_point_down(path):
    own = layer_of(".".join(path.relative_to(REPOSITORY).with_suffix("").parts))
    for module in imports(path):
        other = layer_of(module)
        assert other is None or other <= own, f"{path} imports {module} from a higher layer"
        assert module.split(".")[0] not in ("pipelines", "tools", "tests", "configs")


def test_an_installation_adds_only_the_two_packages(tmp_path):
    names = ("odvae", "ldm", "pipelines", "tools", "tests", "configs")
    code = f"import importlib.util as u; print([n for n in {names} if u.find_spec(n)])"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [sys.executable, "-c", code]
    result = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['odvae', 'ldm']"


def loaded_by(*steps: str) -> list[set[str]]:
    """All modules that are there after each step of code, in one process of its own."""
    code = "\n".join(f"{step}\nimport json, sys; print(json.dumps(sorted(sys.modules)))" for step in steps)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    return [set(json.loads(line)) for line in result.stdout.splitlines() if line.startswith('["')]


def packages(modules: set[str]) -> set[str]:
    return {module.split(".")[0] for module in modules}


@pytest.mark.parametrize("command", sorted(CONSOLE_COMMANDS))
def test_a_command_reads_its_arguments_before_it_imports_what_does_the_work(command):
    code = f"""
import sys
from ldm.commands.{command} import main
sys.argv = ["{command}", "--help"]
try:
    main()
except SystemExit as end:
    assert end.code == 0
"""
    (loaded,) = map(packages, loaded_by(code))
    assert {"ldm", "odvae", "pydantic", "yaml"} <= loaded
    assert not loaded & {"torch", "numpy", "diffusers", "transformers", "accelerate", "torchvision", "av", "webdataset"}


def test_nothing_is_imported_before_it_is_needed():
    start, alone, model, stages, evaluation = loaded_by(
        "",
        "import ldm, odvae",
        "from odvae import ODVAE",
        "import odvae.train, odvae.evaluate, ldm.encode, ldm.train, ldm.sample, ldm.export",
        "import ldm.evaluate",
    )
    assert packages(alone - start) - sys.stdlib_module_names == {"ldm", "odvae"}
    assert {"odvae.model", "diffusers"} <= model
    assert not model & {"odvae.clips", "odvae.shards", "odvae.video", "odvae.training", "odvae.settings"}
    assert not packages(model) & {"av", "lpips", "matplotlib", "pydantic", "skimage", "timm", "wandb", "webdataset"}
    assert {"av", "skimage", "ldm.pipeline"} <= stages
    assert not packages(stages) & {"matplotlib", "tensorboard", "timm", "wandb"}
    assert "matplotlib" in evaluation
    assert not packages(evaluation) & {"tensorboard", "timm", "wandb"}


def test_pipeline_scripts_are_short_and_name_their_command():
    for path in (REPOSITORY / "pipelines").glob("*.py"):
        text = path.read_text()
        start = "python" if path.stem == "export_pipeline" else "accelerate launch"  # exporting is one process's work
        assert f"{start} pipelines/{path.name}" in (ast.get_docstring(ast.parse(text)) or "")
        assert len(text.splitlines()) < 60


def test_no_file_is_read_by_unpickling():
    for path in [*REPOSITORY.glob("odvae/**/*.py"), *REPOSITORY.glob("ldm/**/*.py")]:
        assert not imports(path) & {"pickle", "dill", "cloudpickle", "joblib"}
        assert "weights_only=False" not in path.read_text()


def test_one_module_opens_videos_and_one_opens_images():
    """Others would show the same file otherwise: turned, squeezed, in other colors, or with an error of their own."""
    openers = {"av": ("av.open(",), "scenedetect": ("open_video(",), "cv2": ("cv2.",), "PIL": ("Image.open(",)}
    found = {
        (str(path.relative_to(REPOSITORY)), library)
        for folder in ("odvae", "ldm", "pipelines")
        for path in (REPOSITORY / folder).glob("**/*.py")
        for library, calls in openers.items()
        if any(call in line and '"w"' not in line for call in calls for line in path.read_text().splitlines())
    }
    assert found == {("odvae/video/stream.py", "av"), ("odvae/video/images.py", "PIL")}


# What is longer than the rules of CONTRIBUTING.md have it, and why.
LONGER_FILES: dict[str, str] = {}
LONGER_FUNCTIONS: dict[str, str] = {
    "ldm/pipeline.py:__call__": "the 26 arguments of a diffusers pipeline, and what each means",
}
CODE = [path for folder in ("odvae", "ldm", "pipelines", "tools") for path in REPOSITORY.glob(f"{folder}/**/*.py")]


def named(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def test_one_class_parses_command_lines():
    """Others would take abbreviated options, and would say of a mistyped one only that it is not known."""
    calls = ("ArgumentParser", ".parse_args(", ".parse_known_args(", ".parse_intermixed_args(")
    assert {named(path) for path in CODE if any(call in path.read_text() for call in calls)} == {"ldm/arguments.py"}


def test_files_have_at_most_300_lines_and_functions_60():
    long_files = {named(path) for path in CODE if len(path.read_text().splitlines()) > 300}
    assert long_files == LONGER_FILES.keys()
    long_functions = {
        f"{named(path)}:{node.name}"
        for path in CODE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 60
    }
    assert long_functions == LONGER_FUNCTIONS.keys()


def test_folders_hold_at_most_20_modules():
    counts = Counter(named(path.parent) for path in CODE if path.name != "__init__.py")
    assert {folder: count for folder, count in counts.items() if count > 20} == {}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def imported_at_once(tree: ast.Module, modules: set[str]) -> set[str]:
    """Modules of ours that are imported when the module itself is, not later by a function or for types alone."""
    found = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & modules
            found |= inner or {node.module}
    return found & modules


def test_no_modules_import_each_other_in_a_circle():
    modules = {module_of(path): path for path in CODE if path.parts[-2] not in ("pipelines", "tools")}
    graph = {name: imported_at_once(ast.parse(path.read_text()), modules.keys()) for name, path in modules.items()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"imported in a circle: {' -> '.join(error.args[1])}")
