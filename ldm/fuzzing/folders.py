"""Whole folders: packing of videos with their captions, and the records that stages keep in their folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

from ldm.encoding.job_records import JobRecord, read_job_record
from ldm.encoding.resume import ENCODER, record_vae
from ldm.fuzzing.kind import Kind, NeighborLost, Valid
from ldm.fuzzing.media import healthy_video, image_bytes, video_bytes
from ldm.fuzzing.mutations import BYTES, JSON, JSON_LINES, TEXT
from ldm.sampling.sample_table import read_sample_rows
from odvae.packing.journal import JOURNAL
from odvae.packing.packing import pack_folder
from odvae.packing.report import PackingReport, describe, read_report
from odvae.packing.settings import PackingSettings
from odvae.packing.source_folder import state_of
from odvae.packing.state import PackingState
from odvae.report_file import read_report as read_stage_reports
from odvae.running.account import Account
from odvae.running.errors import InputError
from odvae.running.resume_check import read_stage_record
from odvae.running.run_folder import RunFolder
from odvae.shards.tars import index_shards, list_shards

_SETTINGS = PackingSettings(workers=0, samples_per_shard=2)
_NEIGHBOR, _CAPTION = "neighbor.mp4", "a healthy caption"


def _make_folders(_: Path) -> Sequence[Valid]:
    csv = b'file_name,text,label\nmutated.mp4,"a red square, moving",3\nb.png,b,4\n'
    return [
        Valid("mutated.mp4", video_bytes("mp4", "libx264", "yuv420p", {"preset": "ultrafast"}), BYTES),
        Valid("mutated.gif", video_bytes("gif", "gif", "rgb8", {}), BYTES),
        Valid("b.png", image_bytes("png", "RGB"), BYTES),
        Valid("metadata.csv", csv, TEXT),
        Valid("mutated.txt", "ä b\n".encode(), TEXT),
        Valid("mutated.json", b'{"caption": "x", "label": 3}', JSON),
    ]


def _read_folder(context: Path, name: str, data: bytes, folder: Path, rng: Random) -> None:
    """Pack it; the neighbor must be in a shard with its caption. The same call again must give the same report."""
    source, out = folder / "source", folder / "out"
    source.mkdir()
    for valid in _make_folders(context)[:3]:
        (source / valid.name).write_bytes(valid.data)
    (source / _NEIGHBOR).write_bytes(healthy_video())
    (source / _NEIGHBOR).with_suffix(".txt").write_text(_CAPTION)
    (source / name).write_bytes(data)
    report = pack_folder(source, out, _SETTINGS)
    captions = {one.read_json()["source"]: one.read_text() for one in index_shards(list_shards(out, "?"))}
    if captions.get(_NEIGHBOR) != _CAPTION:
        raise NeighborLost(f"{captions}, {report.rejected}")
    describe(report, out).encode()
    if pack_folder(source, out, _SETTINGS).rejected != report.rejected:
        raise AssertionError("the report that was written differs from the one that was returned")
    if name in report.rejected:
        raise InputError(report.rejected[name])


def _make_records(context: Path) -> Sequence[Valid]:
    source = context / "source"
    source.mkdir()
    (source / "a.mp4").write_bytes(healthy_video())
    (source / "b.png").write_bytes(image_bytes("png", "RGB"))
    report = pack_folder(source, context / "out", _SETTINGS)
    found = [one.read_json() for one in index_shards(list_shards(context / "out", "?"))]
    entries = [
        {"name": one["source"], "of": state_of(source / one["source"]), "found": [{"key": one["key"], "about": one}]}
        for one in found
    ]
    account = Account("videos", used=2, left_out={"too short": {"a": "3 frames"}}, classes={"a": 2})
    words = dict.fromkeys(("name", "sha256", "bucket", "source", "source_sha256", "vae_sha256", "precision"), "x")
    record: dict[str, Any] = (
        {name: 1 for name in JobRecord.__dataclass_fields__} | words | {"entries_by_class": {"a": 1}}
    )
    record |= {
        "failed": {"x": "y"},
        "of_source": ["x"],
        "too_short": ["y"],
        "account": account.to_json(),
        "shape": [4, 2, 4, 4],
    }
    record |= {"sums": {"count": 3, "total": [1.0] * 4, "square": [1.0] * 4}}
    stage = {"minutes": 1.5, "finished": True, "command": "x", "version": "0", "commit": "?"}
    rows = [{"file": f"{i}.mp4", "seed": i, "prompt": "x", "guidance_scale": 4.0} for i in range(3)]
    return [
        Valid("job.json", json.dumps(record).encode(), JSON),
        Valid("stage.json", json.dumps(stage).encode(), JSON),
        Valid(ENCODER, json.dumps({"vae_sha256": _VAE_SHA256, "vae_config": _VAE.config}).encode(), JSON),
        Valid("samples.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode(), JSON_LINES),
        Valid("report.json", json.dumps({"reconstruction": {"psnr": 30.0}, "minutes": {"vae": 1}}).encode(), JSON),
        Valid("packing.json", json.dumps(asdict(report)).encode(), JSON),
        *(Valid(JOURNAL, "".join(json.dumps(one) + "\n" for one in entries).encode(), JSON_LINES) for _ in range(2)),
    ]


def _read_packing(path: Path) -> PackingReport:
    report = read_report(path)
    describe(report, path.parent)
    return report


# As much of a VAE as is compared with the record of a folder's VAE.
_VAE_SHA256 = "f" * 64
_VAE: Any = SimpleNamespace(config={"latent_channels": 4, "norm": "frame"})

_READERS: dict[str, Callable[[Path], object]] = {
    "job.json": read_job_record,
    "stage.json": read_stage_record,
    ENCODER: lambda path: record_vae(path.parent, _VAE, _VAE_SHA256, path.parent),
    "samples.jsonl": lambda path: read_sample_rows(path.parent),
    "packing.json": _read_packing,
}


def _read_record(context: Path, name: str, data: bytes, folder: Path, rng: Random) -> None:
    """A record, as the next command reads it; of an interrupted packing, as the command that goes on does."""
    path = folder / "report" / name if name == "report.json" else folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    if name == "report.json":
        read_stage_reports(RunFolder(folder))
    elif name != JOURNAL:
        _READERS[name](path)
    else:
        shutil.copytree(context / "source", folder / "source")
        state = PackingState(folder / "out", None)
        state.folder.mkdir(parents=True)
        path.rename(state.journal)
        pack_folder(folder / "source", folder / "out", _SETTINGS)


FOLDER = Kind("folder", _make_folders, _read_folder, share=4)
RECORD = Kind("record", _make_records, _read_record, share=10)
