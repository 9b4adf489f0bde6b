"""Encoding on a Ray cluster (`encode.engine=ray`): processes on all its machines that hold the VAE and take shards.

Each process (a Ray actor) encodes the jobs of one video shard at a time as a command on one machine does, with its own
decoding processes; it writes shard and record into the folder, which all machines share. So the bytes are those of one
process, and only names and numbers travel through Ray. No process has more than one video shard, so none runs ahead of
the disk. When a process or its machine dies, another process gets its video shard.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ldm.encoding.encode_shards import encode_shard_jobs
from ldm.encoding.plan import ShardJob
from ldm.encoding.settings import EncodeSettings, RaySettings
from ldm.encoding.shard_files import EncodingContext
from ldm.networks.text_encoder import load_text_encoder
from odvae.clips.settings import DataSettings
from odvae.cluster.ray_pool import connect
from odvae.running.account import shown_names
from odvae.running.distributed import join_ranks
from odvae.running.errors import InputError, readable_storage_error
from odvae.running.hashing import weights_fingerprint
from odvae.running.progress import progress_bar
from odvae.video_vae import VAELoader

# How often a video shard is given to another process after the one that had it died.
_RETRIES = 3

# Variables of a launch by accelerate or torchrun, which a process of Ray may inherit but is no rank of.
_OF_A_LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class EncodingRecipe:
    """From what a process on another machine makes the `EncodingContext`. Paths may be relative to `working_folder`."""

    load_vae: VAELoader
    vae_folder: Path
    vae_sha256: str
    text_encoder: str | None
    max_tokens: int
    settings: EncodeSettings
    data: DataSettings
    folder: Path
    videos: int
    working_folder: str

    @property
    def threads(self) -> int:
        """Threads that compute, where a process has no GPU."""
        return max(1, int((self.settings.ray.cpus or 1 + self.data.workers) - self.data.workers))

    def make(self) -> EncodingContext:
        """Load VAE and text encoder. Raises InputError where they are not those of the driver."""
        try:
            os.chdir(self.working_folder)
        except OSError as error:
            raise InputError(f"{self.working_folder}: {error.strerror}; all machines must share this folder") from None
        state = join_ranks()
        if state.device.type == "cpu":
            torch.set_num_threads(self.threads)
        vae = self.load_vae(self.vae_folder).to(state.device)
        if (found := weights_fingerprint(vae)) != self.vae_sha256:
            raise InputError(f"{self.vae_folder} has another VAE here ({found[:16]}...) than {self.vae_sha256[:16]}...")
        text = None if self.text_encoder is None else load_text_encoder(self.text_encoder)
        if text is not None:
            text.model.to(state.device)
        return EncodingContext(vae, self.vae_sha256, text, self.max_tokens, self.settings, self.data)


class EncodingActor:
    """A process of the cluster. Its methods return (what a person can mend, None) or (None, the result)."""

    def __init__(self, recipe: EncodingRecipe) -> None:
        for name in _OF_A_LAUNCH:
            os.environ.pop(name, None)
        self.recipe = recipe

    def open(self) -> tuple[str | None, None]:
        try:
            self.encoding = self.recipe.make()
        except (InputError, OSError) as error:
            return _described(error), None
        return None, None

    def encode(self, jobs: Sequence[ShardJob], hashes: Mapping[Path, str]) -> tuple[str | None, dict[str, Any] | None]:
        try:
            return None, encode_shard_jobs(self.encoding, jobs, self.recipe.folder, self.recipe.videos, hashes)
        except (InputError, OSError) as error:
            return _described(error), None


def _described(error: InputError | OSError) -> str:
    """The error's message. Raises an OSError that is a bug."""
    if isinstance(error, InputError):
        return str(error)
    if (message := readable_storage_error(error)) is None:
        raise error
    return message


def encode_on_ray(
    recipe: EncodingRecipe, jobs: Sequence[ShardJob], hashes: Mapping[Path, str]
) -> dict[str, Any] | None:
    """Encode the jobs on the cluster that RAY_ADDRESS names, or on this machine. Returns the speed, None without jobs.

    Raises InputError where Ray is not installed, where no machine has what a process needs, where a process says what
    a person can mend (a full disk), and, after all other jobs, for those whose processes died again and again.
    """
    if not jobs:
        return None
    connect()
    cluster = _Cluster(recipe, jobs, hashes)
    try:
        return cluster.work()
    finally:
        cluster.close()


