"""Pack a folder of videos and images with captions into WebDataset shards. Run it again to go on after any stop.

    odvae-make-shards SRC OUT [key=value ...]

SRC may have sub-folders. Captions: metadata.jsonl, captions.csv or captions.json in SRC, any table named by
captions=FILE, else a .txt beside each video; classes from a column of the table, or from folder names (labels=folders).
Files that cannot be used are skipped, counted and named, here and in OUT/packing.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from odvae.running.commands import command_line
from odvae.running.errors import readable_errors
from odvae.running.settings import make_settings, settings_help
from odvae.shards.filters import PackingSettings


@readable_errors()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"settings (key=value):\n{settings_help(PackingSettings)}",
    )
    parser.add_argument("source", type=Path, metavar="SRC", help="folder of videos and images")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the shards: new, empty, or made by this")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings to change")
    options = parser.parse_args()
    settings = make_settings(PackingSettings, {}, options.settings, command_line("make_shards"))
    from odvae.shards.packing import pack_folder
    from odvae.shards.report import describe, next_command

    report = pack_folder(options.source, options.out, settings)
    print(describe(report, options.out))
    print(f"next: {next_command(options.out)}")


if __name__ == "__main__":
    main()
