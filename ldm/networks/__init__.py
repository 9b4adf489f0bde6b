"""The networks that are trained on latents, their conditioning, and the text encoders.

In: noisy latents (b, c, t, h, w), timesteps (b,), conditions. Out: the prediction, of the latents' shape.
"""
