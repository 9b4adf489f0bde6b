"""WebDataset tar shards: written whole, read by an index of offsets.

A shard is a plain tar; the members of one sample follow each other and share a key: `KEY.mp4 KEY.txt KEY.json`.
The index lists where each member's bytes lie, so that sample i is one read away, whatever shard it is in.
"""

from __future__ import annotations

import contextlib
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import webdataset as wds

from odvae.shared.errors import InputError
from odvae.shared.run_folder import written_aside


@dataclass(frozen=True)
class Sample:
    """Where one sample's members lie: extension -> (offset, size) in the shard file."""

    key: str
    shard: Path
    members: dict[str, tuple[int, int]]

    @property
    def name(self) -> str:
        """How messages name the sample."""
        return f"{self.shard}:{self.key}"

    def read(self, extension: str) -> bytes:
        """One member's bytes. Raises InputError when the sample has no such member or the shard was cut."""
        if extension not in self.members:
            raise InputError(f"{self.name} has no .{extension}, only {', '.join(sorted(self.members))}")
        offset, size = self.members[extension]
        with open(self.shard, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, offset)
        if len(data) < size:
            raise InputError(f"{self.name}: the shard ends inside .{extension}; it was cut after it was indexed")
        return data

    def read_json(self) -> dict:
        """The sample's .json member, or an empty dict where it has none."""
        if "json" not in self.members:
            return {}
        try:
            return json.loads(self.read("json"))
        except json.JSONDecodeError as error:
            raise InputError(f"{self.name}.json is not valid JSON: {error}") from None

    def read_text(self) -> str:
        """The caption (.txt), or "" where the sample has none."""
        return self.read("txt").decode("utf-8", "replace").strip() if "txt" in self.members else ""


def list_shards(folder: str | Path, command: str) -> list[Path]:
    """The .tar files of a folder, sorted. `command` is what makes them, for the error when there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"folder {folder} does not exist; make it with: {command}")
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise InputError(f"folder {folder} holds no .tar shard; make them with: {command}")
    return shards


def index_shard(shard: Path) -> list[Sample]:
    """The samples of one shard in file order, from its tar headers. Raises InputError for a cut or foreign file."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, file_name = member.name.rpartition("/")
                stem, _, extension = file_name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                members = samples.setdefault(key, {})
                if extension.lower() in members:
                    raise InputError(f"{shard}: {member.name} is there twice")
                members[extension.lower()] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        raise InputError(f"{shard} is not a whole tar file: {error}") from None
    end = max((offset + size for members in samples.values() for offset, size in members.values()), default=0)
    if end > shard.stat().st_size:
        raise InputError(f"{shard} is cut: {shard.stat().st_size} bytes, but its last member ends at {end}")
    return [Sample(key, shard, members) for key, members in samples.items()]


def index_shards(shards: list[Path]) -> list[Sample]:
    """The samples of all shards, in order. Raises InputError where two samples share a key."""
    samples = [sample for shard in shards for sample in index_shard(shard)]
    seen: dict[str, Sample] = {}
    for sample in samples:
        if sample.key in seen:
            raise InputError(f"key {sample.key} is in {seen[sample.key].shard} and in {sample.shard}")
        seen[sample.key] = sample
    return samples


@contextlib.contextmanager
def shard_writer(path: Path) -> Iterator[wds.TarWriter]:
    """A WebDataset tar writer whose file appears at `path` only when whole; same samples, same bytes.

    Values are bytes (`{"__key__": key, "mp4": ..., "json": ...}`): nothing is encoded behind the caller's back.
    """
    with written_aside(path) as file:
        writer = wds.TarWriter(file, encoder=False, mtime=0, user="odvae", group="odvae")
        yield writer
        writer.close()
