"""A folder of videos with captions -> WebDataset shards in video2dataset's layout (`KEY.mp4 KEY.txt KEY.json`)."""

from __future__ import annotations

import csv
import hashlib
import json
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm import tqdm

from odvae.shared.errors import InputError
from odvae.shared.run_folder import folder_aside, make_output_folder, read_json_lines, write_json
from odvae.shared.shards import shard_writer
from odvae.shared.video import VIDEO_EXTENSIONS, VideoError, examine

# What each kind of caption table calls its columns.
_FILE_COLUMNS = ("file_name", "path", "video", "file")
_TEXT_COLUMNS = ("text", "caption", "cap")


@dataclass
class PackingReport:
    """What went into the shards and what did not: `packing.json`."""

    videos: int = 0
    shards: int = 0
    frames: int = 0
    seconds: float = 0.0
    without_caption: int = 0
    rejected: dict[str, str] = field(default_factory=dict)


def pack_folder(source: str | Path, out: str | Path, samples_per_shard: int = 500) -> PackingReport:
    """Pack every video below `source` into `out/00000.tar ...`; the folder appears when it is whole.

    A caption comes from `captions.csv` or `metadata.jsonl` in `source` where there is one, else from the `.txt`
    beside the video, else it is empty. Every file is decoded once: those that cannot be are skipped, counted and
    named in the report, and so are second copies of the same bytes. The key is the hash of the file's bytes, so
    equal names in different folders never collide, and the same input gives the same shards.

    Raises InputError when `source` is missing or holds no readable video, or `out` holds other files.
    """
    source, out = Path(source), Path(out)
    if not source.is_dir():
        raise InputError(f"source folder {source} does not exist")
    videos = sorted(path for path in source.rglob("*") if path.suffix.lower().lstrip(".") in VIDEO_EXTENSIONS)
    if not videos:
        raise InputError(f"source folder {source} holds no video ({', '.join('.' + e for e in VIDEO_EXTENSIONS)})")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"output folder {out} is not empty: choose another, or remove it")
    captions = _caption_table(source)
    make_output_folder(out.parent)
    with folder_aside(out) as folder:
        report = _pack(source, videos, captions, folder, samples_per_shard)
        write_json(folder / "packing.json", asdict(report))
        if report.videos == 0:
            raise InputError(f"none of the {len(videos)} files in {source} can be read:\n{_rejects(report)}")
    return report


def _pack(
    source: Path, videos: list[Path], captions: dict[str, str] | None, folder: Path, samples_per_shard: int
) -> PackingReport:
    report = PackingReport()
    samples = _readable_samples(source, videos, captions, report)
    sample = next(samples, None)
    while sample is not None:
        with shard_writer(folder / f"{report.shards:05d}.tar") as shard:
            for _ in range(samples_per_shard):
                shard.write(sample)
                sample = next(samples, None)
                if sample is None:
                    break
        report.shards += 1
    return report


def _readable_samples(
    source: Path, videos: list[Path], captions: dict[str, str] | None, report: PackingReport
) -> Iterator[dict]:
    """Samples as the shard writer takes them; what cannot be read goes into the report."""
    first_with_key: dict[str, str] = {}
    for path in tqdm(videos, desc="packing", unit="video", mininterval=1):
        name = str(path.relative_to(source))
        try:
            data = path.read_bytes()
            facts = examine(data, name)
        except VideoError as error:
            report.rejected[name] = str(error)
            continue
        digest = hashlib.sha256(data).hexdigest()
        key = digest[:16]
        if key in first_with_key:
            report.rejected[name] = f"{name}: same bytes as {first_with_key[key]}"
            continue
        first_with_key[key] = name
        caption = _caption_beside(path) if captions is None else captions.get(name, captions.get(path.name, ""))
        report.videos += 1
        report.frames += facts.frames
        report.seconds += facts.seconds
        report.without_caption += not caption
        about = {"key": key, "source": name, "sha256": digest, "caption": caption, **asdict(facts)}
        yield {
            "__key__": key,
            path.suffix.lower().lstrip("."): data,
            "txt": caption.encode(),
            "json": json.dumps(about).encode(),
        }


def _caption_beside(video: Path) -> str:
    text = video.with_suffix(".txt")
    return " ".join(text.read_text(errors="replace").split()) if text.is_file() else ""


def _caption_table(source: Path) -> dict[str, str] | None:
    """File name -> caption, from metadata.jsonl or captions.csv; None where the folder has neither."""
    rows: list[dict]
    if (source / "metadata.jsonl").is_file():
        table = source / "metadata.jsonl"
        rows = read_json_lines(table)
    elif (source / "captions.csv").is_file():
        table = source / "captions.csv"
        with open(table, newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        return None
    captions = {}
    for number, row in enumerate(rows, start=1):
        file_name = next((row[column] for column in _FILE_COLUMNS if row.get(column)), None)
        text = next((row[column] for column in _TEXT_COLUMNS if row.get(column) is not None), None)
        if file_name is None or text is None:
            raise InputError(
                f"{table}, row {number}: needs a file column ({', '.join(_FILE_COLUMNS)}) and a text column "
                f"({', '.join(_TEXT_COLUMNS)}), found {', '.join(map(str, row))}"
            )
        captions[file_name] = " ".join(text.split())
    return captions


def _rejects(report: PackingReport) -> str:
    return "\n".join(f"  {reason}" for reason in report.rejected.values())


def describe(report: PackingReport, out: Path) -> str:
    """What a person reads after packing."""
    lines = [
        f"{report.videos} videos ({report.frames} frames, {report.seconds:.0f} s) in {report.shards} shards: {out}",
        f"without a caption: {report.without_caption}",
        f"skipped: {len(report.rejected)}",
    ]
    return "\n".join(lines) + (f"\n{_rejects(report)}" if report.rejected else "")


def next_command(out: Path) -> str:
    return f"accelerate launch pipelines/train_vae.py --config CONFIG.yaml data.shards={shlex.quote(str(out))}"
