"""Clips for training and scoring, decoded ahead by worker processes, in an order that follows from the step.

In: shards. Out: batches of uint8 clips (b, t, h, w, 3).
"""
