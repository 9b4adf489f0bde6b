"""Pack a folder of videos with captions into WebDataset shards.

    python tools/make_shards.py SRC OUT

SRC may have sub-folders. Captions: `captions.csv` or `metadata.jsonl` in SRC, else a `.txt` beside each video.
Files that cannot be read are skipped, counted and named, here and in OUT/packing.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from odvae.shared.errors import InputError, readable_errors
from odvae.shared.packing import describe, next_command, pack_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SRC", help="folder of videos")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the shards; must be new or empty")
    parser.add_argument("--samples-per-shard", type=int, default=500, help="videos a tar (default: %(default)s)")
    options = parser.parse_args()
    if options.samples_per_shard < 1:
        raise InputError(f"--samples-per-shard must be at least 1, found {options.samples_per_shard}")
    report = pack_folder(options.source, options.out, options.samples_per_shard)
    print(describe(report, options.out))
    print(f"next: {next_command(options.out)}")


if __name__ == "__main__":
    with readable_errors():
        main()
