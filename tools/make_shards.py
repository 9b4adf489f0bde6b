"""Pack a folder of videos and images with captions into WebDataset shards. Run it again to resume.

    python tools/make_shards.py SRC OUT [key=value ...]

SRC may have sub-folders, and links to folders. Captions: every table in it with a file column and a caption or class
column (CSV, JSON, Parquet), or only the one named by captions=FILE; else a .txt, .caption or .json next to each video.
Classes: a column, or the names of folders (labels=folders). docs/data.md has every layout. Unused files and rows are
counted and listed with reasons, here and in OUT/packing.json.
"""

from ldm.commands.make_shards import main

if __name__ == "__main__":
    main()
