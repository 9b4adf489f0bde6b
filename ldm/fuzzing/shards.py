"""Shards of videos: tars, their samples' members, and the facts that are remembered of them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random

from ldm.encoding.encode_shards import captions_of
from ldm.encoding.shard_files import class_name
from ldm.fuzzing.containers import TAR
from ldm.fuzzing.kind import Kind, NeighborLost, Valid
from ldm.fuzzing.media import healthy_video, image_bytes, random_clips, video_bytes
from ldm.fuzzing.mutations import BYTES, JSON, TEXT
from ldm.networks.settings import ConditioningSettings
from ldm.sampling.sample_requests import evaluation_requests
from ldm.sampling.settings import SampleSettings
from odvae.clips.clip import clip_rate, frame_size, load_clip
from odvae.clips.dataset import ClipDataset
from odvae.clips.remote_clips import why_not
from odvae.clips.settings import DataSettings
from odvae.clips.video_set import VideoSet
from odvae.running.errors import InputError
from odvae.shards.facts import ExamineLimits
from odvae.shards.facts_journal import INDEX_FOLDER, find_facts
from odvae.shards.remote_shards import read_remote_shard
from odvae.shards.samples import Sample
from odvae.shards.tars import index_shard
from odvae.video.video_io import examine

Samples = Mapping[str, Mapping[str, bytes]]

# One is held out and the other is not, where half of the videos are.
_NEIGHBORS = ("neighbor0", "neighbor2")
_NEIGHBORS_CAPTION = "a healthy caption"
_TIME = 1_700_000_000
_JOURNAL = "neighbor.tar.facts.jsonl"


def tar_bytes(samples: Samples, tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of samples: key -> extension -> bytes."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tar_format) as tar:
        for key, members in samples.items():
            for extension, data in members.items():
                header = tarfile.TarInfo(f"{key}.{extension}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    return written.getvalue()


def _neighbors() -> Samples:
    return {key: {"mp4": healthy_video(), "txt": _NEIGHBORS_CAPTION.encode()} for key in _NEIGHBORS}


def _own_sample(video: bytes) -> tuple[str, dict[str, bytes]]:
    """A sample as make_shards packs it."""
    digest = hashlib.sha256(video).hexdigest()
    about = {"key": digest[:16], "source": "a.mp4", "caption": "one", "captions": ["one", "two"], "label": "3"}
    about |= {"sha256": digest, "container": "mp4", **asdict(examine(video, "video"))}
    return digest[:16], {"mp4": video, "txt": b"one", "json": json.dumps(about).encode()}


def _make_shards(context: Path) -> Sequence[Valid]:
    key, own = _own_sample(healthy_video())
    _write_neighbor(context / "neighbor.tar")
    images = {"a": {"png": image_bytes("png", "RGB"), "txt": b"a"}, "b/c": {"jpg": image_bytes("jpg", "RGB")}}
    long = {120 * "n" + "é": {"mp4": healthy_video(), "json": b"{}"}}
    samples = {key: own, "foreign": {"mp4": healthy_video(), "json": b'{"caption": "x", "fps": 25}'}}
    formats = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)
    return [
        *(Valid("00000.tar", tar_bytes(samples, one), TAR) for one in formats),
        Valid("00000.tar", tar_bytes(images), TAR),
        *(Valid("00000.tar", tar_bytes(long, one), TAR) for one in formats[:2]),
    ]


def _write_neighbor(path: Path) -> None:
    path.write_bytes(tar_bytes(_neighbors()))
    os.utime(path, (_TIME, _TIME))


def _read_shard(context: Path, name: str, data: bytes, folder: Path, rng: Random) -> None:
    """As a folder of shards, of which another is healthy, and as a stream."""
    (folder / name).write_bytes(data)
    if rng.random() < 0.4:
        settings = DataSettings(workers=0)
        for streamed in read_remote_shard(str(folder / name), 5):
            why_not(streamed, settings)
        return
    os.link(context / "neighbor.tar", folder / "neighbor.tar")
    if rng.random() < 0.5:
        for sample in index_shard(folder / name):
            _use(sample, random_clips(rng), rng)
        return
    videos = VideoSet(folder, random_clips(rng), "?")
    _check_neighbors(videos)
    _use_all(videos, rng)


def _check_neighbors(videos: VideoSet) -> None:
    there = {sample.key: sample for sample in (*videos.train, *videos.held_out)}
    for key in _NEIGHBORS:
        if key not in there:
            raise NeighborLost(f"{key} is not among {list(there)}: {videos.left_out}")
        load_clip(there[key], videos.data)


def _use_all(videos: VideoSet, rng: Random) -> None:
    """What training, encoding, sampling and evaluation ask of the videos other than the neighbors."""
    refused = None
    evaluation_requests(SampleSettings(count=2), ConditioningSettings(), [], videos, seed=0, demo=None)
    dataset = ClipDataset(videos.train, videos.data, seed=0)
    for sample in videos.samples:
        if sample.key in _NEIGHBORS:
            continue
        try:
            if sample in videos.train:
                dataset.clip_of(sample, rng.randrange(100))
            _use(sample, videos.data, rng)
        except InputError as error:
            refused = error
    if refused:
        raise refused


def _use(sample: Sample, data: DataSettings, rng: Random) -> None:
    captions_of(sample)
    class_name(sample)
    clip_rate(sample, data)
    frame_size(sample)
    load_clip(sample, data, rng.randrange(4))
    sample.read_all()


def _make_members(context: Path) -> Sequence[Valid]:
    key, own = _own_sample(healthy_video())
    _write_neighbor(context / "neighbor.tar")
    foreign = {"caption": "x", "captions": ["y"], "label": 2, "fps": 25.0, "frames": 6, "sha256": "0", "duration": 1}
    timed_key, timed = _own_sample(video_bytes("mpeg", "mpeg1video", "yuv420p", {}))
    with open(context / "keys.json", "w") as file:
        json.dump({"own": key, "timed": timed_key}, file)
    (context / "own.mp4").write_bytes(own["mp4"])
    (context / "timed.mp4").write_bytes(timed["mp4"])
    limits = ExamineLimits(0, 60, 4)
    for _ in find_facts(((sample, None) for sample in index_shard(context / "neighbor.tar")), limits):
        pass
    journal = context / INDEX_FOLDER / _JOURNAL
    return [
        *(Valid("own.json", own["json"], JSON) for _ in range(3)),
        *(Valid("timed.json", timed["json"], JSON) for _ in range(2)),
        Valid("foreign.json", json.dumps(foreign).encode(), JSON),
        Valid("own.txt", "one, über\n".encode(), TEXT),
        Valid("own.mp4", own["mp4"], BYTES),
        *(Valid(_JOURNAL, journal.read_bytes(), TEXT) for _ in range(2)),
    ]


def _read_member(context: Path, name: str, data: bytes, folder: Path, rng: Random) -> None:
    """One member of one sample is mutated, or the remembered facts; everything else of the shard must be usable."""
    if name == _JOURNAL:
        os.link(context / "neighbor.tar", folder / "neighbor.tar")
        (folder / INDEX_FOLDER).mkdir()
        (folder / INDEX_FOLDER / _JOURNAL).write_bytes(data)
    else:
        stem, _, extension = name.rpartition(".")
        video = (context / ("timed.mp4" if stem == "timed" else "own.mp4")).read_bytes()
        key = json.loads((context / "keys.json").read_bytes()).get(stem, "foreign")
        sample = {"mp4": video, "json": b'{"label": "3"}', "txt": b"one", extension: data}
        (folder / "00000.tar").write_bytes(tar_bytes({key: sample, **_neighbors_of(context)}))
    try:
        videos = VideoSet(folder, random_clips(rng), "?")
    except InputError as error:
        raise NeighborLost(f"the whole folder is refused: {error}") from error
    _check_neighbors(videos)
    _use_all(videos, rng)


def _neighbors_of(context: Path) -> Samples:
    return {one.key: one.read_all() for one in index_shard(context / "neighbor.tar")}


SHARD = Kind("shard", _make_shards, _read_shard, share=20)
MEMBER = Kind("member", _make_members, _read_member, share=20)
