"""Names in documents and YAML headers exist: links, commands, settings, error messages; the figure shows the model."""

import ast
import re
import runpy
import shlex
from pathlib import Path
from typing import get_args

import pytest
import torch
from pydantic import BaseModel
from small import REPOSITORY

from ldm.experiment import Experiment
from odvae import ODVAE
from odvae.running.resume_check import field_may_change
from odvae.running.settings import Settings, find_config, load_settings, settings_in

CHANGES = REPOSITORY / "docs" / "changes.md"  # names what is gone, too
LOG = REPOSITORY / "LOG.md"  # names what was there when an entry was written
DOCUMENTS = sorted({*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")})
CONFIG_FOLDER = REPOSITORY / "configs"
CONFIGS = sorted(CONFIG_FOLDER.glob("**/*.yaml"))
COMMENT = re.compile(r"(^|\s)#.*$")
# What may begin a command besides a script, a make target and a console command.
OTHER_PROGRAMS = {"git", "cd", "source", "export", "pip", "pre-commit", "pytest", "ray", "ruff", "sbatch"}
LAUNCHERS = {"python", "accelerate", "torchrun", "srun"}
SECTIONS, OLD_SECTIONS = "|".join(Experiment.model_fields), "latents|samples|report"
FILES = (".ckpt", ".html", ".json", ".jsonl", ".pt", ".pth", ".py", ".safetensors", ".tar", ".yaml")


def named(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def prose(document: Path) -> str:
    """The document without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives a document's headings."""
    headings = re.findall(r"^#+ +(.*)$", document.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_relative_links_lead_to_files_and_headings_that_exist(document):
    for link in re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", prose(document)):
        target, _, anchor = (link[0] or link[1]).partition("#")
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path = (document.parent / target).resolve() if target else document
        assert path.exists(), f"{document.name} links to {target}"
        if anchor:
            assert anchor in anchors(path), f"{document.name} links to {target}#{anchor}"


def shell_lines(text: str) -> list[str]:
    """The commands of a document's bash blocks, lines joined at a closing backslash, without comments; and those in its
    sentences."""
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [COMMENT.sub("", line).strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`(odvae-[a-z-]+ [^`\n]+|[^`\n]+ (?:pipelines|tools)/[a-z_]+\.py\b[^`\n]*)`", text)
    return [part.strip() for line in lines for part in line.split("&&") if part.strip()]


def header_lines(config: Path) -> list[str]:
    """The commands in a YAML file's header."""
    header = re.match(r"(#.*\n)*", config.read_text())[0]
    lines = re.findall(r"^# ((?:python|accelerate|torchrun|make) .*)$", header, flags=re.MULTILINE)
    return [re.split(r"; |  +", line)[0] for line in lines]


COMMANDS = [
    (document.name, line) for document in DOCUMENTS if document != LOG for line in shell_lines(document.read_text())
]
COMMANDS += [(named(config), line) for config in CONFIGS for line in header_lines(config)]


@pytest.mark.parametrize(("where", "line"), COMMANDS, ids=str)
def test_commands_name_scripts_targets_and_settings_that_exist(where, line):
    words = [word for word in shlex.split(line.replace("[", "").replace("]", "")) if word != "..."]
    while words and re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)  # an environment variable
    if not words:
        return
    if "s3://" in line:
        pytest.importorskip("s3fs")  # without which no setting may name such a URL
    program = Path(words[0]).name
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(targets)
    elif program.startswith("odvae-"):
        assert f"\n{program} =" in (REPOSITORY / "pyproject.toml").read_text()
        check_settings(program, words[1:])
    elif program not in OTHER_PROGRAMS:
        assert program in LAUNCHERS, f"{where}: what is {program}?"
        script = next((word for word in words if word.endswith(".py") or word.startswith("ldm.commands.")), None)
        if script is not None:
            path = script if script.endswith(".py") else script.replace(".", "/") + ".py"
            assert (REPOSITORY / path).is_file()
            check_settings(script, words[words.index(script) + 1 :])


def check_settings(program: str, arguments: list[str]) -> None:
    """The config that a pipeline is given exists and takes the overrides beside it."""
    if program.startswith("tools/") or program == "odvae-make-shards":
        return
    config = arguments[arguments.index("--config") + 1] if "--config" in arguments else "demo"
    overrides = [word for word in arguments if re.match(r"[a-z_]+(\.[a-z_]+)*=", word) and word != "section.key=value"]
    load_settings(Experiment, find_config(config, CONFIG_FOLDER), overrides)


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if path not in (CHANGES, LOG)], ids=named)
def test_settings_named_in_the_text_exist(document):
    for span in re.findall(r"`([^`\n]+)`", prose(document)):
        for dotted in re.findall(rf"(?<![\w./-])((?:{SECTIONS}|{OLD_SECTIONS})(?:\.[a-z_0-9]+)+)(?![\w/])", span):
            if not dotted.endswith(FILES):
                assert is_module(dotted) or is_setting(Experiment, dotted.split(".")), f"{document.name}: `{span}`"


def keys_that_may_change(kind: type[Settings], prefix: str = "") -> set[str]:
    """Dotted keys of the fields that are marked with `MayChange`."""
    found = set()
    for name, field in kind.model_fields.items():
        inside = [keys_that_may_change(section, f"{prefix}{name}.") for section in settings_in(field.annotation)]
        found |= {f"{prefix}{name}"} if field_may_change(field) else set().union(*inside)
    return found


def test_the_keys_listed_as_changeable_on_resume_are_those_that_the_check_allows():
    text = (REPOSITORY / "docs/cluster.md").read_text().partition("- **Keys that may change**")[2]
    trainings, _, others = text.partition("Any other change is refused")[0].partition(") `")
    phases = re.findall(r"`([a-z0-9_.]+)`", trainings)
    listed = re.findall(r"`([a-z0-9_.]+)`", "`" + others)
    keys = {key for key in listed if "." in key}
    keys |= {f"{phase}.{key}" for phase in phases for key in listed if "." not in key}
    assert keys == keys_that_may_change(Experiment)


def messages() -> list[tuple[str, str]]:
    """Every text that users see, with its place: strings of the code but docstrings, `--help`, headers of configs."""
    found = [(named(config), re.match(r"(#.*\n)*", config.read_text())[0]) for config in CONFIGS]
    for package in ("odvae", "ldm", "pipelines", "tools"):
        for path in REPOSITORY.glob(f"{package}/**/*.py"):
            tree = ast.parse(path.read_text())
            docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            if path.name == "settings.py":
                docstrings = set()
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                    found.append((f"{named(path)}:{node.lineno}", node.value))
    return found


def test_settings_named_in_messages_exist():
    """`data.frames=9` and "eval_vae.lpips": what a message tells people to write is taken."""
    keys = re.compile(rf"(?<![\w./-])((?:{SECTIONS})(?:\.[a-z_0-9]+)+|[a-z_]+(?:\.[a-z_0-9]+)+(?==))(?![\w/(])")
    checked, others = 0, {"section.key", "safe.directory"}  # any key; git's
    for place, text in messages():
        for dotted in keys.findall(text):
            if dotted in others or dotted.endswith(FILES) or is_module(dotted) or is_package(dotted):
                continue
            names = dotted.removeprefix("experiment.").split(".")  # a study has an experiment
            assert is_setting(Experiment, names), f"{place}: {dotted}"
            checked += 1
    assert checked > 50


def test_new_keys_in_the_list_of_changes_exist():
    section = CHANGES.read_text().partition("## Config keys")[2].partition("\n## ")[0]
    table = [row.strip("| ").split(" | ")[1] for row in section.splitlines() if row.startswith("| `")]
    keys = [key.partition(":")[0] for cell in table for key in re.findall(r"`([a-zA-Z_.]+(?:: \w+)?)`", cell)]
    assert len(keys) > 25
    for key in keys:
        assert is_setting(Experiment, key.replace("PHASE", "ldm.optimization").split(".")), key


def test_new_modules_in_the_list_of_changes_exist():
    section = CHANGES.read_text().partition("## Modules")[2].partition("\n## ")[0]
    new = [row.strip("| ").split(" | ")[1] for row in section.splitlines() if row.startswith("| `")]
    modules = re.findall(r"`((?:odvae|ldm)\.[\w.]+)`", " ".join(new))
    assert len(modules) > 30
    assert [module for module in modules if not is_module(module) and not is_package(module)] == []


def is_package(dotted: str) -> bool:
    return (REPOSITORY / dotted.replace(".", "/") / "__init__.py").is_file()


def is_module(dotted: str) -> bool:
    """Whether it is a module of the packages, or a name in one."""
    parts = dotted.split(".")
    return any((REPOSITORY / "/".join(parts[:n])).with_suffix(".py").is_file() for n in range(2, len(parts) + 1))


def is_setting(kind: type[BaseModel], keys: list[str]) -> bool:
    """Whether the keys, one inside the other, are those of a settings class."""
    if keys[0] not in kind.model_fields:
        return False
    annotation = kind.model_fields[keys[0]].annotation
    inside = [found for found in (annotation, *get_args(annotation)) if isinstance(found, type)]
    sections = [found for found in inside if issubclass(found, BaseModel)]
    return len(keys) == 1 or any(is_setting(section, keys[1:]) for section in sections)


def string_constants() -> str:
    """Every string of the packages, as one text."""
    found = []
    for package in ("odvae", "ldm", "pipelines", "tools"):
        for path in REPOSITORY.glob(f"{package}/**/*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found)


def test_error_messages_in_the_readme_are_those_of_the_code():
    """In its table of errors, `...` stands for what varies; all else must be in the code as it stands there."""
    section = (REPOSITORY / "README.md").read_text().partition("## Troubleshooting")[2].partition("\n## ")[0]
    cells = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    messages = re.findall(r"`([^`]+)`", " ".join(cells))
    assert len(messages) >= 10
    code = string_constants()
    for message in messages:
        for part in re.split(r" ?\.\.\. ?", message):
            assert part.strip() in code, f"not in the code: {part!r}"


def test_the_architecture_figure_shows_the_convolutions_of_the_model():
    figure = runpy.run_path(str(REPOSITORY / "tools/figures/draw_architecture.py"), run_name="draw_architecture")
    with torch.device("meta"):
        vae = ODVAE(variant=4)
    encoder, decoder = figure["describe_encoder"](vae), figure["describe_decoder"](vae)
    frame_by_frame, causal = [(False, False)] * 2, [(True, True)] * 2
    assert encoder.levels == [frame_by_frame, frame_by_frame, causal, causal]
    assert [(layer.temporal, layer.changes_time) for layer in encoder.samplers] == [
        (False,) * 2,
        (True,) * 2,
        (True,) * 2,
    ]
    assert decoder.levels == [[(True, True)] * 3] * 4
    assert [layer.changes_time for layer in decoder.samplers] == [False, True, True]
    assert encoder.widths == decoder.widths == [128, 256, 512, 512]
    drawn = figure["draw"](vae)
    assert {"h × w", "4k+1 frames", "k+1 frames"} <= {text.get_text() for text in drawn.axes[0].texts}
