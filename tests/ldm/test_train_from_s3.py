"""Trainings from a bucket of a real S3 server: the weights of trainings from the disk, bit for bit; and what fails."""

import shutil

import pytest
import torch
from object_server import Faults, served
from s3_servers import deny, moto_server, needs_moto, needs_s3, rclone_server, upload_folder, use_s3
from safetensors.torch import load_file
from small_ldm import WEIGHTS, settings, train
from small_vae import train as train_vae
from small_vae import vae_settings
from url_folders import use_own_caches

from ldm.encoding.verify import find_problems, sample_problems
from ldm.index_shards import index_folder
from ldm.latents.latent_set import open_latents
from ldm.latents.manifest import load_manifest
from ldm.train import train_ldm
from odvae.index.settings import IndexingSettings
from odvae.running.errors import InputError
from odvae.storage import client
from odvae.storage.paths import StorageError, open_path

pytestmark = needs_s3


@pytest.fixture(autouse=True)
def _own_caches(tmp_path, monkeypatch):
    use_own_caches(tmp_path, monkeypatch)


@pytest.fixture
def server(ldm_run, monkeypatch):
    """rclone's server, whose bucket "run" has a run's latents and shards."""
    with rclone_server(ldm_run.parent) as url:
        use_s3(monkeypatch, url)
        yield url


@pytest.fixture
def bucket(ldm_run, server):
    return open_path(f"s3://{ldm_run.name}")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_ldm_has_the_weights_of_a_training_from_the_disk(ldm_run, bucket, tmp_path, workers):
    chosen = settings(workers=workers)
    train_ldm(chosen, ldm_run / "vae", bucket / "latents", tmp_path / "from_s3", 0)
    assert same(load_file(tmp_path / "from_s3" / WEIGHTS), train(ldm_run, tmp_path / "from_disk", chosen))


def test_the_vae_has_the_weights_of_a_training_from_the_disk(ldm_run, bucket, tmp_path):
    weights, rows = train_vae(bucket / "shards", tmp_path / "from_s3", vae_settings())
    expected, expected_rows = train_vae(ldm_run / "shards", tmp_path / "from_disk", vae_settings())
    assert same(weights, expected)
    assert rows == expected_rows


def test_faults_of_the_storage_change_no_weight(ldm_run, server, bucket, tmp_path, monkeypatch):
    faults = Faults(queue=["500", "", "cut", "", "reset", "", "503", "", "cut", "", "slow", "", "cut"])
    with served(faults, port=int(server.rpartition(":")[2])) as url:
        use_s3(monkeypatch, url)
        train_ldm(settings(), ldm_run / "vae", bucket / "latents", tmp_path / "from_s3", 0)
    assert faults.injected > 2
    assert same(load_file(tmp_path / "from_s3" / WEIGHTS), train(ldm_run, tmp_path / "from_disk", settings()))


def test_latents_in_a_bucket_are_verified(bucket):
    manifest = load_manifest(bucket / "latents")
    assert list(find_problems(bucket / "latents", manifest, processes=2)) == []
    assert list(sample_problems(bucket / "latents", manifest, 5, seed=0, processes=2)) == []


def test_latents_in_a_bucket_without_an_index_get_one_there(ldm_run, tmp_path, bucket):
    shutil.copytree(ldm_run / "latents", ldm_run / "again")
    shutil.rmtree(ldm_run / "again/index")
    (ldm_run / "again/index.arrow").unlink()
    assert "16 entries in 1 shard" in index_folder(bucket / "again", IndexingSettings(workers=0))
    for name in ("index.arrow", "index/00000.tar.arrow"):
        assert (ldm_run / "again" / name).read_bytes() == (ldm_run / "latents" / name).read_bytes()


def read_all(folder) -> int:
    latents = open_latents(folder, load_manifest(folder))
    return sum(len(entry.read_all()) for bucket in latents.train.values() for entry in bucket)


@needs_moto
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no rights", r"s3://films/latents/00000\.tar: no rights to it"),
        ("no bucket", r"s3://films/latents/00000\.tar.*(no such bucket|is gone)"),
        ("gone", r"s3://films/latents/00000\.tar is gone: it was there when it was read before"),
        ("replaced", r"00000\.tar.*(was replaced while it was read|changed or damaged)"),
        ("a folder", r"00000\.tar.*(is missing, but the manifest lists it|is gone|is a folder)"),
    ],
)
def test_what_happens_to_a_bucket_is_named_and_ends_the_training(ldm_run, tmp_path, monkeypatch, what, words):
    """Rights that were taken away, a bucket or a key that is gone, a replaced shard, a key with others below it."""
    with moto_server() as url:
        use_s3(monkeypatch, url)
        upload_folder(ldm_run / "latents", "films", "latents/")
        folder = open_path("s3://films/latents")
        latents = open_latents(folder, load_manifest(folder))
        entry = next(iter(latents.train.values()))[0]
        assert entry.read("json")
        monkeypatch.setenv("ODVAE_CACHE", str(tmp_path / "nothing"))
        _happen(what, client.client(folder))
        with pytest.raises(InputError, match=words) as error:
            entry.read_all()
        assert isinstance(error.value, StorageError) or what == "replaced"
        chosen, before = settings(), sorted(tmp_path.rglob("*.safetensors"))
        with pytest.raises(InputError, match=r"s3://films"):
            train_ldm(chosen, ldm_run / "vae", folder, tmp_path / "ldm", 0)
        assert sorted(tmp_path.rglob("*.safetensors")) == before


def _happen(what: str, files) -> None:
    if what == "no rights":
        deny("films", "s3:GetObject")
    elif what == "no bucket":
        files.rm("films", recursive=True)
    else:
        files.rm_file("films/latents/00000.tar")
        if what == "replaced":
            files.pipe_file("films/latents/00000.tar", b"other bytes" * 20000)
        if what == "a folder":
            files.pipe_file("films/latents/00000.tar/inside", b"1")
