"""Videos and images with captions -> WebDataset shards in video2dataset's layout (KEY.mp4 KEY.txt KEY.json).

Every file is decoded once, in guarded worker processes: what cannot be read, is a second copy, or does not pass the
filters is left out, counted and named. The key is the hash of the file's bytes, so equal names in different folders
never collide, and the same input gives the same shards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from odvae.running.errors import InputError
from odvae.running.files import make_output_folder, read_json, read_json_lines, write_json
from odvae.running.folder_lock import LOCK, sole_writer
from odvae.running.hashing import file_fingerprint
from odvae.running.worker_pool import Failure, WorkerPool
from odvae.shards.captions import CaptionTable, Description, caption_beside, find_table
from odvae.shards.filters import PackingSettings
from odvae.shards.report import PackingReport, list_rejects
from odvae.shards.scenes import check_scene_detection, cut_scene, find_scenes
from odvae.shards.tars import scene_key, shard_writer
from odvae.video.files import VIDEO_EXTENSIONS, examine
from odvae.video.images import IMAGE_EXTENSIONS, decode_image

REPORT = "packing.json"
_JOURNAL = "examined.jsonl"


@dataclass(frozen=True)
class Examined:
    """What decoding one file found, or why it is left out; `scene` numbers the scenes of a file that was cut."""

    name: str
    key: str = ""
    reason: str = ""
    about: dict | None = None
    scene: tuple[int, int] | None = None


def pack_folder(source: str | Path, out: str | Path, settings: PackingSettings | None = None) -> PackingReport:
    """Pack every video and image below `source` into `out/00000.tar ...`; the folder appears when it is whole.

    The same call again goes on where a stopped one left off; on a folder it finished, it gives the report at once.
    Raises InputError when `source` is missing or holds nothing readable, or `out` holds anything else.
    """
    source, out, settings = Path(source), Path(out), settings or PackingSettings()
    files = _list_files(source)
    if settings.cut_scenes:
        check_scene_detection()
    identity = _input_identity(source, files, settings)
    if out.exists() and any(out.iterdir()):
        if (out / REPORT).is_file() and read_json(out / REPORT)["input"] == identity:
            return PackingReport(**read_json(out / REPORT))
        raise InputError(f"output folder {out} is not empty and holds something else: choose another, or remove it")
    make_output_folder(out.parent)
    aside = out.parent / f".{out.name}.packing"
    with sole_writer(aside):
        _start_over_unless_same_input(aside, identity)
        report = PackingReport(input=identity)
        _write_shards(source, files, settings, aside, report)
        report.bytes = sum(shard.stat().st_size for shard in aside.glob("*.tar"))
        report.finish()
        if report.videos + report.images == 0:
            raise InputError(f"none of the {len(files)} files in {source} can be used:\n{list_rejects(report)}")
        write_json(aside / REPORT, asdict(report))
        for name in (_JOURNAL, "input.json", LOCK):
            (aside / name).unlink()
        if out.exists():
            out.rmdir()
        aside.rename(out)
    return report


def _list_files(source: Path) -> list[Path]:
    if not source.is_dir():
        raise InputError(f"source folder {source} does not exist")
    allowed = (*VIDEO_EXTENSIONS, *IMAGE_EXTENSIONS)
    files = sorted(path for path in source.rglob("*") if _extension(path) in allowed and path.is_file())
    if not files:
        raise InputError(f"source folder {source} holds no video or image ({', '.join('.' + e for e in allowed)})")
    # Videos first; images of one kind together, since the samples of a shard should have the same members.
    return sorted(files, key=lambda path: (_kind(path) != "mp4", _kind(path)))


def _extension(path: Path) -> str:
    return path.suffix.lower().lstrip(".")


def _kind(path: Path) -> str:
    """The member's name in the shard: mp4 for every video, whatever its container, as video2dataset has it."""
    return _extension(path) if _extension(path) in IMAGE_EXTENSIONS else "mp4"


