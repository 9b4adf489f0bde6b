"""Examining of the files that are packed: worker processes decode each file once, and a journal stores the results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from odvae.packing.scenes import find_scenes
from odvae.packing.settings import PackingSettings
from odvae.packing.source_folder import SourceFolder, extension_of, member_kind
from odvae.running.failures import Failure
from odvae.running.files import read_json_lines
from odvae.running.hashing import file_fingerprint
from odvae.running.worker_pool import WorkerPool
from odvae.shards.facts import checked_about
from odvae.shards.samples import scene_key
from odvae.video.decoding import decoding
from odvae.video.images import decode_image, examine_image
from odvae.video.video_io import examine

JOURNAL = "examined.jsonl"


@dataclass(frozen=True)
class Examined:
    """The facts of a decoded file (or of a scene of it, with its frames), or the reason why the file is left out."""

    name: str
    key: str = ""
    reason: str = ""
    about: dict | None = None
    scene: tuple[int, int] | None = None


def examine_files(folder: SourceFolder, settings: PackingSettings, out: Path) -> Iterator[Examined]:
    """Yield the facts of each file, in order; results of an interrupted run are reused."""
    journal = out / JOURNAL
    known: dict[str, list[dict]] = {}
    if journal.is_file():
        known = {row["name"]: row["found"] for row in read_json_lines(journal) if _is_whole(row)}
        complete = [json.dumps({"name": name, "found": found}) for name, found in known.items()]
        journal.write_text("".join(f"{line}\n" for line in complete))  # without a truncated last line
    unknown = [name for name in folder.media if name not in known]
    limits = settings.workers, settings.seconds_per_file, settings.memory_gib
    with (
        WorkerPool(lambda name: _examine_file(folder.root, name, settings), *limits) as pool,
        open(journal, "a") as file,
        tqdm(total=len(folder.media), initial=len(known), desc="packing", unit="file", mininterval=1) as bar,
    ):
        results = pool.map(unknown, ahead=4 * settings.workers)
        for name in folder.media:
            if name in known:
                found = known[name]
            else:
                result = next(results)
                found = [{"reason": result.reason}] if isinstance(result, Failure) else result
                file.write(json.dumps({"name": name, "found": found}) + "\n")
                file.flush()
                bar.update()
            for one in found:
                scene = tuple(one["scene"]) if one.get("scene") else None
                yield Examined(name, one.get("key", ""), one.get("reason", ""), one.get("about"), scene)


def _is_whole(row: dict) -> bool:
    """Whether a row of the journal is as it was written; what was damaged is examined again."""
    found = row.get("found")
    if not isinstance(row.get("name"), str) or not isinstance(found, list) or not found:
        return False
    return all(isinstance(one, dict) and (_is_reason(one) or _is_sample(one, row["name"])) for one in found)


def _is_reason(one: dict) -> bool:
    return one.keys() == {"reason"} and isinstance(one["reason"], str)


def _is_sample(one: dict, name: str) -> bool:
    about, scene = one.get("about"), one.get("scene")
    if not isinstance(one.get("key"), str) or not isinstance(about, dict):
        return False
    if scene is not None and not (isinstance(scene, list) and len(scene) == 2 and all(type(n) is int for n in scene)):
        return False
    checked, wrong = checked_about(json.dumps(about).encode())
    needed = {"sha256", "frames", "height", "width", "fps"}
    if member_kind(name) == "mp4" or about.get("fps"):
        needed |= {"seconds", "variable_rate"}
    return not wrong and checked.keys() >= needed


def _examine_file(root: Path, name: str, settings: PackingSettings) -> list[dict]:
    """In a worker: the facts of a file, one entry per sample. Raises VideoError if it cannot be used."""
    path = root / name
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
        scenes = find_scenes(path, name, facts.fps) if settings.cut_scenes else []
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
