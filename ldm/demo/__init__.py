"""The demo's rendered videos: the renderer, and the judge that measures color, shape and motion in a video.

In: a seed. Out: captioned videos of moving shapes; a video's color, shape and motion.
"""
