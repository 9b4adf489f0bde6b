"""Paths and URLs: which is which, what cannot be opened or written, and why."""

import pytest

from ldm.experiment import Experiment
from odvae.running.errors import InputError
from odvae.running.settings import make_settings
from odvae.storage.paths import check_local, is_remote, open_path
from odvae.storage.states import says_no_bucket


def test_a_plain_text_is_a_path_and_a_url_keeps_its_slashes(tmp_path):
    assert open_path(str(tmp_path)) == tmp_path
    assert open_path(f"file://{tmp_path}") == tmp_path
    assert not is_remote(tmp_path)
    remote = open_path("memory://bucket/folder") / "00000.tar"
    assert is_remote(remote)
    assert str(remote) == "memory://bucket/folder/00000.tar"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ftp://host/a", "unknown scheme ftp://"),
        ("s3:/bucket/a", "two slashes.*s3://bucket/a"),
        ("memory://", "no bucket"),
    ],
)
def test_urls_that_cannot_be_opened_are_refused(text, words):
    with pytest.raises(InputError, match=words):
        open_path(text)


def test_a_missing_client_names_how_it_is_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs gcsfs.*pip install -c constraints.txt -e '\.\[gcs\]'"):
        open_path("gs://bucket/a")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3:/bucket/run", "two slashes after its scheme"),
        ("ftp://host/run", "unknown scheme ftp"),
        ("https://host/run", "nothing can be written to a web server"),
        ("memory://", "names no bucket"),
    ],
)
def test_a_run_folder_is_a_path_or_a_url_that_can_be_written(url, words):
    with pytest.raises(InputError, match=words):
        make_settings(Experiment, {"run": url}, [], "config.yaml")
    assert (
        str(make_settings(Experiment, {"run": "memory://b/run"}, [], "config.yaml").folders.vae) == "memory://b/run/vae"
    )


@pytest.mark.parametrize("path", ["runs/demo", "/runs/a:b", "s3/runs"])
def test_paths_are_no_urls(path):
    check_local(path, "run")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("The specified bucket does not exist", True),
        ("bucket/shards/packing.json", False),
        ("s3://my-bucket/shards", False),
        ("No such file: gs://a/bucket.tar", False),
    ],
)
def test_a_path_with_the_word_is_no_missing_bucket(words, says):
    assert says_no_bucket(FileNotFoundError(words)) == says
