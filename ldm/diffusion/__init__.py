"""The diffusion objective: timesteps and noise levels, prediction targets, loss weights.

In: data, noise, timesteps (b,). Out: noisy data, targets, weights. Pure functions of tensors.
"""
