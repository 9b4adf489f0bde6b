"""The format of a folder of latents: its manifest, and the entries in its tars.

In: a folder that encoding wrote. Out: latents (b, c, k, h, w) with text and labels.
"""
