"""The page as people use it, in a headless Chromium: skipped, by name, without gradio, playwright or a browser."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from small_app import small_model, video_bytes
from small_networks import CLASSES

from ldm.app import page as app
from ldm.app.limits import Limits
from ldm.app.studies import find_studies
from odvae.running.errors import InputError

SECONDS = 120


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("gradio", reason="needs gradio (the extra ui)")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs a browser: chromium (apt-get install chromium)")
    with playwright.sync_playwright() as started:
        # Without a sandbox root may start it too; it opens nothing but this page.
        opened = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


def served(model, studies):
    page = app.build_page(model, studies)
    _, url, _ = app.launch(page, model, "127.0.0.1", None, prevent_thread_lock=True, quiet=True)
    return page, url


@pytest.fixture(scope="module")
def url(browser, tmp_path_factory):
    """A page of a model with text conditioning, files of at most 1 MB, and two runs to compare."""
    folder = tmp_path_factory.mktemp("page")
    for name, psnr in (("first", 28.5), ("second", 31.25)):
        report = folder / "runs" / name / "report" / "report.json"
        report.parent.mkdir(parents=True)
        report.write_text(json.dumps({"reconstruction": {"psnr": psnr}}))
        samples = folder / "runs" / name / "samples"
        samples.mkdir()
        rows = [
            {"file": f"{i}.mp4", "group": "held_out", "prompt": f"caption {i}", "class_label": None} for i in range(2)
        ]
        for row in rows:
            (samples / row["file"]).write_bytes(video_bytes(2, 16, 16))
        (samples / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = small_model(folder / "encoder", Limits(upload_mb=1))
    page, url = served(model, find_studies([folder / "runs"]))
    yield url
    page.close()


@pytest.fixture
def visit(browser, url):
    """Opens the page as another person; at the end there must have been no request to any other address."""
    contexts, elsewhere = [], []

    def open_page(address=url):
        context = browser.new_context()
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(1000 * SECONDS)
        page.on("request", lambda request: elsewhere.append(request.url) if not is_here(request.url) else None)
        page.goto(address)
        page.wait_for_selector("button[role=tab]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not elsewhere


def is_here(url):
    return url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:"))


def tab(page, name):
    page.get_by_role("tab", name=name).click()


def message(page):
    """The text of the error that is shown."""
    toast = page.locator(".toast-body.error").first
    toast.wait_for()
    return toast.inner_text()


def drop(page, where, name, data):
    page.set_input_files(f"{where} input[type=file]", {"name": name, "mimeType": "video/mp4", "buffer": data})


@pytest.mark.slow
def test_a_person_types_a_prompt_and_sees_a_video_that_plays(visit):
    page = visit()
    page.fill("#prompt textarea", "a blue square")
    page.fill("#seed input", "7")
    page.click("#generate")
    page.wait_for_selector("#generated video")
    assert "a blue square" in page.inner_text("#generated")
    assert "9 frames of 32x32, seed 7, 2 steps, guidance 2" in page.inner_text("#generated")
    page.wait_for_function("document.querySelector('#generated video').currentTime > 0")
    assert page.evaluate("document.querySelector('#generated video').videoWidth") == 32


@pytest.mark.slow
def test_an_error_is_a_message_and_the_page_goes_on(visit):
    page = visit()
    page.fill("#prompt textarea", "")
    page.click("#generate")
    assert "the prompt is empty" in message(page)
    page.fill("#prompt textarea", "<b>${1+1}</b>")  # too long for this text encoder, and no HTML or template
    page.click("#generate")
    page.get_by_text("tokens").first.wait_for()
    page.fill("#prompt textarea", "<b>")
    page.click("#generate")
    page.wait_for_selector("#generated video")
    assert "<b>" in page.inner_text("#generated figcaption")


@pytest.mark.slow
def test_a_dropped_video_is_compressed_and_other_files_are_refused(visit):
    page = visit()
    tab(page, "Compress")
    page.click("#compress")
    assert "Drop a video first" in message(page)
    drop(page, "#video", "clip.mp4", video_bytes())
    page.get_by_text("clip.mp4").first.wait_for()
    page.click("#compress")
    page.wait_for_selector("#compressed video")
    assert page.locator("#compressed video").count() == 3
    assert page.locator("#compressed img").count() == 4
    text = page.inner_text("#compressed")
    assert all(word in text for word in ("clip.mp4: the first 9 frames", "PSNR", "dB", "bits/pixel", "difference"))

    other = visit()
    tab(other, "Compress")
    drop(other, "#video", "notes.mp4", b"these are only words")
    other.get_by_text("notes.mp4").first.wait_for()
    other.click("#compress")
    assert "notes.mp4: cannot be decoded as a video" in message(other)

    third = visit()
    tab(third, "Compress")
    drop(third, "#video", "large.mp4", bytes(2_000_000))
    assert "size" in message(third)  # gradio's words: the file exceeds the maximum allowed size


@pytest.mark.slow
def test_two_people_at_once_each_get_their_own_video(visit):
    first, second = visit(), visit()
    for page, seed in ((first, "1"), (second, "2")):
        page.fill("#prompt textarea", "a red circle")
        page.fill("#seed input", seed)
    for page in (first, second):
        page.click("#generate")
    for page in (first, second):
        page.wait_for_selector("#generated video")
    assert "seed 1" in first.inner_text("#generated")
    assert "seed 2" in second.inner_text("#generated")
    sources = [page.get_attribute("#generated video", "src") for page in (first, second)]
    assert sources[0] != sources[1]


@pytest.mark.slow
def test_runs_are_compared_side_by_side(visit):
    page = visit()
    tab(page, "Compare")
    page.wait_for_selector("#videos video")
    assert page.locator("#videos video").count() == 2
    assert all(word in page.inner_text("#numbers") for word in ("first", "28.5", "second", "31.2"))
    assert "caption 0" in page.inner_text("#videos")
    page.click("#caption input")
    page.get_by_role("option", name="caption 1").click()
    page.locator("#videos .heading", has_text="caption 1").wait_for()


@pytest.mark.slow
def test_no_file_of_the_machine_can_be_fetched_or_named(visit, url, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret words")
    page = visit()
    for path in (secret, "/etc/hostname", app.__file__):
        answer = page.request.get(f"{url}gradio_api/file={path}")
        assert answer.status in (403, 404)
        assert "secret words" not in answer.text()
    config = page.request.get(f"{url}config").json()
    compress = next(one for one in config["dependencies"] if one["targets"][0][0] in ids_of(config, "compress"))
    upload = {"files": {"name": "clip.mp4", "mimeType": "video/mp4", "buffer": video_bytes()}}
    (uploaded,) = page.request.post(f"{url}gradio_api/upload", multipart=upload).json()
    for path, session, works in ((uploaded, "own", True), (secret, "other", False)):
        named = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        body = {"data": [named, 9, 32], "fn_index": compress["id"], "session_hash": session}
        page.request.post(f"{url}gradio_api/queue/join", data=body)
        events = page.request.get(f"{url}gradio_api/queue/data?session_hash={session}").text()
        assert ('"success": true' in events or '"success":true' in events) == works
        assert ("data:video/mp4" in events) == works
        assert "secret words" not in events


def ids_of(config, name):
    return [part["id"] for part in config["components"] if part["props"].get("elem_id") == name]


@pytest.mark.slow
def test_a_model_of_classes_with_a_first_frame_asks_for_these(visit):
    page_of, address = served(small_model(class_names=CLASSES, first_frame=True), {})
    try:
        page = visit(address)
        assert page.locator("#prompt textarea").count() == 0
        page.click("#class input")
        page.get_by_role("option", name="jump").click()
        picture = io.BytesIO()
        Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(picture, "png")
        drop(page, "#first-frame", "first.png", picture.getvalue())
        page.get_by_text("first.png").first.wait_for()
        page.click("#generate")
        page.wait_for_selector("#generated video")
        assert "jump" in page.inner_text("#generated")
        tab(page, "Compare")
        page.get_by_text("No study was given").wait_for()
    finally:
        page_of.close()


def test_without_gradio_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr(app, "gradio", None)
    with pytest.raises(InputError, match=r"the page needs gradio: pip install -c constraints.txt -e '\.\[ui\]'"):
        app.build_page(None, {})
