"""Common code of both training loops: optimizer, learning rate schedule, EMA, checkpoints, metrics.

In: a network and its settings. Out: a training state that can be resumed with bitwise the same results.
"""
