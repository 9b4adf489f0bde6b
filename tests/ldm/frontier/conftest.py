"""The smallest shipped frontier, in folders of a test."""

import pytest
from small import REPOSITORY

from ldm.frontier.settings import FrontierSettings
from odvae.running.settings import load_settings


@pytest.fixture
def frontier(tmp_path) -> FrontierSettings:
    folders = [f"run={tmp_path / 'run'}", f"results={tmp_path / 'results'}"]
    return load_settings(FrontierSettings, REPOSITORY / "configs/study/frontier_smallest.yaml", folders)