class _Cluster:
    """The driver's view: processes that start, are idle or encode, and the video shards that are left."""

    def __init__(self, recipe: EncodingRecipe, jobs: Sequence[ShardJob], hashes: Mapping[Path, str]) -> None:
        import ray

        self.ray, self.recipe, self.hashes = ray, recipe, hashes
        units: dict[Path, list[ShardJob]] = {}
        for job in jobs:
            units.setdefault(job.source, []).append(job)
        self.left = deque(units.values())
        self.cpus, self.gpus = _needs(recipe.settings.ray, recipe.data.workers, ray.cluster_resources())
        remote = ray.remote(EncodingActor)
        self.actor_class = remote.options(num_cpus=self.cpus, num_gpus=self.gpus, max_restarts=0, max_task_retries=0)
        self.starting: dict[Any, Any] = {}  # reference to the result of `open` -> actor
        self.idle: list[Any] = []
        self.busy: dict[Any, tuple[Any, list[ShardJob]]] = {}  # reference to the result of `encode` -> actor, unit
        self.deaths: dict[Path, int] = {}
        self.lost: list[str] = []
        self.has_started = False

    def work(self) -> dict[str, Any]:
        total, begin = sum(len(job.clips) for unit in self.left for job in unit), time.monotonic()
        speeds: list[dict[str, Any]] = []
        with progress_bar("encoding", 0, total, unit="clip") as bar:
            while self.left or self.busy:
                self._start_actors()
                while self.left and self.idle:
                    actor, unit = self.idle.pop(), self.left.popleft()
                    known = {job.source: self.hashes[job.source] for job in unit if job.source in self.hashes}
                    self.busy[actor.encode.remote(unit, known)] = actor, unit
                references = [*self.starting, *self.busy]
                if not references:
                    time.sleep(1)
                    continue
                ready, _ = self.ray.wait(references, timeout=5)
                for reference in ready:
                    speed = self._receive(reference)
                    if speed is not None:
                        speeds.append(speed)
                        bar.update(speed["clips"])
        if self.lost:
            raise InputError(
                f"{shown_names(self.lost)}: the processes that encoded it died {_RETRIES + 1} times. The other shards "
                "are complete; look at Ray's logs of these machines, and run the same command again"
            )
        return _joined(speeds, total, time.monotonic() - begin)

    def close(self) -> None:
        """End the processes; the cluster stays."""
        for actor in (*self.starting.values(), *self.idle, *(actor for actor, _ in self.busy.values())):
            self.ray.kill(actor)

    def _start_actors(self) -> None:
        """Start processes for which the cluster has room; it may grow and shrink meanwhile."""
        wanted = self.recipe.settings.ray.actors or self._room()
        if not wanted and not self.has_started:  # later it waits: all machines may be pre-empted, and others come
            raise InputError(
                f"no machine of the Ray cluster has what a process needs: {self.cpus:g} CPUs (encode.ray.cpus) and "
                f"{self.gpus:g} GPUs (encode.ray.gpus); the cluster has {self.ray.cluster_resources()}"
            )
        have = len(self.starting) + len(self.idle) + len(self.busy)
        for _ in range(min(wanted - have, len(self.left) - len(self.starting) - len(self.idle))):
            actor = self.actor_class.remote(self.recipe)
            self.starting[actor.open.remote()] = actor
            self.has_started = True

    def _room(self) -> int:
        """Number of processes that the machines of the cluster have room for."""
        machines = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        by_cpu = [math.floor(one.get("CPU", 0) / self.cpus + 1e-9) for one in machines]
        by_gpu = [math.floor(one.get("GPU", 0) / self.gpus + 1e-9) if self.gpus else 1 << 30 for one in machines]
        return sum(map(min, by_cpu, by_gpu))

    def _receive(self, reference: Any) -> dict[str, Any] | None:
        """Take the result of a process, or what is left of its work if it died."""
        if reference in self.starting:
            actor, unit = self.starting.pop(reference), None
        else:
            actor, unit = self.busy.pop(reference)
        try:
            mendable, speed = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            raise RuntimeError(f"in a process of Ray:\n{error}") from None
        except self.ray.exceptions.RayError as error:
            self._bury(unit, error)
            return None
        if mendable is not None:
            raise InputError(f"on a machine of the Ray cluster: {mendable}")
        self.idle.append(actor)
        return speed

    def _bury(self, unit: list[ShardJob] | None, error: Exception) -> None:
        """A process died: its video shard goes to another one, unless that happened too often."""
        why = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        source = unit[0].source if unit else Path()
        self.deaths[source] = deaths = self.deaths.get(source, 0) + 1
        what = f"while it encoded {source}: another one gets it" if unit else "while it started"
        print(f"a process of the Ray cluster died {what} ({why[:200]})", file=sys.stderr, flush=True)
        if unit is None:
            if deaths > 10 * (_RETRIES + 1):
                raise InputError(f"processes of the Ray cluster die while they start ({why[:200]}): see Ray's logs")
        elif deaths <= _RETRIES:
            self.left.append(unit)
        else:
            self.lost.append(str(source))


def _needs(settings: RaySettings, workers: int, cluster: Mapping[str, float]) -> tuple[float, float]:
    """CPUs and GPUs that a process reserves."""
    gpus = settings.gpus if settings.gpus is not None else float(cluster.get("GPU", 0) > 0)
    return settings.cpus or 1.0 + workers, gpus


def _joined(speeds: Sequence[Mapping[str, Any]], clips: int, seconds: float) -> dict[str, Any]:
    """One speed of all processes: their shares of waiting, weighted by their times."""
    total = sum(speed["seconds"] for speed in speeds) or 1.0

    def mean(values: Sequence[float]) -> float:
        weights = (speed["seconds"] for speed in speeds)
        return round(sum(value * weight for value, weight in zip(values, weights, strict=True)) / total, 4)

    causes = speeds[0]["waits"] if speeds else {}
    return {
        "clips": clips,
        "seconds": round(seconds, 3),
        "waiting": mean([speed["waiting"] for speed in speeds]),
        "waits": {cause: mean([speed["waits"][cause] for speed in speeds]) for cause in causes},
    }
