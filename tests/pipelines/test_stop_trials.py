"""SIGTERM to whole process groups at random moments of trainings with two ranks and two workers each.

The tests stop each training once; ODVAE_STOPS=25 stops each 25 times, in several runs, and prints every stop (-s).
"""

import json
import os
import random
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from scripts import on_ranks, start_on_ranks
from small_vae import RATES
from stages import WEIGHTS, command

pytestmark = pytest.mark.slow

STOPS = int(os.environ.get("ODVAE_STOPS", "1"))
STOPS_PER_RUN = 5
PHASE = ("batch_size=1", "checkpoint_every=1000", "validate_every=1000")


@dataclass(frozen=True)
class Training:
    script: str
    needs: tuple[str, ...]
    phases: tuple[str, ...]
    """Folders of its phases, in the run folder."""
    steps: tuple[int, ...]
    """Of each phase."""
    settings: list[str]

    def prepare(self, run: Path, folder: Path) -> list[str]:
        for needed in self.needs:
            shutil.copytree(run / needed, folder / needed)
        return command(self.script, folder, *self.settings)

    def done(self, folder: Path) -> int:
        """Steps of all phases that were logged."""
        paths = [folder / phase / "metrics.jsonl" for phase in self.phases]
        lines = [line for path in paths if path.exists() for line in path.read_bytes().splitlines(keepends=True)]
        return sum(b"gradient_norm" in line and line.endswith(b"\n") for line in lines)  # others are of validations

    def saved(self, folder: Path) -> int:
        """Steps of all phases that are in their newest checkpoints."""
        newest = [max((folder / phase / "checkpoints").glob("step_*"), default=None) for phase in self.phases]
        return sum(json.loads((one / "state.json").read_text())["step"] for one in newest if one is not None)

    def rows(self, folder: Path) -> list[dict]:
        lines = [line for phase in self.phases for line in (folder / phase / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in json.loads(line).items() if key not in RATES} for line in lines]


TRAININGS = [
    Training(
        "train_vae", ("shards",), ("vae/image_vae", "vae"), (8, 12),
        ["data.workers=2", "vae.image_phase.steps=8", "vae.video_phase.steps=12", "vae.validation_clips=1",
         *(f"vae.{phase}.{one}" for phase in ("image_phase", "video_phase") for one in PHASE)],
    ),
    Training(
        "train_ldm", ("vae", "latents"), ("ldm",), (30,),
        ["ldm.workers=2", "ldm.optimization.steps=30", "ldm.optimization.extra_ema_decays=[0.5]",
         *(f"ldm.optimization.{one}" for one in PHASE)],
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """The run folder of each training from beginning to end, and its seconds per step."""
    found: dict[str, tuple[Path, float]] = {}

    def get(training: Training) -> tuple[Path, float]:
        if training.script not in found:
            folder = tmp_path_factory.mktemp(training.script)
            scripts = start_on_ranks(2, *training.prepare(run, folder))
            scripts[0].until(lambda: training.done(folder) > 0)
            begin = time.monotonic()
            assert [script.wait() for script in scripts] == [0, 0], scripts[0].stderr[-3000:]
            found[training.script] = folder, (time.monotonic() - begin) / sum(training.steps)
        return found[training.script]

    return get


def stop_at_random(training: Training, words: list[str], folder: Path, step: int, seconds: float, chance) -> None:
    """Start the training, and send SIGTERM to its process groups in the step after `step`: each is a rank and its
    workers. Every step that was logged must have been saved.

    Where a training goes on after `step`, that may be while it starts: before its stage the signal just ends it, and
    until its first step a rank may find that the other has ended before its own signal comes.
    """
    before = training.done(folder)
    scripts = start_on_ranks(2, *words)
    for script in scripts:
        script.until(script.leads_its_group)
    scripts[0].until(lambda: training.done(folder) >= step)
    time.sleep(chance.uniform(0, seconds))
    for script in chance.sample(scripts, 2):
        if script.process.is_alive():
            os.killpg(script.process.pid, signal.SIGTERM)
    statuses = [script.wait() for script in scripts]
    logged, saved = training.done(folder), training.saved(folder)
    print(f"\n{training.script} in step {step + 1}: statuses {statuses}, logged {logged}, saved {saved}", flush=True)
    for script, status in zip(scripts, statuses, strict=True):
        lost = logged == before and "the connection to another process of this launch was lost" in script.stderr
        assert status in ({143, -signal.SIGTERM, 1} if lost else {143, -signal.SIGTERM}), script.stderr[-3000:]
    assert logged == saved >= step


@pytest.mark.parametrize("first", range(0, STOPS, STOPS_PER_RUN))
@pytest.mark.parametrize("training", TRAININGS, ids=lambda training: training.script)
def test_sigterm_at_random_moments_saves_every_step_and_the_training_goes_on_exactly(
    run, whole, tmp_path, training, first
):
    (expected, seconds), chance = whole(training), random.Random(f"{training.script} {first}")
    words = training.prepare(run, tmp_path)
    stops = min(STOPS_PER_RUN, STOPS - first)
    for step in sorted(chance.sample(range(1, sum(training.steps) - 3), stops)):
        if step >= training.done(tmp_path):
            stop_at_random(training, words, tmp_path, step, seconds, chance)
    on_ranks(2, *words)
    assert training.rows(tmp_path) == training.rows(expected)
    weights = [path.relative_to(expected) for phase in training.phases for path in (expected / phase).rglob(WEIGHTS)]
    assert len(set(weights)) == 2  # of both phases, or of both averages
    for path in set(weights):
        assert (tmp_path / path).read_bytes() == (expected / path).read_bytes()
