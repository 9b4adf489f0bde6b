"""Parts of the training of the latent diffusion model: batches, validation, throughput; the loop is in ldm/train.py.

In: latents. Out: noisy batches with targets; losses and videos of held-out conditions.
"""
