"""A small pipeline that the tests of sampling share."""

import pytest
from small_pipeline import pipeline_of, small_text_encoder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return small_text_encoder(tmp_path_factory.mktemp("text") / "learned")


@pytest.fixture(scope="module")
def pipeline(vae, text):
    return pipeline_of(vae, text)
