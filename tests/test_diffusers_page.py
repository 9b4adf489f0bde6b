"""The code in docs/diffusers.md runs."""

import re

import pytest
from small import REPOSITORY
from small_pipeline import make_components, make_pipeline, small_text_encoder

BLOCKS = re.findall(r"^```python\n(.*?)^```", (REPOSITORY / "docs/diffusers.md").read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def defined(tmp_path_factory):
    """What the blocks' script defined, after it ran in a folder with a small pipeline in place of the demo's."""
    folder, names = tmp_path_factory.mktemp("page"), {"__name__": "page"}
    text = small_text_encoder(folder / "text", max_tokens=12)  # the demo's: its prompts have up to 9 tokens
    pipeline = make_pipeline(make_components(text, text_tokens=12))
    pipeline.save_pretrained(folder / "runs/demo/pipeline")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for number, block in enumerate(BLOCKS):
            exec(compile(block, f"docs/diffusers.md, block {number}", "exec"), names)
            if "frames" in names:
                names.setdefault("made", []).append(names.pop("frames"))
    return names | {"folder": folder}


def test_the_page_makes_the_videos_that_it_says(defined):
    pictures, *others = defined["made"]
    assert len(pictures) == 4
    assert [len(frames) for frames in others] == [2, 2, 2]
    assert defined["reconstruction"].shape == defined["videos"].shape
    assert list((defined["folder"] / "runs/offload").glob("*.safetensors"))
