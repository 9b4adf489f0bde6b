"""Decoding and encoding of video and image files, conversion of pixel types, frame grids.

In: files. Out: uint8 frames (t, h, w, 3), and files written from them.
"""
