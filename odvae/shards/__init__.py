"""WebDataset shards: reading and writing of tars, the facts and captions of their samples.

In: shards of this project or of others. Out: samples whose members are read by their offsets.
"""
