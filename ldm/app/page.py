"""The page: tabs to generate, to compress and to compare, built with gradio (extra `ui`).

Requests wait in one queue, and the model works on one at a time. Videos are part of the page that is sent; a browser
can neither name a file of this machine nor fetch one, except those that it uploaded itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.app.compress import SMALLEST_SIDE, compress
from ldm.app.generate import LARGEST_SEED, Request, generate
from ldm.app.model import Model
from ldm.app.studies import MOST_RUNS, Study, captions, table_html, videos_html
from odvae.running.commands import install_extra
from odvae.running.errors import InputError, is_out_of_memory

try:
    import gradio
except ImportError:
    gradio = None

MISSING = f"the page needs gradio: {install_extra('ui')}"

CSS = Path(__file__).with_name("page.css")

# Uploaded files are deleted after an hour, looked for every ten minutes.
_DELETE_UPLOADS = (600, 3600)


def build_page(model: Model, studies: Mapping[str, Study]) -> Any:
    """The page as gradio's Blocks. Raises InputError where gradio is not installed."""
    if gradio is None:
        raise InputError(MISSING)
    with gradio.Blocks(title=f"{model.name} - odvae", analytics_enabled=False, delete_cache=_DELETE_UPLOADS) as page:
        gradio.Markdown(f"# {model.name}\n{describe(model)}")
        with gradio.Tab("Generate"):
            _generate_tab(model)
        with gradio.Tab("Compress"):
            _compress_tab(model)
        with gradio.Tab("Compare"):
            _compare_tab(page, studies)
    return page


def launch(page: Any, model: Model, host: str, port: int | None, **options: Any) -> Any:
    """Serve the page; `options` are those of gradio's `launch`. Returns gradio's application.

    With port None the first free one from 7860 on is taken. Raises InputError where the port is in use.
    """
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    page.queue(max_size=model.limits.waiting, default_concurrency_limit=1, api_open=False)
    try:
        return page.launch(
            server_name=host,
            server_port=port,
            share=False,
            allowed_paths=[],
            max_file_size=f"{model.limits.upload_mb}mb",
            footer_links=[],
            ssr_mode=False,  # no Node.js beside this process
            theme=theme,
            css_paths=CSS,
            **options,
        )
    except OSError as error:
        raise InputError(
            f"cannot serve at {host}:{port or '7860 to 7959'}: {error}; choose another with --port"
        ) from None


def describe(model: Model) -> str:
    """What the model makes, and from what, in a sentence."""
    frames, height, width = model.video_size
    vae = model.pipeline.vae
    conditions = [*(["a text"] if model.takes_text else []), *(["a class"] if model.classes else [])]
    conditions += ["a first frame, if you give one"] if model.takes_first_frame else []
    rate = f"{vae.temporal_compression_ratio}x{vae.spatial_compression_ratio}x{vae.spatial_compression_ratio}"
    return (
        f"Generates videos of {frames} frames, {width}x{height}, from {' and '.join(conditions) or 'noise alone'}; its "
        f"VAE compresses {rate} into {vae.config.latent_channels} channels."
    )


def answer(work: Callable[..., Any], *arguments: Any) -> Any:
    """`work` of the arguments; what a visitor can change, and a lack of memory, become messages on the page.

    Other errors keep their traceback, which is printed here; the page says only that there was one.
    """
    try:
        return work(*arguments)
    except InputError as error:
        raise gradio.Error(str(error), title="That did not work", duration=None, print_exception=False) from None
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error) and "out of memory" not in str(error):
            raise
        words = "There is not enough memory for this: choose fewer or smaller frames."
        raise gradio.Error(words, title="That did not work", duration=None, print_exception=False) from None


def _use_model(event: Any, work: Callable[..., Any], inputs: Sequence[Any], outputs: Any) -> None:
    """Call `work` on an event; of all that use the model, one at a time."""
    event(work, inputs, outputs, concurrency_id="model", concurrency_limit=1, api_visibility="private")


def _show(event: Any, work: Callable[..., Any], inputs: Sequence[Any], outputs: Any) -> None:
    """Call `work`, which reads small files, on an event."""
    event(work, inputs, outputs, concurrency_limit=4, show_progress="hidden", api_visibility="private")


