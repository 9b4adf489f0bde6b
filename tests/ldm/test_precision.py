"""Encoding and sampling in bf16: what is computed in it, what stays in fp32, and how far the results are apart."""

import pytest
import torch
from small_networks import awake, make_dit

from ldm.diffusion.settings import ObjectiveSettings
from ldm.encoding.encode_shards import encode_pieces
from ldm.networks.conditioning import Condition
from ldm.networks.settings import TextSettings
from ldm.networks.text_encoder import learn_text_encoder, load_text_encoder
from ldm.sampling.guidance import Guidance, guided_prediction
from ldm.sampling.schedulers import make_scheduler, sample_latents
from odvae.running.precision import autocast, uses_bf16

CPU = torch.device("cpu")


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_bf16_only_on_gpus_that_compute_in_it(monkeypatch, native):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert uses_bf16("auto", torch.device("cuda")) == native
    assert not uses_bf16("auto", CPU)
    assert uses_bf16("bf16", CPU)
    assert not uses_bf16("fp32", torch.device("cuda"))


def test_latents_encoded_in_bf16_are_fp32_tensors_within_two_percent_of_those_in_fp32(vae):
    torch.manual_seed(0)
    video = torch.randint(0, 256, (2, 9, 32, 32, 3), dtype=torch.uint8)
    moments = {}
    for precision in ("fp32", "bf16"):
        with autocast(precision, CPU):
            moments[precision] = encode_pieces(vae, iter([video]), streamed=False)
    for exact, rounded in zip(moments["fp32"], moments["bf16"], strict=True):
        assert rounded.dtype == torch.float32
        assert 0 < (rounded - exact).norm() / exact.norm() < 0.02


def test_in_bf16_the_samplers_state_stays_in_fp32():
    network, objective = awake(make_dit(text_width=None)), ObjectiveSettings()
    noise = torch.randn(2, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    dtypes, results = set(), {}
    guidance = Guidance(1.0, (0.0, 1.0), 0.0)
    predict = guided_prediction(network, Condition(), None, guidance)

    def watched(z, time, guided):
        dtypes.add(z.dtype)
        return predict(z, time, guided)

    for precision in ("fp32", "bf16"):
        with autocast(precision, CPU):
            results[precision] = sample_latents(
                watched, noise, make_scheduler("euler", objective), objective, 5, guidance
            )
    assert dtypes == {torch.float32}
    assert results["bf16"].dtype == torch.float32
    difference = (results["bf16"] - results["fp32"]).norm() / results["fp32"].norm()
    assert 0 < difference < 0.02


def test_captions_are_embedded_in_fp32_also_under_autocast(tmp_path):
    captions = ["a red circle moves left", "a blue square moves up"]
    learn_text_encoder(captions, TextSettings(max_tokens=8, width=16, steps=1), tmp_path / "text", seed=0)
    text = load_text_encoder(tmp_path / "text")
    exact, _ = text.encode(captions, 8)
    with autocast("bf16", CPU):
        inside, _ = text.encode(captions, 8)
    assert torch.equal(exact, inside)
