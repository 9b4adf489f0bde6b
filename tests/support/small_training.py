"""The training of a network of two small blocks, with stage, EMA, optimizer and checkpoints, in a moment."""

import contextlib
import resource
from pathlib import Path

import torch
from torch import Tensor, nn

from odvae.running.errors import DivergenceError
from odvae.running.stage import Stage
from odvae.training.checkpoints import checkpoints_of
from odvae.training.settings import OptimizationSettings
from odvae.training.snapshot import Snapshot
from odvae.training.state import TrainingState

WIDTH = 64


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x)


class Blocks(nn.Module):
    _no_split_modules = ("Block",)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


def settings(**changes) -> OptimizationSettings:
    """Checkpoints in the background after every second of 6 steps."""
    chosen = {"steps": 6, "learning_rate": 0.01, "checkpoint_every": 2, "checkpoints_total_limit": 9}
    return OptimizationSettings(**{**chosen, "async_checkpoints": True, "extra_ema_decays": (0.5,), **changes})


def make_state(chosen: OptimizationSettings, folder: Path, stage: Stage | None = None) -> TrainingState:
    """With a second prepared network beside the trained one, as a discriminator is."""
    torch.manual_seed(0)
    state = TrainingState(Blocks(), chosen, folder, "none", "test", stage=stage)
    if not state.accelerator.is_fsdp2:
        other = nn.Linear(2, 2)
        state.accelerator.prepare(other, torch.optim.SGD(other.parameters(), momentum=0.9))
    return state


def take_step(state: TrainingState, step: int) -> None:
    inputs = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(step))
    loss = state.model(inputs).pow(2).mean()
    state.accelerator.backward(loss)
    state.apply_gradients(step, {"loss": loss.detach()})


def train(folder: Path, chosen: OptimizationSettings, before_saving=lambda step: None) -> dict[str, Tensor]:
    """The EMA weights and all others after the last step. `before_saving` is called after each step."""
    with Stage(folder, {"small": chosen}) as stage:
        state = make_state(chosen, folder, stage)
        for step in stage.steps(state.resume() + 1, chosen.steps):
            take_step(state, step)
            before_saving(step)
            state.save_and_stop_when_due(step, stage)
        ema = state.ema.gather(keep=True)
        live = {name: _whole(value).clone() for name, value in state.network.named_parameters()}
        return {**{f"ema.{name}": value for name, value in ema.items()}, **live}


def diverge_at(last: int):
    def before_saving(step):
        if step == last:
            raise DivergenceError(f"step {step}")

    return before_saving


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor().detach() if hasattr(value, "full_tensor") else value.detach()


@contextlib.contextmanager
def no_file_larger_than(size: int):
    """Within it, this process cannot write larger files: the error is that of a disk without room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def steps_of(folder):
    return [int(path.name.removeprefix("step_")) for path in checkpoints_of(folder)]


def unfinished(folder):
    return list(folder.rglob("*.partial"))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def without_room(monkeypatch, from_step, size=20_000):
    """From the checkpoint of this step on, no file may be as large as the weights."""
    write = Snapshot.write

    def limited(snapshot, folder, group):
        if folder.name >= f".step_{from_step:08d}":
            with no_file_larger_than(size):
                write(snapshot, folder, group)
        else:
            write(snapshot, folder, group)

    monkeypatch.setattr(Snapshot, "write", limited)


def named(folder, step, error):
    """Whether an error names the checkpoint that could not be written."""
    return f"{folder}/checkpoints/step_{step:08d}" in f"{error} {getattr(error, 'filename', '')}"