def _generate_tab(model: Model) -> None:
    frames, _, _ = model.video_size
    ratio, settings = model.pipeline.vae.temporal_compression_ratio, model.settings
    guided = model.takes_text or bool(model.classes)
    with gradio.Row():
        with gradio.Column():
            prompt = gradio.Textbox(
                label="Prompt", lines=2, max_length=model.limits.prompt_characters, visible=model.takes_text,
                value=model.examples[0] if model.examples else "", elem_id="prompt",
            )  # fmt: skip
            negative = gradio.Textbox(
                label="Negative prompt (optional)", max_length=model.limits.prompt_characters, visible=model.takes_text
            )
            if model.takes_text and model.examples:
                gradio.Examples([[example] for example in model.examples], [prompt], label="Prompts to try")
            chosen = gradio.Dropdown(model.classes, label="Class", visible=bool(model.classes), elem_id="class")
            image = gradio.File(
                label="First frame (optional): drop an image",
                visible=model.takes_first_frame,
                height=120,
                elem_id="first-frame",
            )
            seed = gradio.Number(0, label="Seed", precision=0, minimum=0, maximum=LARGEST_SEED, elem_id="seed")
            most = model.limits
            start = min(settings.num_inference_steps, most.steps), min(settings.guidance_scale, most.guidance_scale)
            steps = gradio.Slider(1, most.steps, start[0], step=1, label="Steps")
            scale = gradio.Slider(1, most.guidance_scale, start[1], step=0.1, label="Guidance", visible=guided)
            length = gradio.Slider(1, model.longest, frames, step=ratio, label=f"Frames (in training: {frames})")
            button = gradio.Button("Generate", variant="primary", elem_id="generate")
        result = gradio.HTML(elem_id="generated", min_height=320)

    def run(prompt, negative, chosen, image, seed, steps, scale, length, progress=gradio.Progress()):  # noqa: B008
        data = _uploaded(image)
        request = Request(prompt or "", negative or "", chosen, data, seed, steps, scale, length)
        return answer(generate, model, request, lambda share, what: progress(share, desc=what))

    _use_model(button.click, run, [prompt, negative, chosen, image, seed, steps, scale, length], result)


def _compress_tab(model: Model) -> None:
    frames, height, width = model.video_size
    ratio, factor = model.pipeline.vae.temporal_compression_ratio, model.pipeline.vae.spatial_compression_ratio
    smallest = -(-SMALLEST_SIDE // factor) * factor
    with gradio.Row():
        video = gradio.File(
            label=f"Drop a video (at most {model.limits.upload_mb} MB)", height=150, elem_id="video", scale=2
        )
        with gradio.Column(scale=3):
            length = gradio.Slider(1, max(frames, 1 + 16 * ratio), frames, step=ratio, label="Frames")
            side = gradio.Slider(
                smallest, max(512, min(height, width)), min(height, width), step=factor, label="Shorter side, pixels"
            )
            button = gradio.Button("Compress", variant="primary", elem_id="compress")
    result = gradio.HTML(elem_id="compressed", min_height=200)

    def run(file, length, side):
        if file is None:
            raise gradio.Error("Drop a video first.", title="That did not work", print_exception=False)
        return answer(lambda: compress(model, _uploaded(file) or b"", Path(file).name, length, side))

    _use_model(button.click, run, [video, length, side], result)


def _uploaded(path: str | None) -> bytes | None:
    """The content of an uploaded file. Decoders get bytes, never a path: a playlist could name other files."""
    return None if path is None else Path(path).read_bytes()


def _compare_tab(page: Any, studies: Mapping[str, Study]) -> None:
    if not studies:
        gradio.Markdown("No study was given: start the page with `--study FOLDER`.")
        return
    first = next(iter(studies))
    table_names = list(studies[first].tables)
    with gradio.Row():
        study = gradio.Dropdown(list(studies), value=first, label="Study", elem_id="study")
        table = gradio.Dropdown(table_names, value=table_names[0], label="Table", elem_id="table")
    numbers = gradio.HTML(elem_id="numbers")
    runs = gradio.Dropdown([], multiselect=True, max_choices=MOST_RUNS, label="Runs side by side", elem_id="runs")
    caption = gradio.Dropdown([], label="Caption", elem_id="caption")
    videos = gradio.HTML(elem_id="videos")
    chosen = functools.partial(_runs_of, studies)

    def show_study(name):
        names = answer(lambda: list(_study(studies, name).tables))
        return gradio.Dropdown(names, value=names[0]), *show_table(name, names[0])

    def show_table(name, table):
        found = answer(chosen, name, table)
        names, prompts = [run.name for run in found], answer(captions, found)
        return (
            answer(table_html, found),
            gradio.Dropdown(names, value=names[:3]),
            gradio.Dropdown(prompts, value=prompts[0] if prompts else None),
        )

    def show_videos(name, table, names, caption):
        return answer(lambda: videos_html(chosen(name, table), names, caption))

    _show(study.input, show_study, [study], [table, numbers, runs, caption])
    for event in (page.load, table.input):
        _show(event, show_table, [study, table], [numbers, runs, caption])
    for event in (runs.change, caption.change):
        _show(event, show_videos, [study, table, runs, caption], videos)


def _study(studies: Mapping[str, Study], name: str) -> Study:
    if name not in studies:
        raise InputError(f"there is no study {name!r:.100}; choose one of the list")
    return studies[name]


def _runs_of(studies: Mapping[str, Study], name: str, table: str) -> Any:
    return _study(studies, name).runs(table)
