"""The compression study: its runs, their costs and results, the paper's claims, and the page.

In: a study YAML. Out: runs, results as JSON, one page.
"""
