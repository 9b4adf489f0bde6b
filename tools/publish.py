"""Publish a pipeline, a VAE, video shards or latents on the Hugging Face hub, with a card.

    python tools/publish.py FOLDER OWNER/NAME [--private]

FOLDER is an exported pipeline, the `vae` of a run or any VAE's folder, `shards` or `latents`; which, is seen by its
files. It needs a token that may write: `hf auth login` once, or HF_TOKEN.
"""

from pathlib import Path

from ldm.arguments import CommandParser
from odvae.running.errors import readable_errors


@readable_errors()
def main() -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("repo", metavar="OWNER/NAME")
    parser.add_argument("--private", action="store_true", help="make a private repository, if it is new")
    options = parser.parse()
    from ldm.publish import publish

    print(f"published: {publish(options.folder, options.repo, options.private)}")


if __name__ == "__main__":
    main()
