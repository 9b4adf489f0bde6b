"""Files wherever they are: local folders, buckets (s3, gs, hf) and web servers, by one set of functions.

In: a path or a URL. Out: bytes of it, its state, a local copy; whole files written to it. Local code needs no client.
"""
