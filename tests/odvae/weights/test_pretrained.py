"""Models from folders and the hub: other layouts load or are refused by name, whatever loads them."""

import json
import re
import shutil
from functools import partial

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from small import SMALL
from small_networks import make_dit
from torchvision.models import SqueezeNet1_1_Weights

from ldm import TextToVideoPipeline
from ldm.evaluation import i3d
from ldm.networks.factory import load_network
from ldm.networks.text_encoder import load_text_encoder
from odvae import ODVAE
from odvae.initial_weights import load_image_vae, load_video_vae
from odvae.lpips import LPIPS
from odvae.per_frame import PerFrameVAE
from odvae.running.errors import InputError
from odvae.settings import ModelSettings
from odvae.video_vae import load_pretrained_vae, load_vae
from odvae.weights.pretrained import root_of

WEIGHTS = "diffusion_pytorch_model.safetensors"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 791656\n"
MODEL = ModelSettings(**SMALL)
LOADERS = {
    "vae": load_vae,
    "pretrained": lambda folder: load_pretrained_vae(str(folder)),
    "init_from": lambda folder: load_video_vae(str(folder), MODEL),
    "image": lambda folder: load_image_vae(str(folder), MODEL),
    "network": load_network,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory, vae, image_vae):
    """A small model's folder for each loader."""
    folder = tmp_path_factory.mktemp("models")
    vae.save_pretrained(folder / "vae")
    image_vae.save_pretrained(folder / "image")
    torch.manual_seed(0)
    make_dit().save_pretrained(folder / "network")
    for name in ("pretrained", "init_from"):
        shutil.copytree(folder / "vae", folder / name)
    return folder


@pytest.fixture(params=LOADERS)
def model(models, tmp_path, request):
    """(a copy of the loader's folder, the loader)"""
    shutil.copytree(models / request.param, tmp_path / "model")
    return tmp_path / "model", LOADERS[request.param]


def rewritten(folder, change):
    weights = load_file(folder / WEIGHTS)
    save_file(change(weights), folder / WEIGHTS, metadata={"format": "pt"})
    return weights


def change_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def set_shape(weights):
    return weights | {min(weights): torch.zeros(77)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_weights_stored_in_fewer_bits_are_loaded_in_32(model, dtype):
    folder, load = model
    before = rewritten(folder, lambda weights: {name: tensor.to(dtype) for name, tensor in weights.items()})
    for name, tensor in load(folder).state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name].to(dtype).float())


