"""What packing keeps between runs, damaged: files are examined again, and a report is refused by name."""

import json

import numpy as np
import pytest

from odvae.packing.packing import pack_folder
from odvae.packing.settings import PackingSettings
from odvae.packing.source_folder import state_of
from odvae.packing.state import PackingState
from odvae.running.errors import InputError
from odvae.running.hashing import file_fingerprint
from odvae.shards.tars import index_shards, list_shards
from odvae.video.video_io import write_video

SETTINGS = PackingSettings(workers=0)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    for i in range(2):
        write_video(folder / f"{i}.mp4", np.full((5, 16, 16, 3), 90 * i, np.uint8), 8)
    return folder


def row(**changes):
    about = {"sha256": "f" * 64, "container": "mp4", "frames": 5, "height": 16, "width": 16, "fps": 8.0}
    about |= {"seconds": 0.625, "variable_rate": False} | changes
    return {"name": "0.mp4", "found": [{"key": "f" * 16, "about": about}]}


def pack_with_journal(source, out, line):
    state = PackingState(out, None)
    state.folder.mkdir(parents=True)
    if line.get("name") == "0.mp4":
        line["of"] = state_of(source / "0.mp4")
    state.journal.write_text(f"{json.dumps(line)}\n")
    pack_folder(source, out, SETTINGS)
    return sorted(sample.key for sample in index_shards(list_shards(out, "?")))


def test_a_journal_that_is_whole_is_believed(source, tmp_path):
    sha256 = file_fingerprint(source / "0.mp4")
    line = row(sha256=sha256, frames=4) | {"name": "0.mp4"}
    line["found"][0]["key"] = sha256[:16]
    pack_with_journal(source, tmp_path / "out", line)
    facts = [sample.read_json()["frames"] for sample in index_shards(list_shards(tmp_path / "out", "?"))]
    assert sorted(facts) == [4, 5]


@pytest.mark.parametrize(
    "line",
    [
        {"name": "0.mp4"},
        {"name": "0.mp4", "found": []},
        {"name": ["0.mp4"], "found": [{}]},
        {"name": "0.mp4", "found": [1]},
        {"name": "0.mp4", "found": [{"reason": 3}]},
        row(frames="5"),
        row(sha256=None),
        row(seconds=float("nan")),
        row() | {"found": [row()["found"][0] | {"scene": [0]}]},
    ],
)
def test_a_file_whose_row_was_damaged_is_examined_again(source, tmp_path, line):
    keys = pack_with_journal(source, tmp_path / "out", line)
    assert keys == pack_with_journal(source, tmp_path / "again", {"name": "gone.mp4", "found": [{"reason": "x"}]})


@pytest.mark.parametrize("changes", [{"videos": "2"}, {"account": {"left_out": 1}}, {"tables": None}, {"more": 1}])
def test_a_damaged_report_is_named(source, tmp_path, changes):
    report = pack_folder(source, tmp_path / "out", SETTINGS)
    assert pack_folder(source, tmp_path / "out", SETTINGS) == report
    path = tmp_path / "out/packing.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match=r"out/packing\.json"):
        pack_folder(source, tmp_path / "out", SETTINGS)
