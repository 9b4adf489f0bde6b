"""Where the text encoder of a trained network is."""

from types import SimpleNamespace

import pytest

from ldm.networks.provenance import Provenance


@pytest.mark.parametrize("name", ["google/t5-v1_1-base", "x" * 5000, "../\0"])
def test_what_is_no_folder_is_a_name_for_the_hub_whatever_it_is(tmp_path, name):
    assert Provenance.text_encoder_in(SimpleNamespace(text_encoder=name), tmp_path) == name


def test_a_folder_is_found_from_the_networks_own(tmp_path):
    (tmp_path / "latents/text_encoder").mkdir(parents=True)
    (tmp_path / "ldm").mkdir()
    provenance = SimpleNamespace(text_encoder="../latents/text_encoder")
    found = Provenance.text_encoder_in(provenance, tmp_path / "ldm")
    assert found == str((tmp_path / "latents/text_encoder").resolve())