def test_weights_in_a_pickled_file_in_several_files_and_with_unknown_config_keys_load(models, tmp_path, vae):
    shutil.copytree(models / "vae", tmp_path / "bin")
    torch.save(load_file(tmp_path / "bin" / WEIGHTS), tmp_path / "bin/diffusion_pytorch_model.bin")
    (tmp_path / "bin" / WEIGHTS).unlink()
    change_config(tmp_path / "bin", of_a_later_version=3)
    vae.save_pretrained(tmp_path / "sharded", max_shard_size="200KB")
    assert len(list((tmp_path / "sharded").glob("*-of-*.safetensors"))) > 2
    for name in ("bin", "sharded"):
        state = load_vae(tmp_path / name).state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in vae.state_dict().items())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: cut(folder / WEIGHTS),
            rf"{WEIGHTS} is truncated \(it has \d+ of \d+ bytes\): copy or download",
        ),
        (lambda folder: (folder / WEIGHTS).write_bytes(b""), rf"{WEIGHTS} is empty"),
        (lambda folder: (folder / WEIGHTS).write_text(POINTER), rf"{WEIGHTS} is a Git LFS pointer"),
        (
            lambda folder: (folder / WEIGHTS).unlink(),
            r"it has no diffusion_pytorch_model\.bin .*, but config\.json: rename or add the file",
        ),
        (
            lambda folder: (folder / WEIGHTS).rename(folder / "weights.safetensors"),
            r"but config\.json, weights\.safetensors: rename or add the file",
        ),
        (
            lambda folder: (folder / "config.json").write_text(POINTER),
            r"config\.json is a Git LFS pointer",
        ),
        (lambda folder: (folder / "config.json").write_text('{"_class'), r"config\.json is not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "must contain keys with values, found a list"),
        (partial(change_config, _class_name="AutoencoderDC"), "AutoencoderDC"),
        (partial(change_config, latent_channels="four"), "TypeError"),
        (
            partial(rewritten, change=lambda weights: {name: weights[name] for name in sorted(weights)[1:]}),
            r"needs \S+, which the weights do not have\. Does config\.json belong to these weights",
        ),
        (
            partial(rewritten, change=lambda weights: weights | {"other.weight": torch.ones(2)}),
            r"it has other\.weight, which \w+ does not use",
        ),
        (
            partial(rewritten, change=set_shape),
            r"expected shape torch\.Size\(\[\d+\]\), but got torch\.Size\(\[77\]\)\. The",
        ),
        (
            partial(rewritten, change=lambda weights: {f"module.{name}": value for name, value in weights.items()}),
            r"Their names have the prefix 'module\.' of a wrapper: save them without it",
        ),
        (
            partial(rewritten, change=lambda weights: {f"ema.model.{name}": value for name, value in weights.items()}),
            r"have the prefix 'ema\.model\.'",
        ),
    ],
)
def test_what_is_not_this_model_or_not_whole_is_named_by_every_loader(model, damage, message):
    folder, load = model
    damage(folder)
    with pytest.raises(InputError, match=message) as error:
        load(folder)
    assert str(folder) in str(error.value)


def test_a_missing_or_cut_part_of_sharded_weights_is_named(vae, tmp_path):
    vae.save_pretrained(tmp_path, max_shard_size="200KB")
    second = sorted(tmp_path.glob("*-of-*.safetensors"))[1]
    cut(second)
    with pytest.raises(InputError, match=rf"{second.name} is truncated"):
        load_vae(tmp_path)
    second.unlink()
    with pytest.raises(InputError, match=second.name):
        load_vae(tmp_path)


def test_a_file_where_a_folder_is_needed_and_the_other_way_round_are_named(models, tmp_path, image_vae):
    file = models / "image" / WEIGHTS
    with pytest.raises(
        InputError, match=r"safetensors has no tensor encoder\.mid\..* give the folder, with its config"
    ):
        load_image_vae(str(file), MODEL)
    for folder, message in ((models / "image", "is a folder, not a file"), (tmp_path / "no", "does not exist")):
        with pytest.raises(InputError, match=message):
            LPIPS("squeeze", folder)
        with pytest.raises(InputError, match=message):
            i3d.load_i3d(folder, None)
    with pytest.raises(InputError, match="is no pipeline folder, but a file"):
        TextToVideoPipeline.from_pretrained(file)


def test_the_vae_of_a_pipelines_folder_is_found(tmp_path, image_vae):
    image_vae.save_pretrained(tmp_path / "pipeline/vae")
    loaded = load_image_vae(str(tmp_path / "pipeline"), MODEL)
    assert isinstance(loaded, PerFrameVAE)
    assert torch.equal(loaded.quant_conv.weight, image_vae.quant_conv.weight)
    (tmp_path / "pipeline/vae" / WEIGHTS).write_text(POINTER)
    with pytest.raises(InputError, match=rf"pipeline/vae/{WEIGHTS} is a Git LFS pointer"):
        load_image_vae(str(tmp_path / "pipeline"), MODEL)


def test_the_od_vae_of_a_pipelines_folder_is_found(tmp_path, vae):
    vae.save_pretrained(tmp_path / "pipeline/vae")
    loaded = load_video_vae(str(tmp_path / "pipeline"), MODEL)
    assert torch.equal(loaded.quant_conv.weight, vae.quant_conv.weight)


