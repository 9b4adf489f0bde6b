"""Index a folder of shards, of videos or of latents, so that trainings start at once. Run it again to resume.

    python tools/index_shards.py FOLDER [part=i/n | finish=true] [key=value ...]

Shards that make_shards and encode_latents write have an index already, and small folders get one at their first use.
This command is for large folders of shards from elsewhere, whose videos must be decoded once: any number of machines
run a part each, in any order, then finish=true merges what they have made. Without both, one command does everything.
"""

from __future__ import annotations

from ldm.arguments import CommandParser, settings_help
from odvae.index.settings import IndexingSettings
from odvae.running.errors import readable_errors
from odvae.running.settings import make_settings
from odvae.storage.paths import open_path


def main() -> None:
    parser = CommandParser(
        __doc__,
        epilog=f"settings (key=value):\n{settings_help(IndexingSettings)}",
    )
    parser.add_argument("folder", metavar="FOLDER", help="folder with the shards, a path or a URL (s3://BUCKET/...)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings to change")
    options = parser.parse()
    settings = make_settings(IndexingSettings, {}, options.settings, "tools/index_shards.py")
    from ldm.index_shards import index_folder

    print(index_folder(open_path(options.folder), settings))


if __name__ == "__main__":
    with readable_errors():
        main()
