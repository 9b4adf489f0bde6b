"""Records of runs that an earlier version began: settings that they lack have the meaning that they had then."""

from typing import Annotated

import pytest
import yaml
from pydantic import Field

from odvae.running.errors import InputError
from odvae.running.resume_check import EarlierValue, MayChange, record_settings
from odvae.running.settings import Settings


class Layer(Settings):
    width: int
    bias: bool = True


WITHOUT_BIAS = Layer(width=1, bias=False)


class Other(Settings):
    name: str = "x"


class Now(Settings):
    steps: Annotated[int, MayChange] = 10
    rate: float = 0.1
    shuffle: Annotated[str, EarlierValue("exact")] = "blocks"
    sizes: tuple[int, int] = (1, 2)
    layer: Layer | None = None
    either: Other | Layer = Layer(width=3)
    layers: tuple[Layer, ...] = ()
    named: dict[str, Layer] = Field(default_factory=dict)
    follows: int | None = Field(default_factory=lambda given: None if given.get("layer") else 5)


def begun(folder, **record):
    """The record of a run that an earlier version, without the other settings, began."""
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump({"now": record}))
    return path


def test_a_run_that_lacks_settings_resumes_where_they_have_the_values_that_they_had_then(tmp_path):
    path = begun(tmp_path, steps=10)
    before = path.read_bytes()
    assert record_settings(path, {"now": Now(shuffle="exact")})
    assert path.read_bytes() == before
    assert not record_settings(path, {"now": Now(shuffle="exact", steps=20)})
    assert yaml.safe_load(path.read_text())["now"]["rate"] == 0.1


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (Now(), r"now\.shuffle: was 'exact', now 'blocks'"),
        (Now(shuffle="exact", rate=0.2), r"now\.rate: was 0\.1, now 0\.2"),
        (Now(shuffle="exact", sizes=(1, 3)), r"now\.sizes\.1: was 2, now 3"),
        (Now(shuffle="exact", layer=Layer(width=1)), r"now\.follows: was 5, now None\n  now\.layer: was None, now"),
    ],
)
def test_other_values_than_those_that_they_had_then_are_named(tmp_path, now, message):
    with pytest.raises(InputError, match=message):
        record_settings(begun(tmp_path, steps=10), {"now": now})


@pytest.mark.parametrize(
    ("recorded", "same", "other", "message"),
    [
        (
            {"layer": {"width": 1}},
            {"layer": Layer(width=1)},
            {"layer": Layer(width=1, bias=False)},
            r"layer\.bias: was",
        ),
        ({"either": {"width": 3}}, {"either": Layer(width=3)}, {"either": Other()}, r"either\.width: was 3, now None"),
        (
            {"layers": [{"width": 1}]},
            {"layers": (Layer(width=1),)},
            {"layers": (WITHOUT_BIAS,)},
            "0.bias",
        ),
        ({"named": {"a": {"width": 1}}}, {"named": {"a": Layer(width=1)}}, {"named": {}}, r"named\.a"),
    ],
)
def test_settings_that_a_section_in_a_section_lacks(tmp_path, recorded, same, other, message):
    path = begun(tmp_path, shuffle="blocks", follows=5, **recorded)
    assert record_settings(path, {"now": Now(follows=5, **same)})
    with pytest.raises(InputError, match=message):
        record_settings(path, {"now": Now(follows=5, **other)})


def test_a_section_that_came_later_had_its_defaults(tmp_path):
    path = begun(tmp_path, shuffle="blocks")
    assert record_settings(path, {"now": Now(), "other": Other()})
    with pytest.raises(InputError, match=r"other\.name: was 'x', now 'y'"):
        record_settings(path, {"now": Now(), "other": Other(name="y")})
    with pytest.raises(InputError, match=r"layer\.width: was None, now 1"):
        record_settings(path, {"now": Now(), "layer": Layer(width=1)})


def test_what_is_no_section_must_be_recorded(tmp_path):
    path = begun(tmp_path, shuffle="blocks")
    with pytest.raises(InputError, match="seed: was None, now 0"):
        record_settings(path, {"now": Now(), "seed": 0})
