"""Settings of sampling that no video could be made with."""

import pytest

from ldm.sampling.settings import SampleSettings
from odvae.running.errors import InputError
from odvae.running.settings import make_settings


@pytest.mark.parametrize("interval", ["[0.8, 0.2]", "[-0.1, 0.5]", "[0.0, 1.5]"])
def test_an_interval_of_guidance_that_is_not_in_order_or_beyond_the_noise_levels_is_refused(interval):
    with pytest.raises(InputError, match="two noise levels from 0 to 1, the lowest first, found"):
        make_settings(SampleSettings, {}, [f"guidance_interval={interval}"], "sample")
    assert make_settings(SampleSettings, {}, ["guidance_interval=[0.5, 0.5]"], "sample").guidance_interval == (0.5, 0.5)
