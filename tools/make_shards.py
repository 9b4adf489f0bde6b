"""Pack a folder of videos and images with captions into WebDataset shards. Run it again to go on after any stop.

    python tools/make_shards.py SRC OUT [key=value ...]

SRC may have sub-folders, and links to folders. Captions: the tables in it whose columns name files and say something of
them (CSV, JSON, Parquet), or the one named by captions=FILE alone; else a .txt, .caption or .json beside each video.
Classes: a column, or the names of folders (labels=folders). docs/data.md has every layout. Files and rows that are not
used are counted and named with their reasons, here and in OUT/packing.json.
"""

from ldm.commands.make_shards import main

if __name__ == "__main__":
    main()
