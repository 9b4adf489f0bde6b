"""Which steps of several configs are the same step: then rehearsing one of them is enough."""

from __future__ import annotations

import json
from typing import Any

from ldm.experiment import Experiment
from ldm.planning.earlier_runs import with_earlier_runs
from ldm.planning.rehearsal import Stage

# Settings that say how often something happens, where, and on which videos, but change nothing in a step.
_OUTSIDE_A_STEP = {
    *("steps", "learning_rate", "warmup_steps", "lr_schedule", "lr_decay_start", "weight_decay", "grad_clip"),
    *("ema_decay", "peak_tflops"),
    *("log_every", "validate_every", "checkpoint_every", "checkpoints_total_limit", "async_checkpoints"),
    *("sample_every", "image_every"),
    *("validation_clips", "statistics_clips", "start_step", "workers", "held_out", "fps", "stride", "count", "compile"),
    *("num_inference_steps", "guidance_scale", "clips", "clips_per_video", "init", "init_image_vae", "init_from"),
    *("tile_frames", "num_visualized", "unseen_count", "seed", "run", "lossless"),
}


def step_key(experiment: Experiment, stage: Stage) -> str:
    """The same text for two steps only if they are the same: same code, settings and sizes."""
    values = json.loads(with_earlier_runs(experiment).model_dump_json())
    values["vae"]["pretrained"] = values["vae"]["pretrained"] is not None
    data = {key: values["data"][key] for key in ("frames", "height", "width")}
    name = stage.name.split()[0].rstrip(",")
    vae, model = values["vae"], values["vae"]["model"]
    text, encode = values["text"], values["encode"]
    used = {
        "train_vae": [vae],
        "encode": [model, vae["video_phase"] is None, vae["pretrained"], text, encode],
        "train_ldm": [model, vae["video_phase"] is None, text, encode["buckets"], values["ldm"]],
        "sample": [model, text, encode["buckets"], values["ldm"], values["sample"]],
        "decode": [model, vae["video_phase"] is None, encode["buckets"], values["sample"]["precision"]],
        "evaluate_vae": [model, vae["video_phase"] is None, values["eval_vae"]],
    }[name]
    return json.dumps([stage.name, data, _without(used)], sort_keys=True)


def _without(values: Any) -> Any:
    """The values without the settings that change nothing in a step."""
    if isinstance(values, dict):
        return {key: _without(value) for key, value in values.items() if key not in _OUTSIDE_A_STEP}
    return [_without(value) for value in values] if isinstance(values, list) else values
