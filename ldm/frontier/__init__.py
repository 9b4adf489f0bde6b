"""The compression frontier: what more, or less, compression buys, at equal compute.

In: a config with points (rates, channels, regularizers of the VAE) and budgets. Out: a small JSON for each point, and
of all of them a table, a picture and a page.
"""
