"""What the network learns: paths from data to noise, prediction targets, noise levels, loss weights.

In: data, noise, times (b,). Out: noisy data, targets, weights. Pure functions of tensors.
"""
