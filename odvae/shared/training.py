"""What both training loops do around their own step: set up or resume, apply gradients, save and stop."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator
from torch import Tensor, nn

from odvae.shared.averages import AveragedWeights
from odvae.shared.checkpoints import Checkpoints, StopRequest
from odvae.shared.optimization import (
    OptimizationSettings,
    Tracker,
    learning_rate_at,
    make_accelerator,
    make_optimizer,
    set_learning_rate,
)
from odvae.shared.run_folder import StageClock
from odvae.shared.tracking import MetricsLog


class TrainingState:
    """A network in training with its optimiser, averages, checkpoints and log, restored from the newest checkpoint.

    `done` is the number of steps completed before. `model` is the prepared network to call in the loop. `ema` is the
    average that is validated and saved; `averages` holds it and those of `extra_ema_decays`.
    """

    def __init__(
        self, network: nn.Module, optimization: OptimizationSettings, folder: Path, tracker: Tracker, name: str
    ) -> None:
        self.network, self.optimization, self.folder = network, optimization, folder
        self.accelerator: Accelerator = make_accelerator(tracker, folder, name)
        self.model, self.optimizer = self.accelerator.prepare(network, make_optimizer(network, optimization))
        decays = (optimization.ema_decay, *optimization.extra_ema_decays)
        self.averages = [AveragedWeights(network, decay) for decay in decays]
        self.ema = self.averages[0]
        global_batch = self.accelerator.num_processes * optimization.accumulate * optimization.batch_size
        self.checkpoints = Checkpoints(
            folder, self.accelerator, self.averages, optimization.keep_checkpoints, global_batch
        )
        self.done = self.checkpoints.load_latest()
        self.log = MetricsLog(folder, self.accelerator, resumed_at=self.done)

    def apply_gradients(self, step: int) -> tuple[Tensor, float]:
        """Make optimiser step number `step` (from 1) and update the averages; returns (gradient norm, learning rate).

        It waits for no result of the device.
        """
        learning_rate = learning_rate_at(step - 1, self.optimization)
        set_learning_rate(self.optimizer, learning_rate)
        gradient_norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.optimization.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        for average in self.averages:
            average.update(step)
        return gradient_norm, learning_rate

    def save_and_stop_when_due(self, step: int, clock: StageClock, stop: StopRequest) -> None:
        """Write a checkpoint where one is due; after Ctrl-C or SIGTERM write one and leave the process."""
        last, stopping = step == self.optimization.steps, stop.agreed(step, self.accelerator)
        if step % self.optimization.checkpoint_every == 0 or last or stopping:
            self.checkpoints.save(step)
            if self.accelerator.is_main_process:
                clock.save(finished=False)
        if stopping and not last:
            stop.end(self.folder, step, self.accelerator.is_main_process)

    def finish(self) -> None:
        """Put the averaged weights into the network and close the log."""
        self.network.load_state_dict(self.ema.values)
        self.log.close()
