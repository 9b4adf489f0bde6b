"""Examining of the files that are packed: worker processes decode each file once, and a journal stores the results."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from odvae.packing.journal import Examined, Journal, examined_in
from odvae.packing.pools import open_pool
from odvae.packing.scenes import find_scenes
from odvae.packing.settings import PackingSettings
from odvae.packing.source_folder import SourceFolder, extension_of, member_kind
from odvae.packing.source_table import SourceTable
from odvae.running.failures import Failure
from odvae.running.hashing import file_fingerprint
from odvae.running.worker_pool import OrderedPool
from odvae.shards.samples import scene_key
from odvae.storage.whole_files import on_disk
from odvae.video.decoding import decoding
from odvae.video.images import decode_image, examine_image
from odvae.video.video_io import examine


def examine_files(
    source: SourceFolder | SourceTable, settings: PackingSettings, journal: Journal
) -> Iterator[Examined]:
    """Yield the facts of each of the source's own files, in order; what the journal has is not examined again."""
    names = source.own
    known = {name for name in names if journal.recall(name, source.state(name)) is not None}
    unknown = (name for name in names if name not in known)
    function = functools.partial(examine_file, settings.cut_scenes)
    with (
        open_pool(function, settings, settings.workers) as pool,
        tqdm(total=len(names), initial=len(known), desc="packing", unit="file", mininterval=1) as bar,
    ):
        results = _results(source.prepare(unknown, settings), pool, ahead=4 * pool.workers)
        for name in names:
            if name not in known:
                journal.remember(name, source.state(name), next(results))
                bar.update()
            yield from examined_in(journal.rows[name])


def _results(
    prepared: Iterator[tuple[str, Path | Failure]], pool: OrderedPool[tuple[str, Path], list[dict]], ahead: int
) -> Iterator[list[dict] | Failure]:
    """What is found in each file, in order; a file that could not be prepared has its Failure as result."""
    waiting: deque[int | Failure] = deque()  # an int: the ticket of a result
    for name, path in prepared:
        waiting.append(path if isinstance(path, Failure) else pool.submit((name, path)))
        if len(waiting) > ahead:
            yield _result(waiting.popleft(), pool)
    while waiting:
        yield _result(waiting.popleft(), pool)


def _result(waiting: int | Failure, pool: OrderedPool[tuple[str, Path], list[dict]]) -> list[dict] | Failure:
    return waiting if isinstance(waiting, Failure) else pool.result(waiting)


def examine_file(cut_scenes: bool, task: tuple[str, Path]) -> list[dict]:
    """In a worker: the facts of a file, one entry per sample. Raises VideoError if it cannot be used."""
    name, path = task
    with on_disk(path) as here:  # a task of Ray copies its file from a URL
        return _examine(cut_scenes, name, here)


def _examine(cut_scenes: bool, name: str, path: Path) -> list[dict]:
    with decoding(name, "read"):
        digest = file_fingerprint(path)
    key, about = digest[:16], {"sha256": digest, "container": extension_of(name)}
    if member_kind(name) != "mp4":
        with decoding(name, "read"):
            data = path.read_bytes()
        height, width, _ = decode_image(data, name).shape
        pictures = examine_image(data, name).images
        several = {"pictures": pictures} if pictures > 1 else {}
        return [{"key": key, "about": about | {"frames": 1, "height": height, "width": width, "fps": 0.0} | several}]
    facts = examine(path, name)
    with decoding(name, "searched for scenes"):
        scenes = find_scenes(path, name, facts.fps) if cut_scenes else []
    if len(scenes) < 2:
        return [{"key": key, "about": about | asdict(facts)}]
    whole = asdict(facts) | {"height": facts.height // 2 * 2, "width": facts.width // 2 * 2, "keyframes": []}
    return [
        {
            "key": scene_key(key, number),
            "scene": scene,
            "about": about
            | whole
            | {"frames": scene[1] - scene[0], "seconds": (scene[1] - scene[0]) / facts.fps, "variable_rate": False}
            | {"scene": scene},
        }
        for number, scene in enumerate(scenes)
    ]
