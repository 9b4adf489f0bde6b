"""Packing of videos and images with captions into shards.

In: a folder, or a table of URLs. Out: shards, their index, and a report of what is in them and what is not.
"""
