"""Publish a pipeline, a VAE, video shards or latents on the Hugging Face hub, with a card.

    python tools/publish.py FOLDER OWNER/NAME [--private]

FOLDER is an exported pipeline, the `vae` of a run or any VAE's folder, `shards` or `latents`; which, is seen by its
files. It needs a token that may write: `hf auth login` once, or HF_TOKEN.
"""

import argparse
from pathlib import Path

from odvae.running.errors import readable_errors


@readable_errors()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("repo", metavar="OWNER/NAME")
    parser.add_argument("--private", action="store_true", help="make a private repository, if it is new")
    options = parser.parse_args()
    from ldm.publish import publish

    print(f"published: {publish(options.folder, options.repo, options.private)}")


if __name__ == "__main__":
    main()
