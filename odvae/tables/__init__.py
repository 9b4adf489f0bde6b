"""Tables of captions as data sets come with them: CSV, JSON, Parquet and the like, whatever their columns are called.

In: a table and the names of a folder's videos. Out: the captions and the class of each video, and what was not used.
"""
