"""The record of an encoded shard, damaged."""

import json
from dataclasses import asdict

import pytest

from ldm.encoding.job_records import JobRecord, read_job_record
from odvae.running.account import Account
from odvae.running.errors import InputError

WORDS = ("name", "sha256", "bucket", "source", "source_sha256", "vae_sha256", "precision")
GOOD = {
    **dict.fromkeys(JobRecord.__dataclass_fields__, 1),
    **dict.fromkeys(WORDS, "x"),
    "entries_by_class": {"a": 1},
    "failed": {"key": "reason"},
    "account": Account("videos", used=1).to_json(),
    "shape": [4, 2, 8, 8],
    "of_source": ["x"],
    "too_short": ["y"],
    "sums": None,
}


@pytest.mark.parametrize(
    "changes",
    [{"entries": "1"}, {"account": {}}, {"account": {"left_out": 3}}, {"sums": {}}, {"sums": {"count": 1}}, {"new": 1}],
)
def test_a_damaged_record_is_named(tmp_path, changes):
    path = tmp_path / "00000.json"
    path.write_text(json.dumps(GOOD))
    assert asdict(read_job_record(path)) == GOOD
    path.write_text(json.dumps(GOOD | changes))
    with pytest.raises(InputError, match=r"00000\.json"):
        read_job_record(path)
