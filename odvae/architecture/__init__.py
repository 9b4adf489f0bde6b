"""What the video VAE is built of: layers, encoder and decoder, streaming, tiling, inflation from an image VAE.

In: tensors, sizes, weights of an image VAE. Out: modules and tensors. Nothing here reads files or trains.
"""
