"""The parts of training the latent diffusion model that are not its loop: batches, validation, throughput.

In: latents. Out: noised batches with targets; losses and videos of held-out conditions.
"""
