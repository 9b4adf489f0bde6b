"""Sampling: requests, schedulers, guidance, streamed decoding, the pipeline's folder.

In: a trained network and noise. Out: latents, then frames.
"""
