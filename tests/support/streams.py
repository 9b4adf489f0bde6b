"""Batches of streamed shards."""

from odvae.clips.dataset import ClipDataset
from odvae.clips.loader import endless_loader
from odvae.clips.samplers import BatchPlan, StepSampler
from odvae.clips.settings import DataSettings
from odvae.clips.video_set import VideoSet

DATA = DataSettings(frames=5, height=32, width=32, held_out=0.3, stream_seconds=1.0)


def stream(shards, urls, batches=0, **changes):
    """Batches of a stream; with 0 it must not give one."""
    data = DATA.model_copy(update={"stream": urls, "workers": 1, **changes})
    loader = endless_loader(ClipDataset(VideoSet(shards, DATA, "?").train, data, seed=0), StepSampler(BatchPlan(3)))
    try:
        return [next(loader) for _ in range(max(1, batches))]
    finally:
        loader.close()
