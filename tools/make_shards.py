"""Pack a folder of videos and images with captions, or a table of URLs, into WebDataset shards. Run it again to resume.

    python tools/make_shards.py SRC OUT [key=value ...]

SRC is a folder, with sub-folders and links to folders, or a table (CSV, JSON lines, Parquet) with a column of URLs or
paths. Captions of a folder: every table in it with a file column and a caption or class column (CSV, JSON, Parquet), or
only the one named by captions=FILE; else a .txt, .caption or .json next to each video. Classes: a column, or the names
of folders (labels=folders). docs/data.md has every layout. Shards can be used as soon as they appear. Unused files and
rows are counted and listed with reasons, here and in OUT/packing.json.
"""

from ldm.commands.make_shards import main

if __name__ == "__main__":
    main()
