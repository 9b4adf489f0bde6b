"""A small model behind the page, and videos that a person may drop on it."""

from pathlib import Path

import numpy as np
from small_pipeline import make_components, make_pipeline, small_text_encoder

from ldm.app.limits import Limits
from ldm.app.model import Model
from ldm.sampling.settings import SampleSettings
from odvae.video.video_io import encode_video


def small_model(folder: Path | None = None, limits: Limits | None = None, **settings) -> Model:
    """With text conditioning where a folder for its text encoder is given. Its videos have 9 frames of 32x32."""
    text = small_text_encoder(folder) if folder else None
    pipeline = make_pipeline(make_components(text, **settings))
    sampling = SampleSettings(num_inference_steps=2, guidance_scale=2.0)
    return Model(pipeline, "small", sampling, ["a red circle moves left"], limits or Limits())


def video_bytes(frames=12, height=40, width=64) -> bytes:
    """An mp4 of a gradient that moves."""
    x, y = np.arange(width)[None], np.arange(height)[:, None]
    pixels = [np.stack([(4 * x + 8 * i + 0 * y) % 256, 5 * y + 0 * x, 0 * x + 0 * y + 90], -1) for i in range(frames)]
    return encode_video((frame.astype(np.uint8) for frame in pixels), height, width, 8)
