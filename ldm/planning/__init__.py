"""Planning before a launch: every stage's real step on fake CUDA tensors, on a machine without a GPU.

In: an experiment's settings. Out: what would fail or wait on a GPU; memory, FLOPs and least times by device.
"""