def _input_identity(source: Path, files: list[Path], settings: PackingSettings) -> str:
    """A hash over everything the shards follow from: each file's name, size and time of change, captions, settings."""
    digest = hashlib.sha256(settings.model_dump_json(exclude={"workers", "seconds_per_file", "memory_gib"}).encode())
    tables = [path for path in (find_table(source), settings.captions and Path(settings.captions)) if path]
    texts = [text for path in files if (text := path.with_suffix(".txt")).is_file()]
    for path in [*files, *tables, *texts]:
        if not path.is_file():
            raise InputError(f"caption table {path} does not exist")
        digest.update(f"{path.name if path in tables else path.relative_to(source)}".encode())
        digest.update(f" {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _start_over_unless_same_input(aside: Path, identity: str) -> None:
    path = aside / "input.json"
    if path.is_file() and read_json(path) != identity:
        print("files or settings have changed since packing was stopped: starting over", flush=True)
        for old in aside.iterdir():
            if old.name != LOCK:
                old.unlink()
    write_json(path, identity)


def _write_shards(
    source: Path, files: list[Path], settings: PackingSettings, folder: Path, report: PackingReport
) -> None:
    """Write the shards that are not there yet; which sample is in which shard follows from the files alone."""
    samples = _accepted(source, files, settings, folder, report)
    kind_counts: dict[str, int] = {}
    sample = next(samples, None)
    while sample is not None:
        kind = _kind(source / sample.name)
        number = kind_counts[kind] = kind_counts.get(kind, -1) + 1
        path = folder / (f"{number:05d}.tar" if kind == "mp4" else f"{kind}-{number:05d}.tar")
        contents = []
        while sample is not None and len(contents) < settings.samples_per_shard:
            if _kind(source / sample.name) != kind:
                break
            contents.append(sample)
            sample = next(samples, None)
        if not path.exists():
            with shard_writer(path) as shard:
                for one in contents:
                    shard.write(_shard_sample(source, one))
        report.shards += 1


def _shard_sample(source: Path, sample: Examined) -> dict:
    """A sample as the shard writer takes it."""
    assert sample.about is not None
    path = source / sample.name
    data = (
        path.read_bytes() if sample.scene is None else cut_scene(path, sample.name, sample.scene, sample.about["fps"])
    )
    caption = sample.about["caption"].encode()
    return {"__key__": sample.key, _kind(path): data, "txt": caption, "json": json.dumps(sample.about).encode()}


def _accepted(
    source: Path, files: list[Path], settings: PackingSettings, folder: Path, report: PackingReport
) -> Iterator[Examined]:
    """Samples that belong into the shards, in order; the others go into the report with their reasons."""
    table_path = Path(settings.captions) if settings.captions else find_table(source)
    table = CaptionTable(table_path, source) if table_path else None
    first_with_hash: dict[str, str] = {}
    for one in _examine_files(source, files, settings, folder):
        reason = one.reason
        if not reason:
            assert one.about is not None
            twin = first_with_hash.setdefault(one.key, one.name)
            reason = settings.why_not(one.about) if twin == one.name else f"same bytes as {twin}"
        if not reason:
            try:
                description = table.find(one.name) if table else caption_beside(source / one.name)
            except InputError as error:
                reason = str(error)
        if reason:
            name = one.name if one.scene is None else f"{one.name}, frames {one.scene[0]} to {one.scene[1] - 1}"
            report.rejected[name] = reason if reason.startswith(name) else f"{name}: {reason}"
            continue
        about = {"key": one.key, "source": one.name, "caption": description.caption, **one.about}
        label = _label(one.name, description, settings)
        about |= {} if label is None else {"label": label}
        report.add(about, is_image=_kind(source / one.name) != "mp4")
        yield Examined(one.name, one.key, about=about, scene=one.scene)
    report.rows_without_video = table.unused if table else 0


def _label(name: str, description: Description, settings: PackingSettings) -> str | None:
    if settings.labels == "table":
        return description.label
    folder = Path(name).parent.name
    return folder or None


def _examine_files(source: Path, files: list[Path], settings: PackingSettings, folder: Path) -> Iterator[Examined]:
    """What each file is, in order; what an earlier, stopped run found out is not found out again."""
    journal = folder / _JOURNAL
    known: dict[str, list[dict]] = {}
    if journal.is_file():
        known = {row["name"]: row["found"] for row in read_json_lines(journal)}
        write_whole = [json.dumps({"name": name, "found": found}) for name, found in known.items()]
        journal.write_text("".join(f"{line}\n" for line in write_whole))  # without a last line that was cut
    unknown = [path for path in files if str(path.relative_to(source)) not in known]
    limits = settings.workers, settings.seconds_per_file, settings.memory_gib
    with (
        WorkerPool(lambda path: _examine_file(source, path, settings), *limits) as pool,
        open(journal, "a") as file,
        tqdm(total=len(files), initial=len(files) - len(unknown), desc="packing", unit="file", mininterval=1) as bar,
    ):
        results = pool.map(unknown, ahead=4 * settings.workers)
        for path in files:
            name = str(path.relative_to(source))
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


def _examine_file(source: Path, path: Path, settings: PackingSettings) -> list[dict]:
    """In a worker: the facts of a file, one entry a sample. Raises VideoError where it cannot be used."""
    name, digest = str(path.relative_to(source)), file_fingerprint(path)
    key, about = digest[:16], {"sha256": digest, "container": _extension(path)}
    if _kind(path) != "mp4":
        height, width, _ = decode_image(path.read_bytes(), name).shape
        return [{"key": key, "about": about | {"frames": 1, "height": height, "width": width, "fps": 0.0}}]
    facts = examine(path, name)
    scenes = find_scenes(path) if settings.cut_scenes else []
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
