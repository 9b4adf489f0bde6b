"""Training batches: latents sampled from the posterior, normalized, with noise added, and their conditions.

Every random choice is a function of the sample's number, so it is the same on any number of ranks and after a resume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from ldm.diffusion.objective import add_noise, min_snr_weight, target
from ldm.diffusion.settings import ObjectiveSettings
from ldm.diffusion.timesteps import alpha_sigma, shift_for, training_time
from ldm.latents.batches import entry_failures, latent_batches
from ldm.latents.entries import check_text, entry_rate, pad_text, unpack_entry
from ldm.latents.latent_set import open_latents
from ldm.latents.manifest import Manifest
from ldm.networks.conditioning import Condition
from ldm.networks.settings import ConditioningSettings
from odvae.clips.clip import DEFAULT_FPS
from odvae.clips.sample_order import SampleOrder
from odvae.clips.samplers import BatchPlan
from odvae.running.distributed import gather_objects
from odvae.running.errors import InputError
from odvae.running.seeds import derive_seed, normal_per_sample
from odvae.storage.files import read_file


@dataclass(frozen=True)
class Batch:
    """Inputs, target and loss weights of one micro-step."""

    noisy: Tensor  # (b, c, t, h, w)
    target: Tensor  # (b, c, t, h, w)
    time: Tensor  # (b,)
    weight: Tensor  # (b,), loss weight of each sample
    condition: Condition
    latents: Tensor  # (b, c, t, h, w), without noise, normalized


# What a training minimizes: (predict, batch) -> the loss of each sample, (b,); `predict(latents, time, condition)` is
# the network's prediction as a tensor.
SampleLoss = Callable[[Callable[[Tensor, Tensor, Condition], Tensor], Batch], Tensor]


class BatchMaker:
    """Converts encoded clips on the CPU to training and validation batches on a device.

    `empty_text` (m, d) and `empty_mask` (m,) embed the empty caption, for networks with text conditioning.
    """

    def __init__(
        self,
        manifest: Manifest,
        conditioning: ConditioningSettings,
        objective: ObjectiveSettings,
        device: torch.device,
        empty_text: Tensor | None = None,
        empty_mask: Tensor | None = None,
    ) -> None:
        self.conditioning, self.objective, self.device = conditioning, objective, device
        self.mean = torch.tensor(manifest.latents_mean, device=device).view(1, -1, 1, 1, 1)
        self.std = torch.tensor(manifest.latents_std, device=device).view(1, -1, 1, 1, 1)
        self.empty_text = None if empty_text is None else empty_text.float().to(device)
        self.empty_mask = None if empty_mask is None else empty_mask.to(device)

    def make_batch(self, entries: Mapping[str, Tensor], seed: int) -> Batch:
        """Collated entries (on the CPU) -> a training batch."""
        numbers = entries["number"].tolist()
        x, condition = self._latents_and_condition(entries, numbers, seed)
        drop, time = self._uniform(numbers, seed, "drop"), self._uniform(numbers, seed, "time")
        condition = condition.drop(drop < self.conditioning.cond_dropout, self.empty_text, self.empty_mask)
        return self._noised(x, time, condition, numbers, seed)

    def validation_batches(self, entries: Mapping[str, Tensor]) -> Iterator[Batch]:
        """Four batches of the same clips, one per quarter of the training noise levels, from low to high.

        No condition is dropped. Noise and noise levels are the same every time.
        """
        numbers = entries["number"].tolist()
        x, condition = self._latents_and_condition(entries, numbers, seed=0)
        for quarter in range(4):
            yield self._noised(x, (quarter + self._uniform(numbers, 0, "time")) / 4, condition, numbers, seed=0)

    def unconditional(self, condition: Condition) -> Condition:
        """The condition without text and class, for guidance."""
        dropped = torch.ones(1, dtype=torch.bool, device=self.device)
        return condition.drop(dropped, self.empty_text, self.empty_mask)

    def _latents_and_condition(
        self, entries: Mapping[str, Tensor], numbers: Sequence[int], seed: int
    ) -> tuple[Tensor, Condition]:
        """Normalized latents (b, c, t, h, w), sampled from the posterior; and all conditions, none dropped."""
        on_device = {
            name: value.to(self.device, non_blocking=True) for name, value in entries.items() if name != "number"
        }
        mean, std = on_device["mean"], on_device["std"]
        z = mean + std * normal_per_sample(mean.shape[1:], seed, "posterior", numbers, self.device)
        x = (z - self.mean) / self.std
        text, label, first = self.conditioning.kind == "text", self.conditioning.kind == "class", None
        if self.conditioning.first_frame:
            first = self._uniform(numbers, seed, "first frame") < self.conditioning.first_frame
        return x, Condition(
            text=on_device["text"] if text else None,
            text_mask=on_device["text_mask"] if text else None,
            label=on_device["label"] if label else None,
            first_frame=None if first is None else x[:, :, :1],
            first_frame_given=first,
        )

    def _noised(self, x: Tensor, u: Tensor, condition: Condition, numbers: Sequence[int], seed: int) -> Batch:
        """The batch of x at the training timesteps of u (b,) in [0, 1]."""
        objective = self.objective
        eps = normal_per_sample(x.shape[1:], seed, "noise", numbers, self.device)
        time = training_time(u, objective, shift_for(x[0, 0].numel(), objective))
        alpha, sigma = alpha_sigma(time, objective)
        weight = torch.ones_like(time)
        if objective.min_snr_gamma is not None:
            weight = min_snr_weight(alpha, sigma, objective.min_snr_gamma, objective.prediction)
        regression_target = target(x, eps, alpha, sigma, objective.prediction)
        return Batch(add_noise(x, eps, alpha, sigma), regression_target, time, weight, condition, latents=x)

    def _uniform(self, numbers: Sequence[int], seed: int, name: str) -> Tensor:
        """Uniform values in [0, 1), (b,), one per sample number; copied to a GPU without synchronizing."""
        values = torch.tensor([derive_seed(seed, name, number) / 2**63 for number in numbers])
        if self.device.type == "cuda":
            values = values.pin_memory()
        return values.to(self.device, non_blocking=True)


class LatentData(BatchMaker):
    """The encoded clips of a folder, as batches on a device."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        conditioning: ConditioningSettings,
        objective: ObjectiveSettings,
        device: torch.device,
        failures_allowed: float = 0.0,
    ) -> None:
        self.latents = open_latents(folder, manifest, with_text=conditioning.kind == "text")
        self.failures = entry_failures(self.latents, failures_allowed)
        """Training entries that could not be read, and were replaced."""
        self._merged = 0  # of these, those that all ranks know
        text, mask = empty_caption(folder, manifest) if conditioning.kind == "text" else (None, None)
        super().__init__(manifest, conditioning, objective, device, text, mask)

    def training_batches(
        self,
        plan: BatchPlan,
        seed: int,
        start_step: int = 0,
        workers: int = 0,
        order: SampleOrder = SampleOrder(),  # noqa: B008 - frozen
        batch_sizes: Mapping[str, int] | None = None,
    ) -> Iterator[Batch]:
        """Endless batches of one rank from step `start_step` on, as from `latent_batches`.

        Raises InputError after more than `failures_allowed` of the training entries could not be read.
        """
        loaded = latent_batches(self.latents, seed, plan, start_step, workers, self.failures, order, batch_sizes)
        for entries in loaded:
            yield self.make_batch(entries, seed)

    def merge_failures(self, accelerator: Accelerator) -> None:
        """Count the entries that the other ranks could not read as well. Collective.

        Raises InputError if all ranks together have more than are allowed.
        """
        if accelerator.num_processes == 1:
            return
        new = torch.tensor(len(self.failures.reasons) - self._merged, device=accelerator.device)
        if int(accelerator.reduce(new, "sum")):
            for reasons in gather_objects(self.failures.reasons):
                self.failures.merge(reasons)
            self._merged = len(self.failures.reasons)

    def held_out(self, bucket: str, numbers: Sequence[int]) -> dict[str, Tensor]:
        """Held-out clips of a bucket by their indices in it, collated."""
        return self.latents.held_out[bucket].load(numbers, numbers, self.latents.classes)

    def visualized(self, count: int) -> Iterator[tuple[Tensor, Condition]]:
        """Noise and condition, each a batch of one, of the first held-out clips.

        With their first frame as a condition for networks that take one.
        """
        bucket = next(name for name, entries in self.latents.held_out.items() if len(entries))
        for number in range(min(count, len(self.latents.held_out[bucket]))):
            x, condition = self._latents_and_condition(self.held_out(bucket, [number]), [number], seed=0)
            if condition.first_frame_given is not None:
                condition = replace(condition, first_frame_given=torch.ones_like(condition.first_frame_given))
            yield normal_per_sample(x.shape[1:], 0, "shown", [number], self.device), condition

    def frame_rate(self) -> float:
        """Frames per second of the first held-out clip."""
        first = next(entries[0] for entries in self.latents.held_out.values() if len(entries))
        return entry_rate(first) or DEFAULT_FPS


def empty_caption(folder: Path, manifest: Manifest) -> tuple[Tensor, Tensor]:
    """The embedding (m, d) and mask (m,) of the empty caption in a folder of latents.

    Raises InputError where the embedding has another shape than the manifest gives.
    """
    path = manifest.empty_text_file(folder)
    name = str(path).removesuffix(".safetensors")
    empty = unpack_entry(read_file(path), name)
    check_text(empty, name)
    text = pad_text(empty["text"], empty["text_mask"])
    if text.shape != (manifest.text_tokens, manifest.text_width):
        raise InputError(
            f"{path} has an embedding {tuple(text.shape)}, by the manifest it is "
            f"{(manifest.text_tokens, manifest.text_width)}"
        )
    return text, empty["text_mask"]


def per_sample_mse(predict: Callable[[Tensor, Tensor, Condition], Tensor], batch: Batch) -> Tensor:
    """Mean squared error of the prediction per sample, (b,), in float32 whatever the network computes in."""
    prediction = predict(batch.noisy, batch.time, batch.condition)
    return (prediction.float() - batch.target).square().mean(dim=(1, 2, 3, 4))
