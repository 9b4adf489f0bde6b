"""How a folder of latents is made: which clips, in which batches, by which threads, and the proof of it.

In: video shards and a VAE. Out: latent shards and their records.
"""
