"""Streams that are dead, empty, mistyped, slow or half dead: an end with all reasons, or clips."""

import contextlib
import os
import signal
import sys
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from ports import free_port
from scripts import start_on_ranks
from small import tar_of
from streams import DATA, stream

from odvae.clips import stream_reader
from odvae.clips.clip import load_clip
from odvae.clips.video_set import VideoSet
from odvae.running.errors import InputError
from odvae.running.stop_signals import STOPPING


def test_streamed_shards_give_training_videos_of_their_own_and_say_that_order_is_approximate(shards, capsys):
    local = VideoSet(shards, DATA, "?")
    batches = stream(shards, f"pipe:cat {shards}/{{00000..00002}}.tar", 6)
    errors = capsys.readouterr().err
    assert "order and resume are approximate" in errors
    assert "held out from training" in errors
    assert [batch["number"].tolist() for batch in batches[:2]] == [[0, 1, 2], [3, 4, 5]]

    def known(samples):
        return {load_clip(sample, DATA, start).numpy().tobytes() for sample in samples for start in range(5)}

    streamed = {clip.numpy().tobytes() for batch in batches for clip in batch["video"]}
    assert streamed <= known(local.train)
    assert len(streamed) > 6


class Server:
    """An HTTP server of a folder; it says 404 to what is not there, nothing at all to `hang*`, and to `slow*` sends
    a kilobyte every fifth of a second."""

    def __init__(self, folder):
        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self):
                if self.path.startswith("/hang"):
                    threading.Event().wait(60)
                if not self.path.startswith("/slow"):
                    return super().do_GET()
                self.send_response(200)
                self.end_headers()
                data = next(folder.glob("*.tar")).read_bytes()
                with contextlib.suppress(OSError):
                    for start in range(0, len(data), 1024):
                        self.wfile.write(data[start : start + 1024])
                        time.sleep(0.2)
                return None

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: Handler(*a, directory=str(folder)))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        return self.url

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.parametrize(
    ("urls", "reason"),
    [
        ("{folder}/mistyped-{{0..2}}.tar", r"mistyped-0\.tar: does not exist"),
        ("http://127.0.0.1:{port}/{{0..1}}.tar", r"0\.tar: its command ended with status 7 \(curl: \(7\)"),
        ("pipe:exit 3", r"pipe:exit 3: its command ended with status 3"),
        ("pipe:echo no such bucket >&2; exit 1", r"ended with status 1 \(no such bucket\)"),
        ("pipe:true", r"is empty \(0 bytes\)"),
        ("{folder}/empty.tar", r"empty\.tar: is empty \(0 bytes\)"),
        ("{folder}/nothing.tar", r"nothing\.tar: holds no sample"),
        ("{folder}/text.tar", r"text\.tar: is not a complete tar"),
        ("{folder}", r"is a folder; name its shards"),
        ("pipe:sleep 60", r"gave nothing for 1 s \(data\.stream_seconds\)"),
        ("pipe:sleep 6{{0..9}}", r"no new video for training arrived for 3 s, only 0 kB of shards"),
        ("{folder}/no-*.tar", r"no-\*\.tar: no file matches"),
        ("nosuch://bucket/0.tar", r"nosuch://bucket/0\.tar: cannot be opened"),
        ("{folder}/pickled.tar", r"is pickled and could run code"),
    ],
)
def test_a_dead_stream_ends_with_each_shards_reason_said_once(shards, tmp_path, capsys, urls, reason):
    tar_of(tmp_path / "nothing.tar", [])
    tar_of(tmp_path / "pickled.tar", [("a.pt", b"x"), ("a.mp4", b"y")])
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "text.tar").write_text("an error page, say " * 100)
    begin = time.monotonic()
    with pytest.raises(InputError, match=f"data.stream=(?s:.*){reason}"):
        stream(shards, urls.format(folder=tmp_path, port=free_port()))
    assert time.monotonic() - begin < 20
    assert "streamed shard failed" not in capsys.readouterr().err  # else each would be named twice


def test_a_shard_that_hangs_holds_nobody_up_and_one_that_is_missing_is_said_once(shards, capsys):
    with Server(shards) as url:
        batches = stream(shards, f"{url}/hang.tar::{url}/{{00000..00002}}.tar::{url}/gone.tar", 12)
    assert len(batches) == 12
    errors = capsys.readouterr().err
    assert errors.count("gone.tar: ") == 1
    assert "404" in errors


