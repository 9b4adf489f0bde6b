"""Parts of a VAE's evaluation; the stage is in odvae/evaluate.py.

In: held-out clips, reconstructions, latents. Out: scores for the log of a training and for the report.
"""
