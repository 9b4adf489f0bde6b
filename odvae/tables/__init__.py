"""Caption tables of data sets in CSV, JSON, Parquet and similar formats, with any of the usual column names.

In: a table and the names of a folder's videos. Out: the captions and the class of each video, and what was not used.
"""
