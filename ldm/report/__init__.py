"""The report page: one HTML file with charts, and a flat table of every measured value.

In: the outputs of the stages in a run folder. Out: report.html, numbers.csv, overview.png.
"""