def test_a_source_that_is_too_slow_is_named_with_what_came(shards, tmp_path):
    tar_of(tmp_path / "large.tar", [("a.mp4", bytes(1_000_000))])
    begin = time.monotonic()
    with Server(tmp_path) as url, pytest.raises(InputError, match=r"arrived for 3 s, only \d\d kB of shards \(3 times"):
        stream(shards, f"{url}/slow{{0..1}}.tar")
    assert time.monotonic() - begin < 20


def test_many_dead_shards_end_the_run_as_soon_as_few_and_are_counted(shards, capsys):
    """Each fails a little later than the one before, so that a whole pass would take minutes."""
    begin = time.monotonic()
    with pytest.raises(InputError, match=r"arrived for 3 s(?s:.*)status 1\n  and \d+ more shards$"):
        stream(shards, "pipe:sleep 0.1; exit 1 # {000..999}")
    assert time.monotonic() - begin < 20
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_of_many_dead_shards_beside_a_healthy_one_the_first_are_named_and_the_others_counted(shards, capsys):
    assert len(stream(shards, f"{shards}/{{00000,gone-{{00..29}}}}.tar", 8)) == 8
    errors = capsys.readouterr().err
    assert errors.count("streamed shard failed") == 10
    assert errors.count("more streamed shards failed, which are only counted") == 1
    assert "30 of 31 shards failed" in errors


def test_a_shard_may_be_named_twice_and_by_a_pattern(shards, capfd):
    assert len(stream(shards, f"{shards}/00000.tar::{shards}/0000[0-1].tar", 12)) == 12
    errors = capfd.readouterr().err
    assert "(3 shards)" in errors
    assert "Traceback" not in errors


def processes_with(words):
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                with open(f"/proc/{entry}/cmdline") as file:
                    found += [int(entry)] if words in file.read().replace("\0", " ") else []
            except OSError:
                continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_no_program_that_was_read_from_outlives_the_stream(shards):
    words = "sleep 61.5"
    stream(shards, f"pipe:{words}::{shards}/00000.tar", 2, stream_seconds=30.0)
    time.sleep(0.5)
    assert processes_with(words) == []


def test_the_reading_process_blocks_stop_signals_from_its_first_moment(monkeypatch):
    """Else a thread that a library starts at the fork gets the signal that shall end it, and it lives on."""

    def blocked(_urls, _seed, _patience, _why_not, messages, *_):
        messages.put(signal.pthread_sigmask(signal.SIG_BLOCK, []))

    monkeypatch.setattr(stream_reader, "_read", blocked)
    reader = stream_reader.StreamReader(["x.tar"], 0, 1.0, lambda _: "")
    assert set(STOPPING) <= reader.next(10)
    reader.process.join()


TRAIN = """
run: {run}
data:
  {{shards: {shards}, frames: 5, height: 32, width: 32, held_out: 0.3, workers: 1, stream: "{stream}", stream_seconds: 2}}
vae:
  model: {{block_out_channels: [8, 16, 16, 16], layers_per_block: 1, norm_num_groups: 4}}
  image_phase: {{steps: 2, batch_size: 2, checkpoint_every: 100}}
  video_phase: null
  statistics_clips: 2
  validation_clips: 1
  loss: {{lpips: null}}
"""  # noqa: E501


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dead", "half", "silent", "one rank"])
def test_a_training_on_a_bad_stream_ends_or_finishes_on_two_ranks(shards, tmp_path, kind):
    half = (shards / "00000.tar").read_bytes()
    (tmp_path / "half.tar").write_bytes(half[: len(half) * 4 // 5])
    source = {
        "dead": f"http://127.0.0.1:{free_port()}/{{0..3}}.tar",
        "half": f"{tmp_path}/{{gone,half,gone2}}.tar",
        "silent": "pipe:sleep 62.5{0..3}",
        "one rank": f"pipe:test $RANK = 1 && exit 4; cat {shards}/00000.tar",
    }[kind]
    config = tmp_path / "config.yaml"
    config.write_text(TRAIN.format(run=tmp_path / "run", shards=shards, stream=source))
    begin = time.monotonic()
    ranks = start_on_ranks(2, "pipelines/train_vae.py", "--config", config)
    statuses = [rank.wait() for rank in ranks]
    assert time.monotonic() - begin < 60
    if kind == "half":
        assert statuses == [0, 0], ranks[0].stderr
        assert sum(rank.stderr.count("gone.tar: does not exist") for rank in ranks) == 1
    else:
        assert statuses == [1, 1]
        assert "error: data.stream=" in ranks[1].stderr
        lost = "error: the connection to another process of this launch was lost"
        assert ("error: data.stream=" if kind != "one rank" else lost) in ranks[0].stderr
        assert not any("Traceback" in rank.stderr for rank in ranks)
        assert processes_with("sleep 62.5") == []
