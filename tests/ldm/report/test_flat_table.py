"""The flat table of all results."""

import csv
import io

from ldm.report.flat_table import flatten, to_csv


def test_every_number_is_in_the_table_with_its_protocol_command_and_commit():
    about = {"n": 9, "protocol": {"frames": 17, "lpips": None}, "command": "evaluate", "commit": "abc"}
    part = {"frechet": 1.5, "frechet_interval": [1.0, 2.0], "floor": {"frechet": 0.5, "n": 8}, "name": "x", **about}
    report = {"distances": part, "commit": "abc", "minutes": {"vae": 2.0}, "clip_score": None}
    numbers = flatten(report, {"vae": {"minutes": 2.0, "command": "train", "commit": "def"}})
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(to_csv(numbers)))}
    assert rows.keys() == {"distances.frechet", "distances.floor.frechet", "minutes.vae"}
    assert [rows["distances.frechet"][key] for key in ("value", "low", "high", "n")] == ["1.5", "1.0", "2.0", "9"]
    assert rows["distances.frechet"]["protocol"] == "frames: 17"
    assert rows["distances.floor.frechet"]["n"] == "8"
    assert rows["distances.floor.frechet"]["commit"] == "abc"
    assert rows["minutes.vae"]["command"] == "train"
