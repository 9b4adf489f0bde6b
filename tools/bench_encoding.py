"""Encoding, without a GPU: the rate of decoding by the number of decoded clips in memory, and the time of a resume.

    python tools/bench_encoding.py slots  [--workers 8 --seconds 0.2]
    python tools/bench_encoding.py resume [--shards 1000 --videos 100]

slots: the rate at which clips come from `--workers` processes that take `--seconds` for each, asleep, as decoders on
cores of their own would; once all alike, once exponentially distributed. Batch 1, one device.
resume: the seconds until an encoding knows what is left to do, in a synthetic folder whose shards are all encoded.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from pathlib import Path

import torch

from ldm.arguments import CommandParser
from ldm.encoding.encode_shards import decode_slots
from ldm.encoding.job_records import JobRecord
from ldm.encoding.plan import record_path
from ldm.encoding.resume import EncodedFolder, Sources
from ldm.encoding.settings import EncodeSettings
from odvae.clips.pool import ClipPool
from odvae.clips.settings import DataSettings
from odvae.clips.video_set import VideoSet
from odvae.latent_statistics import ChannelSums
from odvae.running.account import Account
from odvae.running.distributed import join_ranks
from odvae.running.errors import readable_errors
from odvae.running.files import write_json
from odvae.running.seeds import numpy_generator
from odvae.shards.tars import shard_writer

SHAPE = (5, 32, 32, 3)


def main() -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("what", choices=("slots", "resume"))
    parser.add_argument("--workers", type=int, default=8, help="decoding processes (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.2, help="seconds a clip (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=320, help="clips to decode (default: %(default)s)")
    parser.add_argument("--shards", type=int, default=1000, help="encoded video shards (default: %(default)s)")
    parser.add_argument("--videos", type=int, default=100, help="videos a shard (default: %(default)s)")
    options = parser.parse()
    join_ranks()
    if options.what == "slots":
        print(json.dumps(bench_slots(options.workers, options.seconds, options.clips), indent=1))
        return
    with tempfile.TemporaryDirectory() as work:
        print(json.dumps(bench_resume(Path(work), options.shards, options.videos), indent=1))


def bench_slots(workers: int, seconds: float, clips: int) -> dict:
    """Clips/s by the number of slots: in 0.2 with batch 1, two a worker, ours, as many as clips."""
    ours = decode_slots(workers, batch_size=1, threads=1)
    found = {}
    for name, slots in {"before": 2, "two_a_worker": 2 * workers, "ours": ours, "all": clips}.items():
        for kind in ("alike", "varied"):
            found[f"{name}_{slots}_{kind}"] = round(decoding_rate(workers, seconds, clips, slots, kind), 1)
    return found


def decoding_rate(workers: int, seconds: float, clips: int, slots: int, kind: str) -> float:
    """Clips/s in order from a pool of sleeping workers."""
    varied = (seconds * numpy_generator(0, "bench").exponential(size=clips)).tolist()
    durations = varied if kind == "varied" else [seconds] * clips

    def load(clip: int) -> torch.Tensor:
        time.sleep(durations[clip])
        return torch.zeros(SHAPE, dtype=torch.uint8)

    with ClipPool(load, SHAPE, slots, DataSettings(workers=workers), str) as pool:
        begin = time.perf_counter()
        for _ in pool.in_order((clip, SHAPE) for clip in range(clips)):
            pass
        return clips / (time.perf_counter() - begin)


def bench_resume(work: Path, shards: int, videos: int) -> dict:
    """Seconds of the steps of a resume when nothing is left to do, and when the newest shard is not encoded yet."""
    write_synthetic(work, shards, videos)
    data = DataSettings(frames=5, height=32, width=32, workers=1)
    seconds = {}
    for name in ("open_videos_and_index_them", "open_videos_again"):
        begin = time.perf_counter()
        opened = VideoSet(work / "shards", data, "")
        seconds[name] = time.perf_counter() - begin
    for name in ("nothing_left", "one_shard_left"):
        begin = time.perf_counter()
        sources = Sources(opened.samples, EncodeSettings(), data, seed=0)
        encoded = EncodedFolder(work / "latents")
        encoded.check_same_vae("0" * 64, work)
        encoded.check_same_videos(sources, sources.named)
        waiting = encoded.waiting(sources, sources.named)
        jobs = sources.jobs(waiting)
        seconds[name] = time.perf_counter() - begin
        assert len(jobs) == (name != "nothing_left"), len(jobs)
        record_path(work / "latents", f"{shards - 1:05d}.tar").unlink(missing_ok=True)
    return {"shards": shards, "videos": shards * videos} | {key: round(value, 3) for key, value in seconds.items()}


def write_synthetic(work: Path, shards: int, videos: int) -> None:
    """Video shards whose videos have metadata and no frames, and the records and files of their latents."""
    for name in ("shards", "latents/shards"):
        (work / name).mkdir(parents=True)
    for i in range(shards):
        source = work / f"shards/{i:05d}.tar"
        with shard_writer(source) as shard:
            for j in range(videos):
                shard.write(synthetic_video(f"{i:06d}{j:06d}"))
        (work / f"latents/{source.name}").touch()
        write_json(record_path(work / "latents", source.name), dataclasses.asdict(synthetic_record(source, videos)))


def synthetic_video(key: str) -> dict:
    facts = {"frames": 9, "height": 32, "width": 32, "fps": 8.0, "seconds": 1.125, "variable_rate": False}
    about = facts | {"keyframes": [], "sha256": key + "0" * 52}
    return {"__key__": key, "mp4": b"none", "txt": b"a caption", "json": json.dumps(about).encode()}


def synthetic_record(source: Path, videos: int) -> JobRecord:
    sums = ChannelSums(1, torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64))
    return JobRecord(
        name=source.name,
        sha256="0" * 64,
        bytes=0,
        entries=videos,
        train_entries=videos,
        bucket="5x32x32",
        source=str(source),
        source_sha256="0" * 64,
        source_bytes=source.stat().st_size,
        source_mtime_ns=source.stat().st_mtime_ns,
        precision="fp32",
        source_entries=videos,
        of_source=[source.name],
        too_short=[],
        videos=videos,
        unmirrored=videos,
        captioned_entries=videos,
        captioned_train_entries=videos,
        captions=videos,
        entries_by_class={},
        failed={},
        account=Account("videos", used=videos, without_caption=0).to_json(),
        shape=[4, 2, 4, 4],
        vae_sha256="0" * 64,
        sums=sums.to_json(),
    )


if __name__ == "__main__":
    with readable_errors():
        main()
