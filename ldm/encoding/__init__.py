"""Encoding of videos into a folder of latents: choice of clips, workers, and verification.

In: video shards and a VAE. Out: latent shards and their records.
"""
