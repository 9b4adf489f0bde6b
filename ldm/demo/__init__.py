"""The demo's rendered videos: the renderer, and the judge that measures color, shape, motion and speed in a video.

In: a seed. Out: captioned videos of moving shapes; a video's color, shape, motion and speed.
"""
