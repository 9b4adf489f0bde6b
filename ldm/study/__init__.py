"""The study of what compression buys: the paper's comparisons at equal budget, from one config to one page."""
