"""Check a folder of latents against its manifest: all hashes and counts and, with --reencode, some latents.

    python tools/verify_latents.py LATENTS [--processes N] [--again] [--sample K] [--reencode K]

Files that were right are recorded (.verified.jsonl): after a stop, the same command goes on with the others, and it
skips those whose size and modification time are unchanged, except with --again. --sample K compares K random entries
with their checksums in the index in place of all files. Exit status 0: no problems. 1: problems, which are listed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ldm.arguments import CommandParser
from ldm.encoding.verify import TOLERANCE, find_problems, reencode, sample_problems
from ldm.latents.manifest import load_manifest
from odvae.running.errors import readable_errors
from odvae.storage.paths import is_remote, open_path
from odvae.video.frame_grid import frame_grid, save_image


def main() -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("folder", type=open_path, metavar="LATENTS", help="folder with manifest.json, or its URL")
    parser.add_argument("--processes", type=int, default=2, help="that read the files (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="verify files that were verified before as well")
    parser.add_argument("--sample", type=int, metavar="K", help="compare K random entries with their checksums instead")
    parser.add_argument("--reencode", type=int, default=0, metavar="K", help="number of random entries to encode again")
    parser.add_argument("--vae", type=Path, help="the VAE's folder (default: that in the manifest)")
    parser.add_argument("--picture", type=Path, help="source above decoded latents (default: LATENTS/verification.png)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of entries (default: %(default)s)")
    options = parser.parse()
    manifest = load_manifest(options.folder)
    processes = max(1, options.processes)
    problems = list(
        find_problems(options.folder, manifest, processes, options.again)
        if options.sample is None
        else sample_problems(options.folder, manifest, options.sample, options.seed, processes)
    )
    if options.reencode and not problems:
        vae_folder = options.vae or Path(manifest.vae_folder)
        pairs = []
        for entry in reencode(options.folder, manifest, vae_folder, options.reencode, options.seed):
            print(f"{entry.name}: relative error {entry.error:.2e}")
            if entry.error > TOLERANCE:
                problems.append(
                    f"{entry.name}: encoding its clip again gives other latents (relative error {entry.error:.3f})"
                )
            pairs += [entry.source, entry.decoded]
        same_size = [video for video in pairs if video.shape == pairs[0].shape]  # a picture has videos of one size
        # Nothing of a verification is written into a bucket.
        picture = options.picture or (Path() if is_remote(options.folder) else options.folder) / "verification.png"
        save_image(picture, frame_grid(same_size[:16]))
        print(f"source above decoded latents: {picture}")
    entries = manifest.train_entries + manifest.held_out_entries
    checked = "" if options.sample is None else f", of which {min(options.sample, entries)} were compared"
    print(f"{options.folder}: {entries} entries in {len(manifest.shards)} shards{checked}; {len(problems)} problems")
    for problem in problems:
        print(f"  {problem}")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    with readable_errors():
        main()
