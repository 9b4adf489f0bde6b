"""Training state of both loops: network, optimizer, EMA, checkpoints, log; resuming, applying gradients, saving."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from odvae.clips.samplers import BatchPlan
from odvae.running.errors import DivergenceError, InputError
from odvae.running.precision import choose_kernels
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
    """A network in training with its optimizer, EMA weights, checkpoints and log.

    `model` is the network prepared by accelerate, to be called in the loop; or `trained`, a module that holds the
    network beside parameters that only the training needs. `plan` describes how the samples of a step are divided.
    `ema` is the average that is validated and saved; `averages` are it and those of `extra_ema_decays`. Anything else
    that belongs in checkpoints must be prepared with `accelerator` or passed to `checkpoints.remember` before `resume`,
    which loads the newest checkpoint. `stage`: the one that `folder` belongs to. `batch_size` is the largest where
    batches of different sizes occur; None: that of the settings.
    """

    def __init__(
        self,
        network: nn.Module,
        optimization: OptimizationSettings,
        folder: Path,
        tracker: Tracker,
        name: str,
        trained: nn.Module | None = None,
        stage: Stage | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.network, self.optimization, self.folder = network, optimization, folder
        choose_kernels(optimization.tf32, optimization.cudnn_benchmark)
        self.accelerator: Accelerator = make_accelerator(
            optimization.precision, tracker, folder, name, optimization.sharded_precision, optimization.ddp
        )
        trained = network if trained is None else trained
        self.model, self.optimizer = self.accelerator.prepare(trained, make_optimizer(trained, optimization))
        decays = (optimization.ema_decay, *optimization.extra_ema_decays)
        self.averages = [EMA(network, decay) for decay in decays]
        self.ema = self.averages[0]
        self.plan = BatchPlan(
            batch_size=optimization.batch_size if batch_size is None else batch_size,
            gradient_accumulation_steps=optimization.gradient_accumulation_steps,
            rank=self.accelerator.process_index,
            ranks=self.accelerator.num_processes,
        )
        limit, mirror = optimization.checkpoints_total_limit, None if stage is None else stage.mirror
        self.checkpoints = Checkpoints(folder, self.accelerator, self.averages, limit, self.plan.global_batch, mirror)
        if stage is not None:
            stage.before_release(self.checkpoints.writer.close)  # which does not keep the network in memory
        self.guard = FiniteGuard(optimization.max_nonfinite_steps).to(self.accelerator.device)
        self.checkpoints.remember(self.guard)

    def resume(self) -> int:
        """Load the newest checkpoint, if any, and open the log. Returns the number of completed steps.

        Raises InputError where these are more than `steps`: the weights would not be those of so many steps.
        """
        done = self.checkpoints.load_latest()
        if done > (steps := self.optimization.steps):
            raise InputError(
                f"{self.folder} was trained for {done} steps already, more than steps={steps}: give at least {done}, "
                f"choose another run folder, or remove its checkpoints after step {steps}"
            )
        self.log = MetricsLog(self.folder, self.accelerator, resumed_at=done)
        return done

    def apply_gradients(self, step: int, losses: Mapping[str, Tensor]) -> tuple[Tensor, float]:
        """Take optimizer step `step` (counted from 1) and update the EMA; returns (gradient norm, learning rate).

        If a gradient is not finite, the step is skipped. `losses` of this step are used to report what was not finite.
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
        """Write a checkpoint if one is due; after a stop signal, write one and exit. Raises the errors of one that is
        written in the background."""
        self.checkpoints.check()
        last, stopping = step == self.optimization.steps, stage.stop_requested()
        if last or stopping:
            self.checkpoints.save(step)
            stage.record()
        elif step % self.optimization.checkpoint_every == 0:
            self._save_and_go_on(step, stage)
        if stopping and not last:
            stage.stop(step)

    def _save_and_go_on(self, step: int, stage: Stage) -> None:
        if self.optimization.async_checkpoints:
            self.checkpoints.finish()
            stage.record()  # before the next thread starts, since both upload
            self.checkpoints.save_in_background(step)
        else:
            self.checkpoints.save(step)
            stage.record()

    def finish(self) -> None:
        """Load the EMA weights into the network, whose `forward` is its class's again, and close the log."""
        self.network.load_state_dict(self.ema.values)
        vars(self.network).pop("forward", None)  # the training's own, or the one in which accelerate wrapped it
        self.log.close()


class FiniteGuard(nn.Module):
    """Counts steps that were skipped because their gradient was not finite; ends the run after too many in a row.

    Counting happens on the device, and the counters are read only when a step is logged, so it causes no
    synchronization in other steps.
    """

    def __init__(self, max_in_a_row: int) -> None:
        super().__init__()
        self.max_in_a_row = max_in_a_row
        self.nonfinite: dict[str, Tensor] = {}  # whether each value was not finite in the last skipped step
        self.register_buffer("skipped", torch.zeros((), dtype=torch.long))
        self.register_buffer("in_a_row", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def watch(self, values: Mapping[str, Tensor]) -> None:
        """Update the counters with the values of one step, which was skipped if "gradient_norm" is not finite."""
        nonfinite = {name: ~torch.isfinite(value).all() for name, value in values.items()}
        skipped = nonfinite["gradient_norm"]
        self.skipped += skipped
        self.in_a_row.copy_(torch.where(skipped, self.in_a_row + 1, 0))
        for name, flag in nonfinite.items():
            self.nonfinite[name] = torch.where(skipped, flag, self.nonfinite.get(name, flag))

    def report(self, step: int) -> int:
        """The number of skipped steps. Raises DivergenceError, with what was not finite, after too many in a row."""
        in_a_row = int(self.in_a_row)
        if in_a_row > self.max_in_a_row:
            names = [name for name, flag in self.nonfinite.items() if flag]
            raise DivergenceError(
                f"step {step}: the last {in_a_row} steps were skipped, since these were not finite: "
                f"{', '.join(names)}. The last checkpoint is kept, but to resume from it with the same settings would "
                "fail again: start a new run (run=...) with a lower learning_rate, a smaller grad_clip or "
                "precision=fp32, or check the data"
            )
        return int(self.skipped)
