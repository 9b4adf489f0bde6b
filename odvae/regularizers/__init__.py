"""Regularizers of a VAE's latents in training: local correlation, masking, equivariance. All are off by default.

In: posteriors, batches, settings. Out: terms of the loss, changes of the latents before they are decoded.
"""
