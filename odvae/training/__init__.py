"""What both training loops share: optimizer, learning rate, EMA, checkpoints, metrics.

In: a network and its settings. Out: a training state that resumes bit for bit.
"""
