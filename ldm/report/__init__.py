"""The report page: one HTML file, charts, and a flat table of every number.

In: what the stages left in a run folder. Out: report.html, numbers.csv, overview.png.
"""
