"""From noise to videos: schedulers, guidance, decoding piece by piece, the pipeline's folder.

In: a trained network and noise. Out: latents, then frames.
"""
