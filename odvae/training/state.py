"""What both training loops do around their own step: set up, resume, apply gradients, save and stop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from odvae.clips.sampling import BatchPlan
from odvae.running.stage import Stage
from odvae.training.checkpoints import Checkpoints
from odvae.training.ema import EMA
from odvae.training.optimization import (
    clipped_step,
    learning_rate_at,
    make_accelerator,
    make_optimizer,
    set_learning_rate,
)
from odvae.training.settings import OptimizationSettings, Tracker
from odvae.training.tracking import MetricsLog


class TrainingState:
    """A network in training with its optimizer, averages, checkpoints and log.

    `model` is the prepared network to call in the loop, `plan` how a step's samples are divided. `ema` is the average
    that is validated and saved; `averages` holds it and those of `extra_ema_decays`. Whatever else belongs into the
    checkpoints is prepared with `accelerator` or given to `checkpoints.remember` before `resume`, which restores the
    newest one.
    """

    def __init__(
        self, network: nn.Module, optimization: OptimizationSettings, folder: Path, tracker: Tracker, name: str
    ) -> None:
        self.network, self.optimization, self.folder = network, optimization, folder
        self.accelerator: Accelerator = make_accelerator(optimization.precision, tracker, folder, name)
        self.model, self.optimizer = self.accelerator.prepare(network, make_optimizer(network, optimization))
        decays = (optimization.ema_decay, *optimization.extra_ema_decays)
        self.averages = [EMA(network, decay) for decay in decays]
        self.ema = self.averages[0]
        self.plan = BatchPlan(
            batch_size=optimization.batch_size,
            gradient_accumulation_steps=optimization.gradient_accumulation_steps,
            rank=self.accelerator.process_index,
            ranks=self.accelerator.num_processes,
        )
        self.checkpoints = Checkpoints(
            folder, self.accelerator, self.averages, optimization.checkpoints_total_limit, self.plan.global_batch
        )
        self.guard = FiniteGuard(optimization.max_nonfinite_steps).to(self.accelerator.device)
        self.checkpoints.remember(self.guard)

    def resume(self) -> int:
        """Restore the newest checkpoint, and open the log; returns the number of steps completed before."""
        done = self.checkpoints.load_latest()
        self.log = MetricsLog(self.folder, self.accelerator, resumed_at=done)
        return done

    def apply_gradients(self, step: int, losses: Mapping[str, Tensor]) -> tuple[Tensor, float]:
        """Make optimizer step number `step` (from 1) and update the averages; returns (gradient norm, learning rate).

        A step whose gradients are not finite changes no weight; `losses` are this step's, to say later what broke.
        """
        learning_rate = learning_rate_at(step - 1, self.optimization)
        set_learning_rate(self.optimizer, learning_rate)
        gradient_norm = clipped_step(self.optimizer, self.model.parameters(), self.optimization.grad_clip)
        self.optimizer.zero_grad()
        self.guard.watch({**losses, "gradient_norm": gradient_norm})
        for average in self.averages:
            average.update(step)
        return gradient_norm, learning_rate

    def save_and_stop_when_due(self, step: int, stage: Stage) -> None:
        """Write a checkpoint where one is due; after a stop signal write one and leave the process."""
        last, stopping = step == self.optimization.steps, stage.stop_requested(step)
        if step % self.optimization.checkpoint_every == 0 or last or stopping:
            self.checkpoints.save(step)
            stage.record()
        if stopping and not last:
            stage.stop(step)

    def finish(self) -> None:
        """Put the averaged weights into the network and close the log."""
        self.network.load_state_dict(self.ema.values)
        self.log.close()


class FiniteGuard(nn.Module):
    """Counts the steps that were skipped because a number in them was not finite, and ends a run that has too many.

    It counts on the device and is read only when a step is logged, so no step waits for it.
    """

    def __init__(self, most_in_a_row: int) -> None:
        super().__init__()
        self.most_in_a_row = most_in_a_row
        self.broken: dict[str, Tensor] = {}  # whether each number was not finite in the last skipped step
        self.register_buffer("skipped", torch.zeros((), dtype=torch.long))
        self.register_buffer("in_a_row", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def watch(self, values: Mapping[str, Tensor]) -> None:
        """Look at one step's numbers. It was skipped if the gradient's norm is not finite."""
        broken = {name: ~torch.isfinite(value).all() for name, value in values.items()}
        skipped = broken["gradient_norm"]
        self.skipped += skipped
        self.in_a_row.copy_(torch.where(skipped, self.in_a_row + 1, 0))
        for name, flag in broken.items():
            self.broken[name] = torch.where(skipped, flag, self.broken.get(name, flag))

    def report(self, step: int) -> int:
        """Steps skipped so far. Raises FloatingPointError where too many in a row were, with what was not finite."""
        in_a_row = int(self.in_a_row)
        if in_a_row > self.most_in_a_row:
            names = [name for name, broken in self.broken.items() if broken]
            raise FloatingPointError(
                f"step {step}: the last {in_a_row} steps were skipped, since these were not finite: "
                f"{', '.join(names)}. The weights are those of the last good step. Lower the learning rate or the "
                "gradient clip, or look at the data, then run the same command again"
            )
        return int(self.skipped)
