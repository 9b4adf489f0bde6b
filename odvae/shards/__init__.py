"""WebDataset shards: packing files with captions into tars, and reading samples from tars.

In: folders of videos and captions. Out: KEY.mp4 KEY.txt KEY.json in numbered tars, and a report of what was left out.
"""
