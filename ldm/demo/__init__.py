"""Everything that only rendered clips have: the renderer, and the judge that reads them.

In: a seed. Out: captioned videos of moving shapes; what a video shows.
"""