HUB = {
    "vae.pretrained=": load_pretrained_vae,
    "vae.init_image_vae=": partial(load_image_vae, model=MODEL),
    "vae.init_from=": partial(load_video_vae, model=MODEL),
    "text.encoder=": load_text_encoder,
    "me/": TextToVideoPipeline.from_pretrained,
}


@pytest.mark.parametrize("setting", HUB)
def test_a_hub_name_that_cannot_be_reached_gives_both_reasons_and_the_ways_out(monkeypatch, tmp_path, setting):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        HUB[setting]("me/nothing-of-this-name")
    message = str(error.value)
    assert message.startswith(setting)
    assert f"there is no file or folder me/nothing-of-this-name in {tmp_path}" in message
    assert re.search(r"from the Hugging Face hub \(\w+: .*(offline mode is enabled|has been disabled)", message)
    for way in ("hf download me/nothing-of-this-name --local-dir FOLDER", "HF_HOME", "HF_HUB_OFFLINE=1", "HF_TOKEN"):
        assert way in message


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "a/b/c"])
def test_a_path_that_does_not_exist_is_not_taken_for_a_hub_name(name):
    with pytest.raises(
        InputError, match=rf"there is no file or folder {name}, and it is not a name on the Hugging Face hub"
    ):
        load_pretrained_vae(name)


def test_a_file_that_does_not_exist_is_called_a_file(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"there is no file checkpoint\.ckpt in {tmp_path}$"):
        load_pretrained_vae("checkpoint.ckpt")


def test_weights_that_cannot_be_downloaded_give_both_reasons_and_the_ways_out(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise OSError("Network is unreachable")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    here = re.escape(str(tmp_path / "hub/checkpoints"))
    with pytest.raises(InputError, match=rf"squeeze weights are not at {here}.*unreachable.*vae\.loss\.lpips\.weights"):
        LPIPS("squeeze")
    with pytest.raises(InputError, match=rf"file is not at {here}.*unreachable.*set eval_ldm\.i3d to the file"):
        i3d.load_i3d(None, None)


def test_a_broken_file_in_torchvisions_cache_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub/checkpoints" / SqueezeNet1_1_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    file.write_bytes(b"PK\x03\x04 half of it")
    with pytest.raises(
        InputError, match=rf"{re.escape(str(file))} is truncated .*; remove it and run the same command"
    ):
        LPIPS("squeeze")


def test_odvae_itself_loads_a_folder_as_before(models):
    assert isinstance(ODVAE.from_pretrained(models / "vae"), ODVAE)


def test_the_reason_is_the_first_error_of_the_chain_that_says_anything():
    def chain():
        try:
            try:
                raise TimeoutError
            except TimeoutError:
                raise ConnectionError("no route to host\nmore") from None
        except ConnectionError as error:
            raise OSError("cannot load") from error

    with pytest.raises(OSError, match="cannot load") as caught:
        chain()
    assert root_of(caught.value) == "ConnectionError: no route to host"


@pytest.mark.parametrize("place", [".", "vae"])
def test_a_folder_with_the_weights_of_one_variant_alone_is_a_pretrained_vae(vae, tmp_path, place):
    vae.save_pretrained(tmp_path / place, variant="fp16")
    assert not (tmp_path / place / WEIGHTS).exists()
    found = load_pretrained_vae(str(tmp_path)).state_dict()
    assert all(torch.equal(found[name], value) for name, value in vae.state_dict().items())


@pytest.mark.parametrize("name", ["AutoencoderTiny", "AsymmetricAutoencoderKL", "AutoencoderKLTemporalDecoder"])
def test_image_vaes_that_cannot_be_inflated_are_named(image_vae, tmp_path, name):
    image_vae.save_pretrained(tmp_path)
    change_config(tmp_path, _class_name=name)
    for load, taken in (
        (partial(load_image_vae, model=ModelSettings()), "expected AutoencoderKL or PerFrameVAE"),
        (load_pretrained_vae, "allowed are"),
    ):
        with pytest.raises(InputError, match=rf"{name}.*{taken}"):
            load(str(tmp_path))
