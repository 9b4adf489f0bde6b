"""Work on many machines without an own scheduler: parts that any scheduler runs, and a pool of workers on Ray.

In: a function and its inputs. Out: which inputs are whose, and results in the order of the inputs.
"""
