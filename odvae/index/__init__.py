"""The index of a folder of shards: one row a sample, in Arrow files that are memory-mapped.

In: shards, with what is known of their samples. Out: sequences of samples that hold no Python object a sample.
"""
