"""Opens the experiment's videos; the demo's are first rendered and packed where they do not exist yet."""

from __future__ import annotations

import shlex
from pathlib import Path

from accelerate import PartialState

from ldm.demo.settings import DemoVideoSettings
from ldm.demo.videos import write_demo_videos
from ldm.experiment import Experiment
from odvae.clips.settings import DataSettings
from odvae.clips.video_set import VideoSet
from odvae.packing.packing import pack_folder
from odvae.packing.report import describe
from odvae.running.commands import command_line
from odvae.running.distributed import main_process_first
from odvae.running.errors import InputError
from odvae.shards.unfinished import describe_unfinished, is_unfinished
from odvae.storage.paths import is_remote


def open_videos(experiment: Experiment) -> VideoSet:
    """The experiment's videos. Raises InputError for missing shards, with the command that packs them."""
    shards, state = experiment.shards, PartialState()
    command = f"{command_line('make_shards')} FOLDER_OF_VIDEOS {shlex.quote(str(shards))}"
    # The main process makes the index where it is missing; in folders that each machine has its own copy of, one there.
    with main_process_first(), main_process_first(on_each_machine=True):
        if experiment.demo_videos is not None and state.is_main_process and not is_remote(shards):
            was_stopped = is_unfinished(shards) and (shards.parent / "videos").is_dir()
            if was_stopped or not shards.exists():
                _render_demo(experiment.demo_videos, experiment.data, shards)
        videos = VideoSet(shards, experiment.data, command)
    if state.is_main_process:
        print(f"{shards}: {videos.describe()}", flush=True)
        if unfinished := describe_unfinished(shards):
            print(f"note: {unfinished}", flush=True)
    return videos


def _render_demo(demo: DemoVideoSettings, data: DataSettings, shards: Path) -> None:
    if data.height != data.width:
        raise InputError(f"demo videos are square; data.height={data.height}, data.width={data.width}")
    folder = shards.parent / "videos"
    write_demo_videos(folder, demo.count, data.span, data.height, demo.fps, demo.seed, demo.diagonal, demo.content)
    print(describe(pack_folder(folder, shards), shards), flush=True)
