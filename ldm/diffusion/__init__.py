"""The diffusion objective: paths from data to noise, prediction targets, noise levels, loss weights.

In: data, noise, timesteps (b,). Out: noisy data, targets, weights. Pure functions of tensors.
"""
