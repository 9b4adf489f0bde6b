"""Regularizers of a VAE's latents in training: local correlation. All are off by default.

In: posteriors and settings. Out: terms of the loss.
"""
