"""Configs and files of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

import yaml

from ldm.experiment import Experiment
from ldm.fuzzing.kind import Kind, Valid
from ldm.fuzzing.mutations import BYTES, JSON, TEXT, Mutation
from ldm.networks.settings import ConditioningSettings
from ldm.sampling.prompt_file import read_prompts
from ldm.sampling.sample_requests import user_requests
from odvae.running.resume_check import check_not_made_by_0_1, record_settings
from odvae.running.settings import load_settings

# What YAML can say and a config cannot mean: values that hold themselves, that grow without end, that are code.
_YAML_PIECES = (
    "a: &a [*a]\n", "seed: &a [*a, *a]\n", "? [a, b]\n: 1\n", "? {a: b}\n: 1\n", "1: 2\n", "null: 1\n", "~: [~]\n",
    ".nan: 1\n", "run: !!python/object/apply:os.system [x]\n", "run: !!binary aGk=\n", "run: !!set {a, b}\n",
    "seed: !!omap [a: 1]\n", "seed: !!timestamp 2001-01-01\n", "seed: !!int 0x\n", "seed: !!float x\n", "seed: 0b2\n",
    "seed: 1:30:99\n", "seed: 0o9\n", "<<: 1\n", "<<: [1]\n", "<<: {run: x}\n", "run: 2001-99-99\n",
    "seed: 12345678901234567890123456789\n", "%YAML 9.9\n---\n", "--- a\n--- b\n", "...\n", "\t- x\n", "run: |\n",
    "run: 'a\n", "seed: !!int 1\n", 'run: "\\ud800"\n', 'run: "\\0"\n', "data: {frames: 1e400}\n",
    "data: {fps: .inf}\n", "vae: []\n", "sample: null\n", "ldm: {dit: {}, unet: {}}\n",
    "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
    "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n"
    "g: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: &h [*g,*g,*g,*g,*g,*g,*g,*g,*g]\nrun: [*h,*h,*h,*h,*h,*h,*h,*h,*h]\n",
    "seed: " + "[" * 150 + "]" * 150 + "\n", "seed: " + "{a: " * 150 + "1" + "}" * 150 + "\n",
)  # fmt: skip


def insert_yaml(data: bytes, rng: Random, _: Sequence[bytes]) -> bytes:
    lines = data.split(b"\n")
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(_YAML_PIECES).encode())
    return b"\n".join(lines)


YAML: tuple[Mutation, ...] = (*(insert_yaml,) * 4, *TEXT)

_CONFIG = """
run: runs/x
seed: 3
data: {frames: 9, height: 32, width: 32, stride: 2, held_out: 0.25, workers: 0}
vae:
  model: {block_out_channels: [8, 16, 16, 16], layers_per_block: 1, norm_num_groups: 4}
text: {max_tokens: 8, width: 16}
encode:
  batch_size: 3
  buckets: [{frames: 9, height: 32, width: 32}, {frames: 5, height: 16, width: 48}]
ldm:
  dit: {width: 32, depth: 2, heads: 2, patch_size: [1, 2, 2]}
  conditioning: {kind: text, cond_dropout: 0.1}
  objective: {prediction: flow}
sample: {guidance_interval: [0.1, 0.9], num_inference_steps: 5}
"""


def _make_configs(_: Path) -> Sequence[Valid]:
    import json

    as_json = json.dumps(yaml.safe_load(_CONFIG)).encode()
    section = yaml.safe_dump({"seed": 3, "ldm": ConditioningSettings().model_dump(mode="json")}).encode()
    return [
        Valid("config.yaml", _CONFIG.encode(), YAML),
        Valid("config.yaml", as_json, (*JSON, *JSON, *YAML)),
        Valid("experiment.yaml", section, YAML),
    ]


def _read_config(context: Path, name: str, data: bytes, folder: Path, rng: Random) -> None:
    """As an experiment, or as the record of a run's settings."""
    path = folder / name
    path.write_bytes(data)
    if name == "config.yaml":
        overrides = rng.choice(((), (), ("data.frames=9",), ("ldm.dit.width=64", "run=runs/y"), ("seed=null",)))
        load_settings(Experiment, path, overrides).model_dump_json()
        return
    sections = {"seed": 3, "ldm": ConditioningSettings()}
    check_not_made_by_0_1(path, sections)
    record_settings(path, sections)


def _make_prompts(_: Path) -> Sequence[Valid]:
    return [Valid("prompts.txt", "a red square\na blue ball – über\n\n  third \r\n".encode(), (*TEXT, *BYTES))]


def _read_prompts(context: Path, name: str, data: bytes, folder: Path, rng: Random) -> None:
    path = folder / name
    path.write_bytes(data)
    for request in user_requests(read_prompts(path), [], seed=0):
        (folder / request.file).touch()


CONFIG = Kind("config", _make_configs, _read_config, share=20)
PROMPTS = Kind("prompts", _make_prompts, _read_prompts, share=10)
