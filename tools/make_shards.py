"""Pack a folder of videos and images with captions into WebDataset shards. Run it again to go on after any stop.

    python tools/make_shards.py SRC OUT [key=value ...]

SRC may have sub-folders. Captions: metadata.jsonl, captions.csv or captions.json in SRC, any table named by
captions=FILE, else a .txt beside each video; classes from a column of the table, or from folder names (labels=folders).
Files that cannot be used are skipped, counted and named, here and in OUT/packing.json.
"""

from ldm.commands.make_shards import main

if __name__ == "__main__":
    main()
