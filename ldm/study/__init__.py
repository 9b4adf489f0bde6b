"""The compression study: which runs it is made of, their costs and results, the claims, the page.

In: a study YAML. Out: runs, results as JSON, one page.
"""
