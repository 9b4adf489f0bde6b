"""Pack a folder of videos and images with captions, or a table of URLs, into WebDataset shards. Run it again to resume.

    odvae-make-shards SRC OUT [key=value ...]

SRC is a folder, with sub-folders and links to folders, or a table (CSV, JSON lines, Parquet) with a column of URLs or
paths; both SRC and OUT may be in a bucket (s3://...). Captions of a folder: every table in it with a file column and a
caption or class column (CSV, JSON, Parquet), or only the one named by captions=FILE; else a .txt, .caption or .json
next to each video. Classes: a column, or the names of folders (labels=folders). docs/data.md has every layout. Shards
can be used as soon as they appear. Unused files and rows are counted and listed, here and in OUT/packing.json.
"""

from __future__ import annotations

from ldm.arguments import CommandParser, settings_help
from odvae.packing.settings import PackingSettings
from odvae.running.commands import command_line
from odvae.running.errors import readable_errors
from odvae.running.settings import make_settings
from odvae.storage.paths import open_path, open_target

# Settings that a newcomer does not need; they are explained in the documentation.
_AT_SCALE = ("part", "finish", "engine", "downloads", "download_seconds", "download_retries", "largest_mib")
_SCALE = """  on many machines (docs/cluster.md): part=i/n packs a share, finish=true finishes all of them; engine=ray
  of a table of URLs (docs/data.md): downloads=16, download_seconds=30, download_retries=3, largest_mib=4096"""


@readable_errors()
def main() -> None:
    parser = CommandParser(
        __doc__,
        epilog=f"settings (key=value):\n{settings_help(PackingSettings, without=_AT_SCALE)}\n{_SCALE}",
    )
    parser.add_argument("source", metavar="SRC", help="folder of videos and images, or a table of URLs; path or URL")
    parser.add_argument("out", metavar="OUT", help="folder for the shards: new, empty, or from an earlier call")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings to change")
    options = parser.parse()
    source, out = open_path(options.source), open_target(options.out, "OUT")
    settings = make_settings(PackingSettings, {}, options.settings, command_line("make_shards"))
    from odvae.packing.finishing import finish_parts
    from odvae.packing.packing import command_of, pack_folder
    from odvae.packing.report import describe, next_command

    pack = finish_parts if settings.finish else pack_folder
    report = pack(source, out, settings)
    print(describe(report, out))
    if report.part:
        finish = command_of(source, out, settings, part=None, finish=True)
        print(f"when all parts are packed: {finish}")
    else:
        print(f"next: {next_command(out)}")


if __name__ == "__main__":
    main()
