"""The networks that are trained on latents, their conditioning, and the text encoders.

In: noisy latents (b, c, t, h, w), times (b,), a condition. Out: the prediction, like the latents.
"""
