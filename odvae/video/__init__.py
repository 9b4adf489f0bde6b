"""Video and image files and what they hold: decoding, encoding, pixel types, frame grids.

In: files. Out: uint8 frames (t, h, w, 3), and files written of them.
"""
