"""Prompts from text files and tables, and the requests for videos that are made of them."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ldm.commands import sample_video
from ldm.sampling.prompt_file import Prompt, read_prompts
from ldm.sampling.sample_requests import user_requests
from odvae.running.errors import InputError

ROWS = [
    {"prompt": "a red circle, moving", "negative_prompt": "blurry", "seed": 7},
    {"prompt": 'a "blue" square', "negative_prompt": None, "seed": None},
]
PROMPTS = [Prompt("a red circle, moving", "blurry", 7), Prompt('a "blue" square')]


def write(path):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif path.suffix == ".csv":
        path.write_text('prompt,negative_prompt,seed\n"a red circle, moving",blurry,7\n"a ""blue"" square",,\n')
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        path.write_text(json.dumps(ROWS))
    return path


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.json", "x.parquet"])
def test_every_table_gives_the_same_prompts(tmp_path, name):
    assert read_prompts(write(tmp_path / name)) == PROMPTS


def test_a_text_has_a_prompt_in_each_line_with_its_commas(tmp_path):
    (tmp_path / "x.txt").write_text("a red circle, moving\n\n  a blue square \n")
    assert [one.text for one in read_prompts(tmp_path / "x.txt")] == ["a red circle, moving", "a blue square"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.txt", "\n \n", r"x\.txt holds no prompt"),
        ("x.csv", "prompt,seed\na,1.5\n", r"x\.csv, line 2: its seed is '1\.5', expected a whole number from 0"),
        ("x.csv", "prompt,seed\na,-1\n", "its seed is '-1'"),
        ("x.csv", f"prompt,seed\na,{2**63}\n", "its seed is"),
        ("x.csv", "prompt,seed\n ,1\n", r"line 2: its prompt is no text"),
        ("x.jsonl", '{"prompt": 5}\n', "its prompt is no text: 5"),
        ("x.jsonl", '{"prompt": "a", "negative_prompt": ["b"]}\n', "its negative_prompt is no text"),
        ("x.csv", "words,seed\na,1\n", "x.csv"),
    ],
)
def test_what_is_no_prompt_is_named_with_its_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_prompts(tmp_path / name)


def test_requests_take_the_seeds_and_negative_prompts_of_rows():
    requests = user_requests([*PROMPTS, "plain"], [], seed=3, count=2, negative_prompt="ugly")
    assert [(one.seed, one.negative_prompt) for one in requests] == [
        (7, "blurry"), (8, "blurry"), (3, "ugly"), (4, "ugly"), (3, "ugly"), (4, "ugly"),
    ]  # fmt: skip
    assert len({one.file for one in requests}) == 6


def test_equal_requests_are_made_once_and_a_file_is_of_one_request():
    assert len(user_requests(["a", "a", "b"], [], seed=0)) == 2
    with pytest.raises(InputError, match=r"a_seed0\.mp4 would be made with several negative prompts"):
        user_requests([Prompt("a", "x"), Prompt("a", "y")], [], seed=0)


def test_files_are_named_as_vbench_reads_them():
    prompts = ["A person is, slowly, walking", "café 2"]
    requests = user_requests(prompts, [], seed=3, count=2, file_names="vbench")
    assert [(one.file, one.seed) for one in requests] == [
        (f"{prompt}-{number}.mp4", 3 + number) for prompt in prompts for number in (0, 1)
    ]
    for prompt in ("left/right", "x" * 252, "x" * 240):
        with pytest.raises(InputError, match=r"cannot be the name of a file: '(left|xxx)"):
            user_requests([prompt], [], seed=0, file_names="vbench")
    with pytest.raises(InputError, match="with several negative prompts or seeds"):
        user_requests([Prompt("a", seed=1), Prompt("a", seed=2)], [], seed=0, file_names="vbench")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "--count must be at least 1, found 0"),
        ({"seed": -1}, f"the seed of 'a circle' must be from 0 to {2**63 - 1}, found -1"),
        ({"seed": 2**63 - 2, "count": 3}, f"must be from 0 to {2**63 - 3}, found {2**63 - 2}"),
    ],
)
def test_counts_and_seeds_that_cannot_be_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        user_requests(["a circle"], [], **{"seed": 0, **options})


@pytest.mark.parametrize("words", [["--seed", "3"], ["--negative-prompt", "blurry"]])
def test_options_of_ones_own_videos_are_refused_where_none_is_asked_for(words, monkeypatch, capsys):
    """They would have no effect on the videos for the evaluation, which are made then."""
    monkeypatch.setattr("sys.argv", ["sample_video", *words])
    with pytest.raises(SystemExit, match="1"):
        sample_video.main()
    assert "--negative-prompt and --seed need --prompt, --prompts" in capsys.readouterr().err
