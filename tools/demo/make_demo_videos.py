"""Render the demo's captioned videos: colored shapes that move over a gray textured background.

    python tools/demo/make_demo_videos.py OUT

OUT gets 00000.mp4, its caption 00000.txt, and so on, and demo_videos.json with the settings. If OUT already
has the videos of the same settings, nothing is done.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from ldm.arguments import CommandParser
from ldm.demo.videos import write_demo_videos
from odvae.running.errors import readable_errors


def main() -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the videos: new, or of an earlier call")
    parser.add_argument("--count", type=int, default=1500, help="number of videos (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=17, help="frames per video (default: %(default)s)")
    parser.add_argument("--size", type=int, default=48, help="width and height, px (default: %(default)s)")
    parser.add_argument("--fps", type=float, default=8.0, help="frames per second (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    parser.add_argument(
        "--content", choices=("plain", "varied"), default="varied",
        help="plain: single shapes in a line at one speed; varied: slow and fast, bouncing, single and paired ones "
        "(default: %(default)s)",
    )  # fmt: skip
    options = parser.parse()
    write_demo_videos(
        options.out, options.count, options.frames, options.size, options.fps, options.seed, content=options.content
    )
    print(f"{options.count} videos with captions in {options.out}")
    print(f"next: python tools/make_shards.py {shlex.quote(str(options.out))} runs/demo/shards")


if __name__ == "__main__":
    with readable_errors():
        main()
