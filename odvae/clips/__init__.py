"""Clips for training and evaluation, decoded in advance by worker processes. Their order is a function of the step.

In: shards. Out: batches of uint8 clips (b, t, h, w, 3).
"""
